"""What a sweep is: its plan on disk, and which of its jobs are still to run.

A sweep's folder holds sweep.json (every job, written before the first begins) and one run folder per job, named
after what was varied. The same sweep again finds the same folders and runs only what is missing.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ..planning import plain
from ..run import Config, RunFolder, files


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


def plan_jobs(folder: Path, configs_and_overrides: Sequence[tuple[Config, Sequence[str]]]) -> list[Job]:
    """The jobs of a sweep, each with its folder; equal configs are one job, and keep the folder they had."""
    held = {job["config_sha256"]: name for name, job in RunFolder(folder).jobs().items()}
    every = [set(overrides) for _, overrides in configs_and_overrides]
    common = set.intersection(*every) if len(every) > 1 else set()
    jobs: dict[str, Job] = {}
    for config, overrides in configs_and_overrides:
        sha256 = config.sha256()
        name = held.get(sha256) or job_name([o for o in overrides if o not in common], sha256)
        jobs.setdefault(sha256, Job(config, tuple(overrides), folder / name))
    return list(jobs.values())


def write_sweep(folder: Path, jobs: Sequence[Job]) -> None:
    """sweep.json: earlier jobs stay, new ones are added."""
    new = {job.path.name: {"overrides": list(job.overrides), "config_sha256": job.config.sha256()} for job in jobs}
    RunFolder(folder).write_json("sweep.json", {"jobs": {**RunFolder(folder).jobs(), **new}})


def to_run(jobs: Sequence[Job], say: Callable[[str], object] = print) -> list[Job]:
    """Jobs that have not finished; what a failed or killed one left is cleared away, but for what the run did not write:
    then its folder is put aside, which is said. A running one is left alone."""
    open_jobs = []
    for job in jobs:
        files.inside(job.path.parent, job.path.name)
        state = RunFolder(job.path).state()
        if state in ("completed", "running", "claimed"):
            continue
        if state != "missing":
            _clear(job.path, say)
        open_jobs.append(job)
    return open_jobs


def _clear(path: Path, say: Callable[[str], object]) -> None:
    """Room for a new run: the folder goes, or is put aside under another name where others wrote into it."""
    if not (others := files.not_written(path)):
        shutil.rmtree(path)
        return
    aside = next(at for n in count(1) if not (at := path.with_name(f"{path.name}.{n}{files.KEPT}")).exists())
    path.rename(aside)
    say(f"{path.name}: holds what no run writes ({plain(', '.join(others[:3]))}): kept aside as {aside.name}")
