"""A run whose framework does not do what the plan says stops before step 0, with a table."""

import json
import os
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from saboteurs import IgnoresScale

from layerwise_lr.cli import hydra_app, program
from layerwise_lr.framework import registry
from layerwise_lr.sweep import jobs


def test_a_run_under_a_saboteur_stops_before_step_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["layerwise-lr"])
    for name in jobs.thread_environment(1):  # which the command sets
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.setattr(registry, "load", lambda name: IgnoresScale)
    words = ["train", "framework=reference", "steps=5", "hydra.run.dir=run"]
    with pytest.raises(SystemExit) as ended:
        program.main(words)
    GlobalHydra.instance().clear()
    told = capsys.readouterr()
    assert ended.value.code == 1
    assert "planned lr" in told.out and "layer_0" in told.out
    assert "does not move as planned" in told.err and "Traceback" not in told.err
    check = json.loads((tmp_path / "run" / "lr_check.jsonl").read_text().splitlines()[-1])
    stem = next(row for row in check["groups"] if row["group"].startswith("layer_0") and row["planned"])
    assert stem["measured"] == pytest.approx(stem["planned"] / 0.75**4, rel=1e-3)  # the scale was ignored
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()

    monkeypatch.setattr(hydra_app, "made_folder", None)
    with pytest.raises(SystemExit) as ended:
        program.main([*words[:-1], "hydra.run.dir=unproved", "verify=off"])
    GlobalHydra.instance().clear()
    assert ended.value.code == 0
    assert not (tmp_path / "unproved" / "lr_check.jsonl").exists()
    assert (tmp_path / "unproved" / "summary.json").exists()
