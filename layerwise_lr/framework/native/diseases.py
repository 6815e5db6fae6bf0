"""What goes wrong with the lrs of groups, each disease with a name: told from what was measured."""

from collections.abc import Callable, Sequence

import numpy as np

from . import members
from .faults import Case, Fault, alike, shown


def _first_row(table: np.ndarray) -> int:
    """The first in which anything has an lr."""
    return next((k for k, row in enumerate(table) if np.nanmax(row, initial=0) > 0), 0)


def deaf(case: Case) -> list[Fault]:
    """Does an lr do anything?"""
    m = case.m
    if not m.deaf:
        return []
    told = f"{m.subject.optimizer} moves alike whatever lr its groups have"
    remedy = f'make {m.subject.optimizer} read group["lr"] (Adafactor: relative_step=False and an lr)'
    return [Fault("lr that the optimizer does not read", case.labels(sorted(m.deaf)), told, "movement by lr", remedy)]


def unread_scale(case: Case) -> list[Fault]:
    """Groups of different lr_scale whose lrs are equal."""
    m = case.m
    if m.scales is None:
        return []
    row = m.group_lr[_first_row(m.group_lr)]
    pairs = [
        (g, h)
        for g in range(len(row))
        for h in range(g)
        if row[g] > 0 and alike(row[g], row[h], m.near) and not alike(m.scales[g], m.scales[h], m.near)
    ]
    groups = sorted({g for pair in pairs for g in pair})
    if not groups:
        return []
    top = max(row[g] for g in groups) / np.nanmax(m.scales)
    who = f"{m.subject.scheduler} does not" if m.subject.scheduler else "no scheduler is given to"
    return [
        Fault(
            "lr_scale that nobody reads",
            case.labels(groups),
            shown(row[groups]),
            shown(m.scales[groups] * top),
            f"{who} multiply by it: do so once when the optimizer is made, g['lr'] *= g['lr_scale'], or use "
            "timm's scheduler, or llr.plan(model, ...).param_groups(model)",
        )
    ]


def compounding(case: Case) -> list[Fault]:
    """An lr that is multiplied again and again."""
    m = case.m
    alone = _ratios(m.rewritten, m.near)
    if alone is not None:
        ahead, who = alone, m.subject.optimizer
    else:
        if m.scales is None or m.steps[:3] != [0, 1, 2]:
            return []
        ratios = _ratios(m.group_lr[:3], m.near)
        wanted = m.scales / np.nanmax(m.scales)
        if ratios is None or not np.allclose(ratios / np.nanmax(ratios), wanted, rtol=m.near, equal_nan=True):
            return []
        ahead, who = ratios, m.subject.scheduler
    falling = [g for g in range(len(ahead)) if not alike(ahead[g], float(np.nanmax(ahead)), m.near)]
    return [
        Fault(
            "lr that compounds",
            case.labels(falling),
            f"times {shown(ahead[falling])} at every step: 0 soon",
            "multiplied once",
            f"{who} multiplies group['lr'] again at each step: write base_lr * lr_scale * schedule(step) instead",
        )
    ]


def _ratios(lrs: np.ndarray, near: float) -> np.ndarray | None:
    """By how much each lr is multiplied from row to row, where that is the same twice and not the same for all."""
    if np.isnan(lrs).any() or not (lrs > 0).all():
        return None
    one, two = lrs[1] / lrs[0], lrs[2] / lrs[1]
    same = np.allclose(one / one.max(), two / two.max(), rtol=near)
    return one if same and not np.allclose(one, one[0], rtol=near) else None


def flat(case: Case) -> list[Fault]:
    """One lr for all, where a layer decay made the groups or a plan says otherwise."""
    m = case.m
    row = m.group_lr[_first_row(m.group_lr)]
    known = row[np.isfinite(row)]
    if not known.size or not np.allclose(known, known[0], rtol=m.near):
        return []
    remedy = (
        "the grouping matched no name of the model (a wrapper's prefix, no group_matcher), was left out, or has a "
        "layer_decay of 1: take plan.param_groups(model)"
    )
    name = "no layer-wise lr at all"
    if case.plan is not None:
        scales = case.planned(_first_row(m.group_lr))[[m.subject.trainable[n] for n in m.names]]
        if np.isfinite(scales).all() and not np.allclose(scales, scales[0], rtol=m.near):
            expected = scales if case.absolute else scales * known[0] / np.nanmax(scales)
            if m.subject.peaks:
                name, remedy = _flattens(case)
            return [Fault(name, case.labels(range(len(row))), f"{shown(known)} in all", shown(expected), remedy)]
    elif m.scales is not None and np.isfinite(m.scales).all() and np.allclose(m.scales, m.scales[0]):
        told = f"lr_scale {m.scales[0]:g} in all {len(row)} groups: lr {shown(known)}"
        return [Fault(name, case.labels(range(len(row))), told, "a smaller lr_scale towards the stem", remedy)]
    return []


def _flattens(case: Case) -> tuple[str, str]:
    who = case.m.subject.scheduler
    remedy = f"{who} writes one lr into every group: give it a list, one max_lr per group, or plan.scheduler(optimizer)"
    return "a scheduler that flattens the groups", remedy


