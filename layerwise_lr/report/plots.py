"""The plots of the result: the metric against layer_decay, the losses, what each layer did.

Axes tell the units; metrics in per cent, lr per optimizer step. Nothing is written here.
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .drawing import COLOURS, INK, STYLE, Look, figure, log_axis, look, looks, tip, whiskers
from .factors import GROUPING
from .statistics import DECAY, FLAT, SPLIT, Setting
from .stretches import Told, gathered, smooth
from .study import Study, decay_of


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
        made, (axes,) = figure(3.9)
        xs = sorted({decay for line in points.values() for decay in line})
        for i, (label, line) in enumerate(points.items()):
            dodge = 0.36 * ((i + 0.5) / len(points) - 0.5)
            _line(axes, {xs.index(d) + dodge: s for d, s in sorted(line.items())}, study, label, look(i))
        if SPLIT in study.best:
            _split(axes, study)
        axes.set_xticks(range(len(xs)), ["1 (flat)" if x == 1 else f"{x:g}" for x in xs])
        axes.set(xlabel="layer_decay", ylabel=f"{study.metric.replace('_', ' ')} on test, %")
        axes.set_xlim(-0.5, len(xs) - 0.5)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -5), min(high, 105))  # an interval over two seeds may go far beyond
        axes.grid(axis="x", visible=False)
        made.legend(loc="outside lower center", ncols=2)
    return made


def _line(axes: Axes, line: Mapping[float, Setting], study: Study, label: str, style: Look) -> None:
    chosen = list(study.best.values())
    for x, setting in line.items():
        seeds = [100 * v for v in setting.values("test", study.metric).values()]
        axes.plot([x + 0.05] * len(seeds), seeds, ".", color=style.colour, alpha=0.45, markersize=5)
        if setting in chosen:
            mean = 100 * setting.mean("test", study.metric).mean
            axes.plot([x], [mean], "o", markersize=13, markerfacecolor="none", markeredgecolor=INK)
        text = f"{setting.label}, lr {setting.lr:g}: {setting.mean('test', study.metric)} %, {len(seeds)} seeds"
        tip(axes, x, 100 * setting.mean("test", study.metric).mean, text)
    whiskers(axes, {x: s.mean("test", study.metric) for x, s in line.items()}, style, label)


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
        made, (axes,) = figure(3.9)
        low, high, styles = np.inf, 0.0, looks(study.best)
        for kind, setting in study.best.items():
            runs = told[kind]
            every = max((run.every for run in runs), default=1)
            train = gathered([run.training for run in runs], every)
            val = gathered([run.validation for run in runs], every)
            if not len(train.steps):
                continue
            smoothed, label = smooth(train.mean), f"{setting.label}, lr {setting.lr:g}"
            style = styles[kind]
            axes.plot(train.steps, smoothed, color=style.colour, linestyle=style.dash, linewidth=1.3, label=label)
            axes.plot(val.steps, val.mean, style.marker, color=style.colour, markersize=5)
            low, high = min(low, *smoothed, *val.mean), max(high, *smoothed, *val.mean)
            if every > 1:
                axes.fill_between(train.steps, train.low, train.high, color=style.colour, alpha=0.16, linewidth=0)
                low, high = min(low, *train.low), max(high, *train.high)
        if high == 0:
            return None
        if high > 20 * low > 0:
            log_axis(axes)
        axes.set(xlabel="step", ylabel="loss (cross-entropy, nats)")
        made.legend(loc="outside lower center", ncols=2)
    return made


PANELS = {"distance": "distance\ntravelled", "update_ratio": "update /\nweight", "gradient_norm": "gradient\nnorm"}


def travelled(study: Study, told: Mapping[str, Sequence[Told]]) -> Figure | None:
    """Per layer: distance from the start at the end; update ratio and gradient norm, mean of evaluations."""
    shown = [kind for kind in (FLAT, DECAY) if kind in study.best] or list(study.best)
    drawn = False
    with mpl.rc_context(STYLE):
        made, panels = figure(5.6, rows=len(PANELS))
        styles = looks(study.best)
        for kind in shown:
            setting = study.best[kind]
            runs = [run.by_depth for run in told[kind]]
            for axes, quantity in zip(panels, PANELS, strict=True):
                label = f"{setting.label}, lr {setting.lr:g}" if quantity == "distance" else None
                drawn |= _band(axes, [r[quantity] for r in runs if r], styles[kind], label)
        for axes, label in zip(panels, PANELS.values(), strict=True):
            log_axis(axes)
            axes.set_ylabel(label)
        panels[-1].set_xlabel("layer, from the stem (0) to the head")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        made.legend(loc="outside lower center", ncols=2)
    return made if drawn else None


def _band(axes: Axes, seeds: Sequence[Mapping[int, float]], style: Look, label: str | None) -> bool:
    """Mean over the seeds, shaded from the least to the most; zeros (frozen) have no place on a log axis."""
    depths = [d for d in (seeds[0] if seeds else ()) if all(seed.get(d, 0) > 0 for seed in seeds)]
    if not depths:
        return False
    values = np.array([[seed[d] for d in depths] for seed in seeds])
    axes.fill_between(depths, values.min(0), values.max(0), color=style.colour, alpha=0.16, linewidth=0)
    axes.plot(
        depths,
        values.mean(0),
        color=style.colour,
        marker=style.marker,
        linestyle=style.dash,
        linewidth=1.3,
        markersize=4,
        label=label,
    )
    return True
