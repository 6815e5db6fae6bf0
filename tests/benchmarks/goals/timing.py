"""How the goals are measured: candidates side by side in interleaved rounds, in CPU time of one thread, medians of ratios.

Other jobs of the machine disturb CPU time little, and a round's candidates alike; so ratios within one run can be compared,
and numbers of two runs cannot. On a GPU the clock is the wall's, read when the device has finished.
"""

import gc
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import starmap
from operator import truediv
from statistics import quantiles
from typing import NamedTuple

SAMPLE = 0.01
"""Seconds that a sample lasts at least."""


class Case(NamedTuple):
    """One number of a goal.

    Args:
        goal: "G1".
        case: which of its cases.
        value: a ratio, or what `unit` says.
        low, high: its quartiles over the rounds; equal to it where there is one round.
        target: the highest that is good; None: told beside the goal.
        unit: "" of a ratio.
    """

    goal: str
    case: str
    value: float
    low: float
    high: float
    target: float | None
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether it is good."""
        return self.target is None or self.value <= self.target


def seconds(call: Callable[[], object], times: int, finish: Callable[[], object] | None) -> float:
    """Of one call."""
    if finish:
        finish()
    clock = time.perf_counter if finish else time.process_time
    began = clock()
    for _ in range(times):
        call()
    if finish:
        finish()
    return (clock() - began) / times


def side_by_side(
    calls: Mapping[str, Callable[[], object]], rounds: int = 31, finish: Callable[[], object] | None = None
) -> dict[str, list[float]]:
    """Seconds of each call in each round; the order goes round.

    Args:
        calls: by name.
        rounds: of all of them.
        finish: waits for a device; None: on the CPU, in its time.
    """
    times = {}
    for name, call in calls.items():
        seconds(call, 3, finish)
        times[name] = max(round(SAMPLE / max(seconds(call, 3, finish), 1e-7)), 1)
    found: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(seconds(calls[name], times[name], finish))
    finally:
        gc.enable()
    return found


def ratio(goal: str, case: str, ours: Sequence[float], reference: Sequence[float], target: float | None) -> Case:
    """Of two columns of `side_by_side`, round by round."""
    low, middle, high = quantiles(starmap(truediv, zip(ours, reference, strict=True)), n=4)
    return Case(goal, case, middle, low, high, target)


def once(goal: str, case: str, value: float, target: float | None, unit: str = "") -> Case:
    """A number that was measured one time."""
    return Case(goal, case, value, value, value, target, unit)


def process(words: Sequence[str]) -> float:
    """CPU seconds of a command with all that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "100"}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
