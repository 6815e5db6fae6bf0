"""The ranges of a run's own specs, in one table with the plan's.

A rule holds for every spec of its kind: for the run's own optimizer and for each under `optimizers:`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from ..data import READERS, AugmentSpec, DataSpec, is_size
from ..planning import UserError, is_secret, plain
from ..planning import ranges as planned
from .schema import CheckpointSpec, Config, EarlyStopSpec, EmaSpec, FrameworkSpec, ModelSpec, VerifySpec

MOST_STEPS = 10**6
"""Of a run, however it is said."""


def _weights(asked: Any) -> bool:
    numbers = isinstance(asked, list) and all(isinstance(w, int | float) and not isinstance(w, bool) for w in asked)
    return numbers and all(1e-6 <= w <= 1e6 for w in asked)


def _ends(low: float, high: float) -> Callable[[Any, Any], bool]:
    """Of two numbers in order within `low` to `high`."""
    return lambda ends, _: len(ends) == 2 and low <= ends[0] <= ends[1] <= high


def _count(asked: Any, most: int) -> bool:
    return type(asked) is int and 1 <= asked <= most


def _alpha(alpha: float, _: Any) -> bool:
    return alpha == 0 or 1e-3 <= alpha <= 1e3


AUGMENT = (
    *(planned.share(AugmentSpec, key) for key in ("hflip", "vflip", "color_jitter", "mix_switch", "random_erasing")),
    planned.Rule(AugmentSpec, "crop_scale", _ends(1e-4, 1), "two numbers from 0.0001 to 1, the lower first"),
    planned.Rule(AugmentSpec, "crop_ratio", _ends(1e-2, 100), "two numbers from 0.01 to 100, the lower first"),
    planned.Rule(AugmentSpec, "randaugment_ops", lambda n, _: 0 <= n <= 16, "from 0 to 16"),
    planned.Rule(AugmentSpec, "randaugment_magnitude", lambda m, _: 0 <= m <= 10, "from 0 to 10"),
    planned.Rule(AugmentSpec, "randaugment_std", lambda std, _: 0 <= std <= 10, "from 0 to 10"),
    planned.Rule(AugmentSpec, "randaugment_prob", lambda p, _: 0 < p <= 1, "above 0 and at most 1"),
    planned.Rule(AugmentSpec, "mix_prob", lambda p, _: 0 < p <= 1, "above 0 and at most 1"),
    planned.Rule(AugmentSpec, "mixup", _alpha, "0 or from 0.001 to 1000"),
    planned.Rule(AugmentSpec, "cutmix", _alpha, "0 or from 0.001 to 1000"),
)
"""Of what is changed in pictures."""

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
    planned.Rule(FrameworkSpec, "threads", lambda n, _: n == "auto" or _count(n, 1024), "auto, or from 1 to 1,024"),
    planned.Rule(FrameworkSpec, "distributed", lambda how, _: how in ("none", "ddp", "fsdp"), "none, ddp or fsdp"),
    planned.within(FrameworkSpec, "processes", 1, 1024),
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
        "one number, or one for each channel (data.channels={channels}), within 1e6",
    ),
    planned.Rule(
        DataSpec,
        "std",
        lambda std, data: len(std) in (1, data.channels) and all(1e-6 <= one <= 1e6 for one in std),
        "one number, or one for each channel (data.channels={channels}), from 1e-6 to 1e6",
    ),
    planned.Rule(DataSpec, "stand_in", lambda name, _: name == "digits", "digits or null"),
    planned.Rule(
        DataSpec,
        "stands_for",
        lambda name, data: data.name == "digits" and name in READERS,
        "null: it is filled in where data.stand_in takes effect",
    ),
    planned.Rule(DataSpec, "resize", lambda way, _: way in ("crop", "squash", "pad"), "crop, squash or pad"),
    planned.Rule(DataSpec, "workers", lambda n, _: 0 <= n <= 64, "from 0 to 64"),
    planned.Rule(DataSpec, "memory", lambda gib, _: 0 <= gib <= 1e5, "from 0 to 100000 GiB"),
    *AUGMENT,
    planned.Rule(Config, "label_smoothing", lambda share, _: 0 <= share < 1, "from 0 to below 1"),
    planned.Rule(
        Config,
        "class_weights",
        lambda asked, _: asked in ("none", "balanced") or _weights(asked),
        "none, balanced or a number from 1e-6 to 1e6 for each class: [1,2.5]",
    ),
    planned.least(CheckpointSpec, "keep", 1),
    *planned.RULES,
)


def check(config: Config) -> None:
    """No NaN and no infinity anywhere, and every rule of the table.

    Raises:
        UserError: the first fault found, with its key.
    """
    planned.check_finite(config.to_dict(), "")
    for key in config.model.options:
        if is_secret(key):
            raise UserError(
                f"model.options.{key} looks like a secret, and a run's folder keeps its config: leave it out, and log in "
                "as the package says (HF_TOKEN in the environment, hf auth login)"
            )
    for at, spec in _specs(config, ""):
        for rule in RULES:
            if isinstance(spec, rule.spec) and (fault := _fault(rule, spec, at)):
                raise UserError(fault)


def _fault(rule: planned.Rule, spec: Any, at: str) -> str | None:
    """What is wrong; lists and mappings in a config hold anything, and a rule may not know what to do with it."""
    try:
        return rule.fault(spec, at)
    except (TypeError, ValueError, AttributeError, ArithmeticError):
        return f"{at}{rule.key}={plain(getattr(spec, rule.key))} is not of the kind that it takes"


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
