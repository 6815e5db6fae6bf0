"""The ranges of a run's own specs, in one table with the plan's.

A rule holds for every spec of its kind: for the run's own optimizer and for each under `optimizers:`.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from ..data import READERS, DataSpec, is_size
from ..planning import UserError
from ..planning import ranges as planned
from .schema import CheckpointSpec, Config, EarlyStopSpec, EmaSpec, FrameworkSpec, ModelSpec, VerifySpec

MOST_STEPS = 10**6
"""Of a run, however it is said: lrs.csv has a row for each."""

RULES = (
    planned.least(Config, "seed", 0),
    planned.within(Config, "batch_size", 1, 10**6),
    planned.within(Config, "epochs", 1, 10**6),
    planned.within(Config, "steps", 1, MOST_STEPS),
    planned.Rule(
        Config,
        "name",
        lambda name, _: re.fullmatch(r"[^/\\\s.][^/\\]*", name) and name.isprintable() and len(name.encode()) <= 200,
        "a name for a folder: not empty, at most 200 bytes, no slash, no line break, no dot or space in front",
        repr,
    ),
    planned.Rule(VerifySpec, "on_mismatch", lambda word, _: word in ("stop", "warn"), "stop or warn"),
    planned.Rule(
        Config, "metric", lambda m, _: m in ("accuracy", "balanced_accuracy"), "accuracy or balanced_accuracy"
    ),
    planned.within(Config, "accumulate", 1, 10**4),
    planned.Rule(Config, "clip_grad_norm", lambda norm, _: 1e-12 <= norm <= 1e12, "from 1e-12 to 1e12"),
    planned.Rule(Config, "clip_grad_value", lambda bound, _: 1e-12 <= bound <= 1e12, "from 1e-12 to 1e12"),
    planned.Rule(
        Config, "clip_grad_value", lambda _, config: config.clip_grad_norm is None, "null where clip_grad_norm is given"
    ),
    planned.Rule(EmaSpec, "decay", lambda decay, _: 0 <= decay < 1, "from 0 to below 1"),
    planned.least(EarlyStopSpec, "patience", 1),
    planned.Rule(EarlyStopSpec, "min_delta", lambda delta, _: 0 <= delta <= 1, "from 0 to 1"),
    planned.least(CheckpointSpec, "keep_best", 0),
    planned.within(FrameworkSpec, "threads", 1, 1024),
    planned.within(ModelSpec, "width", 1, 10**6),
    planned.within(ModelSpec, "depth", 1, 1000),
    planned.within(ModelSpec, "patch_size", 1, 4096),
    planned.within(ModelSpec, "embed_dim", 1, 10**5),
    planned.within(ModelSpec, "num_heads", 1, 10**5),
    planned.Rule(ModelSpec, "layer_scale", lambda scale, _: abs(scale) <= 1e6, "within 1e6"),
    planned.Rule(ModelSpec, "dropout", lambda p, _: 0 <= p < 1, "from 0 to below 1"),
    planned.Rule(ModelSpec, "drop_path", lambda p, _: 0 <= p < 1, "from 0 to below 1"),
    planned.within(DataSpec, "image_size", 4, 4096),
    *(
        planned.Rule(DataSpec, key, lambda size, _: is_size(size), "at least 1, or a share of the pictures (20%, 0.2)")
        for key in ("train_size", "val_size", "test_size")
    ),
    planned.least(DataSpec, "split_seed", 0),
    planned.Rule(DataSpec, "channels", lambda n, _: n in (1, 3), "1 or 3"),
    planned.Rule(
        DataSpec,
        "mean",
        lambda mean, data: len(mean) in (1, data.channels) and all(abs(one) <= 1e6 for one in mean),
        "1 or {channels} numbers within 1e6",
    ),
    planned.Rule(
        DataSpec,
        "std",
        lambda std, data: len(std) in (1, data.channels) and all(1e-6 <= one <= 1e6 for one in std),
        "1 or {channels} numbers from 1e-6 to 1e6",
    ),
    planned.Rule(DataSpec, "stand_in", lambda name, _: name == "digits", "digits or null"),
    planned.Rule(
        DataSpec,
        "stands_for",
        lambda name, data: data.name == "digits" and name in READERS,
        "null: it is filled in where data.stand_in takes effect",
    ),
    planned.least(CheckpointSpec, "keep", 1),
    *planned.RULES,
)


def check(config: Config) -> None:
    """No NaN and no infinity anywhere, and every rule of the table.

    Raises:
        UserError: the first fault found, with its key.
    """
    planned.check_finite(asdict(config), "")
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
