"""Each parameter's effective lr, by displacement: now, and while the schedulers go on.

A step moves a parameter by c - lr * u. Where updates.py predicts it, u is its formula and c is 0; else the same
optimizer tells them: it steps twice from the same state with two known lrs in all groups. So the measured lr is
-<moved - c, u> / <u, u>, whatever the groups say that it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ...planning import UserError
from ..trials import Known, Move, Subject, Trial
from ..updates import UNITS

SCALE = re.compile(r"^(lr|learning_rate)_(scale|scaling|mult|mul|multi|multiplier|ratio|factor|coef)$")
"""Keys of a group that say what its lr should be multiplied by."""
FORMULA = "by formula"
MOMENTS = 20
"""At how many steps is measured, at most."""
_FAINT = 1e-9
_NOISE = 1e-3  # a gradient smaller than others' by this is rounding: of a bias before a batchnorm

Units = dict[str, tuple[np.ndarray, np.ndarray, float]]
"""parameter -> (u, c, <u, u>)."""


@dataclass
class Measured:
    """What was measured; rows are the moments, columns groups or parameters.

    Args:
        subject: on trial.
        names: parameters of the model that the optimizer holds; `of` is each one's group.
        scales: each group's lr_scale or the like; None where no group has one.
        steps: scheduler steps from now, per row.
        held: each group's "lr" as it stands.
        lr: measured, per parameter; NaN where a zero gradient moves nothing.
        moves: whether the parameter moved by a bit.
        arrived: share of the lr that is left once the parameter's own 16 bits have rounded; NaN for wider ones.
        factors: what hooks multiplied each gradient by.
        deaf: groups whose movement does not depend on their lr.
        high: the larger of the known lrs; 0 where a formula told.
        times: optimizer steps of one measurement: 2 where an lr counts only from the next step on (ASGD).
        rewritten: lrs before two steps of the optimizer alone and after each.
        by: how.
    """

    subject: Subject
    names: list[str]
    of: np.ndarray
    scales: np.ndarray | None
    rewritten: np.ndarray
    factors: np.ndarray
    by: str
    exact: bool
    steps: list[int] = field(default_factory=list)
    held: Any = field(default_factory=list)
    lr: Any = field(default_factory=list)
    moves: Any = field(default_factory=list)
    arrived: Any = field(default_factory=list)
    deaf: set[int] = field(default_factory=set)
    times: int = 1
    high: float = 0.0

    @property
    def near(self) -> float:
        """What two lrs may differ by, as a share, and count as equal."""
        return 1e-2 if self.exact else 5e-2

    @cached_property
    def group_lr(self) -> np.ndarray:
        """The median of each group's trainable parameters; NaN where nothing of it can be measured."""
        trains = np.array([self.subject.trainable[name] for name in self.names], bool)
        found = np.full((len(self.steps), len(self.subject.groups)), np.nan)
        for group in range(found.shape[1]):
            rows = self.lr[:, (self.of == group) & trains]
            for k, row in enumerate(rows):
                if np.isfinite(row).any():
                    found[k, group] = np.median(row[np.isfinite(row)])
        return found


def measure(trial: Trial, steps: int | None) -> Measured:
    """Within the trial.

    Args:
        trial: entered.
        steps: how many scheduler steps to look ahead; None: as far as the scheduler's own length says.

    Raises:
        UserError: two steps from the same state differ.
    """
    subject = trial.subject
    pairs = [(n, g) for g, group in enumerate(subject.groups) for n in group if n not in subject.strangers]
    found: dict[str, int] = {}
    for name, group in pairs:
        found.setdefault(name, group)
    names, of = list(found), np.array(list(found.values()), int)
    first, again = trial.move(), trial.move(times=2)
    _refuse_chance(trial, first)
    options = trial.options()
    keys = [[v for k, v in own.items() if SCALE.match(k) and isinstance(v, int | float)] for own in options]
    scales = np.array([own[0] if own else np.nan for own in keys]) if any(keys) else None
    before = [_number(own.get("lr")) for own in options]
    rewritten = np.array([before, first.lrs, again.lrs])
    factors = np.array([first.factors.get(name, 1.0) for name in names])
    by = FORMULA if all(trial.known(g) for g in range(len(subject.groups))) else "by two known lrs"
    measured = Measured(subject, names, of, scales, rewritten, factors, by, trial.exact)
    _ahead(trial, measured, moments(steps if steps is not None else subject.horizon))
    for key in ("held", "lr", "moves", "arrived"):
        setattr(measured, key, np.array(getattr(measured, key)))
    return measured


