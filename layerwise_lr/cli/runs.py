"""One run: what `train`, `plan` and `verify` do with (config, folder, overrides), and `run` with a claimed folder.

No Hydra here: the config is typed already; it is resolved first of all.
"""

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data import batches, train_count
from ..framework import proof, registry
from ..models import USUAL_SHAPES, param_table, weights
from ..planning import UserError, differences, masked, plain
from ..run import (
    CONFIG,
    Config,
    RunFolder,
    files,
    options,
    page,
    provenance,
    ranges,
    reading,
    resolve,
    several,
    trackers,
)
from ..sweep import LOG, Options, jobs
from . import console, show
from .words import Given, Parser


class JobsFailed(Exception):
    """Some jobs of a sweep failed; the others finished. `code` is the exit code, `why` what one says itself."""

    def __init__(self, message: str, code: int, why: str = "") -> None:
        super().__init__(message)
        self.code, self.why = code, why


def final(config: Config, given: Given) -> Config:
    """The config resolved, where it reads every key that the user gave.

    Raises:
        UserError: names the first fault, or the first key that nothing reads.
    """
    config = resolve(config)
    options.refuse_ignored(given.keys, options.ignored(config))
    return config


def preflight(config: Config, device: bool) -> None:
    """Everything that can be wrong with the input, before a folder is claimed; what is read stays in memory.

    Args:
        config: final.
        device: also import the framework and ask for its device and mode.
    """
    model = _ask_cheaply(config)
    page.check_memory(config)
    model.check(config)
    batches.load(config.data, page.seed_streams(config.seed)["subset"])
    if device:
        os.environ |= jobs.thread_environment(config.framework.threads)
        model.check_with(page.make_framework(config))


def _ask_cheaply(config: Config) -> page.Subject:
    """What can be known at once: that the plan holds and that the framework is installed."""
    model, _, _ = page.plan_of(config)
    if config.framework.name not in registry.names() or registry.installed(config.framework.name) is None:
        registry.load(config.framework.name)  # says what there is, or how to install it
    trackers.check(config)
    return model


def tell(all_configs: Iterable[Config]) -> None:
    """What a run itself would say of its data, once: which others stand in for them."""
    for note in dict.fromkeys(note for config in all_configs for note in batches.notes(config.data)):
        console.text(note)


def in_team(config: Config) -> Config:
    """With the number of processes that a launcher has started; one that holds no run does its part here, and ends.

    Raises:
        UserError: the launcher has started others than the config says.
    """
    team, spec = several.launched(), config.framework
    if several.follows(config):
        raise SystemExit(several.follow(config))
    if team is None or spec.distributed == "none":
        return config
    if spec.processes not in (None, team.size):
        raise UserError(
            f"framework.processes={spec.processes}, and the launcher has started {team.size}: leave framework.processes out"
        )
    return replace(config, framework=replace(spec, processes=team.size))


def claim(path: Path, config: Config, overrides: Sequence[str]) -> RunFolder:
    """A run folder with everything in it that the run reads or that only its starter knows."""
    return prepare(RunFolder.claim(path), config, overrides)


def prepare(folder: RunFolder, config: Config, overrides: Sequence[str], command: Sequence[str] = ()) -> RunFolder:
    """All that into a folder that is claimed, the config last: with it, the folder is whole; `command`: what started it,
    else train with this process's words."""
    argv = ["layerwise-lr", *map(masked, command or ["train", *sys.argv[1:]])]
    folder.write_json("command.json", {"argv": argv, "overrides": list(map(masked, overrides))})
    facts, diff = provenance.git(Path.cwd())
    folder.write_json("git.json", facts)
    if diff:
        folder.write_text("git.diff", diff)
    folder.write_text("requirements.lock.txt", provenance.requirements())
    folder.write_text(CONFIG, config.to_yaml())
    return folder


def train(config: Config, path: Path, given: Given) -> None:
    """One run, into a new folder."""
    config = in_team(final(config, given))
    _ask_cheaply(config)
    console.text(intent(config))
    preflight(config, device=True)
    claim(path, config, given.overrides)
    finish(path, config)


def finish(path: Path, config: Config) -> None:
    """A claimed or interrupted run to its end, in this process; in one of its own where the framework may crash it and
    it shall be started again."""
    try:
        summary = _run_apart(path, config) if page.may_crash(config) else page.run(path, console.text, console.track)
    finally:
        console.say(f"run folder: {console.relative(path)}")
    shown = "  ".join(f"{name} {value:.4f}" for name, value in summary["test"].items())
    console.say(f"test: {shown}  ({summary['seconds']:.1f} s)")


