"""Statistics of finished runs: settings, means with their intervals, the paired difference, the verdict.

Metrics are shares (0 to 1); lr is per optimizer step; an interval is a 95 % t interval over seeds.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from scipy.special import stdtrit

from ..data import AugmentSpec
from ..planning import UserError, plain
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
    """Runs gathered by everything but the seed; labels tell apart what differs within the sweep.

    Of runs that differ in nothing one counts: one that kept its best step before one that did not, else the last.
    """
    varied = _varied([run.config for run in runs])
    found: dict[tuple[str, str, float], dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: "kept" in run.summary):  # an older version kept the last step, not the best
        kind, label = kind_of(run.config)
        key = (plain(", ".join([label, *_differing(run.config, varied)]), 200), kind, run.config.optimizer.lr)
        found.setdefault(key, {})[run.config.seed] = run
    return [Setting(*key, by_seed) for key, by_seed in found.items()]


def _differing(config: Config, varied: Collection[str]) -> list[str]:
    """What tells a setting from the others: "label_smoothing 0.1"; of augment.* the option's name, where it is one."""
    known = (name for name, spec in _augments().items() if spec == config.augment)
    if option := next(known, None):
        augment = [f"augment {option}"] if any(key.startswith("augment.") for key in varied) else []
        varied = [key for key in varied if not key.startswith("augment.")]
    else:
        augment = []
    return augment + [f"{_short(key)} {value}" for key, value in _items(config) if key in varied]


def _short(key: str) -> str:
    """A dotted key without its section, where that does not say what: "ema.decay" and "optimizer.name" stay."""
    return key if key.startswith("ema.") or key.endswith(".name") else key.rpartition(".")[2]


@cache
def _augments() -> dict[str, AugmentSpec]:
    """What each augment=OPTION says."""
    options = (resources.files("layerwise_lr.conf") / "augment").iterdir()
    texts = {file.name[:-5]: file.read_text(encoding="utf-8") for file in options if file.name.endswith(".yaml")}
    return {name: AugmentSpec(**(yaml.safe_load(text) or {})) for name, text in texts.items()}


def _items(config: Config, node: Any = None, at: str = "") -> list[tuple[str, Any]]:
    """Every value of a config by dotted key, but for the seed and what `kind_of` and the lr column tell."""
    told = (
        "seed",
        "optimizer.lr",
        "name",
        "grouping.strategy",
        "grouping.layer_decay",
        "grouping.stem_scale",
        "grouping.backbone_scale",
        "framework.threads",
        "data.workers",
        "data.memory",
    )
    items: list[tuple[str, Any]] = []
    for key, value in (config.to_dict() if node is None else node).items():
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
        return (
            f"{decay.label} and {other.label} have fewer than two seeds in common: no interval, no claim. "
            "Run both with seed=0,1,2 or more."
        )
    low, high = difference.mean - difference.half, difference.mean + difference.half
    span = f"({100 * difference.mean:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}, {difference.n} seeds)"
    if difference.half < 1e-9 < abs(difference.mean):  # but for rounding, zero
        return (
            f"{decay.label} against {other.label}: the same difference with each of {difference.n} seeds "
            f"({100 * difference.mean:+.1f} points), too regular for an interval: no claim. Run more seeds."
        )
    if low <= 0 <= high or abs(difference.mean) <= 1e-9:
        return (
            f"{decay.label} against {other.label} at its own best lr: no difference in {name} that "
            f"{difference.n} seeds can show {span}."
        )
    word = "better" if difference.mean > 0 else "worse"
    return f"{decay.label} is {word} than {other.label} at its own best lr in {name} {span}."
