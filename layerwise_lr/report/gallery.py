"""The figures of a page: which are drawn of a study, with their titles, captions, and what they say to who cannot see."""

from markupsafe import Markup
from matplotlib.figure import Figure

from ..run import plan_in
from . import mistakes, plots, reasons, stretches
from .drawing import INK, svg
from .factors import GROUPING, Facet
from .heatmap import heatmap
from .statistics import DECAY, SPLIT, Setting, best
from .study import Study

CAPTIONS = {
    "decay": "Test pictures. Big dots: mean over seeds; whiskers: 95 % interval; small dots: the seeds. "
    "Ringed: best of its kind on validation.",
    "split": " Dashed: the head/backbone split with its interval.",
    "losses": "Lines: training loss, mean over seeds, smoothed over a twentieth of the run. "
    "Dots: validation loss, mean over seeds.",
    "long": " Of a run of more than {most:,} steps: the mean of each of {most:,} stretches; shade: the lowest to the highest "
    "loss of any step there.",
    "layers": "Distance travelled from the start weights at the end, as a share of their norm; one step's "
    "update as a share of the weights, and gradient norm, both averaged over the evaluations (of more than 1,000 over "
    "every second, fourth and so on). "
    "Lines: mean over seeds, shade: lowest to highest seed. Parameters with weight decay only "
    "(biases and norms left out), unless there are none.",
    "lr": "Validation pictures, of each lr the best that was tried; whiskers: 95 % interval. Ringed: chosen. A line whose ring lies at "
    "an end may have a better lr beyond it.",
    "seeds": "Test pictures. Ticks: one seed each; diamonds: their mean with its 95 % interval. Left of the line the first one is "
    "worse.",
    "validation": "Mean over seeds; shade: lowest to highest seed. Marked: the steps whose weights were kept.",
    "scales": "Above: the highest lr of the plan for the weights of each layer; below: how far these weights went from their "
    "start, as a share of their norm, mean over seeds. Both on a log scale.",
    "proof": "The worst group of each measured step, over the runs of the best settings; shade: from the best run to the "
    "worst. Dashed: the limit, beyond which a run stops.",
    "confusion": "Test pictures of {name}, over {runs}: the number in each cell, coloured by its share of the row's class.",
    "fewer": " Of {of} classes the {most} with the most mistakes.",
    "wrong": "Of the run with seed {seed}: what it said, how sure it was, and what it is.",
    "plan": "Learning rate of each group, per step, on a log scale; stem at the top, head at the bottom.",
}


Drawn = tuple[Figure | None, str, str, str]
"""Figure, title, what it says to who cannot see it, caption."""


def figures(study: Study, key: str) -> list[tuple[Markup, str, str]]:
    """(SVG, title, caption) of every plot that the runs have numbers for; `key` is the study's on the page."""
    return [
        (Markup(svg(figure, f"{key}f{i}", alt)), title, caption)
        for i, (figure, title, alt, caption) in enumerate(_drawn(study))
        if figure is not None
    ]


def _drawn(study: Study) -> list[Drawn]:
    metric, facet = study.metric.replace("_", " "), study.lead
    planned = study.best.get(DECAY) or study.best.get(SPLIT) or next(iter(study.best.values()))
    plan = plan_in(next(iter(planned.runs.values())).path)
    told = {kind: stretches.told(setting) for kind, setting in study.best.items()}
    means = "; ".join(f"{facet.name(s)} at lr {s.lr:g}: {s.mean('test', study.metric)}" for s in study.best.values())
    signs = "; ".join(claim.sentence(study.metric) for claim in study.claims)
    kinds = "each kind" if facet.factor == GROUPING else f"each {facet.factor}"
    within = f" (with {facet.where})" if facet.where else ""
    long = CAPTIONS["long"].format(most=stretches.MOST) if stretches.thinned(told) else ""
    split = CAPTIONS["split"] if SPLIT in study.best else ""
    title = f"{metric} against layer_decay{within}".capitalize()
    return [
        (plots.by_decay(study), title, f"Means over seeds: {means}.", CAPTIONS["decay"] + split),
        (reasons.by_seed(study), "Does every seed say the same?", signs, CAPTIONS["seeds"]),
        (
            reasons.by_lr(study),
            f"Was {kinds} at its best lr?{within}",
            f"The best of {kinds}: {means}.",
            CAPTIONS["lr"],
        ),
        (
            reasons.validation(study, told),
            "When was it decided?",
            f"{metric} on validation by step, best of {kinds}.",
            CAPTIONS["validation"],
        ),
        (
            plots.losses(study, told),
            "Loss of the best settings",
            f"Training and validation loss by step, best of {kinds}.",
            CAPTIONS["losses"] + long,
        ),
        (
            reasons.scales(study, told),
            "What each layer was given, and how far it went",
            f"Learning rate and distance travelled by layer, best of {kinds}.",
            CAPTIONS["scales"],
        ),
        (
            plots.travelled(study, told),
            "Which layers really learned",
            "Distance, update ratio and gradient norm by layer, best flat and best layer_decay.",
            CAPTIONS["layers"],
        ),
        *_mistakes(best(list(study.best.values()), study.metric), facet),
        (
            heatmap(plan, INK, 5.4) if plan else None,
            f"The plan: {planned.label}",
            f"Learning rate of every group at every step of {planned.label}, lr {planned.lr:g}.",
            CAPTIONS["plan"],
        ),
        (
            reasons.proof(study),
            "The proof, over time",
            "Largest relative error of the measured learning rate at each measured step.",
            CAPTIONS["proof"],
        ),
    ]


def _mistakes(setting: Setting, facet: Facet) -> list[Drawn]:
    """What the best of all was wrong about."""
    found = mistakes.confusion(setting)
    if found is None:
        return []
    name, classes = f"{facet.name(setting)}, lr {setting.lr:g}", len(found.names)
    caption = CAPTIONS["confusion"].format(name=name, runs=f"{found.runs} seed{'s'[: found.runs > 1]}")
    if classes > mistakes.MOST:
        caption += CAPTIONS["fewer"].format(of=classes, most=mistakes.MOST)
    right = int(found.counts.trace())
    alt = f"{right} of {int(found.counts.sum())} test pictures were taken for what they are."
    seed = min(setting.runs)
    return [
        (mistakes.matrix(found), "What was taken for what", alt, caption),
        (
            mistakes.gallery(setting, found.names),
            "Wrong, and sure of it",
            "The wrongly answered pictures.",
            CAPTIONS["wrong"].format(seed=seed),
        ),
    ]
