"""What a sweep is: its plan on disk, which of its jobs are still to run, and its statistics.

A sweep's folder holds sweep.json (every job, written before the first begins) and one run folder per job, named
after what was varied. The same sweep again finds the same folders and runs only what is missing.
"""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import stdtrit

from . import config as configs
from .config import Config
from .folder import CONFIG, RunFolder


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
    held = {job["config_sha256"]: name for name, job in _held(folder).items()}
    every = [set(overrides) for _, overrides in configs_and_overrides]
    common = set.intersection(*every) if len(every) > 1 else set()
    jobs: dict[str, Job] = {}
    for config, overrides in configs_and_overrides:
        sha256 = config.sha256()
        name = held.get(sha256) or job_name([o for o in overrides if o not in common], sha256)
        jobs.setdefault(sha256, Job(config, tuple(overrides), folder / name))
    return list(jobs.values())


def _held(folder: Path) -> dict[str, Any]:
    """Jobs that sweep.json tells of."""
    return dict((RunFolder(folder).read_json("sweep.json") or {"jobs": {}})["jobs"])


def write_sweep(folder: Path, jobs: Sequence[Job]) -> None:
    """sweep.json: earlier jobs stay, new ones are added."""
    new = {job.path.name: {"overrides": list(job.overrides), "config_sha256": job.config.sha256()} for job in jobs}
    RunFolder(folder).write_json("sweep.json", {"jobs": {**_held(folder), **new}})


def to_run(jobs: Sequence[Job]) -> list[Job]:
    """Jobs that have not finished; what a failed or killed one left is cleared away. A running one is left alone."""
    open_jobs = []
    for job in jobs:
        state = RunFolder(job.path).state()
        if state in ("completed", "running", "claimed"):
            continue
        if state != "missing":
            shutil.rmtree(job.path)
        open_jobs.append(job)
    return open_jobs


class Run(NamedTuple):
    """A finished run as the statistics see it."""

    path: Path
    config: Config
    summary: Mapping[str, Any]


def finished(folders: Sequence[Path]) -> tuple[list[Run], dict[Path, str]]:
    """(finished runs, state of every other run folder) in or below `folders`."""
    runs, others = [], {}
    for path in sorted({p.parent for folder in folders for p in folder.rglob(CONFIG)}):
        folder = RunFolder(path)
        summary = folder.read_json("summary.json")
        if summary is None:
            others[path] = folder.state()
        else:
            runs.append(Run(path, configs.read(path / CONFIG), summary))
    return runs, others


