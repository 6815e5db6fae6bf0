"""How figures look: the page's colours, markers and dashes, hover texts, SVG that stands alone."""

import html
import io
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .statistics import KINDS, Interval

INK, FAINT = "#010203", "#040506"
COLOURS = {kind: f"#0a0b0{i}" for i, kind in enumerate(KINDS)}
LINES = [f"#0c0d0{i}" for i in range(6)]
CSS = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    **{c: f"var(--kind{i})" for i, c in enumerate(COLOURS.values())},
    **{c: f"var(--line{i})" for i, c in enumerate(LINES)},
}
"""Colours of the figures stand for the page's variables, so that one SVG serves light and dark."""


class Look(NamedTuple):
    """What a line can be told by: a colour, and for those who see it as another's, a marker and a dash."""

    colour: str
    marker: str
    dash: Any


MARKERS = "os^Dvp"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)), (0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)))

STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "hatch.linewidth": 0.6,
}


def svg(drawn: Figure, name: str, alt: str) -> str:
    """Inline SVG: colours as CSS variables, ids of its own, nothing that points outside.

    Args:
        drawn: in INK, FAINT, COLOURS and LINES.
        name: unique on the page; letters and digits.
        alt: what a reader who cannot see it should know.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        drawn.savefig(buffer, format="svg", transparent=True)
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :]
    head, _, body = text.partition(">")
    body = re.sub(r'<g id="tip:([^"]*)">', r"<g><title>\1</title>", body)
    for colour, variable in CSS.items():
        body = body.replace(colour, variable)
    body = re.sub(r'\bid="', f'id="{name}-', body.replace("xlink:href", "href"))
    body = body.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    return f'<svg {box[0]} role="img" aria-label="{html.escape(alt, quote=True)}">{body}'


def figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """5.4 inches wide: legible on a phone too. height in inches."""
    made = Figure(figsize=(5.4, height), layout="constrained")
    return made, list(np.atleast_1d(made.subplots(rows, 1, sharex=True)))


def log_axis(axes: Axes) -> None:
    """A log y axis with plain numbers at a few ticks."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high < 30 * low
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_formatter(NullFormatter())


def plain(value: float, _: int | None = None) -> str:
    """0.02, 1e-05: no exponent markup, which SVG text would show as typed."""
    return f"{value:g}"


def look(i: int) -> Look:
    """Of the i-th line of a figure."""
    return Look(LINES[i % len(LINES)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Of kinds of grouping their own, else of one line after the other."""
    return {
        name: look(KINDS.index(name))._replace(colour=COLOURS[name]) if name in COLOURS else look(i)
        for i, name in enumerate(names)
    }


def whiskers(axes: Axes, points: Mapping[float, Interval], style: Look, label: str) -> None:
    """Means of shares in per cent by x, joined, each with its interval where it has one."""
    means = [100 * point.mean for point in points.values()]
    halves = [100 * point.half if point.n > 1 else 0 for point in points.values()]
    axes.errorbar(
        list(points),
        means,
        halves,
        marker=style.marker,
        linestyle=style.dash,
        color=style.colour,
        label=label,
        capsize=3,
        linewidth=1.4,
        elinewidth=1.2,
        markersize=5,
    )


def tip(axes: Axes, x: float, y: float, text: str) -> None:
    """A text that shows where the pointer rests on the point."""
    axes.plot([x], [y], "o", markersize=12, alpha=0, gid=f"tip:{text}")
