"""What a person reads of plans, proofs and reports in the terminal."""

from collections.abc import Sequence
from typing import Any

from ..plan import Group, ParamTable, Plan
from ..report import HOW, Report, Study, answers, counts, notes, resume, run_log, short, table
from . import console


def show_params(params: ParamTable, plan: Plan) -> None:
    """Every parameter under its group: depth, shape; the group's rule, lr_scale and weight decay."""
    rows = params.by_name
    for group in plan.groups:
        window = "" if group.active[0] == 0 and group.active[1] >= plan.total_steps else _window(group.active, plan)
        console.say(
            f"{group.name}  ({group.rule})  lr_scale {group.lr_scale:.4g}  weight_decay {group.weight_decay:g}{window}"
        )
        for name in group.params:
            shape = "x".join(map(str, rows[name].shape))
            console.say(f"    depth {rows[name].depth:<3} {name:<44} {shape}")


def _window(active: tuple[int, int], plan: Plan) -> str:
    if active[0] >= plan.total_steps:
        return "  frozen throughout"
    return f"  trains in steps {active[0]} to {min(active[1], plan.total_steps) - 1}"


def show_lrs(params: ParamTable, plan: Plan) -> None:
    """lr at five moments of the run; groups with the same lr throughout share a line."""
    last = plan.total_steps - 1
    steps = sorted({round(last * share) for share in (0, 0.25, 0.5, 0.75, 1)})
    alike: dict[tuple[object, ...], list[Group]] = {}
    for group in plan.groups:
        alike.setdefault((group.lr_scale, group.schedule, group.active), []).append(group)
    rows, lines = params.by_name, []
    for groups in alike.values():
        names = [name for group in groups for name in group.params]
        lrs = [_lr(plan, groups[0], step) for step in steps]
        more = f" (+{len(groups) - 1})" if len(groups) > 1 else ""
        lines.append([groups[0].name + more, str(len(names)), f"{sum(rows[n].numel for n in names):,}", *lrs])
    headings = ["lr of group", "arrays", "numbers", *(f"step {step}" for step in steps)]
    console.table(headings, lines, right=range(1, len(headings)))


def _lr(plan: Plan, group: Group, step: int) -> str:
    return f"{plan.lr(step, group):.2e}" if group.active[0] <= step < group.active[1] else "frozen"


def show_mismatch(rows: Sequence[Sequence[Any]]) -> None:
    """Planned against measured lr, the worst first."""
    console.table(["group", "step", "planned lr", "measured lr", "error", "worst parameter"], rows, right=(1, 2, 3, 4))


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
    console.say(f"\n{study.title}: {study.facts}\n")
    headings = ["all settings", "lr", "seeds", "val", "test", "seconds", ""]
    console.table(headings, table(study), right=(1, 2, 5), title=f"{metric}, %")
    console.say("")
    console.table(["best of each kind", "lr", "seeds", "accuracy", "balanced", "to flat"], answers(study), right=(1, 2))
    console.say("")
    console.text(
        f"{HOW} 'to flat' is in {metric}. The interval covers {study.covers()}; "
        "the test pictures are the same in every run."
    )
    for sentence in study.verdicts():
        console.say("")
        console.text(sentence, strong=True)
    for note in notes(study):
        console.say("")
        console.text(note.text)
        if note.command:
            console.say(f"  {note.command}")
