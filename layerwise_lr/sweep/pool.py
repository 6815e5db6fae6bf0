"""The pool: a few processes at a time until all have ended. It waits, watches what each takes, tries again and stops;
jobs.py starts.

Whatever a job did, its folder says so afterwards.
"""

import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from ..planning import UserError
from ..run import RunFolder, files
from . import family, logs
from .guard import Guard

Done = Callable[[Path], None]
PATIENCE = 20.0
"""Seconds that a job has for its checkpoint when it is to end; more than run/stopping.py gives it."""
_POLL = 0.02  # seconds
_LOOK, _SHARE = 0.1, 20  # seconds between looks at a job's memory; they take at most one part in so many of the time
_TRIES = 5  # a run of 4000 steps of 1 ms dies in about half of all tries, one of ordinary steps hardly ever
_CRASHES = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)


@dataclass(frozen=True)
class Limits:
    """What a job may take.

    Args:
        timeout: seconds; None: any.
        memory: bytes, with all that it has started; None: any.
    """

    timeout: float | None = None
    memory: int | None = None


class Process(Protocol):
    """What a forked child and a Popen have in common."""

    pid: int

    def poll(self) -> int | None:
        """Exit code, negative for a signal, None while it runs."""


@dataclass
class _Job:
    process: Process
    began: float = field(default_factory=time.monotonic)
    look: float = 0.0

    def over(self, limits: Limits) -> str:
        """Which limit it has passed, as its folder shall say it; "": none."""
        now = time.monotonic()
        if limits.timeout is not None and now - self.began > limits.timeout:
            return f"stopped after {limits.timeout:g} seconds (hydra.launcher.timeout)"
        if limits.memory is None or now < self.look:
            return ""
        took = family.memory(self.process.pid, limits.memory)
        self.look = time.monotonic() + max(_LOOK, _SHARE * (time.monotonic() - now))
        if took <= limits.memory:
            return ""
        return (
            f"took {size(took)}, more than hydra.launcher.memory={size(limits.memory)}; "
            "raise it, or take less: a smaller batch_size or data.memory"
        )


def size(count: float) -> str:
    """Bytes for a person."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def work_off(
    paths: Sequence[Path],
    start: Callable[[Path], Process],
    at_once: int,
    limits: Limits,
    done: Done,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """`at_once` jobs at a time until all have ended; a known crash is tried again. `done(folder)` is called after each.

    Args:
        paths: the jobs' folders.
        start: begins the process of one.
        limits: what each may take.
        done: called with the folder of each that has ended.
        watch: called now and then.

    Raises:
        KeyboardInterrupt: after all that run have been told and have ended.
    """
    pool = _Pool(start, limits, done)
    waiting = deque(paths)
    before = _heard_by(pool.pause)
    try:
        while waiting or pool.running:
            while waiting and len(pool.running) < at_once:
                pool.begin(waiting.popleft())
            waiting.extendleft(pool.look())
            watch()
            time.sleep(_POLL)
    finally:
        pool.close()
        if before:
            signal.signal(signal.SIGTSTP, before)


def _heard_by(pause: Callable[[int, FrameType | None], None]) -> Any:
    """Ctrl-Z is, where this is the main thread; who heard it before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTSTP, pause)