def _run_apart(path: Path, config: Config) -> Mapping[str, Any]:
    """As a sweep of one job: summary.json, or what went wrong raised."""
    console.say(
        f"{config.framework.name} {config.framework.mode} trains in a process of its own, which is started "
        "again should the framework crash it"
    )
    jobs.run_jobs({path: config}, Options(n_jobs=1, fork="never"), lambda _: None)
    console.say((files.read_text(path, LOG, 10**9) or "").rstrip())
    ended = outcome(RunFolder(path), config.metric)
    if isinstance(ended, Exception):
        raise ended
    return RunFolder(path).read_json("summary.json") or {}


def outcome(folder: RunFolder, metric: str) -> float | Exception:
    """A job's validation metric, NaN where a search gave it up, or what went wrong."""
    try:
        summary, status = folder.read_json("summary.json"), folder.read_json("status.json")
        if summary:
            return float(summary["val"][metric])
        if folder.state() == "pruned":
            return math.nan
    except (UserError, KeyError):  # it wrote nonsense into its own folder
        status = None
    error = (status or {}).get("error") or {"type": ""}
    message = f"a job failed, the others were not touched: {why(folder)}; log: {console.relative(folder.path / LOG)}"
    return JobsFailed(message, 2 if error["type"] == "UserError" else 1, why(folder))


def why(folder: RunFolder) -> str:
    """What became of a job that has no result."""
    try:
        status = folder.read_json("status.json")
        if status is None:
            return "its folder is gone, or holds files that are no run's"
        if error := status.get("error"):
            return plain(error["message"], 400)
        return f"it could not say why (is the disk full? its state: {folder.state()})"
    except UserError as error:
        return str(error)


def intent(config: Config) -> str:
    """What is about to happen: a framework takes seconds to load, and nobody shall wait for nothing.

    Args:
        config: final.
    """
    start = "initial values" if config.weights.name == "none" else config.weights.path or config.weights.name
    data = config.data
    sizes = f"{train_count(data)} pictures to train on, {data.val_size} to choose by, {data.test_size} to report"
    pictures = f"{config.batch_size} x {config.accumulate}" if config.accumulate > 1 else config.batch_size
    return (
        f"{config.model.name} from {start} on {data.name} ({sizes}): {config.steps} steps of {pictures}, "
        f"{config.grouping.strategy}, {config.optimizer.name} at lr {config.optimizer.lr:g}; "
        f"loading {config.framework.name} ..."
    )


def plan(config: Config, path: Path, given: Given) -> None:
    """The dry run."""
    config, stand_in = _fitting(config, given)
    tell([config])
    model, table, planned = page.plan_of(config)
    refuse_run(path)
    page.write_plan(RunFolder(path), table, planned)
    show.show_params(table, planned)
    console.say("")
    show.show_lrs(table, planned)
    numel = sum(row.numel for row in table.trainable)
    low, high = min(g.lr_scale for g in planned.groups), max(g.lr_scale for g in planned.groups)
    console.say(
        f"\n{model.name}: {len(table.trainable)} parameter arrays ({numel:,} numbers) in {len(planned.groups)} groups,"
    )
    console.say(f"{planned.total_steps} steps, lr_scale from {low:.4g} to {high:.4g}")
    for note in (*stand_in, *model.notes, *_foreign_weights(config)):
        console.text(note)
    from ..report import lr_heatmap

    lr_heatmap(planned, path / "lr_heatmap.png")
    console.say(f"params.csv plan.json lrs.csv lr_heatmap.png in\n{console.relative(path)}")


def refuse_run(path: Path) -> None:
    """A plan or a proof is not written over a run's, nor over anybody's files.

    Raises:
        UserError: the folder holds a run, or files that are not ours.
    """
    files.refuse_foreign(path)
    if (path / "status.json").exists():
        raise UserError(f"{path} holds a run: choose another folder, or leave hydra.run.dir out")


