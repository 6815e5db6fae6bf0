"""A job's log, bounded: a framework that prints in a loop fills no disk.

The job writes to the end of the file itself, so that it neither waits for a reader nor dies without one; whoever watches
the job cuts the middle out of what has become too long.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from ..run import files

LOG = "log.txt"
MOST, HEAD, TAIL = 16 * 2**20, 4 * 2**20, 4 * 2**20
"""Bytes of a log, and what of one that becomes longer is kept: its first and its last."""
_ROUNDS = 50  # until a cut has caught up with a job that writes faster than we move
_CUT = re.compile(rb"\n\[(\d+) bytes were left out here\]\n")


def append(folder: Path, line: str) -> None:
    """A line at the end of a job's log."""
    path = folder / LOG
    with files.named(path), os.fdopen(files.appended(path), "a") as log:
        print(line, file=log)


def bound(folder: Path) -> None:
    """Where the log of a job has more than MOST bytes: its head, a line that says how many are left out, its tail."""
    with suppress(OSError):  # no log, or a disk that fails: the job's own matter
        path = folder / LOG
        if path.lstat().st_size > MOST:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                _cut(file)
            finally:
                os.close(file)


def _cut(file: int) -> None:
    """In place, while the job goes on writing at the end, wherever that is: what it writes meanwhile is moved as
    well, but for what it writes in the last moment of all."""
    head, before = os.pread(file, HEAD, 0), 0
    if earlier := _CUT.search(os.pread(file, HEAD + 100, 0)):
        head, before = head[: earlier.start()], int(earlier[1]) - len(earlier[0])
    for _ in range(_ROUNDS):
        start = os.fstat(file).st_size - TAIL
        start += os.pread(file, TAIL, start).find(b"\n") + 1  # whole lines, where there are lines
        told = b"\n[%d bytes were left out here]\n" % (start - len(head) + before)
        to = len(head) + os.pwrite(file, told, len(head))
        until = to + 2 * TAIL
        while to < until and (moved := os.pread(file, 2**20, start)):
            to += os.pwrite(file, moved, to)
            start += len(moved)
        if to < until:
            break
    os.ftruncate(file, to)
