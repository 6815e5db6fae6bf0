"""What a report costs at scale: python tests/benchmarks/report_scale.py [long | whole | many ...]

    long   one run of 1,000,000 steps and 1,000 evaluations, its log as a run writes it
    whole  the same with the lrs of all 26 groups on every line, as version 0.1 wrote it: some 600 MB
    many   1,000 finished runs of 1,000 steps, ten evaluations each: 40 settings, 25 seeds

One real run of 50 steps is made, and what it wrote is drawn out. Told: wall and processor seconds, and peak MB, of
`layerwise-lr report` as a process. Other jobs of the machine disturb all but the processor's.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

from layerwise_lr.run import CONFIG, RunFolder, page, reading, resolve

STEPS, RUNS, SEEDS = 10**6, 1000, 25
GIVEN = {
    "framework": {"name": "reference"},
    "model": {"name": "mlp", "width": 8, "depth": 12},
    "data": {"name": "digits", "image_size": 8, "val_size": 50, "test_size": 50},
    "steps": 50,
    "eval_every": 10,
}


class Cost(NamedTuple):
    """Of a report: seconds of wall clock and of a processor, peak MB of any command so far, MB of the page."""

    wall: float
    processor: float
    peak: float
    page: float


def trained(path: Path, **more: object) -> Path:
    """A real run."""
    RunFolder.claim(path).write_text(CONFIG, resolve(reading.from_data({**GIVEN, **more})).to_yaml())
    page.run(path, say=lambda _: None)
    return path


def log(real: Path, steps: int, evaluations: int, whole: bool) -> Iterator[str]:
    """metrics.jsonl of a longer run: falling losses with noise, the evaluation of the real one."""
    lines = (real / "metrics.jsonl").read_text().splitlines()
    evaluation, rng = json.loads(lines[-1]), random.Random(0)
    lrs = json.dumps(json.loads(lines[4])["lrs"])
    told = range(steps) if whole else range(0, steps, -(-steps // 10_000))
    yield lines[0]
    for step in range(steps):
        loss = 2.3 * 0.1 ** (step / steps) + 0.2 * rng.random()
        yield f'{{"step": {step}, "loss": {loss!r}' + (f', "lrs": {lrs}}}' if step in told else "}")
        if (step + 1) % (steps // evaluations) == 0:
            yield json.dumps({**evaluation, "step": step + 1})


def drawn_out(real: Path, path: Path, steps: int, text: Iterator[str], **config: object) -> None:
    """A copy of a run that took so many steps."""
    path.mkdir(parents=True)
    for file in real.iterdir():
        if file.is_file() and file.name != ".lock":
            shutil.copy(file, path)
    RunFolder(path).write_rows("metrics.jsonl", text)
    more = resolve(reading.from_data({**GIVEN, **config, "steps": steps, "eval_every": steps // 10}))
    (path / CONFIG).write_text(more.to_yaml())
    plan = json.loads((path / "plan.json").read_text())
    (path / "plan.json").write_text(json.dumps({**plan, "total_steps": steps}))


def measure(folder: Path) -> Cost:
    """One report, of its own process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "layerwise_lr", "report", str(folder)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    page = (folder / "report.html").stat().st_size / 1e6
    return Cost(time.perf_counter() - began, spent, after.ru_maxrss / 1024, page)


def costs(asked: Iterable[str]) -> Iterator[tuple[str, Cost]]:
    """Of each that is asked for."""
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        real = trained(home / "real")
        for which in asked:
            if which == "many":
                text = list(log(real, 1000, 10, True))
                for i in range(RUNS):
                    decay, lr = (1.0, 0.9, 0.8, 0.7)[i // SEEDS % 4], 1e-4 * (1 + i // SEEDS // 4)
                    varied = {"seed": i % SEEDS, "grouping": {"layer_decay": decay}, "optimizer": {"lr": lr}}
                    drawn_out(real, home / which / str(i), 1000, iter(text), **varied)
            else:
                drawn_out(real, home / which, STEPS, log(real, STEPS, 1000, which == "whole"))
            yield which, measure(home / which)
            shutil.rmtree(home / which)


def main(asked: list[str]) -> None:
    """The table."""
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    for which, cost in costs(asked or ["many", "long", "whole"]):
        print(
            f"{which:<6} {cost.wall:6.1f} s, {cost.processor:.1f} of a processor; peak so far "
            f"{cost.peak:.0f} MB; page {cost.page:.2f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
