"""What a person sees in the terminal: tables that fit 80 columns, progress on a terminal, quiet lines elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .groups import Group
from .params import ParamTable
from .plan import Plan

console = Console(highlight=False, soft_wrap=False)


def say(line: str) -> None:
    """One line, as it is."""
    console.print(line, markup=False, soft_wrap=True)


def text(sentence: str, strong: bool = False) -> None:
    """A sentence: wrapped at words on a terminal, one line elsewhere."""
    console.print(sentence, markup=False, soft_wrap=not console.is_terminal, style="bold" if strong else None)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = (), title: str = "") -> None:
    """A plain table; `right` are the indices of columns to align right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title or None, title_justify="left")
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    console.print(made, markup=False)


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere; the caller advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def track(steps: Iterable[int], total: int) -> Iterator[int]:
    """`steps` under a bar."""
    with progress(total, "training") as advance:
        for step in steps:
            yield step
            advance()


def show_params(params: ParamTable, plan: Plan) -> None:
    """Every parameter under its group: depth, shape; the group's rule, lr_scale and weight decay."""
    rows = params.by_name
    for group in plan.groups:
        window = "" if group.active[0] == 0 and group.active[1] >= plan.total_steps else _window(group.active, plan)
        say(f"{group.name}  ({group.rule})  lr_scale {group.lr_scale:.4g}  "
            f"weight_decay {group.weight_decay:g}{window}")  # fmt: skip
        for name in group.params:
            shape = "x".join(map(str, rows[name].shape))
            say(f"    depth {rows[name].depth:<3} {name:<44} {shape}")


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
    table(headings, lines, right=range(1, len(headings)))


def _lr(plan: Plan, group: Group, step: int) -> str:
    return f"{plan.lr(step, group):.2e}" if group.active[0] <= step < group.active[1] else "frozen"


def show_mismatch(rows: Sequence[Sequence[Any]]) -> None:
    """Planned against measured lr, the worst first."""
    table(["group", "step", "planned lr", "measured lr", "error", "worst parameter"], rows, right=(1, 2, 3, 4))


def relative(path: Path) -> str:
    """A path below the current directory as such, any other whole."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
