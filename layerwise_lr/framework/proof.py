"""The effective-lr proof: how far each parameter really moves, against the plan. An lr is measured, never read back.

A step moves parameter p by -lr * u, where u follows from the gradient of that very step, the optimizer's state before
it and the optimizer's formula (updates.py). So the measured lr is -<dw, u> / <u, u>, and the error is all of the
movement that is not planned, |dw + lr * u| / |lr * u|, whatever its direction. What does not train must not move by a
bit: parameters outside their window, and the statistics of batchnorm layers that rest.

Twice: `check` before step 0, on a rehearsal of at most three steps, for what only a rehearsal can show: steps that are
still to come, and lrs too faint for float32 (after one step as it is, it multiplies base_lr by a power of two, exact,
until rounding is far below the tolerance; afterwards nothing of it is left). And `measure` during training, on the
steps of the run itself, from what the run holds: rounding of the weights is allowed for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil, isfinite, log2, sqrt
from typing import Any, NamedTuple

import numpy as np

from ..planning import Group, Plan, UserError
from .contract import Framework, TrainState, Weights
from .offers import STATE_KEYS, central_axes
from .steps import begin, take_step
from .updates import UNITS, WHOLE

TOLERANCE = 1e-3
_ROUNDING = 1e-5  # what float32 may contribute to an lr measured by rehearsal
_FINE, _ROUGH = 1e-4, 0.1  # resolutions that will do: of a group's finest step, of any other
_HALF_ULP = 2.0**-24  # float32's relative rounding
_LEAST = 2.0**-126  # its least normal number: smaller ones are rounded as that is
_BLOCK = 2**16  # numbers measured at once
_ROUNDINGS = 3  # of a weight in one update: the decay's, the step's, the copy's

Batch = tuple[np.ndarray, np.ndarray]
Clipped = Callable[[np.ndarray], np.ndarray]


class Measurement(NamedTuple):
    """One group at one step.

    Args:
        group: its name; "batchnorm statistics" for the layers that rest.
        step: counted from 0.
        planned: lr; 0 where nothing may move.
        measured: lr by displacement; None where the gradient is zero or a movement is not finite.
        relative_error: of the parameter that fits worst; 1.0: it moved though it must not, or the other way round.
        worst: that parameter; "parameter/step": its optimizer state counts other steps than it has trained, or is lost.
        resolution: what rounding of the weights may hide, as a share of the movement, in the parameter where it is
            most; a group with 0.5 is known to move by half to one and a half of its lr.
    """

    group: str
    step: int
    planned: float
    measured: float | None
    relative_error: float
    worst: str
    resolution: float = 0.0


class LrMismatch(Exception):
    """The framework does not do what the plan says; `records` are lines of lr_check.jsonl, the last is at fault."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        row = max(records[-1]["groups"], key=lambda r: r["relative_error"])
        off = f"by {row['relative_error']:.2e}, more than {TOLERANCE:g}"
        super().__init__(
            f"group {row['group']} does not move as planned at step {row['step']}: {row['worst']} is off {off}"
        )
        self.records = records


def check(
    framework: Framework, model: Any, plan: Plan, weights: Weights, batch: Batch, seed: int
) -> list[dict[str, Any]]:
    """Prove the plan by rehearsal on the real model with the real native optimizer; returns lines of lr_check.jsonl.

    Raises:
        LrMismatch: some parameter moved otherwise than planned, by more than TOLERANCE.
        UserError: a gradient is not finite.
    """
    first, *others = probe_steps(plan)
    records: list[dict[str, Any]] = []
    state = begin(framework, model, plan, first)
    rehearse = partial(_rehearse, records, framework, state, plan, weights, batch, seed)
    try:
        rehearse(first)  # as it is: what does not grow with the lr is drowned by a large one
        rows = records[0]["groups"]
        for step in others:
            rehearse(step, _power(plan, step, rows))
        if _faint(plan, others, rows):
            rehearse(first, _power(plan, first, rows))
    finally:
        framework.set_weights(model, weights)
    return records


def add(records: list[dict[str, Any]], when: str, step: int, rows: Sequence[Measurement], **more: Any) -> None:
    """One more line of lr_check.jsonl.

    Raises:
        LrMismatch: it tells of a movement that is not planned.
    """
    worst = max((row.relative_error for row in rows), default=0.0)
    facts = {"when": when, "step": step, "max_relative_error": worst, "tolerance": TOLERANCE}
    hidden = max((row.resolution for row in rows), default=0.0)
    records.append({**facts, "resolution": hidden, **more, "groups": [row._asdict() for row in rows]})
    if not worst <= TOLERANCE:
        raise LrMismatch(records)


