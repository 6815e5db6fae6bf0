"""Which device a job trains on: the accelerators that are here, each shared by as many jobs as are to be on one.

A config says "auto" or "cuda", and stays as it is: it shall be repeatable on another machine. The job itself is told.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from ..framework import registry
from ..planning import UserError
from ..run import Config
from .pool import Process

Start = Callable[[Path, str | None], Process]


def accelerators(asked: str, there: Sequence[str]) -> list[str]:
    """Those that a job may be placed on.

    Args:
        asked: framework.device.
        there: the framework's devices, the best first.
    """
    kind = there[0].partition(":")[0] if asked == "auto" else asked
    return [device for device in there if device != "cpu" and kind in (device, device.partition(":")[0])]


def alike(jobs: Mapping[Path, Config]) -> Iterator[dict[Path, Config]]:
    """The jobs of each framework and device, which may share a parent and are spread over the same accelerators."""
    for like in dict.fromkeys((c.framework.name, c.framework.device) for c in jobs.values()):
        yield {path: c for path, c in jobs.items() if (c.framework.name, c.framework.device) == like}


def spread_over(jobs: Mapping[Path, Config], apart: str = "") -> list[str]:
    """Where jobs of one framework and device may be placed; one alone chooses for itself.

    Args:
        jobs: with their configs.
        apart: how to make the process that asks; "": this one does.
    """
    config = next(iter(jobs.values()))
    several = any(job.framework.distributed != "none" for job in jobs.values())  # their processes have a device each
    if len(jobs) == 1 or several or config.framework.device == "cpu":
        return []
    try:
        if apart:
            with ProcessPoolExecutor(1, mp_context=get_context(apart)) as process:
                there = process.submit(_devices, config.framework.name).result()
        else:
            there = _devices(config.framework.name)
    except UserError:  # each job's own to meet and to report
        return []
    return accelerators(config.framework.device, there)


def _devices(name: str) -> list[str]:
    return registry.load(name).devices()


class Places:
    """Starts each job on the device that has fewest.

    Args:
        devices: to choose from; none: nobody is told one.
        start: begins the process of a job on a device.
    """

    def __init__(self, devices: Sequence[str], start: Start) -> None:
        self.start = start
        self.placed: dict[str, list[Process]] = {device: [] for device in devices}

    def __call__(self, path: Path) -> Process:
        """Begin a job."""
        if not self.placed:
            return self.start(path, None)
        for device, jobs in self.placed.items():
            self.placed[device] = [job for job in jobs if job.poll() is None]
        device = min(self.placed, key=lambda device: len(self.placed[device]))
        process = self.start(path, device)
        self.placed[device].append(process)
        return process