def compare_conventions(names: Sequence[str], config: Config, path: Path, given: Given) -> None:
    """`plan --compare a,b`: the parameters that two depth conventions treat differently."""
    config, stand_in = _fitting(config, given)
    first, second = names
    table = param_table(config.tree())
    optimizer = config.optimizer
    refuse_run(path)
    found = differences(table, config.grouping, (first, second), optimizer.lr, optimizer.weight_decay)
    show.show_differences(found, (first, second))
    console.say(
        f"{len(found)} of {len(table.trainable)} parameters of {config.model.name} differ between {first} and {second}"
    )
    for note in stand_in:
        console.text(note)
    fields = [f"{field} {convention}" for convention in names for field in ("depth", "lr_scale", "weight_decay")]
    lines = [["name", *fields], *([d.name, *map(repr, (*d.first, *d.second))] for d in found)]
    RunFolder(path).write_rows("conventions.csv", map(",".join, lines))
    console.say(f"conventions.csv in\n{console.relative(path)}")


def _fitting(config: Config, given: Given) -> tuple[Config, list[str]]:
    """The final config, and what to tell: a model that cannot take the default data's pictures is planned at its
    usual size, unless the size was asked for."""
    try:
        return final(config, given), []
    except UserError:
        if config.model.name not in USUAL_SHAPES or {"data.image_size", "data.channels"} & set(given.keys):
            raise
        channels, size, _ = USUAL_SHAPES[config.model.name]
        was = config.data
        note = (
            f"note: {config.model.name} takes no {was.image_size}x{was.image_size} pictures ({was.name}): planned at "
            f"its usual {size}x{size}x{channels}; train needs data.image_size={size} data.channels={channels}"
        )
        with suppress(UserError):  # else the fault is another, and is told as it is
            return final(replace(config, data=replace(was, channels=channels, image_size=size)), given), [note]
        raise


def _foreign_weights(config: Config) -> list[str]:
    """A plan reads no weights; training would, and these are of another model."""
    name = config.weights.name
    if weights.OF.get(name, config.model.name) == config.model.name:
        return []
    return [f"note: a plan does not look at weights; {name} is another model's: train needs weights=none, or a file's"]


def prove(config: Config, path: Path, given: Given) -> None:
    """The proof alone."""
    config = in_team(final(config, given))
    refuse_run(path)
    _ask_cheaply(config)
    console.say(f"loading {config.framework.name} ...")
    preflight(config, device=True)
    tell([config])
    folder, (model_of, _, planned) = RunFolder(path), page.plan_of(config)
    streams = page.seed_streams(config.seed)
    with closing(page.load(config, streams)) as dataset:
        batch = dataset.batch(0, config.pictures_a_step(), streams["order"])
    with closing(page.make_framework(config)) as framework, np.errstate(all="ignore"):  # no number is told as such
        model, start, _ = model_of.start(framework, config, streams["init"])
        prover = page.Prover(replace(config.verify, start=True), folder, framework, planned, console.text)
        prover.rehearse(model, start, batch, streams["dropout"])
    show.show_mismatch(proof.table(prover.records)[:12])
    console.say(f"all rows: {console.relative(path / 'lr_check.jsonl')}")


def refuse_unresolved(path: Path, config: Config) -> None:
    """A run folder that is not as `train` writes it: its config, or a link in it through which a run would write elsewhere.

    Raises:
        UserError: it is not.
    """
    ranges.check(config)
    files.only_plain(path)
    if resolve(config) != config:
        raise UserError(
            f"{path / CONFIG}: is not resolved (a size is missing, a duration not in steps, or a key set that its "
            "options do not read); layerwise-lr train writes one that is"
        )


def run_folder(words: Sequence[str]) -> int:
    """Run a claimed folder in this process: what a launcher calls."""
    parser = Parser(
        "layerwise-lr run",
        description=(
            "Train what FOLDER/config.resolved.yaml says, and write the results beside it; go\n"
            "on where it was interrupted. What a launcher calls; without Hydra."
        ),
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, metavar="PID", help="stop when this process, which starts the run, dies")
    parser.add_argument("--device", help="where the config leaves it open (auto, cuda): cuda:1, say")
    asked = parser.parse_args(words)
    path = asked.folder
    config = reading.read(path / CONFIG)
    if several.follows(config):
        return several.follow(config)
    refuse_unresolved(path, config)
    if RunFolder(path).read_json("summary.json"):
        raise UserError(f"{path} holds a finished run: copy its {CONFIG} into a new folder to run it again")
    RunFolder(path).refuse_live()
    if asked.device and config.framework.device not in ("auto", asked.device.partition(":")[0], asked.device):
        raise UserError(f"--device {asked.device}: {path / CONFIG} says framework.device={config.framework.device}")
    here = replace(config.framework, device=asked.device or config.framework.device)
    preflight(replace(config, framework=here), device=True)
    return jobs.run_and_tell(path, asked.parent, asked.device)
