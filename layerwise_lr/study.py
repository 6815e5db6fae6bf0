"""A study: the runs that may be compared with each other, its best settings, what is lacking, and the next command.

Runs of one study share name, framework, model, start weights and data; all else may be varied. Reads run folders
only. Metrics are shares (0 to 1) here; lr is per optimizer step.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from .config import Config
from .folder import CONFIG, RunFolder
from .sweep import DECAY, FLAT, OTHER, SPLIT, Run, Setting, best, settings, verdict

KINDS = (FLAT, SPLIT, DECAY, OTHER)
GROUPING = {
    FLAT: ("grouping=flat",), SPLIT: ("grouping=backbone_head",),
    DECAY: ("grouping=layer_decay", "grouping.layer_decay=0.65,0.75,0.85,0.95"),
}  # fmt: skip


class Note(NamedTuple):
    """What limits the verdict, and the command that would lift the limit ("" where there is none)."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Study:
    """Comparable runs.

    Args:
        title: the experiment's name, with what tells it from others of that name.
        metric: by which settings are chosen (on validation) and compared (on test).
        settings: in the order of the table.
        best: the chosen setting of each kind that is there.
        home: the sweep folder that takes more jobs; None for runs outside of a sweep.
    """

    title: str
    metric: str
    settings: tuple[Setting, ...]
    best: Mapping[str, Setting]
    home: Path | None

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for setting in self.settings for run in setting.runs.values()]

    @property
    def seeds(self) -> list[int]:
        """All that occur."""
        return sorted({seed for setting in self.settings for seed in setting.runs})

    @property
    def facts(self) -> str:
        """What ran on what, in a line."""
        config, count = self.runs[0].config, len(self.runs)
        size = "all" if config.data.train_size is None else config.data.train_size
        start = "initial values" if config.weights.name == "none" else config.weights.name
        return (f"{config.model.name} from {start} on {config.data.name} ({size} training pictures), "
                f"{config.framework.name} {config.framework.mode}, {count} finished run{'s'[:count > 1]}")  # fmt: skip

    def verdicts(self) -> list[str]:
        """The sentences, the most important first."""
        kinds = self.best
        pairs = [(a, b) for a, b in ((DECAY, FLAT), (DECAY, SPLIT)) if a in kinds and b in kinds]
        if DECAY not in kinds:
            pairs = [(a, FLAT) for a in (SPLIT, OTHER) if a in kinds and FLAT in kinds]
        if pairs:
            return [verdict(kinds[a], kinds[b], self.metric) for a, b in pairs]
        if FLAT not in kinds:
            return ["No run with one flat learning rate is here: nothing to compare with, no claim."]
        return ["Only flat runs are here: nothing to compare them with, no claim."]

    def covers(self) -> str:
        """What differs between two seeds, and so what the intervals cover."""
        run = self.runs[0]
        parts = []
        if run.config.data.train_size is not None:
            parts.append(f"the choice of the {run.config.data.train_size} training pictures")
        if run.config.weights.name == "none":
            parts.append("the initial weights")
        elif any("starts from initial values" in note for note in run.summary["notes"]):
            parts.append("the head's initial weights")
        parts.append("the order of the pictures")
        if run.config.model.dropout:
            parts.append("dropout")
        return ", ".join(parts)

    def notes(self) -> list[Note]:
        """Everything a reader must know before believing the verdict."""
        return [*self._lacking_kinds(), *self._lacking_seeds(), *self._edges()]

    def _lacking_kinds(self) -> Iterator[Note]:
        for kind, words in GROUPING.items():
            if kind not in self.best:
                name = "layer_decay below 1" if kind == DECAY else kind
                yield Note(f"No {name} runs are here. This adds them:", self.command(words, self._lrs(), self.seeds))

    def _lacking_seeds(self) -> Iterator[Note]:
        most = max(len(s.runs) for s in self.settings)
        few = [s for s in self.settings if len(s.runs) < most]
        if few:
            yield Note(f"{len(few)} of {len(self.settings)} settings have fewer seeds than the {most} of the others.")
        if most == 1:
            more = sorted({*self.seeds, 0, 1, 2})
            for kind in self.best:
                yield Note(f"One seed of {kind}: no interval, no claim. This adds seeds:",
                           self.command(self._words(kind), self._lrs(), more))  # fmt: skip

    def _edges(self) -> Iterator[Note]:
        """A best value at the edge of what was tried may not be the best there is."""
        for kind, chosen in self.best.items():
            lrs = sorted({s.lr for s in self.settings if s.kind == kind})
            if kind == OTHER or lrs[0] < chosen.lr < lrs[-1]:
                continue
            if len(lrs) == 1:
                text, more = f"only one lr was tried ({chosen.lr:g}), its own best may be another", [1 / 3, 3.0]
            elif chosen.lr == lrs[0]:
                text, more = f"its best lr {chosen.lr:g} is the smallest tried, a smaller may be better", [1 / 3]
            else:
                text, more = f"its best lr {chosen.lr:g} is the largest tried, a larger may be better", [3.0]
            words = self._words(kind)
            new = [float(f"{chosen.lr * factor:.1g}") for factor in more]
            yield Note(f"{kind}: {text}. This tries on:", self.command(words, new, self.seeds))
        decays = [d for s in self.settings if s.kind == DECAY and (d := decay_of(s)) is not None]
        if DECAY in self.best and decays and (own := decay_of(self.best[DECAY])) == min(decays) and own:
            words = ("grouping=layer_decay", f"grouping.layer_decay={own * own:.2g}")
            yield Note(f"layer_decay: the best value {own:g} is the smallest tried, a smaller may be better. This tries on:",
                       self.command(words, self._lrs(), self.seeds))  # fmt: skip

    def _lrs(self) -> list[float]:
        return sorted({s.lr for s in self.settings})

    def _words(self, kind: str) -> Sequence[str]:
        """The overrides that say a kind's groupings as they were run."""
        own = [s for s in self.settings if s.kind == kind]
        decays = sorted({d for s in own if (d := decay_of(s)) is not None})
        if kind == DECAY and decays:
            return ("grouping=layer_decay", f"grouping.layer_decay={','.join(f'{d:g}' for d in decays)}")
        if kind in (FLAT, SPLIT):
            return GROUPING[kind]
        return [o for o in _overrides(next(iter(own[0].runs.values()))) if _is_grouping(o)]

    def command(self, grouping: Sequence[str], lrs: Sequence[float], seeds: Sequence[int]) -> str:
        """A sweep with this study's other overrides, into its folder."""
        chosen = next(self.best[kind] for kind in (DECAY, FLAT, SPLIT, OTHER) if kind in self.best)
        kept = [o for o in _overrides(next(iter(chosen.runs.values()))) if not _is_grouping(o)
                and o.partition("=")[0].lstrip("+") not in ("seed", "optimizer.lr")]  # fmt: skip
        words = [*kept, *grouping, f"optimizer.lr={','.join(f'{lr:g}' for lr in lrs)}", f"seed={','.join(map(str, seeds))}"]
        if self.home:
            words.append(f"hydra.sweep.dir={short(self.home)}")
        return shlex.join(["layerwise-lr", "train", "-m", *words])


