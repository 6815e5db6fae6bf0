"""What a person reads of plans and proofs in the terminal."""

from collections.abc import Sequence
from typing import Any

from ..planning import Difference, Group, ParamTable, Plan
from . import console


def show_params(params: ParamTable, plan: Plan) -> None:
    """Every parameter under its group: depth, shape; the group's rule, lr_scale and weight decay."""
    rows = params.by_name
    width = max(map(len, rows))
    for group in plan.groups:
        console.say(f"{group.name}  ({group.rule})  lr_scale {group.lr_scale:.4g}  weight_decay {group.weight_decay:g}")
        if group.active[0] > 0 or group.active[1] < plan.total_steps:
            console.say(f"    {_window(group.active, plan)}")
        for name in group.params:
            shape = "x".join(map(str, rows[name].shape))
            console.say(f"    depth {rows[name].depth:<3} {name:<{width}}  {shape}")


def _window(active: tuple[int, int], plan: Plan) -> str:
    if active[0] >= plan.total_steps:
        return "frozen throughout"
    return f"trains in steps {active[0]} to {min(active[1], plan.total_steps) - 1}"


def show_lrs(params: ParamTable, plan: Plan) -> None:
    """lr at five moments of the run, or as many as the terminal has room for; groups with the same lr throughout
    share a line."""
    alike: dict[tuple[object, ...], list[Group]] = {}
    for group in plan.groups:
        alike.setdefault((group.lr_scale, group.schedule, group.active), []).append(group)
    for moments in (5, 4, 3, 2):
        headings, rows = _lr_table(params, plan, list(alike.values()), moments)
        widths = [max(map(len, column)) + 2 for column in zip(headings, *rows, strict=True)]
        if sum(widths) <= console.width():
            break
    console.table(headings, rows, right=range(1, len(headings)))


def _lr_table(
    params: ParamTable, plan: Plan, alike: Sequence[Sequence[Group]], moments: int
) -> tuple[list[str], list[list[str]]]:
    last = plan.total_steps - 1
    steps = sorted({round(last * moment / (moments - 1)) for moment in range(moments)})
    rows, lines = params.by_name, []
    for groups in alike:
        names = [name for group in groups for name in group.params]
        lrs = [_lr(plan, groups[0], step) for step in steps]
        more = f" (+{len(groups) - 1})" if len(groups) > 1 else ""
        lines.append([groups[0].name + more, str(len(names)), f"{sum(rows[n].numel for n in names):,}", *lrs])
    return ["lr of group", "arrays", "numbers", *(f"step {step}" for step in steps)], lines


def _lr(plan: Plan, group: Group, step: int) -> str:
    return f"{plan.lr(step, group):.2e}" if group.active[0] <= step < group.active[1] else "frozen"


def show_mismatch(rows: Sequence[Sequence[Any]]) -> None:
    """Planned against measured lr, the worst first."""
    console.table(["group", "step", "planned lr", "measured lr", "error", "worst parameter"], rows, right=(1, 2, 3, 4))


def show_differences(found: Sequence[Difference], conventions: tuple[str, str]) -> None:
    """A row per parameter, "first | second" in each cell; weight decay where it differs anywhere."""
    fields = ["depth", "lr_scale"] + ["weight decay"] * any(d.first[2] != d.second[2] for d in found)
    pairs = [list(zip(d.first, d.second, strict=True))[: len(fields)] for d in found]
    wide = [max((len(f"{pair[i][1]:.4g}") for pair in pairs), default=0) for i in range(len(fields))]
    rows = [
        [d.name, *(f"{a:.4g} | {b:<{w}.4g}" for (a, b), w in zip(pair, wide, strict=True))]
        for d, pair in zip(found, pairs, strict=True)
    ]
    if rows:
        console.table([" | ".join(conventions), *fields], rows, right=range(1, len(fields) + 1))
