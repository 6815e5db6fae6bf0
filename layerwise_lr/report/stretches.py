"""What a run's metrics.jsonl comes to in a figure: its losses by stretch of steps, its groups by depth.

A stretch is one step, unless the run has more than two thousand: then each is a two-thousandth of it, drawn by its mean, its
lowest and its highest, so that no extreme is lost.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..run import files, measured
from .statistics import Run, Setting

MOST = 2000
QUANTITIES = ("distance", "update_ratio", "gradient_norm")


class Curve(NamedTuple):
    """Numbers by stretch, in order: float64 [stretches] each.

    Args:
        steps: their mean step.
        mean, low, high: of the numbers in a stretch.
        counts: how many these are.
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray


class Told(NamedTuple):
    """Of one run.

    Args:
        training, validation: its losses.
        evaluations: the records.
        by_depth: {quantity: {depth: value}}.
        every: steps of a stretch.
    """

    training: Curve
    validation: Curve
    evaluations: Sequence[Mapping[str, Any]]
    by_depth: dict[str, dict[int, float]]
    every: int


def thinned(told: Mapping[str, Sequence[Told]]) -> bool:
    """Whether a stretch of any run is more than a step."""
    return any(run.every > 1 for runs in told.values() for run in runs)


def told(setting: Setting) -> list[Told]:
    """Of each run that has records, each read once."""
    return [one for run in setting.runs.values() if (one := _told(run)) is not None]


def _told(run: Run) -> Told | None:
    found = measured(run.path)
    if not len(found.steps) and not len(found.val_steps):
        return None
    every = -(-(run.config.steps or 1) // MOST)
    training, validation = (
        gathered([Curve(steps.astype(float), losses, losses, losses, np.ones(len(steps)))], every)
        for steps, losses in ((found.steps, found.losses), (found.val_steps, found.val_losses))
    )
    groups = [record["groups"] for record in found.evaluations if record.get("groups")]
    return Told(training, validation, found.evaluations, by_depth(run.path, groups), every)


def gathered(curves: Sequence[Curve], every: int) -> Curve:
    """One of all, by stretches of `every` steps; a stretch without a number is left out."""
    parts = [np.concatenate([np.empty(0), *column]) for column in zip(*curves, strict=True)] or [np.empty(0)] * 5
    order = np.argsort(parts[0], kind="stable")
    steps, mean, low, high, counts = (part[order] for part in parts)
    _, first = np.unique(steps // every, return_index=True)
    if not len(first):
        return Curve(steps, mean, low, high, counts)
    whole = np.add.reduceat(counts, first)
    at, middle = (np.add.reduceat(numbers * counts, first) / whole for numbers in (steps, mean))
    return Curve(at, middle, np.minimum.reduceat(low, first), np.maximum.reduceat(high, first), whole)


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a twentieth of the values around each; at the ends over those that are there."""
    width = max(len(values) // 20, 1)
    count = np.convolve(np.ones_like(values), np.ones(width), "same")
    return np.convolve(values, np.ones(width), "same") / count


def by_depth(path: Path, groups: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """{quantity: {depth: value}} of a run; of groups with weight decay (weights proper) if there are any."""
    last = groups[-1] if groups else {}
    groups = [one for one in groups if one.keys() == last.keys()]
    rows = [row for row in files.rows(path, "params.csv") if row["group"] in last]
    rows = [row for row in rows if float(row["weight_decay"]) > 0] or rows
    result = {}
    for quantity in QUANTITIES if rows else ():
        used = [last] if quantity == "distance" else groups
        of = {group: float(np.mean([one[group][quantity] for one in used])) for group in last}
        result[quantity] = {int(row["depth"]): of[row["group"]] for row in sorted(rows, key=lambda r: int(r["depth"]))}
    return result
