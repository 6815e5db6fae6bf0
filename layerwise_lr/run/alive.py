"""Whether a run's process lives: it holds a lock on a file of its folder, which the kernel takes back however it ends.

A pid alone may be another process by now, and a host's name says nothing about the process there.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..planning import UserError, plain

LOCK = ".lock"
PATIENCE = 1.0
"""Seconds: somebody who only asks holds the lock for a moment."""


@contextmanager
def locked(folder: Path, status: Mapping[str, Any]) -> Iterator[None]:
    """Hold the folder's lock.

    Args:
        folder: of one run.
        status: its status.json, which tells who has the lock, should it be taken.

    Raises:
        UserError: another process holds it.
    """
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        until = time.monotonic() + PATIENCE
        while not _take(file, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise taken(folder, status)
            time.sleep(0.02)
        yield
    finally:
        os.close(file)


def taken(folder: Path, status: Mapping[str, Any]) -> UserError:
    """That another process, which wrote `status`, trains in this folder."""
    who = plain(f"process {status.get('pid')} of {status.get('host')}")
    return UserError(f"{folder} is being trained by {who}: wait for its end, or stop that process")


def alive(folder: Path, status: Mapping[str, Any]) -> bool:
    """Whether the process that wrote `status` ("running" or "claimed") is still at it.

    A claim is held by no lock, and another machine's is believed: it is refused, nothing of it is lost.
    """
    if status["state"] == "running" and (held := _held(folder)) is not None:
        return held
    return status["host"] != socket.gethostname() or _runs(status["pid"], status.get("process"))


def process(pid: int) -> str | None:
    """What tells a process from a later one of the same number: boot and start time; None where no /proc is."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{started}"
    except (OSError, IndexError):
        return None


def _held(folder: Path) -> bool | None:
    """Whether somebody holds the lock; None: it is not there, this place has no locks, or does not let us look."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError):
        return None
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(file)
    return False


def _take(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: better a run without one than none
        return True
    return True


def _runs(pid: int, known: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = process(pid)
    return known is None or now is None or known == now
