"""Freezing: which parameters train when, as windows of steps laid over the assignments of the grouping."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .assigning import Assignment
from .errors import UserError, did_you_mean
from .groups import FOREVER
from .params import ParamTable
from .schedules import Duration


@dataclass
class FreezeSpec:
    """Which parameters train when.

    Args:
        strategy: none | head_first (the head alone for `every`, then all) | progressive (from the head down, a
            stage more each `every`) | after (`match` stops at `at`) | only (`match` trains, the rest never).
        every: length of a stage; null (progressive): such that all train in the second half of the run.
        stages: module prefixes in the order in which they thaw; empty: depth by depth from the head.
        match: module prefixes that stop (after) or train (only).
        at: when they stop (after).
        batchnorm: eval | train: what a batchnorm layer does while none of its own parameters trains: run on its
            running statistics and keep them (as Keras and most fine-tuning recipes do), or on the batch's, which
            move the statistics of a frozen layer.
    """

    strategy: str = "none"
    every: Duration = "1 epoch"
    stages: list[str] = field(default_factory=list)
    match: list[str] = field(default_factory=list)
    at: Duration = "50%"
    batchnorm: str = "eval"


def frozen(
    given: Mapping[str, Assignment], table: ParamTable, spec: FreezeSpec, total_steps: int
) -> dict[str, Assignment]:
    """The assignments with the windows that freezing leaves them (intersected with their own)."""
    if spec.strategy == "none":
        return dict(given)
    windows = _windows(table, spec, total_steps)

    def narrow(name: str, a: Assignment) -> Assignment:
        start, stop = windows[name]
        return replace(a, active=(max(a.active[0], start), min(a.active[1], stop)))

    return {name: narrow(name, a) for name, a in given.items()}


def _windows(table: ParamTable, spec: FreezeSpec, total_steps: int) -> dict[str, tuple[int, int]]:
    """[start, stop) of every trainable parameter under the freezing strategy."""
    rows = table.trainable
    for prefix in (*spec.stages, *spec.match):
        if not any(_below(row.name, prefix) for row in rows):
            raise UserError(f"freeze: {prefix!r} names no module with trainable parameters")
    if spec.strategy == "head_first":
        return {row.name: (0 if table.is_head(row.name) else spec.every, FOREVER) for row in rows}
    if spec.strategy == "progressive":
        stages = {row.name: _stage(row.name, row.depth, table, spec) for row in rows}
        last = max(stage for stage in stages.values() if stage < FOREVER)
        every = max(total_steps // (2 * max(last, 1)), 1) if spec.every is None else spec.every
        return {name: (min(stage * every, FOREVER), FOREVER) for name, stage in stages.items()}
    if spec.strategy in ("after", "only"):
        if not spec.match:
            raise UserError(
                "freeze.match is empty: name the modules that "
                + ("stop at freeze.at" if spec.strategy == "after" else "train")
            )
        named = {row.name: any(_below(row.name, p) for p in spec.match) for row in rows}
        if spec.strategy == "only":
            return {name: (0 if trains else FOREVER, FOREVER) for name, trains in named.items()}
        return {name: (0, spec.at if stops else FOREVER) for name, stops in named.items()}
    names = ["none", "head_first", "progressive", "after", "only"]
    raise UserError(
        f"freeze.strategy={spec.strategy!r} is unknown; there are: {', '.join(names)}"
        + did_you_mean(spec.strategy, names)
    )


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _stage(name: str, depth: int, table: ParamTable, spec: FreezeSpec) -> int:
    """0 for the head, then 1, 2, ... in the order of the stages; what no stage names stays frozen (FOREVER)."""
    if table.is_head(name):
        return 0
    if not spec.stages:
        return table.num_layers - depth
    index = next((i for i, p in enumerate(spec.stages) if _below(name, p)), None)
    return FOREVER if index is None else index + 1
