"""`tune`, which is `lr-find`, a sweep and a report, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = ("framework=reference", "model=mlp", "weights=none", "optimizer=momentum", "verify=off", "+size=test")


def tuned(*words: str) -> str:
    start = [sys.executable, "-m", "layerwise_lr", "tune", *words, *WORDS]
    ended = subprocess.run(start, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_tune_finds_sweeps_and_reports_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("hydra.sweep.dir=s", "grouping.layer_decay=0.75,1.0", "seed=0", "--steps", "30", "--from=1e-5")
    said = tuned(*words)
    found = json.loads((tmp_path / "s/lr_find/lr_find.json").read_text())
    assert found["spec"] == {"low": 1e-5, "high": 1.0, "steps": 30}
    assert (tmp_path / "s/lr_find/lr_find.png").read_bytes()[:4] == b"\x89PNG"
    jobs = json.loads((tmp_path / "s/sweep.json").read_text())["jobs"].values()
    lrs = sorted({float(word.partition("=")[2]) for job in jobs for word in job["overrides"] if ".lr=" in word})
    assert len(jobs) == 6
    assert lrs == pytest.approx([found["suggestion"] / 3, found["suggestion"], 3 * found["suggestion"]], rel=0.05)
    assert "6 finished runs" in said and (tmp_path / "s/report.html").exists()

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/*.json") if path.name != "status.json"}
    assert "6 of 6 jobs are done" in tuned(*words)
    assert {path: path.stat().st_mtime_ns for path in times} == times
