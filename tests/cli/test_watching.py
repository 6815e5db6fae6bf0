"""Watching: real runs looked at while they train, a real sweep on a terminal, without one, and from elsewhere."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from killing import prepared

from layerwise_lr.planning import UserError
from layerwise_lr.run import page, read_metrics, watching
from layerwise_lr.run.watching import Watched

SMALL = {"framework": {"name": "reference"}, "steps": 20}
PROGRAM = [sys.executable, "-m", "layerwise_lr"]
SWEEP = [
    *("train", "-m", "framework=reference", "model=mlp", "weights=none", "model.width=8", "model.depth=1"),
    *("data.image_size=8", "data.train_size=50", "data.val_size=20", "data.test_size=20", "grouping=flat"),
    *(
        "batch_size=10",
        "steps=10000",
        "eval_every=1000",
        "optimizer=sgd",
        "scheduler=constant",
        "optimizer.weight_decay=0.01",
    ),
    *("verify=off", "optimizer.lr=0.01,0.02,1e6", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"),
]
"""Three jobs, of which one leaves the numbers."""


# --- one folder


def run(path: Path, stop: int | None = None) -> list[watching.Seen]:
    """What was seen of it before each step."""
    watched, seen = Watched(path, "it"), []

    def track(steps: Iterable[int], total: int) -> Iterator[int]:
        for step in steps:
            seen.append(watched.look())
            if step == stop:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    try:
        page.run(path, lambda line: None, track)
    except KeyboardInterrupt:
        assert stop is not None
    return [*seen, watched.look()]


def test_what_is_seen_is_what_the_run_has_written(tmp_path: Path) -> None:
    path = prepared(tmp_path / "run", **SMALL)
    assert Watched(path, "it").look().state == "waiting"
    *seen, last = run(path)
    records = read_metrics(path / "metrics.jsonl")
    losses = [r["loss"] for r in records if "loss" in r]
    assert [(s.state, s.step, s.total, s.loss) for s in seen] == [
        ("running", step, 20, losses[step - 1] if step else None) for step in range(20)
    ]
    values = [max(r["val"]["accuracy"], r["val_ema"]["accuracy"]) for r in records if "val" in r]
    assert [s.last for s in seen if s.step % 5 == 0 and s.step] == values[:3]
    assert [s.best for s in seen if s.step % 5 == 0 and s.step] == [max(values[: n + 1]) for n in range(3)]
    assert all(s.left > 0 for s in seen if s.step)
    kept = json.loads((path / "summary.json").read_text())["val"]["accuracy"]
    assert (last.state, last.step, last.last, last.left) == ("done", 20, kept, None)


def test_one_that_goes_on_goes_back_to_where_it_does(tmp_path: Path) -> None:
    path, watched = prepared(tmp_path / "run", **SMALL), Watched(tmp_path / "run", "it")
    run(path, stop=8)
    assert (watched.look().state, watched.look().step) == ("interrupted", 9)
    shutil.rmtree(path / "checkpoints/resume/step_9")
    seen = run(path)
    assert [s.step for s in seen] == list(range(8, 21))
    assert (watched.look().state, watched.look().step) == ("done", 20)


def test_a_look_at_a_million_steps_is_short(tmp_path: Path) -> None:
    path = prepared(tmp_path / "run", **{**SMALL, "steps": 1_000_000, "eval_every": 1000, "checkpoint": {}})
    lines = ['{"metrics_version": 1}\n']
    for step in range(1, 500_001):
        lines.append(f'{{"step": {step - 1}, "loss": {1 / step}}}\n')
        if step % 1000 == 0:
            val = f'{{"loss": 1.0, "accuracy": {step / 1e6}}}'
            lines.append(f'{{"step": {step}, "val": {val}, "best": true, "groups": {{}}}}\n')
    (path / "metrics.jsonl").write_text("".join(lines))
    watched, began = Watched(path, "it"), time.perf_counter()
    first = watched.look()
    assert (first.step, first.total, first.loss, first.last) == (500_000, 1_000_000, 1 / 500_000, 0.5)
    for step in range(500_000, 500_100):
        with (path / "metrics.jsonl").open("a") as log:
            log.write(f'{{"step": {step}, "loss": 3.0}}\n')
        assert (seen := watched.look()).step == step + 1 and seen.loss == 3.0
    assert time.perf_counter() - began < 1.0, "101 looks"


@pytest.mark.parametrize("name", ["status.json", "config.resolved.yaml", "metrics.jsonl", "summary.json"])
def test_a_folder_that_cannot_be_read_is_a_line(tmp_path: Path, name: str) -> None:
    path = prepared(tmp_path / "run", **SMALL)
    run(path)
    (path / name).unlink()
    (path / name).symlink_to("/dev/zero")
    seen = Watched(path, "it").look()
    assert seen.state == "unreadable" and name in seen.why


def test_nothing_to_watch_is_said(tmp_path: Path) -> None:
    for place, says in ((tmp_path / "no", "no such folder"), (tmp_path, "holds no sweep.json")):
        with pytest.raises(UserError, match=says):
            watching.watched(place)


# --- a sweep, in processes


class Terminal:
    """A command on a terminal of 100 columns, and all that it wrote."""

    def __init__(self, words: list[str], home: Path) -> None:
        ours, its = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*PROGRAM, *words], cwd=home, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True
        )
        os.close(its)
        self.said = ""
        self._thread = threading.Thread(target=self._read, args=(ours,))
        self._thread.start()

    def _read(self, ours: int) -> None:
        while True:
            try:
                select.select([ours], [], [], 1)
                held = os.read(ours, 65536)
            except OSError:
                break
            if not held:
                break
            self.said += held.decode()

    def ended(self) -> tuple[int, str]:
        """Exit code, and what it said without the terminal's codes."""
        code = self.process.wait(120)
        self._thread.join(10)
        return code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.said)


def test_a_sweep_is_watched_where_it_runs_and_from_elsewhere(tmp_path: Path) -> None:
    sweep = Terminal(SWEEP, tmp_path)
    while not list(tmp_path.glob("sweep/*/status.json")):
        assert sweep.process.poll() is None, sweep.said
        time.sleep(0.05)
    live = Terminal(["watch", "sweep"], tmp_path)
    lines = subprocess.run([*PROGRAM, "watch", "sweep"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert sweep.ended()[0] == 2, sweep.said
    assert live.ended()[0] == 1 and lines.returncode == 1 and lines.stderr == ""
    once = subprocess.run([*PROGRAM, "watch", "sweep", "--once"], cwd=tmp_path, capture_output=True, text=True)
    names = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert len(names) == 3
    end = "2 of 3 jobs done, 1 failed"
    for said in (sweep.ended()[1], live.ended()[1]):
        assert re.search(r"running +[\d,]+/10,000 +\d\.\d{4}", said), said[-3000:]
        assert "about" in said and "waiting" in said and "left" in said
    assert end in live.ended()[1] and end in once.stdout
    told = lines.stdout.splitlines()
    assert told[-1] == end
    for name in names:
        assert any(line.startswith(name) for line in told) and name[:20] in once.stdout
    assert sum("  done  step 10000/10000  training loss" in line for line in told) == 2
    assert any("  failed  " in line and "lower optimizer.lr" in line for line in told)
    assert "\x1b" not in lines.stdout + once.stdout
