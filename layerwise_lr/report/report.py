"""The report: what run folders say, as a table and a sentence in the terminal and as one HTML page.

Settings are chosen on the validation pictures and shown on the test pictures; percentages are in points.
Writes the page and the heat map, nothing else.
"""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from ..framework import TOLERANCE
from ..planning import Plan, UserError, hidden, plain
from ..run import RunFolder, range_test
from . import gallery
from .advice import Unfinished, counts, notes, origin, resume, short, unfinished
from .compare import Comparison
from .curves import curves
from .factors import GROUPING, Facet
from .heatmap import heatmap
from .range_plot import range_plot
from .statistics import FLAT, Other, Setting, finished, interval, paired
from .study import Study, studies

TEMPLATE = Path(__file__).with_name("report.html.j2")
HOW = (
    "Chosen on the validation pictures, shown on the test pictures, in %; ± is a 95 % interval "
    "over seeds, the difference is paired by seed."
)

ENVIRONMENT = ("framework", "framework_version", "python", "cpu", "cpu_count", "layerwise_lr")
"""What of env.json a report tells."""


class Answer(NamedTuple):
    """The best of a kind as shown: on test, with its difference to the best flat."""

    setting: str
    lr: str
    seeds: str
    accuracy: str
    balanced: str
    difference: str


class Row(NamedTuple):
    """One setting as shown in the full table."""

    setting: str
    lr: str
    seeds: str
    val: str
    test: str
    seconds: str
    best: str


def answers(study: Study, facet: Facet) -> list[Answer]:
    """The best of every kind, or level, of a facet, with its difference to the flat one, or to the level that is best on
    validation."""
    other = facet.best.get(FLAT) if facet.factor == GROUPING else next(iter(facet.best.values()))
    rows = []
    for chosen in facet.best.values():
        difference = paired(chosen, other, study.metric) if other and chosen is not other else None
        shown = f"{100 * difference.mean:+.1f} ± {100 * difference.half:.1f}" if difference else "-"
        accuracy, balanced = (str(chosen.mean("test", name)) for name in ("accuracy", "balanced_accuracy"))
        seeds = str(len(chosen.runs))
        rows.append(Answer(facet.name(chosen), f"{chosen.lr:g}", seeds, accuracy, balanced, shown))
    return rows


def compared_to(study: Study) -> str:
    """What the differences of `answers` are to: "flat", "the best"."""
    return "flat" if study.lead.factor == GROUPING else "the best"


def tables(study: Study) -> list[tuple[str, list[tuple[Setting, Row]]]]:
    """Every setting: (what the rows share, the settings and their rows); where one factor has several facets, one table for each."""
    chosen = [setting for facet in study.facets for setting in facet.best.values()]
    parts = [(facet.where, facet.settings, facet.name) for facet in study.facets]
    if len(parts) == 1 or len({facet.factor for facet in study.facets}) > 1:
        parts = [("", study.settings, lambda setting: setting.label)]
    return [(where, [(s, _row(study, s, name(s), s in chosen)) for s in own]) for where, own, name in parts]


def _row(study: Study, setting: Setting, name: str, chosen: bool) -> Row:
    val, test = (str(setting.mean(part, study.metric)) for part in ("val", "test"))
    seeds, seconds = str(len(setting.runs)), f"{_seconds(setting):.1f}"
    return Row(name, f"{setting.lr:g}", seeds, val, test, seconds, "best" if chosen else "")


def _seconds(setting: Setting) -> float:
    return interval([run.summary["seconds"] for run in setting.runs.values()]).mean