def probe_steps(plan: Plan) -> list[int]:
    """Two steps (one, where all are alike): first the one in which most groups move, then the one that differs most
    from it in who moves and by how much."""
    phases = plan.phases()
    steps = {int(step) for p in phases for step in np.linspace(p.start, p.stop - 1, min(p.stop - p.start, 16))}
    lrs = {step: np.array(plan.lrs(step)) for step in sorted(steps)}
    lrs = {step: row for step, row in lrs.items() if row.any()} or lrs  # a step of lr 0 throughout shows little
    first = max(lrs, key=lambda step: ((lrs[step] > 0).sum(), lrs[step].sum()))

    def differs(step: int) -> tuple[int, float]:
        here, there = lrs[step], lrs[first]
        return int(((here > 0) != (there > 0)).sum()), float(np.abs(here - there).sum())

    return list(dict.fromkeys((first, max(lrs, key=differs))))


def _rehearse(
    records: list[dict[str, Any]],
    framework: Framework,
    state: TrainState,
    plan: Plan,
    weights: Weights,
    batch: Batch,
    seed: int,
    step: int,
    power: int = 0,
) -> None:
    """One native step from `weights` and without optimizer state, under base_lr * 2**power: one more line."""
    loud, times = replace(plan, base_lr=plan.base_lr * 2.0**power), 2.0**power
    framework.set_weights(state.model, weights)
    framework.set_optimizer_state(state, {})
    state.scheduler = framework.make_scheduler(state.optimizer, loud, step)
    result = take_step(framework, state, loud, step, batch, seed, gradients=True)
    gradients = result.gradients or {}
    for what, number in (
        ("the loss", float(result.loss)),
        *((f"the gradient of {n}", float(np.vdot(g, g))) for n, g in gradients.items()),
    ):
        if not isfinite(number):
            raise UserError(not_a_number(what, number, batch[0], weights, framework.precision))
    rows = measure(loud, step, weights, framework.get_weights(state.model), gradients, {}, begun=step)
    quiet = [r._replace(planned=r.planned / times, measured=r.measured and r.measured / times) for r in rows]
    add(records, "start", step, quiet, base_lr_times=times)


def not_a_number(what: str, number: float, x: np.ndarray, weights: Weights, precision: str) -> str:
    """Why a number of the first step is none: no weight has moved yet."""
    return f"{what} is {number} at step 0, before anything was trained: {reach(x, weights, precision)}"


def reach(x: np.ndarray, weights: Weights, precision: str) -> str:
    """What a run begins from, as measured: where a number of it is none, the cause is one of these."""
    sizes = {name: float(np.nan_to_num(np.abs(array), nan=np.inf).max(initial=0)) for name, array in weights.items()}
    name = max(sizes, key=lambda name: sizes[name])
    return (
        f"the pictures reach {np.abs(x).max():.3g} (data.mean, data.std), "
        f"the start weights {sizes[name]:.3g} in {name} (weights){half(precision)}"
    )


def half(precision: str) -> str:
    """The narrow range that may be at fault."""
    return "; float16 holds no more than 65504: framework.precision=fp32" if precision == "fp16" else ""


def _faint(plan: Plan, others: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the step as it is, of which `rows` are, hides too much of a group; `others` show theirs finely."""
    return any(
        row["resolution"] > (_ROUGH if any(plan.lr(step, group) for step in others) else _FINE)
        for group, row in zip(plan.groups, rows, strict=False)
    )


def _power(plan: Plan, step: int, rows: Sequence[Mapping[str, Any]]) -> int:
    """The power of two that lifts every movement at `step` above float32 rounding of the weights; `rows` are of one
    step as it is."""
    worst = 0.0
    for group, row in zip(plan.groups, rows, strict=False):
        if lr := plan.lr(step, group):
            worst = max(worst, row["resolution"] / _ROUNDINGS * row["planned"] / lr)
    return max(0, ceil(log2(min(worst / _ROUNDING, 2.0**60)))) if worst else 0


def measure(
    plan: Plan, step: int, before: Weights, after: Weights, gradients: Weights, state: Weights, begun: int = 0
) -> list[Measurement]:
    """What one step did, group by group; then the statistics of the batchnorm layers that rest.

    Args:
        plan: that step's.
        step: counted from 0.
        before, after: all weights and buffers around it.
        gradients: of the step, before clipping, weight decay and centralization.
        state: the optimizer's before it, "parameter/key" -> array.
        begun: the step before which it was empty.
    """
    held: dict[str, dict[str, np.ndarray]] = {}
    for key, array in state.items():
        name, _, part = key.rpartition("/")
        held.setdefault(name, {})[part] = array
    clipped = _clipping(plan, gradients)
    rows = [
        _moving(plan, group, step, before, after, gradients, clipped, held, step - max(begun, group.active[0]))
        if plan.lr(step, group)
        else _resting(group.name, group.params, step, before, after)
        for group in plan.groups
    ]
    known = {name for group in plan.groups for name in group.params}
    rest = [name for name in before if name not in known and name.rpartition(".")[0] in plan.frozen(step)]
    return [*rows, _resting("batchnorm statistics", rest, step, before, after)] if rest else rows


def _clipping(plan: Plan, gradients: Weights) -> Clipped:
    """What the plan's clipping makes of a part of these gradients, all that the step has."""
    if (bound := plan.clip.value) is not None:
        return lambda g: np.clip(g, -bound, bound)
    if plan.clip.norm is None:
        return lambda g: g
    norm = sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in gradients.values()))
    scale = np.float32(min(1.0, plan.clip.norm / (norm + 1e-6)))
    return lambda g: g * scale


