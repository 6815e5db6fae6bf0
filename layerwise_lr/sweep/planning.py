"""What a sweep is: its plan on disk, and which of its jobs are still to run.

A sweep's folder holds sweep.json (every job, written before the first begins) and one run folder per job, named
after what was varied. The same sweep again finds the same folders and runs only what is missing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..run import Config, RunFolder


@dataclass(frozen=True)
class Job:
    """One job: its final config, what was varied, and its folder."""

    config: Config
    overrides: tuple[str, ...]
    path: Path


def job_name(overrides: Sequence[str], sha256: str) -> str:
    """A folder name that tells the job: "lr-0.001_layer_decay-0.75_seed-0_1a2b3c"."""
    parts = []
    for override in overrides:
        key, _, value = override.partition("=")
        parts.append(f"{key.rpartition('.')[2]}-{value}")
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))[:100]
    return f"{readable}_{sha256[:6]}".lstrip("-_.+")


def plan_jobs(
    folder: Path, configs_and_overrides: Sequence[tuple[Config, Sequence[str]]], fixed: Iterable[str] | None = None
) -> list[Job]:
    """The jobs of a sweep, each with its folder; equal configs are one job, and keep the folder they had.

    Args:
        folder: of the sweep.
        configs_and_overrides: of all jobs.
        fixed: what all have in common, which is not in their names; None: what these have.
    """
    held = {job["config_sha256"]: name for name, job in RunFolder(folder).jobs().items()}
    every = [set(overrides) for _, overrides in configs_and_overrides]
    common = set(fixed) if fixed is not None else set.intersection(*every) if len(every) > 1 else set()
    jobs: dict[str, Job] = {}
    for config, overrides in configs_and_overrides:
        sha256 = config.sha256()
        name = held.get(sha256) or job_name([o for o in overrides if o not in common], sha256)
        jobs.setdefault(sha256, Job(config, tuple(overrides), folder / name))
    return list(jobs.values())


def write_sweep(folder: Path, jobs: Sequence[Job], limits: Mapping[str, Any] | None = None) -> None:
    """sweep.json: earlier jobs stay, new ones are added.

    Args:
        folder: the sweep's.
        jobs: of it.
        limits: what a job may take, for those who go on: `hydra.launcher`'s timeout and memory.
    """
    new = {job.path.name: {"overrides": list(job.overrides), "config_sha256": job.config.sha256()} for job in jobs}
    RunFolder(folder).write_json(
        "sweep.json", {"jobs": {**RunFolder(folder).jobs(), **new}, "limits": dict(limits or {})}
    )


def to_run(jobs: Sequence[Job], again: bool = True) -> list[Job]:
    """Jobs that have not finished and that nobody trains.

    Args:
        jobs: of the sweep.
        again: also those that failed or were interrupted: a job of which nobody has seen the end is run in any case.
    """
    states = ("missing", "crashed", *(("failed", "interrupted") if again else ()))
    return [job for job in jobs if RunFolder(job.path).state() in states]


def elsewhere(jobs: Sequence[Job]) -> list[Job]:
    """Jobs that a process trains, or has claimed."""
    return [job for job in jobs if RunFolder(job.path).state() in ("running", "claimed")]


def claim(job: Job) -> bool:
    """Take a job; what is in its folder stays: the run itself goes on with it, or clears it. False: it is another's.

    Raises:
        UserError: likewise.
    """
    folder = RunFolder(job.path)
    if folder.state() != "missing":
        return folder.reclaim()
    RunFolder.claim(job.path)
    return True
