"""The ranges that types do not say, as a table: which key of which spec must pass which test, and how that is said."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from .errors import UserError
from .freezing import FreezeSpec
from .groups import GroupingSpec, GroupSpec
from .plan import OptimizerSpec
from .schedules import ScheduleSpec


class Rule(NamedTuple):
    """One row: `key` of a `spec` is null or passes `test`.

    Args:
        spec: kind of the spec that holds the key.
        key: its name there.
        test: of the value and of the whole spec, where another key of it has a say.
        wanted: what would pass, after "must be"; {names} in it are the spec's other values.
        show: how the value is shown.
    """

    spec: type
    key: str
    test: Callable[[Any, Any], object]
    wanted: str
    show: Callable[[Any], str] = str

    def fault(self, spec: Any, at: str = "") -> str | None:
        """What is wrong with `spec`, whose keys begin with `at`; None: nothing."""
        value = getattr(spec, self.key)
        if value is None or self.test(value, spec):
            return None
        return f"{at}{self.key}={self.show(value)} must be {self.wanted.format(**vars(spec))}"


def least(spec: type, key: str, low: int) -> Rule:
    """From `low` on."""
    return Rule(spec, key, lambda value, _: value >= low, f"at least {low}")


def within(spec: type, key: str, low: int, high: int) -> Rule:
    """A size: no machine holds more."""
    return Rule(spec, key, lambda value, _: low <= value <= high, f"from {low} to {high:,}")


def above(spec: type, key: str) -> Rule:
    """Not zero, not negative."""
    return Rule(spec, key, lambda value, _: value > 0, "above 0")


def rate(spec: type, key: str, above_zero: bool = False) -> Rule:
    """A learning rate, a factor of one or a decay: beyond these float32 makes infinities of weights."""
    if above_zero:
        return Rule(spec, key, lambda value, _: 1e-30 <= value <= 1e30, "from 1e-30 to 1e30")
    return Rule(spec, key, lambda value, _: 0 <= value <= 1e6, "from 0 to 1e6")


def share(spec: type, key: str, wanted: str = "from 0 to 1") -> Rule:
    """Both ends allowed."""
    return Rule(spec, key, lambda value, _: 0 <= value <= 1, wanted)


RULES = (
    Rule(FreezeSpec, "batchnorm", lambda word, _: word in ("eval", "train"), "eval or train"),
    Rule(GroupingSpec, "layer_decay", lambda decay, _: decay > 0, "above 0 and at most 1"),  # above 1: allow_above_one
    Rule(GroupingSpec, "stem_scale", lambda scale, _: 0 < scale <= 1, "above 0 and at most 1"),
    Rule(GroupingSpec, "decay_per_12_layers", lambda decay, _: 0 < decay <= 1, "above 0 and at most 1"),
    share(GroupingSpec, "min_scale"),
    rate(GroupingSpec, "head_scale"),
    Rule(GroupingSpec, "depths", lambda rules, _: all(0 <= d <= 10**6 for d in rules.values()), "depths of 0 or more"),
    within(GroupingSpec, "stages", 1, 1000),
    rate(GroupingSpec, "backbone_scale"),
    rate(GroupSpec, "lr"),
    rate(GroupSpec, "lr_scale"),
    rate(GroupSpec, "weight_decay"),
    share(ScheduleSpec, "floor", "from 0 to 1: a fraction of the group's lr"),
    share(ScheduleSpec, "warmup_start", "from 0 to 1: a fraction"),
    # a milestone may set the lr to zero
    Rule(ScheduleSpec, "gamma", lambda gamma, spec: gamma >= 0 or spec.name != "multistep", "0 or more"),
    Rule(ScheduleSpec, "gamma", lambda gamma, spec: gamma > 0 or spec.name == "multistep", "above 0"),
    above(ScheduleSpec, "power"),
    Rule(ScheduleSpec, "pct_start", lambda share, _: 0 < share < 1, "between 0 and 1"),
    least(ScheduleSpec, "div_factor", 1),
    least(ScheduleSpec, "final_div_factor", 1),
    rate(OptimizerSpec, "lr", above_zero=True),
    rate(OptimizerSpec, "weight_decay"),
    Rule(OptimizerSpec, "momentum", lambda m, _: 0 <= m < 1, "from 0 to below 1"),
    Rule(
        OptimizerSpec,
        "nesterov",
        lambda on, spec: not on or spec.momentum > 0 or spec.name != "momentum",
        "false where momentum is 0",
    ),
    Rule(
        OptimizerSpec,
        "betas",
        lambda betas, _: len(betas) == 2 and all(0 <= b < 1 for b in betas),
        "two numbers from 0 to below 1",
    ),
    Rule(OptimizerSpec, "alpha", lambda a, _: 0 <= a < 1, "from 0 to below 1"),
    Rule(OptimizerSpec, "momentum_decay", lambda d, _: 0 <= d <= 1e6, "from 0 to 1e6"),
    Rule(OptimizerSpec, "eps", lambda eps, _: 1e-30 <= eps <= 1, "from 1e-30 to 1: float32 holds no less"),
)
"""Of the specs that a plan is made of."""


def check_spec(spec: Any, at: str = "") -> None:
    """No NaN, no infinity, and every rule of the table.

    Args:
        spec: one of the plan's.
        at: what its keys begin with.

    Raises:
        UserError: the first fault found, with its key.
    """
    check_finite(asdict(spec), at.rstrip("."))
    for rule in RULES:
        if rule.spec is type(spec) and (fault := rule.fault(spec, at)):
            raise UserError(fault)


def check_finite(data: Any, at: str) -> None:
    """No number of plain data is NaN or infinite; `at` is the key where they stand."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            check_finite(value, f"{at}.{key}" if at else str(key))
    elif isinstance(data, list | tuple):
        for value in data:
            check_finite(value, at)
    elif isinstance(data, float) and not math.isfinite(data):
        raise UserError(f"{at}={data} is not a finite number")
