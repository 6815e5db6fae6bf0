"""`watch DIR`, and what `train -m` shows on a terminal: the jobs as they go, what is left, what failed."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..planning import plain, printable
from ..run import watching
from . import console
from .words import Parser

SECONDS = 1.0
"""Between looks."""
GRACE = 10.0
"""Seconds that a sweep of which no job is alive may take to begin the next."""
FIRST = {
    "running": 0,
    "unreadable": 1,
    "failed": 1,
    "crashed": 1,
    "interrupted": 1,
    "done": 2,
    "waiting": 3,
    "missing": 3,
}
"""Where a state stands in the table."""
BAD = ("failed", "crashed", "interrupted", "unreadable")


def watch(words: Sequence[str]) -> int:
    """`layerwise-lr watch DIR`: the exit code, 1 where a job has failed.

    Raises:
        UserError: there is nothing to watch.
    """
    parser = Parser(
        "layerwise-lr watch",
        description=(
            "Watch a sweep, or a run, that another process trains: its jobs, their steps,\n"
            "training loss, the metric on validation so far, the time that is left, what\n"
            "failed. Ends when the sweep does. Without a terminal a line per change."
        ),
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--once", action="store_true", help="how it stands now, and no more")
    asked = parser.parse_args(words)
    jobs = watching.watched(asked.folder)
    seen = [job.look() for job in jobs]
    if asked.once:
        console.show(_page(seen, len(seen)))
    elif console.console.is_terminal:
        seen = _live(jobs)
    else:
        seen = _lines(jobs)
    return 1 if any(job.state in BAD for job in seen) else 0


@contextmanager
def shown(paths: Sequence[Path]) -> Iterator[None]:
    """On a terminal, how the jobs of our own sweep stand, until they have ended; nothing elsewhere."""
    if not console.console.is_terminal:
        yield
        return
    jobs = [watching.Watched(path, path.name, ours=True) for path in paths]
    live = Live(get_renderable=_Page(jobs), console=console.console, refresh_per_second=1, transient=True)
    with console.shown():
        live.start()
    try:
        yield
    finally:  # an interruption stays one, though the terminal was closed
        with console.shown():
            live.stop()


class _Page:
    """The page of some jobs, made anew when it is a while old: every line that is printed asks for it."""

    def __init__(self, jobs: Sequence[watching.Watched]) -> None:
        self.jobs, self.made, self.page = jobs, 0.0, Group()

    def __call__(self) -> Group:
        if time.monotonic() - self.made > SECONDS / 2:
            self.page = _page([job.look() for job in self.jobs], _room())
            self.made = time.monotonic()
        return self.page


def _live(jobs: Sequence[watching.Watched]) -> list[watching.Seen]:
    seen, alive = [job.look() for job in jobs], time.monotonic()
    with console.shown(), Live(_page(seen, _room()), console=console.console, auto_refresh=False) as live:
        while _goes_on(seen, alive):
            time.sleep(SECONDS)
            seen = [job.look() for job in jobs]
            alive = time.monotonic() if _alive(seen) else alive
            live.update(_page(seen, _room()), refresh=True)
    return seen


def _lines(jobs: Sequence[watching.Watched]) -> list[watching.Seen]:
    """A line per job whose state or last evaluation is another than it was."""
    told: dict[str, tuple[str, float | None, float | None]] = {}
    alive = time.monotonic()
    while True:
        seen = [job.look() for job in jobs]
        for job in seen:
            now = (job.state, job.last, job.best)
            if told.get(job.name) != now and job.state not in ("waiting", "missing"):
                console.say(f"{job.name}  {_sentence(job)}")
            told[job.name] = now
        alive = time.monotonic() if _alive(seen) else alive
        if not _goes_on(seen, alive):
            console.say(_sum(seen))
            return seen
        time.sleep(SECONDS)


def _alive(seen: Sequence[watching.Seen]) -> bool:
    return any(job.state in ("running", "waiting") for job in seen)


def _goes_on(seen: Sequence[watching.Seen], alive: float) -> bool:
    """Whether there is more to come; `alive`: when a job was alive."""
    begins = any(job.state == "missing" for job in seen) and time.monotonic() - alive < GRACE
    return _alive(seen) or begins


def _room() -> int:
    """Rows of the table that a terminal has room for."""
    return max(console.console.height - 6, 3)


def _page(seen: Sequence[watching.Seen], room: int) -> Group:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    metric = next((job.metric for job in seen if job.metric), "metric").replace("_", " ")
    for heading in ("job", "", "step", "loss", metric, "best", "left"):
        right = heading in ("step", "loss", metric, "best", "left")
        table.add_column(
            Text(printable(heading)), justify="right" if right else "left", no_wrap=True, overflow="ellipsis"
        )
    ordered = sorted(seen, key=lambda job: FIRST.get(job.state, 1))
    for job in ordered[:room]:
        cells = _cells(job)
        table.add_row(*(Text(printable(cell)) for cell in cells), style="bold" if job.state in BAD else None)
    below = [f"and {len(seen) - room} more"] if len(seen) > room else []
    why = [f"{job.name}: {plain(job.why, 300)}" for job in seen if job.why][:3]
    return Group(table, *(Text(printable(line)) for line in (*below, _sum(seen), *why)))


def _cells(job: watching.Seen) -> tuple[str, ...]:
    step = f"{job.step:,}/{job.total:,}" if job.total else ""
    numbers = ("" if number is None else f"{number:.4f}" for number in (job.loss, job.last, job.best))
    return (job.name, job.state, step, *numbers, "" if job.left is None else _time(job.left))


def _sentence(job: watching.Seen) -> str:
    parts = [job.state, f"step {job.step}/{job.total}" if job.total else ""]
    parts.append(f"training loss {job.loss:.4f}" if job.loss is not None else "")
    parts.append(f"validation {job.metric} {job.last:.4f}" if job.last is not None else "")
    return "  ".join(filter(None, [*parts, plain(job.why, 300)]))


def _sum(seen: Sequence[watching.Seen]) -> str:
    """ "2 of 6 jobs done, 1 failed, 2 running, 1 waiting; about 4 min left"."""
    count = Counter(job.state for job in seen)
    done = f"{count.pop('done', 0)} of {len(seen)} {'job' if len(seen) == 1 else 'jobs'} done"
    others = [f"{count[state]} {state}" for state in sorted(count, key=lambda state: FIRST.get(state, 1))]
    left = _all_left(seen)
    return ", ".join([done, *others]) + ("" if left is None else f"; about {_time(left)} left")


def _all_left(seen: Sequence[watching.Seen]) -> float | None:
    """Seconds until the last job ends, at the pace of those that run."""
    paces = [(job.total - job.step) / job.left for job in seen if job.left and job.state == "running"]
    todo = sum(job.total - job.step for job in seen if job.state in ("running", "waiting"))
    if not paces:
        return None
    longest = max(job.left or 0.0 for job in seen)
    return max(todo / sum(paces), longest)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