@dataclass(frozen=True)
class Report:
    """What one or more folders say.

    Args:
        studies: each with runs that may be compared with each other.
        unfinished: jobs without a result.
    """

    studies: tuple[Study, ...]
    unfinished: tuple[Unfinished, ...]

    @classmethod
    def read(cls, folders: Sequence[Path], metric: str | None) -> "Report":
        """All runs in and below `folders`.

        Raises:
            UserError: no finished run is there; says what is.
        """
        runs, others = finished(folders)
        for run in [r for r in runs if not (r.summary["val"] and r.summary["test"])]:
            runs.remove(run)
            others[run.path] = Other("without validation or test pictures")
        rest = unfinished(folders, others)
        if not runs:
            where = ", ".join(short(folder) for folder in folders)
            held = f"; of its jobs {counts(rest)}" if rest else "; layerwise-lr train makes a run"
            first = f": {short(rest[0].path)}: {rest[0].why or rest[0].state}" if rest else ""
            raise UserError(f"{where}: no finished run in or below it{held}{first}")
        return cls(tuple(studies(runs, metric)), tuple(rest))

    @staticmethod
    def is_page(held: bytes) -> bool:
        """Whether a file is one that `write` has made."""
        return b": which learning rates are better?</title>" in held[:100_000]

    def write(self, page: Path) -> None:
        """The page, whole and alone in one file."""
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        jobs = [(job.state, short(run_log(job.path)), job.why) for job in self.unfinished]
        text = template.render(
            link=lambda path: quote(os.path.relpath(path.resolve(), page.parent.resolve())),
            title=" · ".join(study.title for study in self.studies),
            how=HOW,
            jobs=jobs,
            counts=counts(self.unfinished),
            resume=resume(self.unfinished),
            studies=[_section(study, f"s{i}") for i, study in enumerate(self.studies)],
        )
        page.parent.mkdir(parents=True, exist_ok=True)
        RunFolder(page.parent).write_text(page.name, hidden(text))


def run_log(run: Path) -> Path:
    """Where to read what a run said: its log, or its folder."""
    log = run / "log.txt"
    return log if log.exists() else run


def _section(study: Study, key: str) -> dict[str, Any]:
    """What the template shows of a study."""
    first, *more = study.verdicts()
    return {
        "key": key,
        "title": study.title,
        "facts": study.facts,
        "metric": study.metric.replace("_", " "),
        "verdict": first,
        "more": more,
        "covers": study.covers(),
        "kept": study.kept(),
        "notes": notes(study),
        "answers": [(facet.where, answers(study, facet)) for facet in study.facets],
        "to": compared_to(study),
        "tables": tables(study),
        "figures": gallery.figures(study, key),
        "proof": _proof(study),
        "environment": _environment(study),
        "commands": sorted({c for r in study.runs if (c := origin(r.path, False))}),
    }


def _proof(study: Study) -> str:
    """A few sentences on what was measured in all runs (summary.json's "proof")."""
    proofs = [p for run in study.runs if (p := run.summary.get("proof")) and (p["start"] or p["training"])]
    if not proofs:
        return "The effective learning rate was not measured in these runs (verify=off)."
    total = Counter[str]()
    for proof in proofs:
        total.update({key: proof[key] for key in ("training", "evaluations", "mismatches", "faint")})
    proved = total["training"] - total["mismatches"] - total["faint"]
    faint = f", at {total['faint']} the step was too small for float32 to show" if total["faint"] else ""
    wrong = f", at {total['mismatches']} IT WAS NOT AS PLANNED" if total["mismatches"] else ""
    how = f"In {len(proofs)} of {len(study.runs)} runs it was measured how far each parameter really moves"
    worst = max(p["max_relative_error"] for p in proofs)
    return (
        f"{how}: proved at {proved} of {total['evaluations']} evaluations{faint}{wrong}. "
        f"The largest difference to the plan was {worst:.1g} of the lr (limit {TOLERANCE:g})."
    )


def _environment(study: Study) -> list[str]:
    """Each distinct place the runs came from."""
    found: Counter[str] = Counter()
    for run in study.runs:
        env: Mapping[str, Any] = RunFolder(run.path).read_json("env.json") or {}
        if env:
            commit = (RunFolder(run.path).read_json("git.json") or {}).get("sha")
            told = {key: plain(env.get(key, "unknown")) for key in ENVIRONMENT}
            found[
                "{framework_version}, Python {python}, {cpu} ({cpu_count} CPUs), layerwise-lr {layerwise_lr}".format(
                    **told
                )
                + (f", git {commit[:12]}" if commit else "")
            ] += 1
    return [f"{count} run{'s'[: count > 1]}: {place}" for place, count in found.items()]


def compare_plot(comparison: Comparison, path: Path) -> None:
    """compare.png: losses of every framework, and how far each is from the first, per step."""
    _write(curves(comparison), path)


def lr_heatmap(plan: Plan, path: Path) -> None:
    """PNG: lr of every group at every step."""
    _write(heatmap(plan), path)


def lr_find_plot(test: range_test.RangeTest, path: Path) -> None:
    """PNG: loss against the rising lr."""
    _write(range_plot(test), path)


def _write(figure: Figure, path: Path) -> None:
    """PNG; whole, and never through a link."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    RunFolder(path.parent).write_whole(path.name, held.getvalue())
