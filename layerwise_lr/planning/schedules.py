"""Schedules: functions from the step (counted from 0) to a factor of the group's own lr.

Floors and warm-up starts are fractions, so a schedule never changes the ratio between two layers. Nothing here
knows a framework: eager code evaluates a schedule, a graph tabulates it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import cos, inf, pi, prod
from typing import Any

from .errors import UserError, did_you_mean

Schedule = Callable[[int], float]
Duration = Any
"""In YAML "2 epochs", "10%" or 50; whole steps (int) once a run's config is resolved."""


@dataclass
class ScheduleSpec:
    """One schedule as data.

    Args:
        name: constant | linear | step | multistep | exponential | cosine | polynomial | one_cycle | join | product.
        warmup: how long the lr rises; the schedule itself starts after it.
        warmup_start: fraction of the group's lr at step 0.
        floor: fraction at the end (linear, cosine, polynomial).
        gamma: factor (step, exponential, multistep).
        every: how often gamma is applied (step, exponential).
        milestones: when gamma is applied (multistep).
        power: of the polynomial; 1 is linear.
        pct_start: share of the rise (one_cycle).
        div_factor: start = 1 / div_factor (one_cycle).
        final_div_factor: end = start / final_div_factor (one_cycle).
        parts: names of schedules, one after the other, each on its own clock (join), or multiplied step by step
            (product); "default" is the run's, so a product keeps a group's own decay under any scheduler.
        starts: when the second, third, ... part begins (join).
        interval: how often the factor changes: "1 epoch" holds it for the epoch.
    """

    name: str = "constant"
    warmup: Duration = 0
    warmup_start: float = 0.0
    floor: float = 0.0
    gamma: float = 0.1
    every: Duration = "1 epoch"
    milestones: list[Duration] = field(default_factory=list)
    power: float = 1.0
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    parts: list[str] = field(default_factory=list)
    starts: list[Duration] = field(default_factory=list)
    interval: Duration = 1


def constant() -> Schedule:
    """Always 1."""
    return lambda step: 1.0


def polynomial(steps: int, power: float = 1.0, floor: float = 0.0) -> Schedule:
    """From 1 to `floor` over `steps`, then `floor`; power 1 is linear."""
    return lambda step: floor + (1 - floor) * (1 - min(step / steps, 1.0)) ** power


def cosine(steps: int, floor: float = 0.0) -> Schedule:
    """Half a cosine from 1 to `floor` over `steps` (Loshchilov and Hutter 2017), then `floor`."""
    half = (1 - floor) * 0.5
    return lambda step: floor + half * (1 + cos(pi * (step / steps if step < steps else 1.0)))


