"""The plots of the report: numbers from run folders to figures, figures to SVG in the page's colours.

Axes tell the units; metrics in per cent, lr per optimizer step. Nothing is written here.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .factors import GROUPING
from .statistics import DECAY, FLAT, KINDS, SPLIT, Setting
from .stretches import Told, gathered, smooth
from .study import Study, decay_of

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


def svg(figure: Figure, name: str, alt: str) -> str:
    """Inline SVG: colours as CSS variables, ids of its own, nothing that points outside.

    Args:
        figure: drawn in INK, FAINT, COLOURS and LINES.
        name: unique on the page; letters and digits.
        alt: what a reader who cannot see it should know.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :]
    head, _, body = text.partition(">")
    for colour, variable in CSS.items():
        body = body.replace(colour, variable)
    body = re.sub(r'\bid="', f'id="{name}-', body.replace("xlink:href", "href"))
    body = body.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    return f'<svg {box[0]} role="img" aria-label="{html.escape(alt, quote=True)}">{body}'


def _colours(study: Study) -> dict[str, str]:
    """Of the settings in study.best: a kind's own, else one line's after the other."""
    return {name: COLOURS.get(name, LINES[i % len(LINES)]) for i, name in enumerate(study.best)}


def _figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """5.4 inches wide: legible on a phone too. height in inches."""
    figure = Figure(figsize=(5.4, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, 1, sharex=True)))


def _log_axis(axes: Axes) -> None:
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


def by_decay(study: Study) -> Figure | None:
    """The metric on test pictures against layer_decay: a line per lr, whiskers, every seed a dot."""
    points: dict[str, dict[float, Setting]] = {}
    for setting in study.lead.settings if study.lead.factor == GROUPING else ():
        decay = decay_of(setting)
        if decay is not None:
            _, _, more = setting.grouping.partition(", ")
            points.setdefault(f"lr {setting.lr:g}" + (f", {more}" if more else ""), {})[decay] = setting
    if not points:
        return None
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure(3.9)
        xs = sorted({decay for line in points.values() for decay in line})
        for i, (label, line) in enumerate(points.items()):
            dodge = 0.36 * ((i + 0.5) / len(points) - 0.5)
            _line(axes, {xs.index(d) + dodge: s for d, s in sorted(line.items())}, study, label, LINES[i % 6])
        if SPLIT in study.best:
            _split(axes, study)
        axes.set_xticks(range(len(xs)), ["1 (flat)" if x == 1 else f"{x:g}" for x in xs])
        axes.set(xlabel="layer_decay", ylabel=f"{study.metric.replace('_', ' ')} on test, %")
        axes.set_xlim(-0.5, len(xs) - 0.5)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -5), min(high, 105))  # an interval over two seeds may go far beyond
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _line(axes: Axes, line: Mapping[float, Setting], study: Study, label: str, colour: str) -> None:
    chosen = list(study.best.values())
    for x, setting in line.items():
        seeds = [100 * v for v in setting.values("test", study.metric).values()]
        axes.plot([x + 0.05] * len(seeds), seeds, ".", color=colour, alpha=0.45, markersize=5)
        if setting in chosen:
            mean = 100 * setting.mean("test", study.metric).mean
            axes.plot([x], [mean], "o", markersize=13, markerfacecolor="none", markeredgecolor=INK)
    means = [s.mean("test", study.metric) for s in line.values()]
    halves = [100 * m.half if m.n > 1 else 0 for m in means]
    axes.errorbar(
        list(line),
        [100 * m.mean for m in means],
        halves,
        fmt="o-",
        color=colour,
        label=label,
        capsize=3,
        linewidth=1.4,
        elinewidth=1.2,
        markersize=5,
    )


def _split(axes: Axes, study: Study) -> None:
    split = study.best[SPLIT]
    mean, half, n = split.mean("test", study.metric)
    axes.axhline(
        100 * mean, color=COLOURS[SPLIT], linestyle="--", linewidth=1.4, label=f"{split.label}, lr {split.lr:g}"
    )
    if n > 1:
        axes.axhspan(100 * (mean - half), 100 * (mean + half), color=COLOURS[SPLIT], alpha=0.1, linewidth=0)


def losses(study: Study, told: Mapping[str, Sequence[Told]]) -> Figure | None:
    """Training loss (smoothed) and validation loss of the best settings, mean over the seeds."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure(3.9)
        low, high, colours = np.inf, 0.0, _colours(study)
        for kind, setting in study.best.items():
            runs = told[kind]
            every = max((run.every for run in runs), default=1)
            train = gathered([run.training for run in runs], every)
            val = gathered([run.validation for run in runs], every)
            if not len(train.steps):
                continue
            smoothed, label = smooth(train.mean), f"{setting.label}, lr {setting.lr:g}"
            axes.plot(train.steps, smoothed, color=colours[kind], linewidth=1.3, label=label)
            axes.plot(val.steps, val.mean, "o:", color=colours[kind], markersize=5, linewidth=1)
            low, high = min(low, *smoothed, *val.mean), max(high, *smoothed, *val.mean)
            if every > 1:
                axes.fill_between(train.steps, train.low, train.high, color=colours[kind], alpha=0.16, linewidth=0)
                low, high = min(low, *train.low), max(high, *train.high)
        if high == 0:
            return None
        if high > 20 * low > 0:
            _log_axis(axes)
        axes.set(xlabel="step", ylabel="loss (cross-entropy, nats)")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


PANELS = {"distance": "distance\ntravelled", "update_ratio": "update /\nweight", "gradient_norm": "gradient\nnorm"}


def travelled(study: Study, told: Mapping[str, Sequence[Told]]) -> Figure | None:
    """Per layer: distance from the start at the end; update ratio and gradient norm, mean of evaluations."""
    shown = [kind for kind in (FLAT, DECAY) if kind in study.best] or list(study.best)
    drawn = False
    with mpl.rc_context(STYLE):
        figure, panels = _figure(5.6, rows=len(PANELS))
        colours = _colours(study)
        for kind in shown:
            setting = study.best[kind]
            runs = [run.by_depth for run in told[kind]]
            for axes, quantity in zip(panels, PANELS, strict=True):
                label = f"{setting.label}, lr {setting.lr:g}" if quantity == "distance" else None
                drawn |= _band(axes, [r[quantity] for r in runs if r], colours[kind], label)
        for axes, label in zip(panels, PANELS.values(), strict=True):
            _log_axis(axes)
            axes.set_ylabel(label)
        panels[-1].set_xlabel("layer, from the stem (0) to the head")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower center", ncols=2)
    return figure if drawn else None


def _band(axes: Axes, seeds: Sequence[Mapping[int, float]], colour: str, label: str | None) -> bool:
    """Mean over the seeds, shaded from the least to the most; zeros (frozen) have no place on a log axis."""
    depths = [d for d in (seeds[0] if seeds else ()) if all(seed.get(d, 0) > 0 for seed in seeds)]
    if not depths:
        return False
    values = np.array([[seed[d] for d in depths] for seed in seeds])
    axes.fill_between(depths, values.min(0), values.max(0), color=colour, alpha=0.16, linewidth=0)
    axes.plot(depths, values.mean(0), ".-", color=colour, linewidth=1.3, markersize=6, label=label)
    return True
