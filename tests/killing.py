"""Runs that are killed with SIGKILL at random moments and started again until they are finished; what sets one apart
from a run that nobody disturbed.

    python tests/killing.py FRAMEWORK MODE KILLS [JSON]    the long harness: prints what came of it; JSON: other keys
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from layerwise_lr.run import CONFIG, RunFolder, read_lines, read_metrics, reading, resolve

RICH: dict[str, Any] = {
    "model": {"name": "vit_tiny", "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 2, "dropout": 0.1},
    "data": {"name": "digits", "train_size": 60, "val_size": 20, "test_size": 20, "image_size": 8, "channels": 1},
    "augment": {"crop_scale": [0.5, 1.0], "hflip": 0.5, "mixup": 0.8},
    "grouping": {"layer_decay": 0.8},
    "scheduler": {"name": "cosine", "warmup": "10%"},
    "optimizer": {"name": "adamw", "lr": 3e-3},
    "freeze": {"strategy": "progressive", "every": "20%"},
    "label_smoothing": 0.1,
    "batch_size": 10,
    "steps": 60,
    "eval_every": 5,
    "ema": {"decay": 0.9},
    "checkpoint": {"every": 2, "keep": 2, "keep_best": 2},
}
"""Whatever a run remembers from step to step: moments, dropout, augmentation, phases of freezing, an average, the best."""
BY_TIME = ("train_seconds", "seconds", "resumed", "peak_memory_mb")
"""Of summary.json."""


def prepared(path: Path, **changes: Any) -> Path:
    """A claimed folder that `layerwise-lr run` trains."""
    folder = RunFolder.claim(path)
    folder.write_text(CONFIG, resolve(reading.from_data({**RICH, **changes})).to_yaml())
    return path


def started(path: Path) -> "subprocess.Popen[str]":
    """A process that trains the folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-m", "layerwise_lr", "run", str(path)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def begun(process: "subprocess.Popen[str]") -> str:
    """Waits until it trains; what it said until then."""
    said, line = "", " "
    assert process.stdout
    while line and not line.startswith(("effective lr proved", "goes on after")):
        line = process.stdout.readline()
        said += line
    return said


def finished(path: Path) -> tuple[str, float]:
    """Trained to its end: what it said, and the seconds behind its loading."""
    process = started(path)
    said = begun(process)
    since = time.monotonic()
    said += process.communicate()[0]
    assert process.returncode == 0, said
    return said, time.monotonic() - since


def killed(path: Path, delay: float, loading: bool = False) -> bool:
    """One attempt, killed so long after its training, or its loading, began; False: it was faster. The folder can be
    read afterwards."""
    process = started(path)
    if not loading:
        begun(process)
    try:
        process.communicate(timeout=delay)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    dead = process.returncode == -9
    assert dead or process.returncode == 0, process.returncode
    assert RunFolder(path).state() in (("crashed", "claimed", "completed") if dead else ("completed",))
    assert isinstance(read_metrics(path / "metrics.jsonl"), list) and isinstance(
        read_lines(path / "lr_check.jsonl"), list
    )
    return dead


def unlike(one: Path, other: Path) -> list[str]:
    """What differs in two finished runs, but for times: file by file, bit by bit."""
    found = []
    for name in ("metrics.jsonl", "lr_check.jsonl", "lrs.csv", "params.csv", "plan.json", "data.json"):
        held = [(f / name).read_bytes() if (f / name).exists() else None for f in (one, other)]
        if held[0] != held[1]:
            found.append(name)
    kept = [{p.relative_to(f): p for p in (f / "checkpoints").rglob("*") if p.is_file()} for f in (one, other)]
    found += [str(name) for name in sorted(kept[0].keys() ^ kept[1].keys())]
    found += [str(n) for n in kept[0].keys() & kept[1].keys() if kept[0][n].read_bytes() != kept[1][n].read_bytes()]
    ends = [json.loads((f / "summary.json").read_text()) for f in (one, other)]
    return found + [key for key in ends[0] if key not in BY_TIME and ends[0][key] != ends[1].get(key)]


def survived(
    home: Path, kills: int, seed: int = 0, say: Callable[[object], object] = lambda told: None, **changes: Any
) -> dict[str, Any]:
    """`kills` kills spread over as many runs as that takes; what differs from the unbroken run is in "unlike"."""
    rng = random.Random(seed)
    whole = prepared(home / "whole", **changes)
    _, seconds = finished(whole)
    told: dict[str, Any] = {
        "kills": 0,
        "runs": 0,
        "resumed": 0,
        "damaged": 0,
        "unlike": [],
        "seconds": round(seconds, 1),
    }
    while told["kills"] < kills:
        path = prepared(home / f"run_{told['runs']}", **changes)
        told["runs"] += 1
        while told["kills"] < kills and killed(path, rng.uniform(0, seconds / 4), rng.random() < 0.1):
            told["kills"] += 1
        if not (path / "summary.json").exists():
            said, _ = finished(path)
            told["damaged"] += said.count("cannot be used")
        told["resumed"] += len(json.loads((path / "summary.json").read_text())["resumed"])
        told["unlike"] += unlike(whole, path)
        say(told)
    return told


if __name__ == "__main__":
    framework, mode, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    more = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    with tempfile.TemporaryDirectory() as made:
        came = survived(
            Path(made), count, say=partial(print, flush=True), framework={"name": framework, "mode": mode}, **more
        )
    print(framework, mode, came, flush=True)
