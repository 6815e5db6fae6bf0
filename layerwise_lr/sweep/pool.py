"""The pool: a few processes at a time until all have ended. It waits, tries again and stops; jobs.py starts.

Whatever a job did, its folder says so afterwards.
"""

import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ..planning import UserError
from ..run import RunFolder, files

Done = Callable[[Path], None]
_POLL = 0.02  # seconds
_TRIES = 5  # a run of 4000 steps of 1 ms dies in about half of all tries, one of ordinary steps hardly ever
_CRASHES = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)


class Process(Protocol):
    """What a forked child and a Popen have in common."""

    pid: int

    def poll(self) -> int | None:
        """Exit code, negative for a signal, None while it runs."""


def work_off(
    paths: Sequence[Path], start: Callable[[Path], Process], at_once: int, timeout: float | None, done: Done
) -> None:
    """`at_once` jobs at a time until all have ended; a known crash is tried again. `done(folder)` is called after each.

    Args:
        paths: the jobs' folders.
        start: begins the process of one.
        timeout: seconds a job may take; None: any.

    Raises:
        KeyboardInterrupt: after all that run have been told and have ended.
    """
    waiting, running, tries = deque(paths), dict[Path, tuple[Process, float]](), Counter[Path]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                path = waiting.popleft()
                try:
                    running[path] = (start(path), time.monotonic())
                except OSError as error:
                    RunFolder(path).fail(files.told(error))
                    done(path)
            for path, (process, began) in list(running.items()):
                late = timeout is not None and time.monotonic() - began > timeout
                if late:
                    _kill(process)
                code = process.poll()
                if code is not None:
                    del running[path]
                    tries[path] += 1
                    if tries[path] < _TRIES and not late and _again(RunFolder(path), code, tries[path]):
                        waiting.appendleft(path)
                        continue
                    conclude(RunFolder(path), code, timeout if late else None)
                    done(path)
            time.sleep(_POLL)
    except KeyboardInterrupt:
        end([process for process, _ in running.values()])
        raise


def _again(folder: RunFolder, code: int, tries: int) -> bool:
    """Whether a crash is the framework's known own fault; says so. The run goes on, in the same folder."""
    if code not in _CRASHES:
        return False
    facts = folder.read_json("env.json")
    if not (facts and facts["retry_on_signal"]) or folder.read_json("summary.json"):
        return False
    line = (
        f"died of {signal.Signals(-code).name}, which {facts['framework']} is known to do in this mode: "
        f"started again ({tries + 1} of {_TRIES})"
    )
    path = folder.path / "log.txt"
    with files.named(path), os.fdopen(files.appended(path), "a") as log:
        print(line, file=log)
    print(f"{folder.path.name}: {line}", file=sys.stderr, flush=True)
    return True


def conclude(folder: RunFolder, code: int, timeout: float | None) -> None:
    """A job that could not write its own end gets one."""
    with suppress(UserError):  # it cannot be read: what lies there is no run's
        status = folder.read_json("status.json")
        if status and status["state"] in ("completed", "failed", "interrupted"):
            return
    if timeout is not None:
        folder.fail(f"stopped after {timeout:g} seconds (hydra.launcher.timeout)")
    else:
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        folder.fail(f"{how} before it could finish")


def _kill(process: Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    _wait(process, time.monotonic() + 10)


def end(processes: Sequence[Process], patience: float = 20) -> None:
    """Ctrl-C reaches every process of a terminal by itself; tell those that it did not reach, then insist.

    Args:
        processes: to be ended.
        patience: seconds they have for a checkpoint; more than run/stopping.py gives them.
    """
    deaf = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for send, seconds in ((None, 2.0), (signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
            for process in processes:
                if send and process.poll() is None:
                    os.kill(process.pid, send)
            until = time.monotonic() + seconds
            for process in processes:
                _wait(process, until)
    finally:
        for number, handler in deaf.items():
            signal.signal(number, handler)


def _wait(process: Process, until: float) -> None:
    while process.poll() is None and time.monotonic() < until:
        time.sleep(_POLL)