class Interval(NamedTuple):
    """A mean with its 95 % t interval: mean +- half; half is NaN for fewer than two values."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.half:.1f}" if self.n > 1 else "")


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence half width over independent values (Student's t)."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return Interval(mean, math.nan, n)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return Interval(mean, float(stdtrit(n - 1, 0.975)) * error, n)


class Setting(NamedTuple):
    """All runs that differ in the seed only."""

    label: str
    kind: str
    lr: float
    runs: Mapping[int, Run]

    def values(self, part: str, metric: str) -> dict[int, float]:
        """A metric by seed."""
        return {seed: run.summary[part][metric] for seed, run in self.runs.items()}

    def mean(self, part: str, metric: str) -> Interval:
        """Over the seeds."""
        return interval(list(self.values(part, metric).values()))


FLAT, SPLIT, DECAY, OTHER = "flat", "head/backbone", "layer_decay", "other"


def kind_of(config: Config) -> tuple[str, str]:
    """(kind, label) of a run's grouping; layer_decay 1 is flat."""
    grouping = config.grouping
    if grouping.groups:
        return OTHER, f"{grouping.strategy} with {', '.join(grouping.groups)}"
    if grouping.strategy == "flat":
        return FLAT, "flat"
    if grouping.strategy == "backbone_head":
        return SPLIT, f"head/backbone {grouping.backbone_scale:g}"
    if grouping.stem_scale is not None:
        return (FLAT, "flat") if grouping.stem_scale == 1 else (DECAY, f"stem_scale {grouping.stem_scale:g}")
    return (FLAT, "flat") if grouping.layer_decay == 1 else (DECAY, f"layer_decay {grouping.layer_decay:g}")


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Runs gathered by everything but the seed; labels tell apart what differs within the sweep."""
    varied = _varied([run.config for run in runs])
    found: dict[tuple[str, str, float], dict[int, Run]] = {}
    for run in runs:
        kind, label = kind_of(run.config)
        more = [f"{key.rpartition('.')[2]} {value}" for key, value in _items(run.config) if key in varied]
        key = (", ".join([label, *more]), kind, run.config.optimizer.lr)
        found.setdefault(key, {})[run.config.seed] = run
    return [Setting(*key, by_seed) for key, by_seed in found.items()]


def _items(config: Config, node: Any = None, at: str = "") -> list[tuple[str, Any]]:
    """Every value of a config by dotted key, but for the seed and what `kind_of` and the lr column tell."""
    told = ("seed", "optimizer.lr", "name", "grouping.strategy", "grouping.layer_decay", "grouping.stem_scale",
            "grouping.backbone_scale", "framework.threads")  # fmt: skip
    items: list[tuple[str, Any]] = []
    for key, value in (asdict(config) if node is None else node).items():
        full = f"{at}{key}"
        if isinstance(value, dict):
            items += _items(config, value, f"{full}.")
        elif full not in told:
            items.append((full, value))
    return items


def _varied(all_configs: Sequence[Config]) -> set[str]:
    seen: dict[str, set[str]] = {}
    for config in all_configs:
        for key, value in _items(config):
            seen.setdefault(key, set()).add(repr(value))
    return {key for key, values in seen.items() if len(values) > 1}


def best(found: Sequence[Setting], kind: str, metric: str) -> Setting | None:
    """The setting of a kind that is best on the validation pictures; among equals, the one with more seeds.

    One seed is luck: where any setting has two or more, those with one are not chosen.
    """
    own = [s for s in found if s.kind == kind]
    own = [s for s in own if len(s.runs) > 1] or own
    return max(own, key=lambda s: (s.mean("val", metric).mean, len(s.runs)), default=None)


def paired(a: Setting, b: Setting, metric: str) -> Interval | None:
    """Mean over the seeds that both have of a - b on the test pictures; None without two common seeds."""
    mine, theirs = a.values("test", metric), b.values("test", metric)
    common = sorted(set(mine) & set(theirs))
    return interval([mine[s] - theirs[s] for s in common]) if len(common) > 1 else None


def verdict(decay: Setting, other: Setting, metric: str) -> str:
    """One honest sentence: how much better, and whether that is more than the seeds' noise."""
    name = metric.replace("_", " ")
    difference = paired(decay, other, metric)
    if difference is None:
        return (f"{decay.label} and {other.label} have fewer than two seeds in common: no interval, no claim. "
                "Run both with seed=0,1,2 or more.")  # fmt: skip
    low, high = difference.mean - difference.half, difference.mean + difference.half
    span = f"({100 * difference.mean:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}, {difference.n} seeds)"
    if difference.half < 1e-9 < abs(difference.mean):  # but for rounding, zero
        return (f"{decay.label} against {other.label}: the same difference with each of {difference.n} seeds "
                f"({100 * difference.mean:+.1f} points), too regular for an interval: no claim. Run more seeds.")  # fmt: skip
    if low <= 0 <= high or abs(difference.mean) <= 1e-9:
        return (f"{decay.label} against {other.label} at its own best lr: no difference in {name} that "
                f"{difference.n} seeds can show {span}.")  # fmt: skip
    word = "better" if difference.mean > 0 else "worse"
    return f"{decay.label} is {word} than {other.label} at its own best lr in {name} {span}."
