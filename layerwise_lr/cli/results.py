"""What comes out of finished runs: `report` over sweeps, `compare` over frameworks."""

from collections.abc import Sequence
from pathlib import Path

from ..planning import UserError
from ..report import (
    BETTER,
    FEW,
    HOW,
    LEGEND,
    LEGEND_NOISE,
    SAME,
    WORSE,
    Comparison,
    Report,
    Study,
    answers,
    compare_plot,
    compared_to,
    counts,
    notes,
    resume,
    run_log,
    short,
    tables,
)
from ..run import RunFolder, files, trackers
from . import console
from .words import Parser

ANSWERS = {BETTER: 0, SAME: 3, FEW: 4, WORSE: 5}
"""Exit codes of --decide."""


def report(words: Sequence[str]) -> int:
    """Table, verdict and report.html of one or more sweeps or page."""
    parser = Parser(
        "layerwise-lr report",
        description=(
            "Which learning rates are better, and is that real? Reads run folders (a sweep's,\n"
            "or several), prints the table and the verdict, writes report.html. Settings are\n"
            "chosen on the validation pictures and reported on the test pictures; intervals\n"
            "are 95 % over seeds, differences are paired by seed. Works on sweeps that are\n"
            "not finished. --decide answers with the exit code: 0 better, 3 no difference\n"
            "that these seeds can show, 4 too few runs to say, 5 worse."
        ),
    )
    parser.add_argument("folder", nargs="+", type=Path, help="sweep or run folder")
    parser.add_argument("--metric", choices=["accuracy", "balanced_accuracy"], help="default: the runs' own")
    parser.add_argument("--out", type=Path, help="the page; default: report.html in the first folder")
    parser.add_argument("--decide", action="store_true", help="exit code by the first verdict, for scripts")
    given = parser.parse_args(words)
    for folder in given.folder:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; a sweep prints its own when it ends")
    html = given.out or given.folder[0] / "report.html"
    files.refuse_over(html, Report.is_page)
    made = Report.read(given.folder, given.metric)
    if given.decide and len(made.studies) > 1:
        titles = "; ".join(study.title for study in made.studies[:4])
        raise UserError(f"--decide: {len(made.studies)} studies that cannot be compared ({titles}): name one's folders")
    show_report(made)
    made.write(html)
    console.say(f"\nreport page: {console.relative(html)}")
    for folder in given.folder:
        trackers.tell_verdict(folder, [text for study in made.studies for text in study.verdicts()], console.say)
    return ANSWERS[made.studies[0].answer] if given.decide else 0


def compare(folder: Path) -> None:
    """Where the frameworks of a sweep differ: table and plot."""
    jobs_of = RunFolder(folder).jobs()
    made = Comparison.read([files.inside(folder, name) for name in jobs_of])
    headings, rows = made.table()
    console.table(headings, rows, right=range(1, len(headings)))
    console.text(f"{made.plans()}. {LEGEND}{LEGEND_NOISE if made.noise() else ''}")
    for reason in made.by_design():
        console.text(f"WARNING: these runs differ by design: {reason}", strong=True)
    compare_plot(made, folder / "compare.png")
    RunFolder(folder).write_json("compare.json", {d.label: d._asdict() for d in made.differences()})
    console.say(f"compare.json compare.png in {console.relative(folder)}")


def show_report(report: Report) -> None:
    """Tables, then the sentences: a terminal is read from its end."""
    for study in report.studies:
        _show_study(study)
    if not report.unfinished:
        return
    console.say("")
    console.text(f"Jobs that are not in the tables: {counts(report.unfinished)}.")
    for job in report.unfinished[:12]:
        console.say(f"  {job.state}: {short(run_log(job.path))}{': ' if job.why else ''}{job.why}")
    if len(report.unfinished) > 12:
        console.say(f"  and {len(report.unfinished) - 12} more, all in the page")
    if commands := resume(report.unfinished):
        console.say("\n  ".join(["The same command runs what is missing:", *commands]))


def _show_study(study: Study) -> None:
    metric = study.metric.replace("_", " ")
    console.say("")
    console.text(f"{study.title}: {study.facts}")
    console.say("")
    headings = ["all settings", "lr", "seeds", "val", "test", "seconds", ""]
    for where, rows in tables(study):
        console.table(
            headings,
            [row for _, row in rows],
            right=(1, 2, 5),
            title=f"{metric}, %" + (f", with {where}" if where else ""),
        )
        console.say("")
    headings = ["best of each kind", "lr", "seeds", "accuracy", "balanced", f"to {compared_to(study)}"]
    for facet in study.facets:
        title = f"with {facet.where}" if facet.where else ""
        console.table(headings, answers(study, facet), right=(1, 2), title=title)
        console.say("")
    console.text(
        f"{HOW} 'to {compared_to(study)}' is in {metric}. The interval covers {study.covers()}; "
        "the test pictures are the same in every run." + (f" {study.kept()}" if study.kept() else "")
    )
    for sentence in study.verdicts():
        console.say("")
        console.text(sentence, strong=True)
    for note in notes(study):
        console.say("")
        console.text(note.text)
        for command in note.commands:
            console.say(f"  {command}")
