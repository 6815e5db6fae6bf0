"""What was varied besides the seed and the lr: factors (the grouping, the schedule, the optimizer, ...), and of each
setting its level of each, in words. Settings that differ in one factor alone are comparable: a facet.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from ..data import AugmentSpec
from ..planning import plain
from ..run import Config, trackers
from .statistics import DECAY, FLAT, KINDS, OTHER, SPLIT, Run, Setting, best

GROUPING = "grouping"
NAMES = {"scheduler": "name", "optimizer": "name", "freeze": "strategy", "framework": "name"}
"""Of each section that has options: the key that tells which; in the order of a label."""
SECTIONS = (*NAMES, "augment", "ema", "schedules", "optimizers", "early_stop", "checkpoint", "verify")
DEPTHS = ("grouping.convention", "grouping.depths", "grouping.stages", "grouping.decay_per_12_layers")
"""Keys that only layer_decay reads."""
TOLD = (
    "seed",
    "optimizer.lr",
    "name",
    "grouping.strategy",
    "grouping.layer_decay",
    "grouping.stem_scale",
    "grouping.backbone_scale",
    "framework.threads",
    "framework.distributed",
    "framework.processes",
    "data.workers",
    "data.memory",
    *(f"logger.{name}" for name in trackers.NAMES),
)
"""Keys that are told by a setting's kind, by its column of the table, or that change no result."""


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
    """Runs gathered by everything but the seed.

    Of runs that differ in nothing one counts: one that kept its best step before one that did not, else the last.
    """
    runs = sorted(runs, key=lambda run: "kept" in run.summary)  # an older version kept the last step, not the best
    items = [dict(_items(run.config.to_dict())) for run in runs]
    varied = [key for key in items[0] if len({repr(own.get(key)) for own in items}) > 1]
    varied += sorted({key for own in items for key in own} - items[0].keys())
    found: dict[tuple[str, str, float, str, tuple[tuple[str, str], ...]], dict[int, Run]] = {}
    for run, own in zip(runs, items, strict=True):
        kind, grouping = kind_of(run.config)
        levels = dict(_levels(run.config, own, varied, items))
        grouping = plain(", ".join(filter(None, [grouping, _depths(kind, own, varied)])), 200)
        label = plain(", ".join([grouping, *levels.values()]), 300)
        key = (label, kind, run.config.optimizer.lr, grouping, tuple(levels.items()))
        found.setdefault(key, {})[run.config.seed] = run
    return [Setting(*key[:3], by_seed, key[3], dict(key[4])) for key, by_seed in found.items()]


