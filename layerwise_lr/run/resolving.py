"""A Config made final: sizes are filled in, every duration is a number of steps, every value is in range.

It is what config.resolved.yaml holds and all that `page.run` reads.
"""

import os
from dataclasses import replace
from math import ceil

from ..data import available, check_class_weights, facts, sized, train_count
from ..planning import UserError
from . import options, ranges
from .durations import Clock, in_steps
from .schema import Config, ModelSpec


def resolve(config: Config, at_once: int = 1) -> Config:
    """Fill in sizes, turn durations into steps, check every range; absent data give way to their stand-in, and what the
    chosen options do not read to its default.

    Args:
        config: as it was composed.
        at_once: runs that share this machine's cores.

    Raises:
        UserError: the first fault found, with its key.
    """
    ranges.check(config)
    config = replace(config, data=sized(available(config.data)))
    if config.framework.threads == "auto":
        here = config.framework.processes or 1
        threads = max((os.cpu_count() or 1) // at_once // here, 1)
        config = replace(config, framework=replace(config.framework, threads=threads))
    classes = facts(config.data).classes
    check_class_weights(config.class_weights, classes)
    model = _fill(config, classes)
    per_epoch = train_count(config.data) // config.pictures_a_step()
    if per_epoch == 0:
        asked = f"batch_size={config.batch_size}" + (
            f" times accumulate={config.accumulate}" if config.accumulate > 1 else ""
        )
        raise UserError(
            f"{asked} is more than the {train_count(config.data)} training pictures; lower batch_size, or add pictures"
        )
    total = config.steps if config.steps is not None else config.epochs * per_epoch
    if total > ranges.MOST_STEPS:
        raise UserError(
            f"epochs={config.epochs} of {per_epoch} steps are {total:,} steps, a run has up to "
            f"{ranges.MOST_STEPS:,}: lower epochs or raise batch_size"
        )
    clock, config = Clock(total, per_epoch), replace(config, model=model, epochs=ceil(total / per_epoch))
    return in_steps(options.bare(config, options.unread(in_steps(config, clock))), clock)


def _fill(config: Config, classes: int) -> ModelSpec:
    """The model with the data's sizes; a size given by hand must agree."""
    given, data = config.model, config.data
    for key, mine, theirs in (
        ("num_classes", given.num_classes, classes),
        ("in_channels", given.in_channels, data.channels),
        ("image_size", given.image_size, data.image_size),
    ):
        if mine is not None and mine != theirs:
            raise UserError(
                f"model.{key}={mine}, but data {data.name} has {theirs}; leave model.{key} out or change the data"
            )
    model = replace(given, num_classes=classes, in_channels=data.channels, image_size=data.image_size)
    if given.source == "declared":
        replace(config, model=model).tree()
    return model
