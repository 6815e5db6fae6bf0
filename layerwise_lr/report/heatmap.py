"""The heat map of a plan: lr of every group at every step, as a figure; report.py writes it.

lr is per optimizer step, on a log scale; a frozen group and an lr of 0 are not colours but look different.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..planning import Plan
from .drawing import STYLE, plain

FROZEN, FROZEN_EDGE = "#b9b9b9", "#8a8a8a"


def heatmap(plan: Plan, ink: str = "black", width: float = 8.0) -> Figure:
    """lr of every group (stem at the top) at every step; frozen stretches are hatched, lr 0 is left empty."""
    rows = _rows(plan)
    steps = np.unique(np.linspace(0, plan.total_steps - 1, min(plan.total_steps, 600)).round().astype(int))
    table = np.array([plan.lrs(int(step)) for step in steps]).T[[index for index, _ in rows]]
    height = min(max(0.19 * len(rows) + 1.5, 2.6), 16)
    inks: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    bare: dict[Any, Any] = dict.fromkeys(("axes.grid", "axes.spines.left", "axes.spines.bottom"), False)
    with mpl.rc_context({**STYLE, **inks, **bare}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        _paint(figure, axes, table, plan.total_steps)
        frozen = _hatch(axes, plan, [index for index, _ in rows])
        every = max(1, -(-len(rows) // 80))
        axes.set_yticks(range(0, len(rows), every), [label for _, label in rows][::every], fontsize=9)
        axes.set(xlabel="step", xlim=(-0.5, plan.total_steps - 0.5))
        _legend(figure, plan, table, steps, [index for index, _ in rows], frozen, ink)
    return figure


def _paint(figure: Figure, axes: Axes, table: np.ndarray, total: int) -> None:
    """The lrs [groups, steps] and their scale: four decades; what is less takes the last colour."""
    top = table.max() or 1.0
    least = table[table > 0].min(initial=top)
    low = min(max(least, top * 1e-4), top / 10)
    extent = (-0.5, total - 0.5, len(table) - 0.5, -0.5)
    cmap = mpl.colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    image = axes.imshow(
        np.ma.masked_equal(table, 0),
        norm=LogNorm(low, top),
        cmap=cmap,
        aspect="auto",
        interpolation="nearest",
        extent=extent,
    )
    shrink = min(1.0, 4 / figure.get_figheight())
    bar = figure.colorbar(
        image,
        label="lr",
        shrink=shrink,
        pad=0.015,
        format=FuncFormatter(plain),
        extend="min" if least < low else "neither",
    )
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.outline.set_visible(False)


def _rows(plan: Plan) -> list[tuple[int, str]]:
    """(group index, label): a group and its twin without weight decay have the same lr and share a row."""
    rows, twins = [], {g.name: g for g in plan.groups}
    for index, group in enumerate(plan.groups):
        other = twins.get(group.name.removesuffix("_no_decay"), group)
        alike = (other.lr_scale, other.schedule, other.active) == (group.lr_scale, group.schedule, group.active)
        if other is group or not alike:
            rows.append((index, group.name if len(group.name) <= 32 else f"{group.name[:31]}…"))
    return rows


def _hatch(axes: Axes, plan: Plan, groups: Sequence[int]) -> bool:
    """Grey hatching where a group does not train; whether there is any."""
    some = False
    for row, index in enumerate(groups):
        start, stop = (min(edge, plan.total_steps) for edge in plan.groups[index].active)
        for left, right in ((0, start), (stop, plan.total_steps)):
            if left < right:
                some = True
                axes.add_patch(
                    Rectangle(
                        (left - 0.5, row - 0.5),
                        right - left,
                        1,
                        facecolor=FROZEN,
                        edgecolor=FROZEN_EDGE,
                        hatch="////",
                        linewidth=0,
                    )
                )
    return some


def _legend(
    figure: Figure, plan: Plan, table: np.ndarray, steps: np.ndarray, groups: Sequence[int], frozen: bool, ink: str
) -> None:
    """Says what hatched and empty cells are, where there are any."""
    active = np.array([[plan.active(int(step))[g] for step in steps] for g in groups])
    handles = []
    if frozen:
        handles.append(Patch(facecolor=FROZEN, edgecolor=FROZEN_EDGE, hatch="////", label="frozen: no update at all"))
    if ((table == 0) & active).any():
        handles.append(Patch(facecolor="none", edgecolor=ink, linewidth=0.6, label="empty: lr is 0 there"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