def _items(node: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a config by dotted key, but for what is told elsewhere."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _items(value, f"{at}{key}.")
        elif f"{at}{key}" not in TOLD:
            yield f"{at}{key}", value


def _depths(kind: str, own: Mapping[str, Any], varied: Sequence[str]) -> str:
    keys = [key for key in varied if key.startswith(DEPTHS)] if kind == DECAY else []
    return ", ".join(_said(key, own.get(key)) for key in keys)


def _levels(
    config: Config, own: Mapping[str, Any], varied: Sequence[str], everybody: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """(factor, level): "scheduler", "cosine"; "optimizer", "adamw, weight decay 0.05"; "label_smoothing", ..."""
    factors: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for key in varied:
        if not key.startswith(DEPTHS):
            section = key.partition(".")[0]
            factors.setdefault(section if section in SECTIONS else key, []).append(key)
    for factor, keys in factors.items():
        option = next((name for name, spec in _augments().items() if spec == config.augment), None)
        if factor == "augment" and keys and option:
            yield factor, f"augment {option}"
        elif words := list(_words(factor, keys, own, everybody)):
            yield factor, ", ".join(words)


def _words(
    factor: str, keys: Sequence[str], own: Mapping[str, Any], everybody: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """The option's name, its weight decay, and what else tells it from others of that name."""
    name = f"{factor}.{NAMES[factor]}" if factor in NAMES else ""
    if name in keys:
        yield f"{'freeze ' if factor == 'freeze' else ''}{own[name]}"
    alike = [items for items in everybody if items.get(name) == own.get(name)]
    for key in keys:
        if key != name and (
            key.endswith(".weight_decay") or len({repr(items.get(key)) for items in alike}) > 1 or name not in keys
        ):
            yield _said(key, own.get(key))


def _said(key: str, value: Any) -> str:
    """ "grouping.no_weight_decay", [] -> "no weight decay []"; of "ema.decay" the section stays."""
    words = key if key.startswith("ema.") else key.rpartition(".")[2]
    shown = "none" if value is None else f"{value:g}" if isinstance(value, float) else value
    return f"{words.replace('_', ' ').replace('.', ' ')} {shown}"


@cache
def _augments() -> dict[str, AugmentSpec]:
    """What each augment=OPTION says."""
    options = (resources.files("layerwise_lr.conf") / "augment").iterdir()
    texts = {file.name[:-5]: file.read_text(encoding="utf-8") for file in options if file.name.endswith(".yaml")}
    return {name: AugmentSpec(**(yaml.safe_load(text) or {})) for name, text in texts.items()}


@dataclass(frozen=True)
class Facet:
    """Settings that differ in one factor, and in the lr, alone.

    Args:
        factor: which one; GROUPING above all.
        where: what they share of that which was varied too; "": nothing else was.
        settings: of the facet.
        best: kind of grouping, or level of the factor -> its setting that is best on validation.
    """

    factor: str
    where: str
    settings: tuple[Setting, ...]
    best: Mapping[str, Setting]

    def pairs(self) -> list[tuple[Setting, Setting]]:
        """What is compared with what: the decay with flat and with the split; of another factor the level that is best
        on validation, the first of `best`, with each other one."""
        if self.factor != GROUPING:
            first, *others = self.best.values()
            return [(first, other) for other in others]
        pairs = [(DECAY, FLAT), (DECAY, SPLIT)] if DECAY in self.best else [(SPLIT, FLAT), (OTHER, FLAT)]
        return [(self.best[a], self.best[b]) for a, b in pairs if a in self.best and b in self.best]

    def name(self, setting: Setting) -> str:
        """What tells it from the others of the facet."""
        return setting.grouping if self.factor == GROUPING else setting.levels[self.factor]


def facets(found: Sequence[Setting], metric: str) -> list[Facet]:
    """The facets of the grouping, where it can be judged; else of each other factor; the best on validation first."""
    made = _of(GROUPING, found, metric)
    if not any(facet.pairs() for facet in made):
        factors = dict.fromkeys(factor for setting in found for factor in setting.levels)
        others = [facet for factor in factors for facet in _of(factor, found, metric) if facet.pairs()]
        made = others or made
    return sorted(made, key=lambda f: (not f.pairs(), -max(s.mean("val", metric).mean for s in f.best.values())))


def _of(factor: str, found: Sequence[Setting], metric: str) -> list[Facet]:
    shared: dict[str, list[Setting]] = {}
    for setting in found:
        rest = [] if factor == GROUPING or len({s.grouping for s in found}) == 1 else [setting.grouping]
        rest += [level for name, level in setting.levels.items() if name != factor]
        shared.setdefault(", ".join(rest), []).append(setting)
    made = []
    for where, own in shared.items():
        sides: dict[str, list[Setting]] = {kind: [] for kind in KINDS} if factor == GROUPING else {}
        for setting in own:
            sides.setdefault(setting.kind if factor == GROUPING else setting.levels[factor], []).append(setting)
        chosen = {name: best(side, metric) for name, side in sides.items() if side}
        if factor != GROUPING:
            chosen = dict(sorted(chosen.items(), key=lambda item: -item[1].mean("val", metric).mean))
        made.append(Facet(factor, where, tuple(own), chosen))
    return made