def exponential(gamma: float, every: int) -> Schedule:
    """gamma ** (step // every): torch's StepLR, and seed document 000's decay every 10 batches."""
    return lambda step: _power(gamma, step // every)


def multistep(gamma: float, milestones: list[int]) -> Schedule:
    """One factor gamma for every milestone reached."""
    return lambda step: _power(gamma, sum(step >= m for m in milestones))


def _power(gamma: float, times: int) -> float:
    """gamma ** times, infinite where no float holds it: the plan's check tells of it."""
    try:
        return float(gamma) ** times
    except OverflowError:
        return inf


def one_cycle(steps: int, pct_start: float, div_factor: float, final_div_factor: float) -> Schedule:
    """torch's OneCycleLR with cosine annealing, as a factor of max_lr (Smith and Topin 2018)."""
    start, end = 1 / div_factor, 1 / (div_factor * final_div_factor)
    peak, last = pct_start * steps - 1, max(steps - 1, 1)

    def factor(step: int) -> float:
        if step <= peak:
            return 1 + (start - 1) * 0.5 * (1 + cos(pi * step / peak)) if peak > 0 else 1.0
        return end + (1 - end) * 0.5 * (1 + cos(pi * min((step - peak) / (last - peak), 1.0)))

    return factor


def warmup(steps: int, then: Schedule, start: float = 0.0) -> Schedule:
    """Linear from `start` at step 0 to 1 at step `steps`, where `then` begins its own clock."""
    return lambda step: start + (1 - start) * step / steps if step < steps else then(step - steps)


def join(parts: list[Schedule], starts: list[int]) -> Schedule:
    """parts[0], then parts[i] from starts[i - 1] on, each on its own clock."""
    begins = [0, *starts]

    def factor(step: int) -> float:
        index = sum(step >= s for s in starts)
        return parts[index](step - begins[index])

    return factor


def product(parts: list[Schedule]) -> Schedule:
    """All parts multiplied, every one on the run's clock."""
    return lambda step: prod(part(step) for part in parts)


def held(schedule: Schedule, interval: int) -> Schedule:
    """`schedule` as it was at the last multiple of `interval`."""
    return lambda step: schedule(step - step % interval)


def make(spec: ScheduleSpec, total_steps: int, named: Mapping[str, ScheduleSpec] | None = None) -> Schedule:
    """The function that `spec` describes, for a run of `total_steps`; `named` holds the parts."""
    steps = max(total_steps - spec.warmup, 1)
    if spec.name == "constant":
        schedule = constant()
    elif spec.name == "linear":
        schedule = polynomial(steps, 1.0, spec.floor)
    elif spec.name == "polynomial":
        schedule = polynomial(steps, spec.power, spec.floor)
    elif spec.name == "cosine":
        schedule = cosine(steps, spec.floor)
    elif spec.name in ("step", "exponential"):
        schedule = exponential(spec.gamma, spec.every)
    elif spec.name == "multistep":
        schedule = multistep(spec.gamma, spec.milestones)
    elif spec.name == "one_cycle":
        schedule = one_cycle(steps, spec.pct_start, spec.div_factor, spec.final_div_factor)
    elif spec.name == "join":
        schedule = _join(spec, steps, named or {})
    elif spec.name == "product":
        schedule = _product(spec, steps, named or {})
    else:
        raise UserError(
            f"scheduler.name={spec.name!r} is unknown; there are: {', '.join(NAMES)}"
            + did_you_mean(spec.name, list(NAMES))
        )
    schedule = warmup(spec.warmup, schedule, spec.warmup_start) if spec.warmup else schedule
    return held(schedule, spec.interval) if spec.interval > 1 else schedule


NAMES = (
    "constant",
    "linear",
    "step",
    "multistep",
    "exponential",
    "cosine",
    "polynomial",
    "one_cycle",
    "join",
    "product",
)
_COMPOUND = ("join", "product")


def _product(spec: ScheduleSpec, steps: int, named: Mapping[str, ScheduleSpec]) -> Schedule:
    if not spec.parts:
        raise UserError("schedules: a product needs parts=[a,b]: names under 'schedules:', 'default' for the run's own")
    missing = [name for name in spec.parts if name not in named or named[name].name == "product"]
    if missing:
        others = [name for name, other in named.items() if other.name != "product"]
        raise UserError(
            f"schedules: the product's parts {missing} are no other schedules; there are: "
            f"{', '.join(others) or 'none'}; add one: '+schedules.{missing[0]}={{name: cosine}}'"
        )
    return product([make(named[name], steps, named) for name in spec.parts])


def _join(spec: ScheduleSpec, steps: int, named: Mapping[str, ScheduleSpec]) -> Schedule:
    if not spec.parts:
        raise UserError(
            "scheduler.parts is missing: scheduler=join needs scheduler.parts=[a,b] (names under "
            "'schedules:') and scheduler.starts=[50%]"
        )
    if spec.starts and spec.starts[-1] >= steps:
        raise UserError(f"scheduler join: starts {list(spec.starts)} are not within the run of {steps} steps")
    if len(spec.parts) != len(spec.starts) + 1 or sorted(spec.starts) != list(spec.starts):
        raise UserError(
            "scheduler join: starts must be rising and one fewer than parts, "
            f"got {len(spec.parts)} parts and starts {list(spec.starts)}"
        )
    missing = [name for name in spec.parts if name not in named or named[name].name in _COMPOUND]
    if missing:
        raise UserError(
            f"scheduler join: parts {missing} are no plain schedules under 'schedules:'; there are: {', '.join(named)}"
        )
    bounds = [0, *spec.starts, steps]
    lengths = [end - begin for begin, end in pairwise(bounds)]
    parts = [make(named[name], length) for name, length in zip(spec.parts, lengths, strict=True)]
    return join(parts, list(spec.starts))