class _Pool:
    """The jobs that run, and what befalls them."""

    def __init__(self, start: Callable[[Path], Process], limits: Limits, done: Done) -> None:
        self.start, self.limits, self.done = start, limits, done
        self.running, self.tries = dict[Path, _Job](), Counter[Path]()
        self.guard = Guard(PATIENCE) if hasattr(os, "fork") and sys.platform != "darwin" else None

    def begin(self, path: Path) -> None:
        """Start a job; one that cannot be started has ended."""
        try:
            self.running[path] = _Job(self.start(path))
        except OSError as error:
            self._end(path, 1, f"could not be started: {files.told(error)}")
            return
        if self.guard:
            self.guard.watch(self.running[path].process.pid, path)

    def look(self) -> list[Path]:
        """At all that run: those that are to be started again."""
        again = []
        for path, job in list(self.running.items()):
            logs.bound(path)
            if why := job.over(self.limits):
                family.kill(job.process.pid)
                _wait(job.process, time.monotonic() + 10)
            if (code := job.process.poll()) is None:
                continue
            del self.running[path]
            self._clear(job.process.pid)
            logs.bound(path)
            self.tries[path] += 1
            if not why and self.tries[path] < _TRIES and _again(RunFolder(path), code, self.tries[path]):
                again.append(path)
            else:
                self._end(path, code, why)
        return again

    def pause(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z reaches no other session: the jobs stop with us, go on with us, and the time does not count."""
        since = time.monotonic()
        for job in self.running.values():
            family.send(job.process.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        for job in self.running.values():
            family.send(job.process.pid, signal.SIGCONT)
            job.began += time.monotonic() - since

    def close(self) -> None:
        """Whatever still runs is told, and has ended."""
        end([job.process for job in self.running.values()], PATIENCE, hurried=True)
        for job in self.running.values():
            self._clear(job.process.pid)
        if self.guard:
            self.guard.dismiss()

    def _clear(self, pid: int) -> None:
        """What a job that has ended left behind."""
        family.kill(pid, ended=True)
        if self.guard:
            self.guard.leave(pid)

    def _end(self, path: Path, code: int, why: str) -> None:
        try:
            conclude(RunFolder(path), code, why)
        except (OSError, UserError) as error:  # the others go on
            told = files.told(error) if isinstance(error, OSError) else error
            print(f"{path.name}: its status cannot be written: {told}", file=sys.stderr, flush=True)
        self.done(path)


def _again(folder: RunFolder, code: int, tries: int) -> bool:
    """Whether a crash is the framework's known own fault; says so. The run goes on, in the same folder."""
    if code not in _CRASHES:
        return False
    try:
        facts = folder.read_json("env.json")
        if not (facts and facts["retry_on_signal"]) or folder.read_json("summary.json"):
            return False
    except UserError:  # it has crashed over its own folder
        return False
    line = (
        f"died of {signal.Signals(-code).name}, which {facts['framework']} is known to do in this mode: "
        f"started again ({tries + 1} of {_TRIES})"
    )
    logs.append(folder.path, line)
    print(f"{folder.path.name}: {line}", file=sys.stderr, flush=True)
    return True


def conclude(folder: RunFolder, code: int, why: str = "") -> None:
    """A job that could not write its own end gets one.

    Args:
        folder: the job's.
        code: how its process ended.
        why: the pool ended it.
    """
    with suppress(UserError):  # a status that nobody can read is none
        status = folder.read_json("status.json")
        if status and status["state"] in ("completed", "failed", "interrupted", "pruned"):
            return
    folder.fail(why or f"{how(code)} before it could finish{_LIKELY.get(code, '')}")


_LIKELY = {
    -signal.SIGKILL: (
        "; somebody killed it, or the kernel did because memory was full: fewer jobs at a time (hydra.launcher.n_jobs), "
        "a smaller batch_size or data.memory"
    )
}


def how(code: int) -> str:
    """An exit code as a person would say it."""
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def end(processes: Sequence[Process], patience: float, hurried: bool = False) -> None:
    """Tell them to end, then insist. Meanwhile nothing stops this process itself.

    Args:
        processes: to be ended; none of the terminal's signals has reached them, or it does no harm twice.
        patience: seconds they have.
        hurried: Ctrl-C, again, is passed on to them, once.
    """
    hurry = _Hurry(processes) if hurried else signal.SIG_IGN
    before = {
        number: signal.signal(number, heard)
        for number, heard in ((signal.SIGINT, hurry), (signal.SIGTERM, signal.SIG_IGN), (signal.SIGHUP, signal.SIG_IGN))
    }
    try:
        _send(processes, signal.SIGTERM)
        _wait_all(processes, patience)
        for process in processes:
            if process.poll() is None:
                family.kill(
                    process.pid
                )  # a child that has left its session is known by its parent alone, while that lives
        _wait_all(processes, 10.0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Hurry:
    def __init__(self, processes: Sequence[Process]) -> None:
        self.processes = processes

    def __call__(self, number: int, frame: FrameType | None) -> None:
        _send(self.processes, signal.SIGINT)
        self.processes = []


def _send(processes: Sequence[Process], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            os.kill(process.pid, number)


def _wait_all(processes: Sequence[Process], seconds: float) -> None:
    until = time.monotonic() + seconds
    for process in processes:
        _wait(process, until)


def _wait(process: Process, until: float) -> None:
    while process.poll() is None and time.monotonic() < until:
        time.sleep(_POLL)
