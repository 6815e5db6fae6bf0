"""A job as an engine is given it: our own pool with one job, wherever that is."""

import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..planning import UserError
from ..run import CONFIG, RunFolder, stopping
from . import family, jobs, placing
from .pool import Limits, Process, work_off


@dataclass(frozen=True)
class Task:
    """A job as an engine is given it.

    Args:
        path: its folder.
        threads: of it.
        limits: what it may take.
        device: that its config leaves open; None: the job chooses.
        goes_on: a file that is there as long as the sweep goes on.
        cwd: where the command runs, so that relative paths mean what they say.
        environment: variables of the command's; None: it has none such.
        parent: the process whose end is the task's too; None: it is not on this machine.
    """

    path: Path
    threads: int
    limits: Limits
    device: str | None
    goes_on: Path
    cwd: Path
    environment: Mapping[str, str | None]
    parent: int | None

    def __call__(self) -> str:
        """Run the job; the state that its folder has then.

        Raises:
            UserError: the folder is not here.
        """
        if not (self.path / CONFIG).is_file():
            raise UserError(f"{socket.gethostname()} has no {self.path}: all machines must share the sweep's folder")
        os.chdir(self.cwd)
        for name, value in self.environment.items():
            os.environ.pop(name, None)
            os.environ |= {name: value} if value is not None else {}
        start = placing.Places([self.device] if self.device else [], partial(_spawn, threads=self.threads))
        # a signal that the engine sends is the job's end, too, and not the worker's
        with stopping.listening(always=(signal.SIGTERM,)), suppress(KeyboardInterrupt):
            stay = _Stay(self)
            stay()
            work_off([self.path], start, 1, self.limits, lambda path: None, stay)
        if self.orphaned():
            os._exit(1)  # nobody waits for what comes of it, and loky's workers would wait for more
        return RunFolder(self.path).state()

    def orphaned(self) -> bool:
        """Whether the command is gone, and with it the sweep."""
        return self.parent is not None and not family.lives(self.parent)

    def checkpoint(self) -> Any:
        """Told by Slurm that its time is up, or that another needs the node, submitit puts this into the queue again: the job
        has written its resume point by then, and goes on from it."""
        from submitit.helpers import DelayedSubmission

        # which Slurm sends as soon as that is in the queue: this task shall not pass for one that has ended
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return DelayedSubmission(self)


def _spawn(path: Path, device: str | None, threads: int) -> Process:
    """Begin a job that is deaf to Slurm's warning: that goes to all processes of a step, and is for submitit in the worker."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        return jobs.spawn(path, device, threads)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Stay:
    """Raises KeyboardInterrupt as soon as a task is to end; looks once a second."""

    def __init__(self, task: Task) -> None:
        self.task, self.next = task, 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + 1
            if not self.task.goes_on.exists() or self.task.orphaned():
                raise KeyboardInterrupt
