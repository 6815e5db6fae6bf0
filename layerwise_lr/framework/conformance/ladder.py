"""The order in which a plugin is written, and what stands in for a verb that is not there yet.

A rung's checks ask for its verbs and those of the rungs below; docs/plugins.md has a section on each rung.
"""

import traceback
from collections.abc import Mapping
from typing import Any

from ..contract import Framework

RUNGS: Mapping[str, tuple[str, ...]] = {
    "weights": ("names_and_shapes", "weights_round_trip"),
    "predict": ("same_logits",),
    "gradients": (
        "loss_is_mean_cross_entropy",
        "gradients",
        "gradients_are_cleared",
        "weights_are_copies",
        "predict_changes_nothing",
        "batchnorm_statistics",
        "soft_targets",
        "accumulate",
        "accumulate_is_the_large_batch",
        "clip_norm",
        "clip_value",
        "clip_parts",
    ),
    "sgd": ("optimizer_sgd", "weight_decay_per_group"),
    "schedule": (
        "lrs_read_back",
        "schedule_at_every_step",
        "schedule_per_group",
        "lr_does_not_compound",
        "zero_lr_moves_nothing",
        "effective_lr",
    ),
    "freeze": ("frozen_do_not_move", "unfreezes_on_the_step", "late_start", "frozen_batchnorm", "batchnorm_trains_on"),
    "state": ("optimizer_state", "frozen_keep_state", "arrays_are_numpys"),
    "resume": ("resume_is_seamless", "reset_optimizer_state"),
    "kinds": ("kind_", "residual_shortcut"),
    "optimizers": (
        "optimizer_",
        "two_optimizers",
        "grad_centralization",
        "effective_lr_layer_adaptive",
        "effective_lr_others",
        "reset_",
        "resume_",
    ),
    "runs": (
        "same_seed_same_curve",
        "dropout_follows_seed",
        "mode_equals_first_mode",
        "absent_device",
        "golden_",
        "precision_",
        "deterministic",
    ),
}
"""Checks, and beginnings of the names of many, in the order of writing."""


VERBS = frozenset(name for name, value in vars(Framework).items() if not name.startswith("_") and callable(value))


class NotYet(Exception):
    """The plugin has no such verb; the verb is its text."""


def rung_of(check: str) -> str:
    """Where a check belongs: by its name, else by the beginning of it."""
    named = [rung for rung, names in RUNGS.items() if check in names]
    begun = [rung for rung, names in RUNGS.items() for name in names if name.endswith("_") and check.startswith(name)]
    return [*named, *begun][0]


def completed(plugin: type[Framework]) -> type[Framework]:
    """The plugin, with a NotYet for each verb that it lacks."""
    lacking = {verb: _missing(verb) for verb in plugin.__abstractmethods__}
    return type(plugin.__name__, (plugin,), lacking) if lacking else plugin


def _missing(verb: str) -> Any:
    def say(*_: Any, **__: Any) -> Any:
        raise NotYet(verb)

    return say


def not_yet(error: Exception) -> NotYet | None:
    """The verb that is missing, where the error says so: a NotImplementedError is the plugin's own word for that in the verb
    itself. One from below, an operation that the framework has not, is a failure like any other: None."""
    if isinstance(error, NotYet):
        return error
    if not isinstance(error, NotImplementedError):
        return None
    raised_in = traceback.extract_tb(error.__traceback__)[-1].name
    return NotYet(raised_in) if raised_in in VERBS else None
