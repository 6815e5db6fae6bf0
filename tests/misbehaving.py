"""Sweeps of the unruly frameworks as a test starts and looks at them."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
WORDS = (
    "model=mlp",
    "weights=none",
    "optimizer.lr=0.01",
    "steps=20",
    "eval_every=5",
    "checkpoint.every=4",
    "+size=test",
)


def surroundings(home: Path) -> dict[str, str]:
    """An environment with the unruly frameworks installed; they misbehave as long as home/unruly is there."""
    site = home / "site"
    (site / "unruly-1.dist-info").mkdir(parents=True)
    shutil.copy(HERE / "unruly_framework.py", site)
    (site / "unruly-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: unruly\nVersion: 1\n")
    (site / "unruly-1.dist-info/entry_points.txt").write_text(
        "[layerwise_lr.frameworks]\nunruly = unruly_framework:Unruly\nspawned = unruly_framework:Spawned\n"
    )
    (home / "unruly").touch()
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "UNRULY": str(home / "unruly"), "OMP_NUM_THREADS": "1"}


def ended(process: "subprocess.Popen[str]", code: int) -> tuple[str, str]:
    """What it said, on both streams."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, out + err
    return out, err


def left(tmp_path: Path) -> list[str]:
    """The processes that know this test's folder by their environment: the command and all its descendants."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            facts = (process / "stat").read_text().rpartition(")")[2].split()
            if f"UNRULY={tmp_path}".encode() in (process / "environ").read_bytes() and facts[0] != "Z":
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def until(true: Callable[[], object], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def by_mode(sweep: Path) -> dict[str, Path]:
    """The jobs' folders."""
    return {path.name.partition("-")[2].rpartition("_")[0]: path for path in sweep.glob("[!.]*/")}
