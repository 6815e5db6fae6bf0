"""The Plan: groups x schedules x freezing, and the one law of the learning rate.

    lr(step, g) = base_lr * g.lr_scale * schedule_g(step), and no update at all outside g.active.

Steps are counted from 0, lr is per optimizer step. A plan is data: it hashes, it is saved as plan.json, and a
plugin only applies its numbers.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from . import schedules
from .errors import UserError, did_you_mean
from .groups import FOREVER, Assignment, Group, GroupingSpec, gather, group_table
from .params import ParamTable
from .schedules import Duration, Schedule, ScheduleSpec


@dataclass
class OptimizerSpec:
    """One optimizer as data; formulas are torch's, layer_adaptive's is in the reference plugin's optimizers.py.

    Args:
        name: sgd | momentum | adam | adamw | layer_adaptive.
        lr: the base lr, per step; groups scale it.
        weight_decay: decoupled for adamw, L2 for all others.
        momentum: of momentum.
        nesterov: of momentum.
        betas: of adam, adamw, layer_adaptive.
        eps: of adam, adamw, layer_adaptive.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8


OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "layer_adaptive")


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
    """

    strategy: str = "none"
    every: Duration = "1 epoch"
    stages: list[str] = field(default_factory=list)
    match: list[str] = field(default_factory=list)
    at: Duration = "50%"


class Phase(NamedTuple):
    """A stretch of steps [start, stop) in which the same groups train."""

    start: int
    stop: int
    active: tuple[bool, ...]


@dataclass(frozen=True)
class Plan:
    """What every parameter does at every step.

    Args:
        groups: as in groups.py; every trainable parameter in exactly one.
        base_lr: per step.
        schedules: by name; "default" is the run's.
        optimizers: by name; "default" is the run's.
        total_steps: length of the run.
    """

    groups: tuple[Group, ...]
    base_lr: float
    schedules: Mapping[str, ScheduleSpec]
    optimizers: Mapping[str, OptimizerSpec]
    total_steps: int

    @cached_property
    def _functions(self) -> dict[str, Schedule]:
        return {n: schedules.make(s, self.total_steps, self.schedules) for n, s in self.schedules.items()}

    def factor(self, step: int, group: Group) -> float:
        """schedule_g(step), 0.0 where the group does not train."""
        return self._functions[group.schedule](step) if group.active[0] <= step < group.active[1] else 0.0

    def lr(self, step: int, group: Group) -> float:
        """The law."""
        return self.base_lr * group.lr_scale * self.factor(step, group)

    def lrs(self, step: int) -> list[float]:
        """lr of each group at `step`; 0.0 where the group does not train."""
        return [self.lr(step, group) for group in self.groups]

    def active(self, step: int) -> tuple[bool, ...]:
        """Which groups train at `step`."""
        return tuple(g.active[0] <= step < g.active[1] for g in self.groups)

    def table(self, start: int = 0) -> np.ndarray:
        """float64 [total_steps - start, groups]: lr per step and group."""
        return np.array([self.lrs(step) for step in range(start, self.total_steps)]).reshape(-1, len(self.groups))

    def phases(self, start: int = 0) -> list[Phase]:
        """The run from `start` on, cut where a group begins or ends to train."""
        cuts = {edge for g in self.groups for edge in g.active if start < edge < self.total_steps}
        edges = [start, *sorted(cuts), self.total_steps]
        return [Phase(a, b, self.active(a)) for a, b in pairwise(edges)]

    def group_of(self) -> dict[str, Group]:
        """Every parameter's group."""
        return {name: group for group in self.groups for name in group.params}

    def check(self, table: ParamTable) -> None:
        """Every trainable parameter is in exactly one group, no group is empty, every name exists.

        Raises:
            UserError: names the parameters or groups at fault.
        """
        counts = Counter(name for group in self.groups for name in group.params)
        trainable = {row.name for row in table.trainable}
        faults = {
            "in no group": sorted(trainable - set(counts)),
            "in more than one group": [name for name, n in counts.items() if n > 1],
            "not trainable parameters of the model": sorted(set(counts) - trainable),
            "groups without parameters": [g.name for g in self.groups if not g.params],
            "groups whose window is empty or begins after the last step": [
                g.name for g in self.groups if self._idle(g)
            ],
            "groups with an unknown schedule": [g.name for g in self.groups if g.schedule not in self.schedules],
            "groups with an unknown optimizer": [g.name for g in self.groups if g.optimizer not in self.optimizers],
        }
        for fault, names in faults.items():
            if names:
                hint = (
                    f"; the run has {self.total_steps} steps: lower start or freeze.every" if "window" in fault else ""
                )
                raise UserError(
                    f"the plan has {len(names)} {fault}: {', '.join(names[:6])}"
                    f"{', ...' if len(names) > 6 else ''}{hint}"
                )

    def _idle(self, group: Group) -> bool:
        """Its window is empty or past the end, and nobody asked for it to stay frozen."""
        return group.active[0] != FOREVER and group.active[0] >= min(group.active[1], self.total_steps)

    def to_dict(self) -> dict[str, Any]:
        """plan.json: plain data, enough to build the same Plan again."""
        data = asdict(self)
        data["sha256"] = self.sha256
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """The Plan that `to_dict` described."""
        groups = tuple(
            Group(**{**g, "params": tuple(g["params"]), "active": tuple(g["active"])}) for g in data["groups"]
        )
        named = {n: ScheduleSpec(**s) for n, s in data["schedules"].items()}
        optimizers = {n: OptimizerSpec(**o) for n, o in data["optimizers"].items()}
        return cls(groups, data["base_lr"], named, optimizers, data["total_steps"])

    @cached_property
    def sha256(self) -> str:
        """Content hash: equal plans move every parameter alike."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def make_plan(
    table: ParamTable,
    grouping: GroupingSpec,
    optimizers: Mapping[str, OptimizerSpec],
    named: Mapping[str, ScheduleSpec],
    freeze: FreezeSpec,
    total_steps: int,
) -> tuple[ParamTable, Plan]:
    """The checked plan of a run, and the table under the grouping's depths. All durations are steps."""
    base = optimizers["default"]
    table, given = group_table(table, grouping, base.lr, base.weight_decay)
    _check_names(grouping, optimizers, named)
    groups = gather(frozen(given, table, freeze, total_steps))
    plan = Plan(groups, base.lr, dict(named), dict(optimizers), total_steps)
    plan.check(table)
    plan.table()  # every schedule can be evaluated at every step
    return table, plan


def _check_names(
    grouping: GroupingSpec, optimizers: Mapping[str, OptimizerSpec], named: Mapping[str, ScheduleSpec]
) -> None:
    for name, group in grouping.groups.items():
        for key, value, known in (("schedule", group.schedule, named), ("optimizer", group.optimizer, optimizers)):
            if value not in known:
                raise UserError(
                    f"grouping.groups.{name}.{key}={value!r} is not under '{key}s:'; there are: "
                    f"{', '.join(known)}" + did_you_mean(value, list(known))
                )
    for key, spec in optimizers.items():
        if spec.name not in OPTIMIZERS:
            where = "optimizer" if key == "default" else f"optimizers.{key}"
            raise UserError(
                f"{where}.name={spec.name!r} is unknown; there are: {', '.join(OPTIMIZERS)}"
                + did_you_mean(spec.name, list(OPTIMIZERS))
            )


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
