"""Statistics of finished runs: settings, means with their intervals, the best one, the paired difference.

Metrics are shares (0 to 1); lr is per optimizer step; an interval is a 95 % t interval over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import stdtrit

from ..planning import UserError
from ..run import CONFIG, Config, RunFolder, files, looked_through


class Run(NamedTuple):
    """A finished run as the statistics see it."""

    path: Path
    config: Config
    summary: Mapping[str, Any]


class Other(NamedTuple):
    """A run without a result that can be shown: its state, and why where that is known already."""

    state: str
    why: str = ""


UNREADABLE = "unreadable"


def finished(folders: Sequence[Path]) -> tuple[list[Run], dict[Path, Other]]:
    """(finished runs, every other run folder) in or below `folders`; one bad file leaves its run out, with the reason."""
    runs, others = [], {}
    for path in files.below(folders, CONFIG):
        try:
            config, summary = looked_through(path)
            if summary is None:
                others[path] = Other(RunFolder(path).state())
            else:
                runs.append(Run(path, config, summary))
        except UserError as error:
            others[path] = Other(UNREADABLE, str(error))
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
    """All runs that differ in the seed only.

    Args:
        label: what tells it from the other settings, but for the lr.
        kind: of its grouping.
        lr: per optimizer step.
        runs: by seed.
        grouping: the grouping, in words.
        levels: of each other factor that was varied, in words.
    """

    label: str
    kind: str
    lr: float
    runs: Mapping[int, Run]
    grouping: str
    levels: Mapping[str, str]

    def values(self, part: str, metric: str) -> dict[int, float]:
        """A metric by seed."""
        return {seed: run.summary[part][metric] for seed, run in self.runs.items()}

    def mean(self, part: str, metric: str) -> Interval:
        """Over the seeds."""
        return interval(list(self.values(part, metric).values()))


FLAT, SPLIT, DECAY, OTHER = "flat", "head/backbone", "layer_decay", "other"
KINDS = (FLAT, SPLIT, DECAY, OTHER)


def best(found: Sequence[Setting], metric: str) -> Setting:
    """The setting that is best on the validation pictures; among equals, the one with more seeds.

    One seed is luck: where any setting has two or more, those with one are not chosen.
    """
    sound = [s for s in found if len(s.runs) > 1] or found
    return max(sound, key=lambda s: (s.mean("val", metric).mean, len(s.runs)))


def paired(a: Setting, b: Setting, metric: str) -> Interval | None:
    """Mean over the seeds that both have of a - b on the test pictures; None without two common seeds."""
    mine, theirs = a.values("test", metric), b.values("test", metric)
    common = sorted(set(mine) & set(theirs))
    return interval([mine[s] - theirs[s] for s in common]) if len(common) > 1 else None
