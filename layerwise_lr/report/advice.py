"""Advice: what limits a verdict, which jobs gave no result, and the exact command that mends it.

Commands are derived from the runs at hand (command.json): they continue the same experiment in its folder.
"""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files as resources
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from ..planning import UserError
from ..run import CONFIG, RunFolder, files
from .claims import SAME, deviation
from .factors import GROUPING, Facet
from .statistics import DECAY, FLAT, OTHER, SPLIT, UNREADABLE, Other, Run, Setting
from .study import Study, decay_of

GROUPING_OF = {
    FLAT: ("grouping=flat",),
    SPLIT: ("grouping=backbone_head",),
    DECAY: ("grouping=layer_decay", "grouping.layer_decay=0.65,0.75,0.85,0.95"),
}


MOST_SEEDS = 200
"""More than that no command adds."""


class Note(NamedTuple):
    """What limits the verdict, and the commands that would lift the limit."""

    text: str
    commands: tuple[str, ...] = ()


def notes(study: Study) -> list[Note]:
    """Everything a reader must know before believing the verdict."""
    lacking = _lacking_kinds(study) if study.lead.factor == GROUPING else ()
    edges = [note for facet in study.facets for note in _edges(study, facet)]
    return [*lacking, *_lacking_seeds(study), *_power(study), *edges]


def _lacking_kinds(study: Study) -> Iterator[Note]:
    for kind, words in GROUPING_OF.items():
        if kind not in study.best:
            name = "layer_decay below 1" if kind == DECAY else kind
            lrs = _lrs(study.lead)
            yield Note(f"No {name} runs are here. To add them:", (command(study, study.lead, words, lrs, study.seeds),))


def _lacking_seeds(study: Study) -> Iterator[Note]:
    most = max(len(s.runs) for s in study.settings)
    few = [s for s in study.settings if len(s.runs) < most]
    if few:
        yield Note(f"{len(few)} of {len(study.settings)} settings have fewer seeds than the {most} of the others.")
    if most == 1:
        more = sorted({*study.seeds, 0, 1, 2})
        for facet in study.facets:
            for name, chosen in facet.best.items():
                words = _words([s for s in facet.settings if s.kind == chosen.kind])
                text = f"One seed of {_where(facet, name)}: no interval, no claim. To add seeds:"
                yield Note(text, (command(study, facet, words, _lrs(facet), more, chosen),))


def _power(study: Study) -> Iterator[Note]:
    """What the seeds at hand could not have seen, for the first claim that is none."""
    for claim in study.claims[:1]:
        needed, of = claim.seeds_for_a_point, claim.difference
        if claim.answer != SAME or of is None or of.half < 1e-9 or (needed and needed <= of.n):
            continue  # decided, or no seed differs from another: nothing tells how much others would
        spread = f"{of.n} seeds' differences spread by {100 * deviation(of):.1f} points"
        if needed is None or needed > MOST_SEEDS:
            more = f"{needed:,}" if needed else "more than 10,000"
            yield Note(f"{spread}: to see 1 point with 80 % one needs {more} seeds.")
            continue
        others = (seed for seed in count() if seed not in study.seeds)
        seeds = sorted([*study.seeds, *islice(others, max(needed - len(study.seeds), 0))])
        commands = tuple(
            command(study, claim.facet, _words([side]), [side.lr], seeds, side) for side in (claim.one, claim.other)
        )
        yield Note(f"{spread}: to see 1 point with 80 % one needs {needed} seeds. To add them:", commands)


def _edges(study: Study, facet: Facet) -> Iterator[Note]:
    """A best value at the edge of what was tried may not be the best there is."""
    for name, chosen in facet.best.items():
        own = [s for s in facet.settings if s.kind == name or name in s.levels.values()]
        lrs = sorted({s.lr for s in own})
        if chosen.kind == OTHER or lrs[0] < chosen.lr < lrs[-1]:
            continue
        if len(lrs) == 1:
            text, more = f"only one lr was tried ({chosen.lr:g}), its own best may be another", [1 / 3, 3.0]
        elif chosen.lr == lrs[0]:
            text, more = f"its best lr {chosen.lr:g} is the smallest tried, a smaller may be better", [1 / 3]
        else:
            text, more = f"its best lr {chosen.lr:g} is the largest tried, a larger may be better", [3.0]
        new = [float(f"{chosen.lr * factor:.1g}") for factor in more]
        words = _words([s for s in facet.settings if s.kind == chosen.kind])
        yield Note(f"{_where(facet, name)}: {text}:", (command(study, facet, words, new, study.seeds, chosen),))
    decays = {d for s in facet.settings if s.kind == DECAY and (d := decay_of(s)) is not None}
    least = min(decays, default=0.0)
    if len(decays) > 1 and DECAY in facet.best and decay_of(facet.best[DECAY]) == least and least:
        words = ("grouping=layer_decay", f"grouping.layer_decay={least * least:.2g}")
        text = f"{_where(facet, DECAY)}: the best value {least:g} is the smallest tried, a smaller may be better:"
        yield Note(text, (command(study, facet, words, _lrs(facet), study.seeds),))


def _where(facet: Facet, name: str) -> str:
    return f"{name} with {facet.where}" if facet.where else name


def _lrs(facet: Facet) -> list[float]:
    return sorted({s.lr for s in facet.settings})


