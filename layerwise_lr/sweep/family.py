"""A job's processes: itself and all that it has started. How much memory they take together, and their end.

A job leads a session of its own, so that no signal of the terminal reaches it past the pool. Children that left it are
known by their descent where /proc tells it (Linux); elsewhere its process group is all that is known, and no memory.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
MEASURED = (PROC / "self/stat").exists()
"""Whether memory is known here."""


class _Process(NamedTuple):
    parent: int
    session: int
    resident: int
    """Bytes, pages that it shares with others included."""


def members(leader: int, ended: bool = False) -> dict[int, int]:
    """The living processes of a job: pid to resident bytes.

    Args:
        leader: the job's own process.
        ended: it has, and its number may be another's.
    """
    every = dict(_processes())
    found = {p for p, facts in every.items() if facts.session == leader or (p == leader and not ended)}
    new = found
    while new:
        new = {p for p, facts in every.items() if facts.parent in new} - found
        found = found | new
    return {p: every[p].resident for p in found if p != os.getpid()}


def memory(leader: int, least: int) -> int:
    """Bytes that a job takes. Pages that it shares (a forked one does with its parent) count by its share, which takes long
    to be told: they count whole where that makes no more than `least`."""
    resident = members(leader)
    whole = sum(resident.values())
    return whole if whole <= least else sum(_share(p, most) for p, most in resident.items())


def send(leader: int, number: int) -> None:
    """A signal to all of them."""
    for pid in members(leader):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill(leader: int, ended: bool = False) -> None:
    """SIGKILL to all of them; `ended`: to those that the job has left behind."""
    for _ in range(5):  # one that is just being forked is not seen at first
        left = members(leader, ended)
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
    if not MEASURED:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def lives(pid: int) -> bool:
    """Whether a process of this machine is there, and has not ended unseen."""
    try:
        os.kill(pid, 0)
        return not MEASURED or (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except PermissionError:
        return True
    except OSError:
        return False


def _processes() -> Iterator[tuple[int, _Process]]:
    for entry in os.scandir(PROC) if MEASURED else ():
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                fields = (PROC / entry.name / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    pages = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
                    yield int(entry.name), _Process(int(fields[1]), int(fields[3]), pages)


def _share(pid: int, most: int) -> int:
    try:
        told = (PROC / str(pid) / "smaps_rollup").read_text()
        return next(int(line.split()[1]) * 1024 for line in told.splitlines() if line.startswith("Pss:"))
    except (OSError, StopIteration, ValueError):
        return most
