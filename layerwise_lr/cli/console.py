"""What a person sees in the terminal: tables that fit 80 columns, progress on a terminal, quiet lines elsewhere.

What is shown may come out of a file: no control character of it reaches the terminal.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..planning import printable

console = Console(highlight=False, soft_wrap=False)


def width() -> int:
    """Columns there are."""
    return console.width


def say(line: str) -> None:
    """One line, as it is."""
    with shown():
        console.print(printable(line), markup=False, soft_wrap=True)


def text(sentence: str, strong: bool = False) -> None:
    """A sentence: wrapped at words on a terminal, one line elsewhere."""
    with shown():
        console.print(
            printable(sentence), markup=False, soft_wrap=not console.is_terminal, style="bold" if strong else None
        )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = (), title: str = "") -> None:
    """A plain table; `right` are the indices of columns to align right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=printable(title) or None, title_justify="left")
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, map(printable, row)))
    with shown():
        console.print(made, markup=False)


def show(page: RenderableType) -> None:
    """What is laid out already."""
    with shown():
        console.print(page, markup=False)


@contextmanager
def shown() -> Iterator[None]:
    """A terminal that was closed shows nothing, and its signal says what to do: what was to be shown is no error."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere; the caller advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with shown():
        bar.start()
    task = bar.add_task(what, total=total)
    try:
        yield lambda: bar.advance(task)
    finally:
        with shown():
            bar.stop()


def track(steps: Iterable[int], total: int) -> Iterator[int]:
    """`steps` under a bar."""
    with progress(total, "training") as advance:
        for step in steps:
            yield step
            advance()


def relative(path: Path) -> str:
    """A path below the current directory as such, any other whole."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError, RuntimeError):  # elsewhere, or a link to itself
        return str(path)
