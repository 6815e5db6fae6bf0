"""A study: the runs that may be compared with each other, its facets and its verdict.

Runs of one study share name, model, start weights, data and length; all else may be varied.
Reads run folders only. Metrics are shares (0 to 1) here; lr is per optimizer step.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..planning import plain
from ..run import Config
from .claims import FEW, Claim, claims
from .factors import GROUPING, Facet, facets, settings
from .statistics import DECAY, FLAT, KINDS, Run, Setting


@dataclass(frozen=True)
class Study:
    """Comparable runs.

    Args:
        title: the experiment's name, with what tells it from others of that name.
        metric: by which settings are chosen (on validation) and compared (on test).
        settings: in the order of the table.
        facets: settings that differ in one factor alone; the one with the best on validation first.
        repeated: runs that are left out, since another is of the same setting and seed.
        home: the sweep folder that takes more jobs; None for runs outside of a sweep.
    """

    title: str
    metric: str
    settings: tuple[Setting, ...]
    facets: tuple[Facet, ...]
    repeated: int
    home: Path | None

    @property
    def lead(self) -> Facet:
        """The facet that pictures and examples are of."""
        return self.facets[0]

    @property
    def best(self) -> Mapping[str, Setting]:
        """The chosen setting of each kind, or level, that is compared in the leading facet."""
        return self.lead.best

    @cached_property
    def claims(self) -> list[Claim]:
        """All that can be said, the most important first."""
        return claims(self.facets, self.metric)

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for setting in self.settings for run in setting.runs.values()]

    @property
    def seeds(self) -> list[int]:
        """All that occur."""
        return sorted({seed for setting in self.settings for seed in setting.runs})

    @property
    def facts(self) -> str:
        """What ran on what, in a line."""
        config, count = self.runs[0].config, len(self.runs)
        size = "all" if config.data.train_size is None else config.data.train_size
        stands = f" (standing in for {config.data.stands_for})" if config.data.stands_for else ""
        start = "initial values" if config.weights.name == "none" else config.weights.name
        runs = f"{count} finished run{'s' if count > 1 else ''}"
        runs += f" ({self.repeated} left out: the same setting and seed as another)" if self.repeated else ""
        frameworks = dict.fromkeys(f"{r.config.framework.name} {r.config.framework.mode}".strip() for r in self.runs)
        return (
            f"{config.model.name} from {start} on {config.data.name}{stands} ({size} training pictures), "
            f"{' and '.join(frameworks)}, {runs}"
        )

    @property
    def answer(self) -> str:
        """Of the first claim: BETTER, WORSE, SAME or FEW."""
        return self.claims[0].answer if self.claims else FEW

    def verdicts(self) -> list[str]:
        """The sentences, the most important first."""
        said = [claim.sentence(self.metric) for claim in self.claims]
        if not said and self.lead.factor == GROUPING and FLAT not in self.best:
            return ["No run with one flat learning rate is here: nothing to compare with, no claim."]
        if not said:
            return ["Only flat runs are here: nothing to compare them with, no claim."]
        return said + [
            f"With {facet.where}: only {' and '.join(facet.best)} runs, nothing to compare them with: nobody can tell."
            for facet in self.facets
            if not facet.pairs()
        ]

    def kept(self) -> str:
        """Which step's weights the numbers are of, and what the last step had: a sentence, or none."""
        runs = [
            run.summary
            for run in self.runs
            if run.config.checkpoint.keep_best and {"kept", "last", "stopped_early"} <= run.summary.keys()
        ]
        if not runs:
            return ""
        metric, steps = self.metric, [run["kept"]["step"] for run in runs]
        gained = [run["test"][metric] - run["last"]["test"][metric] for run in runs]
        low, high, mean = min(steps), max(steps), 100 * sum(gained) / len(gained)
        at = f"step {low}" if low == high else f"steps {low} to {high}"
        averages = sum(run["kept"]["weights"] == "ema" for run in runs)
        stopped = sum(run["stopped_early"] for run in runs)
        every = len(runs) == len(self.runs)
        whose = "Each run's numbers" if every else f"The numbers of {len(runs)} of {len(self.runs)} runs"
        return (
            f"{whose} are of the step that was best on validation ({at} of {self.runs[0].config.steps}"
            + (f"; {averages} times the average of the weights" if averages else "")
            + f"){'' if every else ', those of the others of the last one'}; {'stopping early ended ' + str(stopped) + ' of them; ' if stopped else ''}on test it is "
            f"{mean:+.1f} points of {metric.replace('_', ' ')} to the last step's, in the mean over {len(runs)} runs."
        )

    def covers(self) -> str:
        """What differs between two seeds, and so what the intervals cover."""
        run = self.runs[0]
        parts = []
        if run.config.data.train_size is not None:
            parts.append(f"the choice of the {run.config.data.train_size} training pictures")
        if run.config.weights.name == "none":
            parts.append("the initial weights")
        elif any("starts from initial values" in note for note in run.summary["notes"]):
            parts.append("the head's initial weights")
        parts.append("the order of the pictures")
        if any(one.config.augment.any() or one.config.augment.hflip or one.config.data.flip for one in self.runs):
            parts.append("the random changes to the pictures")
        for key in ("dropout", "drop_path"):
            if getattr(run.config.model, key):
                parts.append(key)
        return ", ".join(parts)


def decay_of(setting: Setting) -> float | None:
    """The layer_decay of a setting: 1 for flat; None where a scale, not a decay, was given."""
    grouping = next(iter(setting.runs.values())).config.grouping
    if setting.kind == FLAT:
        return 1.0
    return grouping.layer_decay if setting.kind == DECAY and grouping.stem_scale is None else None


def _identity(config: Config) -> dict[str, Any]:
    """What two runs must share to be compared; dotted keys."""
    parts: dict[str, Any] = {
        "model": config.model,
        "weights": config.weights,
        "data": replace(config.data, workers=None, memory=0.0),
    }
    named = {f"{part}.{key}": value for part, spec in parts.items() for key, value in asdict(spec).items()}
    return named | {"batch_size": config.batch_size, "epochs": config.epochs, "steps": config.steps}


def studies(runs: Sequence[Run], metric: str | None) -> list[Study]:
    """Runs gathered into studies; `metric` None: the one that most of a study's runs name."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps([run.config.name, _identity(run.config)]), []).append(run)
    groups = list(found.values())
    return [_study(own, _title(own, groups), metric) for own in groups]


def _title(own: Sequence[Run], groups: Sequence[Sequence[Run]]) -> str:
    name, mine = own[0].config.name, _identity(own[0].config)
    others = [_identity(g[0].config) for g in groups if g[0].config.name == name]
    differing = [key for key in mine if any(other[key] != mine[key] for other in others)]
    if "steps" in differing and {"epochs", "batch_size"} & set(differing):
        differing.remove("steps")  # follows from the others
    return plain(", ".join([name, *(f"{key.removesuffix('.name')} {mine[key]}" for key in differing)]), 400)


def _study(runs: Sequence[Run], title: str, metric: str | None) -> Study:
    metric = metric or Counter(run.config.metric for run in runs).most_common(1)[0][0]
    made = sorted(
        settings(runs), key=lambda s: (list(s.levels.values()), KINDS.index(s.kind), -(decay_of(s) or 0), s.label, s.lr)
    )
    homes = Counter(run.path.parent for run in runs if (run.path.parent / "sweep.json").exists())
    repeated = len(runs) - sum(len(setting.runs) for setting in made)
    return Study(
        title, metric, tuple(made), tuple(facets(made, metric)), repeated, homes.most_common(1)[0][0] if homes else None
    )
