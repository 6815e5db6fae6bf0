"""Which run of a sweep is meant where one is asked for: the best setting on validation, and of its seeds the best."""

from pathlib import Path
from typing import NamedTuple

from ..planning import UserError
from .advice import counts, short
from .report import Report


class Choice(NamedTuple):
    """A run of many, and why it."""

    path: Path
    why: str


def choose(folder: Path) -> Choice:
    """The best run in and below `folder`.

    Raises:
        UserError: no finished run is there, or runs that cannot be compared.
    """
    report = Report.read([folder], None)
    if len(report.studies) > 1:
        titles = "; ".join(study.title for study in report.studies[:4])
        first = short(next(iter(report.studies[0].settings[0].runs.values())).path)
        raise UserError(
            f"{folder}: holds {len(report.studies)} studies that cannot be compared ({titles}): name a run, such as {first}"
        )
    (study,) = report.studies
    metric, found = study.metric, [setting for facet in study.facets for setting in facet.best.values()]
    found = [setting for setting in found if len(setting.runs) > 1] or found  # as the report: one seed is luck
    setting = max(found, key=lambda s: (s.mean("val", metric).mean, len(s.runs)))
    values = setting.values("val", metric)
    seed = max(values, key=lambda s: (values[s], -s))
    mean = setting.mean("val", metric)
    rest = f"; not finished: {counts(report.unfinished)}" if report.unfinished else ""
    why = (
        f"{short(folder)}: best on validation is {setting.label}, lr {setting.lr:g} ({mean} % {metric.replace('_', ' ')}, "
        f"{len(values)} seed{'s' if len(values) > 1 else ''}), and of its seeds {seed} ({100 * values[seed]:.1f} %): "
        f"{short(setting.runs[seed].path)}{rest}"
    )
    return Choice(setting.runs[seed].path, why)
