"""The ranges that types do not say, as a table: which key of which spec must pass which test, and how that is said.

A rule holds for every spec of its kind: for the run's own optimizer and for each under `optimizers:`.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, NamedTuple

from ..data import READERS, DataSpec
from ..planning import FreezeSpec, GroupingSpec, GroupSpec, OptimizerSpec, ScheduleSpec, UserError
from .schema import CheckpointSpec, Config, FrameworkSpec, ModelSpec, VerifySpec

MOST_STEPS = 10**6
"""Of a run, however it is said: lrs.csv has a row for each."""


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
    test: Callable[[Any, Any], bool]
    wanted: str
    show: Callable[[Any], str] = str

    def fault(self, spec: Any, at: str = "") -> str | None:
        """What is wrong with `spec`, whose keys begin with `at`; None: nothing."""
        value = getattr(spec, self.key)
        if value is None or self.test(value, spec):
            return None
        return f"{at}{self.key}={self.show(value)} must be {self.wanted.format(**vars(spec))}"


def _least(spec: type, key: str, low: int) -> Rule:
    return Rule(spec, key, lambda value, _: value >= low, f"at least {low}")


def _within(spec: type, key: str, low: int, high: int) -> Rule:
    """A size: no machine holds more."""
    return Rule(spec, key, lambda value, _: low <= value <= high, f"from {low} to {high:,}")


def _above(spec: type, key: str) -> Rule:
    return Rule(spec, key, lambda value, _: value > 0, "above 0")


def _rate(spec: type, key: str, above_zero: bool = False) -> Rule:
    """A learning rate, a factor of one or a decay: beyond these float32 makes infinities of weights."""
    if above_zero:
        return Rule(spec, key, lambda value, _: 1e-30 <= value <= 1e30, "from 1e-30 to 1e30")
    return Rule(spec, key, lambda value, _: 0 <= value <= 1e6, "from 0 to 1e6")


def _share(spec: type, key: str, wanted: str = "from 0 to 1") -> Rule:
    return Rule(spec, key, lambda value, _: 0 <= value <= 1, wanted)


RULES = (
    _least(Config, "seed", 0),
    _within(Config, "batch_size", 1, 10**6),
    _within(Config, "epochs", 1, 10**6),
    _within(Config, "steps", 1, MOST_STEPS),
    Rule(
        Config,
        "name",
        lambda name, _: re.fullmatch(r"[^/\\\s.][^/\\\0]*", name) is not None,
        "a name for a folder: not empty, no slash, no dot or space in front",
        repr,
    ),
    Rule(FreezeSpec, "batchnorm", lambda word, _: word in ("eval", "train"), "eval or train"),
    Rule(VerifySpec, "on_mismatch", lambda word, _: word in ("stop", "warn"), "stop or warn"),
    Rule(Config, "metric", lambda m, _: m in ("accuracy", "balanced_accuracy"), "accuracy or balanced_accuracy"),
    _within(FrameworkSpec, "threads", 1, 1024),
    _within(ModelSpec, "width", 1, 10**6),
    _within(ModelSpec, "depth", 1, 1000),
    _within(ModelSpec, "patch_size", 1, 4096),
    _within(ModelSpec, "embed_dim", 1, 10**5),
    _within(ModelSpec, "num_heads", 1, 10**5),
    Rule(ModelSpec, "layer_scale", lambda scale, _: abs(scale) <= 1e6, "within 1e6"),
    Rule(ModelSpec, "dropout", lambda p, _: 0 <= p < 1, "from 0 to below 1"),
    _within(DataSpec, "image_size", 4, 4096),
    _least(DataSpec, "train_size", 1),
    _least(DataSpec, "val_size", 1),
    _least(DataSpec, "test_size", 1),
    _least(DataSpec, "split_seed", 0),
    Rule(DataSpec, "channels", lambda n, _: n in (1, 3), "1 or 3"),
    Rule(
        DataSpec,
        "mean",
        lambda mean, data: len(mean) in (1, data.channels) and all(abs(one) <= 1e6 for one in mean),
        "1 or {channels} numbers within 1e6",
    ),
    Rule(
        DataSpec,
        "std",
        lambda std, data: len(std) in (1, data.channels) and all(1e-6 <= one <= 1e6 for one in std),
        "1 or {channels} numbers from 1e-6 to 1e6",
    ),
    Rule(DataSpec, "stand_in", lambda name, _: name == "digits", "digits or null"),
    Rule(
        DataSpec,
        "stands_for",
        lambda name, data: data.name == "digits" and name in READERS,
        "null: it is filled in where data.stand_in takes effect",
    ),
    Rule(GroupingSpec, "layer_decay", lambda decay, _: decay > 0, "above 0 and at most 1"),  # above 1: allow_above_one
    Rule(GroupingSpec, "stem_scale", lambda scale, _: 0 < scale <= 1, "above 0 and at most 1"),
    Rule(GroupingSpec, "decay_per_12_layers", lambda decay, _: 0 < decay <= 1, "above 0 and at most 1"),
    _share(GroupingSpec, "min_scale"),
    _rate(GroupingSpec, "head_scale"),
    Rule(GroupingSpec, "depths", lambda rules, _: all(0 <= d <= 10**6 for d in rules.values()), "depths of 0 or more"),
    _within(GroupingSpec, "stages", 1, 1000),
    _rate(GroupingSpec, "backbone_scale"),
    _rate(GroupSpec, "lr"),
    _rate(GroupSpec, "lr_scale"),
    _rate(GroupSpec, "weight_decay"),
    _share(ScheduleSpec, "floor", "from 0 to 1: a fraction of the group's lr"),
    _share(ScheduleSpec, "warmup_start", "from 0 to 1: a fraction"),
    # a milestone may set the lr to zero
    Rule(ScheduleSpec, "gamma", lambda gamma, spec: gamma >= 0 or spec.name != "multistep", "0 or more"),
    Rule(ScheduleSpec, "gamma", lambda gamma, spec: gamma > 0 or spec.name == "multistep", "above 0"),
    _above(ScheduleSpec, "power"),
    Rule(ScheduleSpec, "pct_start", lambda share, _: 0 < share < 1, "between 0 and 1"),
    _least(ScheduleSpec, "div_factor", 1),
    _least(ScheduleSpec, "final_div_factor", 1),
    _rate(OptimizerSpec, "lr", above_zero=True),
    _rate(OptimizerSpec, "weight_decay"),
    Rule(OptimizerSpec, "momentum", lambda m, _: 0 <= m < 1, "from 0 to below 1"),
    Rule(
        OptimizerSpec,
        "betas",
        lambda betas, _: len(betas) == 2 and all(0 <= b < 1 for b in betas),
        "two numbers from 0 to below 1",
    ),
    Rule(OptimizerSpec, "eps", lambda eps, _: 1e-30 <= eps <= 1, "from 1e-30 to 1: float32 holds no less"),
    _least(CheckpointSpec, "keep", 1),
)


def check(config: Config) -> None:
    """No NaN and no infinity anywhere, and every rule of the table.

    Raises:
        UserError: the first fault found, with its key.
    """
    _check_finite(asdict(config), "")
    for at, spec in _specs(config, ""):
        for rule in RULES:
            if rule.spec is type(spec) and (fault := rule.fault(spec, at)):
                raise UserError(fault)


def _specs(spec: Any, at: str) -> Iterator[tuple[str, Any]]:
    """`spec` and every spec below it, each with what its keys begin with: "", "data.", "optimizers.name." """
    yield at, spec
    for field in fields(spec):
        value = getattr(spec, field.name)
        if is_dataclass(value):
            yield from _specs(value, f"{at}{field.name}.")
        elif isinstance(value, dict):
            for name, entry in value.items():
                if is_dataclass(entry):
                    yield from _specs(entry, f"{at}{field.name}.{name}.")


def _check_finite(data: Any, at: str) -> None:
    if isinstance(data, Mapping):
        for key, value in data.items():
            _check_finite(value, f"{at}.{key}" if at else str(key))
    elif isinstance(data, list):
        for value in data:
            _check_finite(value, at)
    elif isinstance(data, float) and not math.isfinite(data):
        raise UserError(f"{at}={data} is not a finite number")
