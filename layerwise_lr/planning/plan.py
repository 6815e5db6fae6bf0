"""The Plan: groups x schedules x freezing, and the one law of the learning rate.

    lr(step, g) = base_lr * g.lr_scale * schedule_g(step), and no update at all outside g.active.

Steps are counted from 0, lr is per optimizer step. A plan is data: it hashes, it is saved as plan.json, and a
plugin only applies its numbers.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from . import schedules
from .assigning import gather, group_table
from .errors import UserError, did_you_mean
from .freezing import FreezeSpec, frozen
from .groups import FOREVER, Group, GroupingSpec
from .optimizers import OPTIMIZERS, OptimizerSpec, beside_muon
from .params import ParamTable
from .schedules import Schedule, ScheduleSpec


@dataclass(frozen=True)
class Clip:
    """How gradients are bounded before any optimizer sees them: at most one of the two, as torch.nn.utils does it.

    Args:
        norm: all gradients of a step are scaled down together until their common L2 norm is at most this:
            times min(1, norm / (their norm + 1e-6)).
        value: each number of a gradient is brought into -value to value.
    """

    norm: float | None = None
    value: float | None = None


NO_CLIP = Clip()


MOST_SHOWN = 10_000
"""Steps of a run whose lrs are written down: `Plan.shown`."""
HIGHEST = 1e6
"""An lr above it makes infinities of float32 weights."""
REMEDIES = {
    "window": "lower start or freeze.every, raise stop or freeze.at",
    "lr is 0": "lower scheduler.warmup or interval, or raise scheduler.warmup_start or floor",
    "lr is above": "lower scheduler.gamma",
}
"""What to do, by a part of the fault."""


class Phase(NamedTuple):
    """A stretch of steps [start, stop) in which the same groups train."""

    start: int
    stop: int
    active: tuple[bool, ...]


class UpdateRule(NamedTuple):
    """What a group's update does, apart from its lr: hashable, so that a compiled step can be keyed by it.

    Args:
        optimizer: with lr 1.0, and the weight decay that it would give to groups without their own.
        weight_decay: the group's.
        grad_centralization: subtract each filter's mean from its gradient.
    """

    optimizer: OptimizerSpec
    weight_decay: float
    grad_centralization: bool


@dataclass(frozen=True)
class Plan:
    """What every parameter does at every step.

    Args:
        groups: as in groups.py; every trainable parameter in exactly one.
        base_lr: per step.
        schedules: by name; "default" is the run's.
        optimizers: by name; "default" is the run's.
        total_steps: length of the run.
        batchnorms: layer -> its own parameters, of the batchnorm layers that rest while none of those trains.
        clip: of the gradients.
        accumulate: parts that a step's pictures are cut into; their gradients' mean is the step's.
    """

    groups: tuple[Group, ...]
    base_lr: float
    schedules: Mapping[str, ScheduleSpec]
    optimizers: Mapping[str, OptimizerSpec]
    total_steps: int
    batchnorms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    clip: Clip = NO_CLIP
    accumulate: int = 1

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
        factors = [schedule(step) if start <= step < stop else 0.0 for schedule, start, stop in self._paces]
        return [peak * factors[pace] for peak, pace in zip(self._peaks, self._pace_of, strict=True)]

    def write_lrs(self, step: int, groups: Iterable[dict[str, Any]]) -> None:
        """`lrs` as the "lr" of native groups in the plan's order; others may follow them."""
        if self._alike:
            (schedule, start, stop), peaks = self._alike
            factor = schedule(step) if start <= step < stop else 0.0
            for group, peak in zip(groups, peaks):  # noqa: B905 (the others)
                group["lr"] = peak * factor
        else:
            for group, lr in zip(groups, self.lrs(step)):  # noqa: B905
                group["lr"] = lr

    @cached_property
    def _alike(self) -> tuple[tuple[Schedule, int, int], list[float]] | None:
        """The pace of all groups, if they have one, and their peaks."""
        return (self._paces[0], self._peaks) if len(self._paces) == 1 else None

    @cached_property
    def _peaks(self) -> list[float]:
        """Per group the lr at factor 1."""
        return [self.base_lr * group.lr_scale for group in self.groups]

    @cached_property
    def _paces(self) -> list[tuple[Schedule, int, int]]:
        """What differs in time: each schedule in each window that a group has."""
        told = dict.fromkeys((group.schedule, *group.active) for group in self.groups)
        return [(self._functions[name], start, stop) for name, start, stop in told]

    @cached_property
    def _pace_of(self) -> list[int]:
        """Per group, which of the paces it keeps."""
        keys = [(group.schedule, *group.active) for group in self.groups]
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        return [places[key] for key in keys]

    def active(self, step: int) -> tuple[bool, ...]:
        """Which groups train at `step`."""
        return tuple(g.active[0] <= step < g.active[1] for g in self.groups)

    def frozen(self, step: int) -> frozenset[str]:
        """The batchnorm layers that run on their running statistics at `step` and keep them."""
        return self._frozen_under(self.active(step))

    def _frozen_under(self, active: tuple[bool, ...]) -> frozenset[str]:
        if active not in self._frozen:
            live = {name for group, on in zip(self.groups, active, strict=True) if on for name in group.params}
            self._frozen[active] = frozenset(n for n, own in self.batchnorms.items() if not live & set(own))
        return self._frozen[active]

    @cached_property
    def _frozen(self) -> dict[tuple[bool, ...], frozenset[str]]:
        return {}

    def table(self, start: int = 0) -> np.ndarray:
        """float64 [total_steps - start, groups]: lr per step and group."""
        return np.array([self.lrs(step) for step in range(start, self.total_steps)]).reshape(-1, len(self.groups))

    def shown(self) -> list[int]:
        """The steps whose lrs are written down: all; of more than 10,000 as many, evenly, the last, and every one at
        which a group begins or ends to train."""
        steps = range(0, self.total_steps, every_shown(self.total_steps))
        return sorted({*steps, *(phase.start for phase in self.phases()), self.total_steps - 1})

    def phases(self, start: int = 0) -> list[Phase]:
        """The run from `start` on, cut where a group begins or ends to train."""
        cuts = {edge for g in self.groups for edge in g.active if start < edge < self.total_steps}
        edges = [start, *sorted(cuts), self.total_steps]
        return [Phase(a, b, self.active(a)) for a, b in pairwise(edges)]

    def group_of(self) -> dict[str, Group]:
        """Every parameter's group."""
        return {name: group for group in self.groups for name in group.params}

    def rule(self, group: Group) -> UpdateRule:
        """What `group`'s update does, apart from its lr."""
        optimizer = replace(self.optimizers[group.optimizer], lr=1.0)
        return UpdateRule(optimizer, group.weight_decay, group.grad_centralization)

    def check(self, table: ParamTable) -> None:
        """Every trainable parameter is in exactly one group, no group is empty, every name exists.

        Raises:
            UserError: names the parameters or groups at fault.
        """
        counts = Counter(name for group in self.groups for name in group.params)
        trainable = {row.name for row in table.trainable}
        known = [g for g in self.groups if g.schedule in self.schedules]
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
            "groups whose lr is 0 at every step": [g.name for g in known if self._still(g)],
            f"groups whose lr is above {HIGHEST:g} at their last step": [g.name for g in known if self._wild(g)],
        }
        for fault, names in faults.items():
            if names:
                hint = next(
                    (f"; the run has {self.total_steps} steps: {do}" for of, do in REMEDIES.items() if of in fault), ""
                )
                raise UserError(
                    f"the plan has {len(names)} {fault}: {', '.join(names[:6])}"
                    f"{', ...' if len(names) > 6 else ''}{hint}"
                )

    def _wild(self, group: Group) -> bool:
        """What grows does so to the end: a gamma above 1."""
        last = min(group.active[1], self.total_steps) - 1
        grown = group.active[0] <= last and self.factor(last, group) > 1
        return grown and not self.lr(last, group) <= HIGHEST

    def _still(self, group: Group) -> bool:
        """Its schedule is 0 throughout its window, and nobody asked for it by lr 0."""
        start, stop = group.active[0], min(group.active[1], self.total_steps)
        return bool(group.lr_scale) and start < stop and not any(self.factor(s, group) for s in range(start, stop))

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
        batchnorms = {layer: tuple(own) for layer, own in data["batchnorms"].items()}
        clip, parts = Clip(**data["clip"]), data["accumulate"]
        return cls(groups, data["base_lr"], named, optimizers, data["total_steps"], batchnorms, clip, parts)

    @cached_property
    def sha256(self) -> str:
        """Content hash: equal plans move every parameter alike."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def every_shown(total_steps: int) -> int:
    """Steps from one whose lrs are written down to the next."""
    return -(-total_steps // MOST_SHOWN)


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
    given, optimizers = beside_muon(given, table, optimizers)
    groups = gather(frozen(given, table, freeze, total_steps))
    plan = Plan(
        groups,
        base.lr,
        dict(named),
        dict(optimizers),
        total_steps,
        table.batchnorms() if freeze.batchnorm == "eval" else {},
    )
    plan.check(table)
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
