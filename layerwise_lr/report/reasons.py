"""The plots that explain a verdict: was each side at its own best lr, does every seed say the same, when was it decided,
what did each layer get and do with it, and was the lr as planned all along?

Axes tell the units; metrics in per cent, lr per optimizer step. Nothing is written here.
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ..framework import TOLERANCE
from ..run import files
from .drawing import FAINT, INK, STYLE, figure, log_axis, looks, plain, tip, whiskers
from .factors import GROUPING
from .statistics import Setting, best
from .stretches import Told
from .study import Study

MOST_CLAIMS = 8


def by_lr(study: Study) -> Figure | None:
    """The metric on validation against the lr, a line per kind or level: of each lr the best that was tried."""
    lead, lines = study.lead, {}
    for name in lead.best:
        own = [s for s in lead.settings if name == (s.kind if lead.factor == GROUPING else s.levels[lead.factor])]
        lines[name] = [best([s for s in own if s.lr == lr], study.metric) for lr in sorted({s.lr for s in own})]
    lrs = sorted({setting.lr for line in lines.values() for setting in line})
    if len(lrs) < 2:
        return None
    with mpl.rc_context(STYLE):
        made, (axes,) = figure(3.6)
        for (name, line), style in zip(lines.items(), looks(lines).values(), strict=True):
            means = {s.lr: s.mean("val", study.metric) for s in line}
            whiskers(axes, means, style, name)
            for s in line:
                tip(axes, s.lr, 100 * means[s.lr].mean, f"{lead.name(s)}, lr {s.lr:g}: {means[s.lr]} % on validation")
            chosen = lead.best[name]
            mean = 100 * chosen.mean("val", study.metric).mean
            axes.plot([chosen.lr], [mean], "o", markersize=13, markerfacecolor="none", markeredgecolor=INK)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(lrs if len(lrs) < 7 else lrs[:: -(-len(lrs) // 6)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(plain))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -5), min(high, 105))
        axes.set(xlabel="lr", ylabel=f"{study.metric.replace('_', ' ')} on validation, %")
        made.legend(loc="outside lower center", ncols=2)
    return made


def by_seed(study: Study) -> Figure | None:
    """Of every claim: the difference on test of each seed, their mean and its 95 % interval."""
    shown = [claim for claim in study.claims if claim.difference][:MOST_CLAIMS]
    if not shown:
        return None
    with mpl.rc_context(STYLE):
        made, (axes,) = figure(1.2 + 0.62 * len(shown))
        axes.axvline(0, color=INK, linewidth=1)
        for y, claim in enumerate(shown):
            one, other, of = (
                claim.one.values("test", study.metric),
                claim.other.values("test", study.metric),
                claim.difference,
            )
            assert of is not None
            for seed in sorted(one.keys() & other.keys()):
                by = 100 * (one[seed] - other[seed])
                axes.plot([by], [y + 0.16], "|", color=INK, markersize=9)
                tip(axes, by, y + 0.16, f"seed {seed}: {by:+.1f} points")
            axes.errorbar(
                [100 * of.mean],
                [y - 0.12],
                xerr=[100 * of.half],
                fmt="D",
                color=INK,
                capsize=4,
                markersize=6,
                linewidth=1.6,
            )
            tip(axes, 100 * of.mean, y - 0.12, f"mean {100 * of.mean:+.1f} ± {100 * of.half:.1f} points, {of.n} seeds")
        names = [
            f"{claim.facet.name(claim.one)}\nagainst {claim.facet.name(claim.other)}"
            + (f"\n({claim.facet.where})" if claim.facet.where else "")
            for claim in shown
        ]
        axes.set_yticks(range(len(shown)), names, fontsize=9)
        axes.set(
            ylim=(len(shown) - 0.5, -0.5), xlabel=f"difference on test, points of {study.metric.replace('_', ' ')}"
        )
        axes.grid(axis="y", visible=False)
    return made


def validation(study: Study, told: Mapping[str, Sequence[Told]]) -> Figure | None:
    """The metric on validation by step: mean over seeds, shaded from the lowest to the highest; the kept steps."""
    drawn = False
    with mpl.rc_context(STYLE):
        made, (axes,) = figure(3.6)
        for name, style in looks(study.best).items():
            curves = [
                {r["step"]: r["val"][study.metric] for r in run.evaluations if study.metric in r["val"]}
                for run in told[name]
            ]
            steps = sorted(set.intersection(*map(set, curves))) if curves else []
            if len(steps) < 2:
                continue
            values, setting, drawn = 100 * np.array([[c[s] for s in steps] for c in curves]), study.best[name], True
            axes.fill_between(steps, values.min(0), values.max(0), color=style.colour, alpha=0.16, linewidth=0)
            label = f"{study.lead.name(setting)}, lr {setting.lr:g}"
            mean = values.mean(0)
            axes.plot(steps, mean, color=style.colour, linestyle=style.dash, linewidth=1.4, label=label)
            for run in setting.runs.values():
                kept = run.summary.get("kept", {}).get("step")
                if kept in steps:
                    at = float(mean[steps.index(kept)])
                    axes.plot([kept], [at], style.marker, color=style.colour, markersize=7, markerfacecolor="none")
                    tip(axes, kept, at, f"{label}: seed {run.config.seed} kept step {kept}")
        if not drawn:
            return None
        axes.set(xlabel="step", ylabel=f"{study.metric.replace('_', ' ')} on validation, %")
        made.legend(loc="outside lower center", ncols=2)
    return made


def scales(study: Study, told: Mapping[str, Sequence[Told]]) -> Figure | None:
    """Per layer: the lr of the plan at its peak, and what the layer travelled from its start weights, as bars."""
    shown = {name: _peaks(setting) for name, setting in study.best.items()}
    shown = {name: peaks for name, peaks in shown.items() if peaks and told[name]}
    depths = sorted({depth for peaks in shown.values() for depth in peaks})
    if len(shown) < 2 or len(depths) > 80:
        return None
    width = 0.8 / len(shown)
    with mpl.rc_context(STYLE):
        made, (upper, lower) = figure(4.6, rows=2)
        for i, (name, style) in enumerate(looks(study.best).items()):
            if name not in shown:
                continue
            runs = [run.by_depth["distance"] for run in told[name] if run.by_depth]
            went = {
                d: float(np.mean([r[d] for r in runs])) for d in depths if runs and all(r.get(d, 0) > 0 for r in runs)
            }
            setting = study.best[name]
            label, hatch = f"{study.lead.name(setting)}, lr {setting.lr:g}", ("", "////", "....", "xxxx")[i % 4]
            for axes, values, what in ((upper, shown[name], "lr"), (lower, went, "travelled")):
                at = [d + (i - (len(shown) - 1) / 2) * width for d in values]
                bars = axes.bar(
                    at,
                    list(values.values()),
                    width,
                    color=style.colour,
                    edgecolor=FAINT,
                    hatch=hatch,
                    linewidth=0.3,
                    label=label if axes is upper else None,
                )
                for bar, (depth, value) in zip(bars, values.items(), strict=True):
                    bar.set_gid(f"tip:{label}, layer {depth}: {what} {value:.3g}")
        for axes, label in ((upper, "lr of the plan"), (lower, "distance travelled")):
            log_axis(axes)
            axes.set_ylabel(label)
            axes.grid(axis="x", visible=False)
        lower.set_xlabel("layer, from the stem (0) to the head")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        made.legend(loc="outside lower center", ncols=2)
    return made


def _peaks(setting: Setting) -> dict[int, float]:
    """{depth: the highest lr of the plan}, of weights proper where there are any."""
    rows = list(files.rows(next(iter(setting.runs.values())).path, "params.csv"))
    rows = [row for row in rows if row["group"] and float(row["lr"]) > 0]
    rows = [row for row in rows if float(row["weight_decay"]) > 0] or rows
    return {int(row["depth"]): float(row["lr"]) for row in sorted(rows, key=lambda row: int(row["depth"]))}


def proof(study: Study) -> Figure | None:
    """How far the measured lr was from the plan, at each step that was measured: the worst group of each run."""
    found: dict[int, list[float]] = {}
    for setting in study.best.values():
        for run in setting.runs.values():
            for line in files.records(run.path, "lr_check.jsonl"):
                found.setdefault(line["step"], []).append(max(line["max_relative_error"], 1e-9))
    steps = sorted(found)
    if len(steps) < 2:
        return None
    with mpl.rc_context(STYLE):
        made, (axes,) = figure(2.9)
        low, high = ([f(found[step]) for step in steps] for f in (min, max))
        axes.fill_between(steps, low, high, color=INK, alpha=0.14, linewidth=0)
        axes.plot(steps, high, ".-", color=INK, linewidth=1.2)
        for step, value in zip(steps, high, strict=True):
            tip(axes, step, value, f"step {step}: {value:.1e} of the lr at most, {len(found[step])} measured")
        axes.axhline(TOLERANCE, color=INK, linestyle="--", linewidth=1.2)
        axes.text(steps[-1], TOLERANCE, "limit ", ha="right", va="bottom", fontsize=9)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(plain))
        axes.set(xlabel="step", ylabel="error of the lr, relative")
    return made
