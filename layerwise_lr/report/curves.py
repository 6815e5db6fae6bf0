"""The figure of a comparison: losses of every framework, and how far each is from the first, per step."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from .compare import DIFFERS, Comparison, relative
from .plots import STYLE

INKS: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), "black")


def curves(comparison: Comparison) -> Figure:
    """Above: training loss per step. Below: |loss - first| / |first| on a log scale; what is equal is not drawn."""
    base = comparison.runs[0]
    with mpl.rc_context({**STYLE, **INKS, "grid.color": "#dddddd", "axes.edgecolor": "#888888"}):
        figure = Figure(figsize=(8, 6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for index, run in enumerate(comparison.runs):
            style = {"color": f"C{index}", "lw": 3 - 2 * index / len(comparison.runs), "alpha": 0.9}
            above.plot(run.losses, label=run.label, **style)
            if run is not base:
                apart = relative(run.losses, base.losses)
                below.plot(np.ma.masked_equal(apart, 0), label=run.label, color=f"C{index}", lw=1.2)
        below.axhline(DIFFERS, color="#888888", lw=0.8, ls="--")
        below.set(yscale="log", ylabel=f"relative difference from {base.label}", xlabel="step")
        above.set(ylabel="training loss")
        above.legend()
    return figure
