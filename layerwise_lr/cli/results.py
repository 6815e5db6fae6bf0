"""What comes out of finished runs: `report` over sweeps, `compare` over frameworks."""

from collections.abc import Sequence
from pathlib import Path

from ..planning import UserError
from ..report import (
    HOW,
    LEGEND,
    LEGEND_NOISE,
    Comparison,
    Report,
    Study,
    answers,
    compare_plot,
    counts,
    notes,
    resume,
    run_log,
    short,
    table,
)
from ..run import RunFolder, files
from . import console
from .words import Parser


def report(words: Sequence[str]) -> int:
    """Table, verdict and report.html of one or more sweeps or page."""
    parser = Parser(
        "layerwise-lr report",
        description=(
            "Which learning rates are better, and is that real? Reads run folders (a sweep's,\n"
            "or several), prints the table and the verdict, writes report.html. Settings are\n"
            "chosen on the validation pictures and reported on the test pictures; intervals\n"
            "are 95 % over seeds, differences are paired by seed. Works on sweeps that are\n"
            "not finished."
        ),
    )
    parser.add_argument("folder", nargs="+", type=Path, help="sweep or run folder")
    parser.add_argument("--metric", choices=["accuracy", "balanced_accuracy"], help="default: the runs' own")
    parser.add_argument("--out", type=Path, help="the page; default: report.html in the first folder")
    given = parser.parse_args(words)
    for folder in given.folder:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; a sweep prints its own when it ends")
    html = given.out or given.folder[0] / "report.html"
    files.refuse_over(html, Report.is_page)
    made = Report.read(given.folder, given.metric)
    show_report(made)
    made.write(html)
    console.say(f"\nreport page: {console.relative(html)}")
    return 0


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
    console.table(headings, table(study), right=(1, 2, 5), title=f"{metric}, %")
    console.say("")
    console.table(["best of each kind", "lr", "seeds", "accuracy", "balanced", "to flat"], answers(study), right=(1, 2))
    console.say("")
    console.text(
        f"{HOW} 'to flat' is in {metric}. The interval covers {study.covers()}; "
        "the test pictures are the same in every run." + (f" {study.kept()}" if study.kept() else "")
    )
    for sentence in study.verdicts():
        console.say("")
        console.text(sentence, strong=True)
    for note in notes(study):
        console.say("")
        console.text(note.text)
        if note.command:
            console.say(f"  {note.command}")