def _words(own: Sequence[Setting]) -> Sequence[str]:
    """The overrides that say the groupings of settings of one kind as they were run."""
    kind, decays = own[0].kind, sorted({d for s in own if (d := decay_of(s)) is not None})
    if kind == DECAY and decays:
        return ("grouping=layer_decay", f"grouping.layer_decay={','.join(f'{d:g}' for d in decays)}")
    if kind in (FLAT, SPLIT):
        return GROUPING_OF[kind]
    return [o for o in _overrides(next(iter(own[0].runs.values()))) if _is_grouping(o)]


def command(
    study: Study,
    facet: Facet,
    grouping: Sequence[str],
    lrs: Sequence[float],
    seeds: Sequence[int],
    like: Setting | None = None,
) -> str:
    """A sweep with the other overrides of a facet's setting, into the study's folder."""
    chosen = like or next(iter(facet.best.values()))
    kept = [
        o
        for o in _overrides(next(iter(chosen.runs.values())))
        if not _is_grouping(o) and o.partition("=")[0].lstrip("+") not in ("seed", "optimizer.lr")
    ]
    whole = list(range(min(seeds), max(seeds) + 1))
    seed = (
        f"range({whole[0]},{whole[-1] + 1})" if len(whole) > 9 and whole == sorted(seeds) else ",".join(map(str, seeds))
    )
    words = [*kept, *grouping, f"optimizer.lr={','.join(f'{lr:g}' for lr in lrs)}", f"seed={seed}"]
    if study.home:
        words.append(f"hydra.sweep.dir={short(study.home)}")
    return shlex.join(["layerwise-lr", "train", "-m", *words])


def short(path: Path) -> str:
    """Relative to where the command is given, if it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError, RuntimeError):  # elsewhere, or a link to itself
        return str(path)


def _is_grouping(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+~")
    told = ("strategy", "layer_decay", "stem_scale", "backbone_scale")
    return key in ("grouping", *(f"grouping.{k}" for k in told)) or key.startswith("grouping.groups")


def _overrides(run: Run) -> list[str]:
    """What the run was started with; without command.json, its experiment if there is one of that name."""
    told = _command(run.path)
    if told is not None:
        return list(filter(_repeatable, told["overrides"]))
    known = (resources("layerwise_lr.conf") / "experiment" / f"{run.config.name}.yaml").is_file()
    return [f"experiment={run.config.name}"] if known else []


class Unfinished(NamedTuple):
    """A job that is not in the tables, its state, and why."""

    path: Path
    state: str
    why: str


def unfinished(folders: Sequence[Path], others: Mapping[Path, Other]) -> list[Unfinished]:
    """Every job without a result: `others`, and those that sweep.json promises but that have no folder."""
    found = dict(others)
    for sweep in files.below(folders, "sweep.json"):
        for path, other in _promised(sweep):
            found.setdefault(path, other)
    return [Unfinished(path, other.state, _why(path, other)) for path, other in sorted(found.items())]


def _promised(sweep: Path) -> Iterator[tuple[Path, Other]]:
    """The jobs of sweep.json that have no folder in the sweep's."""
    try:
        jobs = RunFolder(sweep).jobs()
    except UserError as error:
        yield sweep / "sweep.json", Other(UNREADABLE, str(error))
        return
    for name in jobs:
        try:
            if not (files.inside(sweep, name) / CONFIG).exists():
                yield sweep / name, Other("missing")
        except UserError as error:
            yield sweep / name, Other(UNREADABLE, str(error))


def _why(path: Path, other: Other) -> str:
    state, why = other
    if why:
        return why.removeprefix(f"{path}: ")
    if state == "completed":
        return "its summary.json is gone: delete the folder, and the same command runs it again"
    if state == "missing":
        return "its folder is not there"
    error = (RunFolder(path).read_json("status.json") or {}).get("error") or {}
    return str(error.get("message", ""))


def origin(path: Path, into: bool) -> str:
    """The command that started a run ("" if unknown); `into`: with the sweep's own folder, to continue it."""
    told = _command(path)
    if told is None or not all(map(_repeatable, told["argv"][1:])):
        return ""
    words = [w for w in told["argv"][1:] if not w.startswith(("hydra.sweep.dir=", "hydra.run.dir="))]
    return shlex.join(["layerwise-lr", *words, *([f"hydra.sweep.dir={short(path.parent)}"] if into else [])])


def _command(path: Path) -> dict[str, Any] | None:
    """command.json; None where there is none that can be read."""
    with suppress(UserError):
        return RunFolder(path).read_json("command.json")
    return None


def _repeatable(word: str) -> bool:
    """Whether a word out of a folder is fit to be typed again: Hydra runs what some of its own keys name."""
    key = word.lstrip("+~").partition("=")[0]
    own = key.startswith(("hydra.launcher.", "hydra.sweep.dir", "hydra.run.dir"))
    strange = key.startswith(("hydra", "--")) and key != "--multirun"
    return word.isprintable() and (own or not strange) and "_target_" not in word


def counts(jobs: Sequence[Unfinished]) -> str:
    """ "2 failed, 1 running"."""
    return ", ".join(f"{count} {state}" for state, count in Counter(job.state for job in jobs).items())


def resume(jobs: Sequence[Unfinished]) -> list[str]:
    """The commands that run again what did not end well; for a job whose folder is gone, its neighbours'."""
    ended = [j.path for j in jobs if j.state in ("failed", "crashed", "interrupted", "missing")]
    ended = [path for path in ended if (path.parent / "sweep.json").exists()]
    own = {origin(path, into=True) for path in ended} - {""}
    beside = {origin(file.parent, into=True) for path in ended for file in path.parent.glob("*/command.json")} - {""}
    return sorted(own or beside)