def moments(horizon: int) -> list[int]:
    """Now, the next two, and on to the horizon; at most MOMENTS."""
    spaced = np.linspace(0, horizon, min(horizon + 1, MOMENTS - 2))
    return sorted({0, *(k for k in (1, 2) if k <= horizon), *(round(k) for k in spaced.tolist())})


def _refuse_chance(trial: Trial, first: Move) -> None:
    again = trial.move()
    for name, moved in first.moved.items():
        near = trial.rounding * np.abs(moved).max(initial=0)  # the last bit may depend on where an array lies
        if not np.allclose(moved, again.moved[name], rtol=0, atol=near, equal_nan=True):
            raise UserError(
                f"cannot be measured: two steps of {trial.subject.optimizer} from the same state move {name} differently: "
                "it draws on something outside of its state and of the random generators"
            )


def _ahead(trial: Trial, measured: Measured, steps: Sequence[int]) -> None:
    at, told = 0, None
    units: Units = {}
    for step in steps:
        while at < step:
            if not trial.advance():
                return
            at += 1
        options = trial.options()
        lrs = [_number(own.get("lr")) for own in options]
        others = [{k: v for k, v in own.items() if k != "lr"} for own in options]
        if others != told:  # betas and weight decay that a scheduler writes
            units, told = _units(trial, measured, lrs), others
            if measured.deaf and measured.times == 1:
                measured.deaf, measured.times = set(), 2
                units = _units(trial, measured, lrs)
        _moment(trial, measured, step, lrs, units)


def _moment(trial: Trial, measured: Measured, step: int, lrs: list[float], units: Units) -> None:
    """One row of all tables."""
    noise = _NOISE**2 * max((square / unit.size for unit, _, square in units.values() if unit.size), default=0.0)
    own = trial.move(times=measured.times).moved
    coarse = measured.subject.coarse
    rounded = trial.move(exact=False, times=measured.times).moved if coarse else own
    lr, arrived = np.full(len(measured.names), np.nan), np.full(len(measured.names), np.nan)
    for i, name in enumerate(measured.names):
        unit, constant, square = units[name]
        if square:
            lr[i] = -((own[name].ravel() - constant) @ unit) / square
            if constant.any() and abs(lr[i]) < trial.rounding * measured.high:
                lr[i] = 0.0  # a difference's rounding
            if name in coarse and lr[i] > 0 and square / unit.size > noise:
                arrived[i] = -((rounded[name].ravel() - constant) @ unit) / square / lr[i]
    moves = [bool(own[name].any() or rounded[name].any()) for name in measured.names]
    for table, row in ((measured.held, lrs), (measured.lr, lr), (measured.moves, moves), (measured.arrived, arrived)):
        table.append(row)
    measured.steps.append(step)


def _units(trial: Trial, measured: Measured, lrs: Sequence[float]) -> Units:
    high = max((lr for lr in lrs if np.isfinite(lr) and lr > 0), default=1e-3)
    pairs = [(name, int(group)) for name, group in zip(measured.names, measured.of, strict=True)]
    if measured.by == FORMULA:
        found = {name: (_formula(trial.known(group), name), np.zeros(1)) for name, group in pairs}
    else:
        one, two = (trial.move(lr, times=measured.times).moved for lr in (high, high / 2))
        found = {}
        for name, group in pairs:
            a, b = one[name].ravel(), two[name].ravel()
            unit = (b - a) / (high / 2)
            if not np.abs(unit).max(initial=0) * high > _FAINT * np.abs(a).max(initial=0):
                unit = np.zeros_like(unit)
                measured.deaf |= {group} if a.any() else set()
            constant = a + high * unit
            rounded = np.abs(constant).max(initial=0) <= 4 * trial.rounding * np.abs(a).max(initial=0)
            found[name] = (unit, np.zeros(1) if rounded else constant)
        measured.high = max(measured.high, high)
    return {name: (unit, constant, float(unit @ unit)) for name, (unit, constant) in found.items()}


def _formula(known: Known | None, name: str) -> np.ndarray:
    """Movement by lr; nothing where there is no gradient, or a scheduler has put the group beyond any formula."""
    if known is None:
        return np.zeros(0)
    weight, gradient, held = known.before(name)
    if gradient is None:
        return np.zeros(0)
    return UNITS[known.spec.name](known.spec, weight, gradient, known.weight_decay, held).ravel()


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