def short(path: Path) -> str:
    """Relative to where the command is given, if it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def decay_of(setting: Setting) -> float | None:
    """The layer_decay of a setting: 1 for flat; None where a scale, not a decay, was given."""
    grouping = next(iter(setting.runs.values())).config.grouping
    if setting.kind == FLAT:
        return 1.0
    return grouping.layer_decay if setting.kind == DECAY and grouping.stem_scale is None else None


def _is_grouping(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+~")
    told = ("strategy", "layer_decay", "stem_scale", "backbone_scale")
    return key in ("grouping", *(f"grouping.{k}" for k in told)) or key.startswith("grouping.groups")


def _overrides(run: Run) -> list[str]:
    """What the run was started with; without its command.json, its experiment if there is one of that name."""
    told = RunFolder(run.path).read_json("command.json")
    if told is not None:
        return list(told["overrides"])
    known = (files("layerwise_lr.conf") / "experiment" / f"{run.config.name}.yaml").is_file()
    return [f"experiment={run.config.name}"] if known else []


def _identity(config: Config) -> dict[str, Any]:
    """What two runs must share to be compared; dotted keys."""
    parts = {"framework": replace(config.framework, threads=0), "model": config.model, "weights": config.weights,
             "data": config.data}  # fmt: skip
    return {f"{part}.{key}": value for part, spec in parts.items() for key, value in asdict(spec).items()}


def studies(runs: Sequence[Run], metric: str | None) -> list[Study]:
    """Runs gathered into studies; `metric` None: the one that most of a study's runs name."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps([run.config.name, _identity(run.config)]), []).append(run)
    groups = list(found.values())
    return [_study(own, _title(own, groups), metric) for own in groups]


def _title(own: Sequence[Run], groups: Sequence[Sequence[Run]]) -> str:
    name, mine = own[0].config.name, _identity(own[0].config)
    others = [_identity(g[0].config) for g in groups if g[0].config.name == name]
    differing = [key for key in mine if any(other[key] != mine[key] for other in others)]
    return ", ".join([name, *(f"{key.removesuffix('.name')} {mine[key]}" for key in differing)])


def _study(runs: Sequence[Run], title: str, metric: str | None) -> Study:
    metric = metric or Counter(run.config.metric for run in runs).most_common(1)[0][0]
    made = sorted(settings(runs), key=lambda s: (KINDS.index(s.kind), -(decay_of(s) or 0), s.label, s.lr))
    chosen = {kind: found for kind in KINDS if (found := best(made, kind, metric))}
    homes = Counter(run.path.parent for run in runs if (run.path.parent / "sweep.json").exists())
    return Study(title, metric, tuple(made), chosen, homes.most_common(1)[0][0] if homes else None)


class Unfinished(NamedTuple):
    """A job that is not in the tables, its state, and why."""

    path: Path
    state: str
    why: str


def unfinished(folders: Sequence[Path], others: Mapping[Path, str]) -> list[Unfinished]:
    """Every job without a result: `others`, and those that sweep.json promises but that have no folder."""
    states = dict(others)
    for file in sorted({f for folder in folders for f in folder.rglob("sweep.json")}):
        for name in RunFolder(file.parent).read_json(file.name)["jobs"]:
            if not (file.parent / name / CONFIG).exists():
                states.setdefault(file.parent / name, "missing")
    return [Unfinished(path, state, _why(path, state)) for path, state in sorted(states.items())]


def _why(path: Path, state: str) -> str:
    if state == "completed":
        return "its summary.json is gone: delete the folder, and the same command runs it again"
    if state == "missing":
        return "its folder is not there"
    error = (RunFolder(path).read_json("status.json") or {}).get("error") or {}
    return str(error.get("message", ""))


def origin(path: Path, into: bool) -> str:
    """The command that started a run ("" if unknown); `into`: with the sweep's own folder, to continue it."""
    told = RunFolder(path).read_json("command.json")
    if told is None:
        return ""
    words = [w for w in told["argv"][1:] if not w.startswith(("hydra.sweep.dir=", "hydra.run.dir="))]
    words = words if words[:1] == ["train"] else ["train", *words]
    return shlex.join(["layerwise-lr", *words, *([f"hydra.sweep.dir={short(path.parent)}"] if into else [])])
