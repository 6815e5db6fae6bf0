"""The lr range test as a figure; report.py writes it."""

from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..run import range_test
from .drawing import DASHES, STYLE, plain

INK, RAW, LINE = "black", "#9a9a9a", "#0b62a4"


def range_plot(test: range_test.RangeTest) -> Figure:
    """Loss against the base lr, raw and smoothed, with what the lr may be read from."""
    inks: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK)
    inks |= {"xtick.color": INK, "ytick.color": INK, "grid.color": "#dddddd"}
    marks = {"lowest loss": test.lowest(), "falls fastest": test.steepest(), "suggestion": test.suggestion()}
    with mpl.rc_context({**STYLE, **inks}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.plot(test.lrs, test.losses, ".", color=RAW, markersize=4, label="each step")
        axes.plot(test.lrs, test.smoothed, color=LINE, linewidth=1.6, label="moving average")
        for (what, lr), dash in zip(marks.items(), DASHES[1:], strict=False):
            axes.axvline(lr, color=INK, linestyle=dash, linewidth=1.1, label=f"{what}: {lr:.2g}")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(plain))
        low, high = min(test.smoothed), max(test.smoothed[:10])
        axes.set_ylim(max(0.0, low - 0.1 * (high - low)), high + max(0.5 * (high - low), 0.1 * high))
        axes.set(xlabel="base lr (each layer has its own share of it)", ylabel="validation loss (cross-entropy, nats)")
        figure.legend(loc="outside lower center", ncols=3)
    return figure