def _resting(group: str, names: Sequence[str], step: int, before: Weights, after: Weights) -> Measurement:
    restless = [name for name in names if not np.array_equal(before[name], after[name])]
    if restless:
        return Measurement(group, step, 0.0, None, 1.0, restless[0])
    return Measurement(group, step, 0.0, 0.0, 0.0, "")


def _moving(
    plan: Plan,
    group: Group,
    step: int,
    before: Weights,
    after: Weights,
    gradients: Weights,
    clipped: Clipped,
    held: Mapping[str, Mapping[str, np.ndarray]],
    trained: int,
) -> Measurement:
    """The group's lr by displacement; its error is that of its worst parameter, or of the count of steps in its
    optimizer's state, where that is not `trained`."""
    planned, counts = plan.lr(step, group), "step" in STATE_KEYS[plan.optimizers[group.optimizer].name]
    dot = square = resolution = 0.0
    errors: dict[str, float] = {}
    for name in group.params:
        if name not in gradients:
            errors[name] = 1.0
            continue
        own = held.get(name, {})
        if counts:
            errors[f"{name}/step"] = abs(float(own.get("step", 0)) - trained) / max(trained, 1)
        sums = _sums(plan, group, planned, before[name], after[name], gradients[name], clipped, own)
        dot, square = dot + sums.dot, square + sums.unit
        errors[name], hidden = _error(sums, planned)
        resolution = max(resolution, hidden)
    worst = max(errors, key=lambda n: errors[n])
    measured = dot / square if square else None
    shown = measured if measured is not None and isfinite(measured) else None
    return Measurement(group.name, step, planned, shown, errors[worst], worst if errors[worst] else "", resolution)


class _Sums(NamedTuple):
    """Of one parameter: <-moved, unit>, and the squares of unit, of moved + lr * unit and of the weight."""

    dot: float
    unit: float
    off: float
    weight: float


def _sums(
    plan: Plan,
    group: Group,
    lr: float,
    before: np.ndarray,
    after: np.ndarray,
    gradient: np.ndarray,
    clipped: Clipped,
    held: Mapping[str, np.ndarray],
) -> _Sums:
    """In float32 as the framework computes, summed in float64; in blocks of rows that stay in the cache: several times
    faster than arrays of the whole."""
    spec, total = plan.optimizers[group.optimizer], np.zeros(4)
    rows = len(before) if spec.name in WHOLE else max(1, _BLOCK * len(before) // before.size)
    for begins in range(0, len(before), rows):
        part = slice(begins, begins + rows)
        g, w = clipped(gradient[part]), before[part]
        if group.grad_centralization and (axes := central_axes(g.shape)):
            g = g - g.mean(axes, keepdims=True)
        own = {k: a[part] if a.shape == before.shape else a for k, a in held.items()}
        arrays = UNITS[spec.name](spec, w, g, group.weight_decay, own), after[part] - w, w
        unit, moved, weight = (array.ravel().astype(np.float64) for array in arrays)
        unknown = np.isnan(unit) & np.isfinite(moved)
        unit[unknown] = moved[unknown] = 0
        off = moved + lr * unit
        total += -(moved @ unit), unit @ unit, off @ off, weight @ weight + weight.size * _LEAST**2
    return _Sums(*map(float, total))


def _error(sums: _Sums, lr: float) -> tuple[float, float]:
    """(error, resolution): what moved though it was not planned, as a share of the plan, 1 where there should be
    nothing or is a NaN; and what the rounding of a weight of that norm may have made of it. An error beyond the
    tolerance is told without that."""
    length = lr * sqrt(sums.unit)
    if not length:
        return float(sums.off != 0), 0.0
    error, hidden = sqrt(sums.off) / length, _ROUNDINGS * _HALF_ULP * sqrt(sums.weight) / length
    if error > TOLERANCE:
        error = max(error - hidden, 0.0)
    return (error if isfinite(error) else 1.0), hidden


def table(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows (group, step, planned, measured, error, worst parameter), the worst first."""
    rows = sorted((row for line in records for row in line["groups"]), key=lambda r: -r["relative_error"])
    return [
        (
            r["group"],
            str(r["step"]),
            f"{r['planned']:.4g}",
            "-" if r["measured"] is None else f"{r['measured']:.4g}",
            f"{r['relative_error']:.1e}",
            r["worst"],
        )
        for r in rows
    ]
