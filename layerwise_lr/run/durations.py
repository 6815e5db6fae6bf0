"""Durations: "2 epochs", "10%" or 50 in a config, whole steps in a final one."""

import re
from dataclasses import replace
from typing import NamedTuple

from ..planning import Duration, FreezeSpec, GroupSpec, ScheduleSpec, UserError
from .schema import Config


def steps_of(duration: Duration, key: str, total: int, per_epoch: int) -> int:
    """A duration in whole steps: 50, "50 steps", "2 epochs", "10%" (of the run).

    Raises:
        UserError: it is none of these.
    """
    text = str(duration).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|ep|epochs?|st|steps?)?", text)
    if not match or isinstance(duration, bool):
        raise UserError(f"{key}={duration!r} is no duration: give steps (50), epochs ('2 epochs') or a share ('10%')")
    number, unit = float(match[1]), match[2] or "steps"
    if unit == "%" and number > 100:
        raise UserError(f"{key}={duration}: a share of the run is at most 100%")
    steps = number * total / 100 if unit == "%" else number * per_epoch if unit.startswith("ep") else number
    if unit.startswith("st") and number != int(number):
        raise UserError(f"{key}={duration!r}: steps are whole; '10%' is a share of the run")
    return round(steps)


class Clock(NamedTuple):
    """The length of a run and of an epoch, in steps."""

    total: int
    per_epoch: int

    def steps(self, duration: Duration, key: str) -> int:
        """`duration` in steps; `key` is where it stands."""
        return steps_of(duration, key, self.total, self.per_epoch)

    def interval(self, duration: Duration, key: str) -> int:
        """As `steps`, but at least one: what happens every so often.

        Raises:
            UserError: every 0 steps.
        """
        if re.fullmatch(r"[0.]+\D*", str(duration).strip()):
            raise UserError(f"{key}={duration} must be at least one step")
        return max(self.steps(duration, key), 1)


def in_steps(config: Config, clock: Clock) -> Config:
    """`config` with every duration in steps.

    Raises:
        UserError: one is no duration, is missing, or is longer than the run.
    """
    groups = {n: _group(g, f"grouping.groups.{n}", clock) for n, g in config.grouping.groups.items()}
    every, measure = config.checkpoint.every, config.verify.every
    return replace(
        config,
        steps=clock.total,
        grouping=replace(config.grouping, groups=groups),
        freeze=_freeze(config.freeze, clock),
        verify=replace(config.verify, every=None if measure is None else clock.interval(measure, "verify.every")),
        eval_every=clock.interval(config.eval_every, "eval_every"),
        scheduler=_schedule(config.scheduler, "scheduler", clock),
        schedules={n: _schedule(s, f"schedules.{n}", clock) for n, s in config.schedules.items()},
        checkpoint=replace(
            config.checkpoint, every=None if every is None else clock.interval(every, "checkpoint.every")
        ),
    )


def _schedule(spec: ScheduleSpec, key: str, clock: Clock) -> ScheduleSpec:
    every = clock.interval(spec.every, f"{key}.every") if spec.name in ("step", "exponential") else 1
    warmup = clock.steps(spec.warmup, f"{key}.warmup")
    if warmup > clock.total:
        raise UserError(f"{key}.warmup={spec.warmup} is longer than the run of {clock.total} steps")
    return replace(
        spec,
        warmup=warmup,
        every=every,
        interval=clock.interval(spec.interval, f"{key}.interval"),
        milestones=[clock.steps(m, f"{key}.milestones") for m in spec.milestones],
        starts=[clock.steps(s, f"{key}.starts") for s in spec.starts],
    )


def _group(spec: GroupSpec, key: str, clock: Clock) -> GroupSpec:
    stop = None if spec.stop is None else clock.steps(spec.stop, f"{key}.stop")
    return replace(spec, start=clock.steps(spec.start, f"{key}.start"), stop=stop)


def _freeze(spec: FreezeSpec, clock: Clock) -> FreezeSpec:
    if spec.every is None and spec.strategy == "head_first":
        raise UserError("freeze.every is missing: how long shall the head train alone? freeze.every=10%")
    at = clock.steps(spec.at, "freeze.at")
    if spec.strategy == "after" and at >= clock.total:
        raise UserError(f"freeze.at={spec.at} is not within the run of {clock.total} steps")
    every = None if spec.every is None else clock.interval(spec.every, "freeze.every")
    return replace(spec, at=at, every=every)