def ratios(case: Case) -> list[Fault]:
    """Groups whose lrs do not keep their ratios."""
    m = case.m
    if m.subject.per_group or (case.absolute and case.plan is not None) or len(m.steps) < 2:
        return []
    lrs = m.group_lr
    live = [g for g in range(lrs.shape[1]) if np.isfinite(lrs[:, g]).all() and lrs[:, g].max() > 0]
    if len(live) < 2:
        return []
    shape = lrs[:, live] / lrs[:, live].max(axis=0)
    lead = int(np.argmax(lrs[:, live].max(axis=0)))
    off = np.abs(shape - shape[:, [lead]])
    lost = [g for i, g in enumerate(live) if off[:, i].max() > 2 * m.near]
    if not lost:
        return []
    now, worst = lrs[0], int(np.argmax(off.max(axis=1)))
    if now[live].min() > 0 and all(np.allclose(row[live], row[live[0]], rtol=m.near) for row in lrs[1:]):
        name, remedy = _flattens(case)
        return [Fault(name, case.labels(live), shown(lrs[-1][live]), shown(now[live]), remedy)]
    worst = worst if worst else len(m.steps) - 1
    base = lrs[worst][live[lead]] / now[live[lead]] if now[live[lead]] else float("nan")
    return [
        Fault(
            "ratios that a floor or a warm-up destroys",
            case.labels(lost),
            f"{shown(now[lost])} now, {shown(lrs[worst][lost])} at step {m.steps[worst]}",
            f"{shown(now[lost] * base)} there",
            f"{m.subject.scheduler}'s floor (eta_min, min_lr) or start is one number for all groups: set it to 0, or give "
            "a share of each group's lr, as llr.plan(..., floor=0.01) does",
        )
    ]


def late(case: Case) -> list[Fault]:
    """Groups that came after a warm-up had begun, and are multiplied all the same."""
    m, faults = case.m, []
    lrs = m.group_lr
    for g in m.subject.late:
        now, peak = lrs[0, g], float(np.nanmax(lrs[:, g], initial=0))
        if now > 0 and peak > 1.5 * now:
            faults.append(
                Fault(
                    "a late group that a warm-up multiplies",
                    case.labels([g]),
                    f"{now:.3g} now, {peak:.3g} at step {m.steps[int(np.nanargmax(lrs[:, g]))]}",
                    f"never above {now:.3g}",
                    f"{m.subject.scheduler} takes it for a group that began as low as the others: add all groups before "
                    "the scheduler is made",
                )
            )
    return faults


def divided_out(case: Case) -> list[Fault]:
    """A decay on gradients, under an optimizer that divides by their size."""
    m = case.m
    row = np.array(m.lr)[0]
    held = np.array(m.held)[0][m.of]
    scaled = np.abs(np.log(np.abs(m.factors) + 1e-30))
    if not m.factors.size or alike(float(m.factors.min()), float(m.factors.max()), m.near):
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.abs(np.log(row / held))
    lost = [i for i in range(len(m.names)) if scaled[i] > 0.1 and held[i] > 0 and effect[i] < scaled[i] / 2]
    if not lost:
        return []
    return [
        Fault(
            "decay on gradients that the optimizer divides out",
            tuple(m.names[i] for i in lost),
            f"{shown(row[lost])}, though gradients are multiplied by {shown(m.factors[lost])}",
            shown((row * m.factors)[lost]),
            f"{m.subject.optimizer} divides each gradient by its own size: scale the lr of the group, not the gradient",
        )
    ]


def not_the_plan(case: Case) -> list[Fault]:
    """lrs that differ from the plan's otherwise."""
    m = case.m
    if case.plan is None:
        return []
    for k in range(len(m.steps)):
        planned, row = case.planned(k), np.array(m.lr)[k]
        use = np.isfinite(planned) & np.isfinite(row) & (planned > 0)
        if not use.any():
            continue
        ratio = np.where(use, row / np.where(use, planned, 1), np.nan)
        known = (1.0,) if case.absolute else (case.plan.base_lr, float(np.median(ratio[use])))
        offs = {right: [i for i in np.flatnonzero(use) if not alike(ratio[i], right, m.near)] for right in known}
        right, off = min(offs.items(), key=lambda pair: len(pair[1]))
        if off:
            groups = dict.fromkeys(int(m.of[i]) for i in off)
            return [
                Fault(
                    "lr that is not the plan's",
                    case.labels(groups),
                    f"{shown(row[off])} at step {m.steps[k]}",
                    shown(planned[off] * right),
                    "make the optimizer of plan.param_groups(model), and let plan.scheduler alone write learning rates",
                )
            ]
    return []


def not_arriving(case: Case) -> list[Fault]:
    """Groups that move by another lr than they say, each by another factor."""
    m = case.m
    row, held = m.group_lr[0], np.array(m.held)[0]
    use = np.isfinite(row) & (held > 0)
    share = np.where(use, row / np.where(use, held, 1), np.nan)
    by_group = np.array([np.median(m.factors[m.of == g]) if (m.of == g).any() else 1.0 for g in range(len(row))])
    right = [np.ones(len(row)), by_group, *([m.scales] if m.scales is not None else [])]
    for meant in right:
        found = (share / meant)[use]
        if not found.size or np.allclose(found, np.median(found), rtol=m.near):
            return []
    off = [int(g) for g in np.flatnonzero(use) if not alike(share[g], float(np.nanmedian(share)), m.near)]
    told = "something between the groups and the step changes it: look at hooks and at the optimizer's own factors"
    return [Fault("lr that does not arrive", case.labels(off), shown(row[off]), shown(held[off]), told)]


CHECKS: Sequence[Callable[[Case], list[Fault]]] = (
    deaf,
    divided_out,
    compounding,
    unread_scale,
    flat,
    late,
    ratios,
    not_the_plan,
    not_arriving,
)
"""The first that finds something explains the lrs; what follows from it is not told."""


def diagnose(case: Case) -> list[Fault]:
    """All that is wrong."""
    lrs: list[Fault] = next((found for check in CHECKS if (found := check(case))), [])
    return [*lrs, *(fault for check in members.CHECKS for fault in check(case))]
