"""Whether a long run grows: python tests/benchmarks/long_runs.py [FRAMEWORK[:MODE] ...] [--steps N]

Real runs of a small network, each in a process of its own: 5,000 steps, 200 evaluations, the proof at each of them, resume
points, checkpoints. At every tenth of the steps: resident MiB, open files, threads. The last column is what memory gained
from the second tenth to the last, in KiB per 1,000 steps; what stands still is within a few hundred of 0.
Without words: every framework that is installed here, in all its modes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from layerwise_lr.framework import registry
from layerwise_lr.run import CONFIG, RunFolder, page, reading, resolve

EVALUATIONS, TENTHS = 200, 10


def now() -> tuple[float, int, int]:
    """(resident MiB, open files, threads) of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files, threads = (len(list(Path(f"/proc/self/{name}").iterdir())) for name in ("fd", "task"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files, threads


def train(framework: str, mode: str, steps: int, folder: Path) -> list[tuple[float, int, int]]:
    """One run in this process; what it held at each tenth of its steps."""
    slow = mode in registry.load(framework).retry_on_signal  # short steps crash it: see the plugin
    given = {
        "framework": {"name": framework, "mode": mode, "threads": 1},
        "model": {"name": "lenet"} if slow else {"name": "mlp", "width": 8, "depth": 1},
        "data": {"name": "digits", "train_size": 50, "val_size": 20, "test_size": 40, "image_size": 28 if slow else 8},
        "batch_size": 8,
        "steps": steps,
        "eval_every": max(steps // EVALUATIONS, 1),
        "checkpoint": {"every": max(steps // 20, 1)},
    }
    config = resolve(reading.from_data(given))
    RunFolder.claim(folder).write_text(CONFIG, config.to_yaml())
    seen = []

    def track(run: Iterable[int], total: int) -> Iterator[int]:
        for step in run:
            yield step
            if (step + 1) % (total // TENTHS) == 0:
                seen.append(now())

    page.run(folder, say=lambda _: None, track=track)
    return seen


def installed() -> list[str]:
    """FRAMEWORK:MODE of all that can be loaded here."""
    return [
        f"{name}:{mode}" for name in registry.names() if registry.installed(name) for mode in registry.load(name).modes
    ]


def show(which: str, steps: int) -> None:
    """A line of the table."""
    framework, _, mode = which.partition(":")
    with tempfile.TemporaryDirectory() as home:
        seen = train(framework, mode or "eager", steps, Path(home, "run"))
    memory, files, threads = zip(*seen, strict=True)
    slope = 1024 * (memory[-1] - memory[1]) / (steps * (TENTHS - 2) / TENTHS / 1000)
    print(
        f"{which:<22} MiB {' '.join(f'{mib:.0f}' for mib in memory)}  files {spread(files)}  threads {spread(threads)}"
        f"  {slope:+.0f} KiB per 1,000 steps",
        flush=True,
    )


def spread(counts: Iterable[int]) -> str:
    """The second of them and the last, and the most where that is another."""
    one = list(counts)
    return f"{one[1]} to {one[-1]}" + (f" (at most {max(one)})" if max(one) > max(one[1], one[-1]) else "")


def main() -> None:
    """The table, a process for each line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("which", nargs="*")
    parser.add_argument("--steps", type=int, default=5000)
    given = parser.parse_args()
    if len(given.which) == 1:
        show(given.which[0], given.steps)
        return
    for which in given.which or installed():
        subprocess.run([sys.executable, __file__, which, f"--steps={given.steps}"], check=False)


if __name__ == "__main__":
    main()
