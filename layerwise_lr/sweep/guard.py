"""The guard: a process that waits for the end of the pool's, and then, however that died, ends the jobs it has left.

The kernel tells them too (Linux, jobs.follow), and a job that hears it writes its resume point; one that hangs hears nothing,
and nobody else knows what it has started.
"""

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

from . import family, logs

_POLL = 0.2  # seconds


class Guard:
    """Watches over the jobs of this process, the pool, until `dismiss`.

    Args:
        patience: seconds that jobs without a pool have for a checkpoint.
    """

    def __init__(self, patience: float) -> None:
        pool = os.getpid()
        read, self._tell = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._tell)
                _stand(pool, read, patience)
            finally:
                os._exit(0)
        os.close(read)

    def watch(self, pid: int, folder: Path) -> None:
        """A job that has been started."""
        self._say(b"%d %s" % (pid, os.fsencode(folder)))

    def leave(self, pid: int) -> None:
        """One that has ended."""
        self._say(b"%d " % pid)

    def _say(self, word: bytes) -> None:
        with suppress(OSError):  # it was killed: then there is none
            os.write(self._tell, word + b"\0")

    def dismiss(self) -> None:
        """No job is left."""
        os.close(self._tell)
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _stand(pool: int, read: int, patience: float) -> None:
    """The guard's own life. Jobs hold the pipe's other end too, so that its end tells nothing: the pool's does."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    told = b""
    while os.getppid() == pool:
        told += _heard(read, _POLL)
    while more := _heard(read, 0):
        told += more
    jobs = dict[int, Path]()
    for word in told.split(b"\0")[:-1]:
        pid, _, folder = word.partition(b" ")
        if folder:
            jobs[int(pid)] = Path(os.fsdecode(folder))
        else:
            jobs.pop(int(pid), None)
    _end(jobs, patience)


def _heard(read: int, seconds: float) -> bytes:
    ready, _, _ = select.select([read], [], [], seconds)
    return os.read(read, 65536) if ready else b""


def _end(jobs: dict[int, Path], patience: float) -> None:
    for pid in jobs:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + patience
    while jobs:
        for pid, folder in list(jobs.items()):
            logs.bound(folder)
            gone = pid not in family.members(pid)
            if gone or time.monotonic() > until:
                family.kill(pid, ended=gone)
                del jobs[pid]
        time.sleep(_POLL)
