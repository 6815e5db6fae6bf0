"""The effective-lr proof: how far each parameter really moves, against the plan. An lr is measured, never read back.

From the run's own weights, one training step with a fresh native optimizer moves parameter p by -lr * u, where u
follows from the gradient of that very step and the optimizer's formula. So the measured lr is -<dw, u> / <u, u>, and
the error is all of the movement that is not planned, |dw + lr * u| / |lr * u|, whatever its direction. float32 cannot
show a tiny lr on a large weight; the probe therefore multiplies the plan's base_lr by a power of two (exact) until
rounding is far below the tolerance. Afterwards nothing of the probe is left: weights and optimizer are made anew.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil, isfinite, log2
from typing import Any, NamedTuple

import numpy as np

from ..plan import Group, OptimizerSpec, Plan
from .contract import Framework, Weights
from .offers import central_axes
from .steps import begin, take_step

TOLERANCE = 1e-3
_ROUNDING = 1e-5  # what float32 may contribute to a measured lr
_MAX_PROBES = 4

UnitStep = Callable[[OptimizerSpec, np.ndarray, np.ndarray, float], np.ndarray]


def _adam(spec: OptimizerSpec, gradient: np.ndarray) -> np.ndarray:
    """First step of Adam: both bias corrections cancel the betas."""
    return gradient / (np.abs(gradient) + spec.eps)


def _layer_adaptive(spec: OptimizerSpec, gradient: np.ndarray) -> np.ndarray:
    """First step of layer_adaptive, which corrects no bias: the betas stay in it."""
    average = (1 - spec.betas[0]) * gradient
    return np.abs(average / (np.sqrt(1 - spec.betas[1]) * np.abs(gradient) + spec.eps)).mean() * average


UNIT_STEP: Mapping[str, UnitStep] = {
    "sgd": lambda s, g, w, wd: g + wd * w,
    "momentum": lambda s, g, w, wd: (g + wd * w) * (1 + s.momentum if s.nesterov else 1),
    "adam": lambda s, g, w, wd: _adam(s, g + wd * w),
    "adamw": lambda s, g, w, wd: _adam(s, g) + wd * w,
    "layer_adaptive": lambda s, g, w, wd: _layer_adaptive(s, g + wd * w),
}
"""What a fresh optimizer subtracts from a parameter per unit of lr: (spec, gradient, weight, weight decay)."""


class LrMismatch(Exception):
    """The framework does not do what the plan says; `report` is lr_check.json."""

    def __init__(self, report: dict[str, Any]) -> None:
        row = max(report["groups"], key=lambda r: r["relative_error"])
        super().__init__(
            f"group {row['group']} does not move as planned at step {row['step']}: {row['worst']} is off "
            f"by {row['relative_error']:.2e}, more than {TOLERANCE:g}"
        )
        self.report = report


class Measurement(NamedTuple):
    """One group at one step: planned and measured lr, and the parameter that fits worst (1.0: it moved though
    it must not, or the other way round)."""

    group: str
    step: int
    planned: float
    measured: float | None
    relative_error: float
    worst: str


def check(
    framework: Framework, model: Any, plan: Plan, weights: Weights, batch: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, Any]:
    """Prove the plan on the real model with the real native optimizer; returns lr_check.json.

    Raises:
        LrMismatch: some parameter moved otherwise than planned, by more than TOLERANCE.
    """
    steps = probe_steps(plan)
    power = max(_power(framework, model, plan, weights, batch, seed, step) for step in steps)
    loud = replace(plan, base_lr=plan.base_lr * 2.0**power)
    rows = [row for step in steps for row in _probe(framework, model, loud, weights, batch, seed, step)]
    framework.set_weights(model, weights)
    rows = [
        r._replace(planned=r.planned / 2.0**power, measured=None if r.measured is None else r.measured / 2.0**power)
        for r in rows
    ]
    report: dict[str, Any] = {
        "max_relative_error": max((r.relative_error for r in rows), default=0.0),
        "tolerance": TOLERANCE,
        "steps": steps,
        "base_lr_times": 2.0**power,
        "unmeasured": sorted({r.group for r in rows if r.measured is None}),
        "groups": [r._asdict() for r in rows],
    }
    if not report["max_relative_error"] <= TOLERANCE:
        raise LrMismatch(report)
    return report


def probe_steps(plan: Plan) -> list[int]:
    """Steps that show every group moving, its schedule at work, and who is frozen: a few, spread over the phases."""
    lrs = plan.table()
    phases = plan.phases()
    chosen = [phases[i] for i in sorted({round(i) for i in np.linspace(0, len(phases) - 1, _MAX_PROBES)})]
    steps = {p.start + int(lrs[p.start : p.stop].sum(axis=1).argmax()) for p in chosen}
    steps.add(plan.total_steps // 2)
    steps |= {int(column.argmax()) for column in lrs.T if not any(column[step] for step in steps)}
    return sorted(steps)


def _step(
    framework: Framework,
    model: Any,
    plan: Plan,
    weights: Weights,
    batch: tuple[np.ndarray, np.ndarray],
    seed: int,
    step: int,
) -> tuple[Weights, Weights]:
    """One native step from `weights`: (weights after it, gradients of it)."""
    framework.set_weights(model, weights)
    result = take_step(framework, begin(framework, model, plan, step), plan, step, batch, seed, gradients=True)
    return framework.get_weights(model), result.gradients or {}


def _unit(plan: Plan, group: Group, gradient: np.ndarray, weight: np.ndarray) -> np.ndarray:
    g, w = gradient.astype(np.float64), weight.astype(np.float64)
    if group.grad_centralization and (axes := central_axes(g.shape)):
        g = g - g.mean(axes, keepdims=True)
    spec = plan.optimizers[group.optimizer]
    return UNIT_STEP[spec.name](spec, g, w, group.weight_decay)


def _power(
    framework: Framework,
    model: Any,
    plan: Plan,
    weights: Weights,
    batch: tuple[np.ndarray, np.ndarray],
    seed: int,
    step: int,
) -> int:
    """The power of two that lifts every movement at `step` above float32 rounding of the weights."""
    _, gradients = _step(framework, model, plan, weights, batch, seed, step)
    worst = 0.0
    for group in plan.groups:
        lr = plan.lr(step, group)
        for name in group.params if lr else ():
            if name in gradients:
                length = float(np.linalg.norm(_unit(plan, group, gradients[name], weights[name])))
                noise = 2.0**-24 * float(np.linalg.norm(weights[name]))
                worst = max(worst, noise / (lr * length)) if length else worst
    return min(max(0, ceil(log2(worst / _ROUNDING))), 60) if worst else 0


def _probe(
    framework: Framework,
    model: Any,
    plan: Plan,
    weights: Weights,
    batch: tuple[np.ndarray, np.ndarray],
    seed: int,
    step: int,
) -> list[Measurement]:
    after, gradients = _step(framework, model, plan, weights, batch, seed, step)
    return [_measure(plan, group, step, weights, after, gradients) for group in plan.groups]


def _measure(plan: Plan, group: Group, step: int, before: Weights, after: Weights, gradients: Weights) -> Measurement:
    """The group's lr by displacement; its error is that of its worst parameter."""
    planned = plan.lr(step, group)
    if planned == 0:
        restless = [n for n in group.params if not np.array_equal(before[n], after[n])]
        if restless:
            return Measurement(group.name, step, 0.0, None, 1.0, restless[0])
        return Measurement(group.name, step, 0.0, 0.0, 0.0, "")
    dot = square = 0.0
    errors: dict[str, float] = {}
    for name in group.params:
        if name not in gradients:
            errors[name] = 1.0
            continue
        change = after[name].astype(np.float64) - before[name]
        unit = _unit(plan, group, gradients[name], before[name])
        dot, square = dot - float((change * unit).sum()), square + float((unit * unit).sum())
        errors[name] = _error(change, planned * unit)
    worst = max(errors, key=lambda n: errors[n])
    measured = dot / square if square else None
    return Measurement(
        group.name,
        step,
        planned,
        measured if measured is None or isfinite(measured) else None,
        errors[worst],
        worst if errors[worst] else "",
    )


def _error(moved: np.ndarray, planned: np.ndarray) -> float:
    """What moved though it was not planned, as a share of the plan: 1 where there should be nothing, or is a NaN."""
    length = float(np.linalg.norm(planned))
    error = float(np.linalg.norm(moved + planned)) / length if length else float(moved.any())
    return error if isfinite(error) else 1.0


def table(report: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """Rows (group, step, planned, measured, error, worst parameter), the worst first."""
    rows = sorted(report["groups"], key=lambda r: -r["relative_error"])
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
