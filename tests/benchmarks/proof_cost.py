"""What the proof costs, as ratios within one run: python tests/benchmarks/proof_cost.py FRAMEWORK [MODE] [RUN ...]

    start       the rehearsal before step 0, in steps of the run that follows; first warm-up and compilation included,
                of which most serves the run as well
    again       the same once more: the proof alone
    evaluation  a step that is measured: copies of weights and optimizer state, the comparison, its line
    share       of the whole run, imports excepted: again, and all evaluations

A step is the median of those without an evaluation. Times are the process's on its processors, all threads together:
other jobs of the machine disturb them little. Idle threads must sleep for that, hence OMP_WAIT_POLICY; OneFlow and
MegEngine spin where they wait, so look at the load.
Needs `layerwise-lr fetch elpv mobilenet_v2_imagenet`; digits of the same size stand in for absent pictures.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from layerwise_lr.cli import hydra_app
from layerwise_lr.framework import registry
from layerwise_lr.run import CONFIG, RunFolder, page, reading, resolve

RUNS = {
    "solar_cells": ["experiment=solar_cells", "data.stand_in=digits"],
    "resnet18": ["model=resnet18", "weights=none", "epochs=20", "eval_every=5 epochs", "data.test_size=100"],
    "lenet": [],
}
HEAD = f"{'run':<12}{'steps':>6}{'ms/step':>9}{'rehearsed':>10}{'start':>8}{'again':>8}{'evaluation':>11}{'share':>8}"


class Cost(NamedTuple):
    """Of one run, in steps of it, but for `unit`, seconds of a step, and the shares: `training` is without the start."""

    steps: int
    unit: float
    rehearsed: int
    start: float
    again: float
    evaluation: float
    share: float
    training: float
    notes: list[str]

    def line(self) -> str:
        """Of the table, without the name."""
        line = f"{self.steps:>6}{1e3 * self.unit:>9.1f}{self.rehearsed:>10}{self.start:>8.1f}{self.again:>8.1f}"
        return f"{line}{self.evaluation:>11.2f}{self.share:>8.1%}"


@contextmanager
def timed(owner: Any, name: str, calls: list[tuple[float, tuple[Any, ...]]], times: int = 1) -> Iterator[None]:
    """Each call of owner.name is made `times` times; seconds and arguments of each go to `calls`."""
    kept: Callable[..., Any] = getattr(owner, name)

    def call(*given: Any) -> Any:
        for _ in range(times):
            began = time.process_time()
            result = kept(*given)
            calls.append((time.process_time() - began, given))
        return result

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def measure(framework: str, mode: str, words: list[str], path: Path) -> Cost:
    """One run."""
    data, _ = hydra_app.composed([*words, f"framework.name={framework}", f"framework.mode={mode}"])
    folder = RunFolder.claim(path)
    folder.write_text(CONFIG, resolve(reading.from_data(data)).to_yaml())
    steps, starts, held, compared = [], [], [], []  # type: ignore[var-annotated]
    with (
        timed(page.Loop, "_step", steps),
        timed(page.Prover, "rehearse", starts, times=2),
        timed(page.Prover, "hold", held),
        timed(page.Prover, "compare", compared),
    ):
        began = time.process_time()
        summary = page.run(folder.path, say=lambda line: None)
        whole = time.process_time() - began
    unit = median(seconds for seconds, (*_, due) in steps if not due)
    (start, _), (again, given) = starts
    proofs = [a + b for (a, _), (b, _) in zip(held, compared, strict=True)]
    rehearsed = sum(record["when"] == "start" for record in given[0].records) // 2
    shares = [spent / (whole - again) for spent in (again + sum(proofs), sum(proofs))]
    per_step = [seconds / unit for seconds in (start, again, median(proofs))]
    return Cost(len(steps), unit, rehearsed, *per_step, *shares, summary["notes"])


def main(framework: str, mode: str = "", *names: str) -> None:
    """The table."""
    mode = mode or registry.load(framework).modes[0]
    print(f"{registry.load(framework).version()}, {mode}; load {os.getloadavg()[0]:.1f}\n{HEAD}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        for name in names or RUNS:
            cost = measure(framework, mode, RUNS[name], Path(place, name))
            notes = (f"  {note}" for note in cost.notes if "stand in" in note)
            print(f"{name:<12}{cost.line()}", *notes, sep="\n", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
