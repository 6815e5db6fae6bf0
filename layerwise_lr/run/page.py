"""The page: run(folder) reads the folder's config and writes everything else beside it."""

import errno
import hashlib
import json
import os
import resource
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..data import READERS, batches, facts
from ..framework import Framework, Weights, begin, registry
from ..planning import Clip, ParamTable, Plan, UserError, hidden, make_plan
from . import checkpoints, provenance, reading, several
from .folder import CONFIG, RunFolder
from .loop import Loop, Say, Track
from .proving import Prover
from .schema import Config
from .stopping import Stop, listening
from .subject import Subject, subject
from .trackers import Trackers


def run(
    path: Path, say: Say = print, track: Track = lambda steps, total: steps, device: str | None = None
) -> dict[str, Any]:
    """Train what `path`/config.resolved.yaml says; returns summary.json.

    An interrupted run goes on from its last whole checkpoint, anything else begins at step 0 without earlier results.

    Args:
        path: a claimed run folder.
        say: told a line now and then.
        track: wraps the steps, for a progress bar.
        device: to train on, where the config leaves that open; None: the best.

    Raises:
        UserError: the input is at fault. LrMismatch: the framework does not do what the plan says. Pruned: whoever
            searches gave it up.
    """
    folder = RunFolder(path)
    config = reading.read(path / CONFIG)
    with listening() as stop:
        return _run(folder, config, partial(_told, say, stop), track, device)


def _told(say: Say, stop: Stop, line: str) -> None:
    """Whoever asked us to stop, or closed the terminal, may read no more: that is not the run's fault."""
    try:
        say(line)
    except OSError as error:
        if not stop.asked and error.errno != errno.EIO:
            raise


def _run(folder: RunFolder, config: Config, say: Say, track: Track, device: str | None) -> dict[str, Any]:
    with folder.running(), np.errstate(all="ignore"), ExitStack() as stack:  # the loop looks for infinities itself
        began = time.perf_counter()
        streams = seed_streams(config.seed)
        dataset = stack.enter_context(closing(load(config, streams)))
        model_of, table, plan = plan_of(config)
        write_plan(folder, table, plan)
        folder.write_json("seed.json", {"seed": config.seed, "streams": streams})
        folder.write_json("data.json", dataset.fingerprint())

        framework = stack.enter_context(closing(make_framework(config, device)))
        folder.write_json("env.json", environment(config, framework))
        model, start, said = model_of.start(framework, config, streams["init"])
        notes = list(dict.fromkeys([*batches.notes(config.data), *dataset.notes(), *said]))
        for note in notes:
            say(note)
        told_apart = facts_of(config, plan, dataset, start)
        point = checkpoints.find(folder.path, told_apart, start, say)
        if point is None:
            folder.clear()
        else:
            checkpoints.drop(folder.path, point)
            say(f"goes on after step {point.step} of {plan.total_steps}")
        prover = Prover(config.verify, folder, framework, plan, say, point and point.memory)
        if point is None:
            first = dataset.batch(0, config.pictures_a_step(), streams["order"])
            prover.rehearse(model, start, first, streams["dropout"])

        state = begin(framework, model, plan, point.step if point else 0)
        told = stack.enter_context(Trackers(folder.path, config, [group.name for group in plan.groups], say))
        loop = Loop(config, plan, dataset, framework, state, start, folder, streams, prover, told_apart, say, told)
        loop.began = began
        if point:
            loop.recall(point)
        loop.train(track, point)
        prover.close()
        summary = summarise(config, plan, loop, notes)
        folder.write_json("summary.json", summary)
        told.end(summary)
        loop.tidy()
    return summary


def environment(config: Config, framework: Framework) -> dict[str, Any]:
    """env.json: what the bits of a run may depend on beside its config, its data and the code."""
    ways = {spec.name: framework.stepping(spec) for spec in config.optimizers_by_name().values()}
    return {
        **provenance.environment(),
        "framework": config.framework.name,
        "framework_version": framework.version(),
        "device": framework.device,
        "devices": framework.devices(),
        "threads": config.framework.threads,
        **({"processes": framework.processes} if config.framework.distributed != "none" else {}),
        "retry_on_signal": may_crash(config),
        **({"optimizer_steps": told} if (told := {name: way for name, way in ways.items() if way}) else {}),
    }


def facts_of(config: Config, plan: Plan, dataset: batches.Dataset, start: Weights) -> dict[str, str]:
    """What must not change while a run is interrupted, each known by a sha256."""
    pictures = hashlib.sha256(json.dumps(dataset.fingerprint(), sort_keys=True).encode()).hexdigest()
    return {
        "config": config.sha256(),
        "plan": plan.sha256,
        "pictures": pictures,
        "start weights": checkpoints.digest(start),
    }


def load(config: Config, streams: dict[str, int]) -> batches.Dataset:
    """The run's pictures and what training makes of them; to be closed."""
    return batches.load(config.data, streams["subset"], config.augment, config.label_smoothing, config.class_weights)


def seed_streams(seed: int) -> dict[str, int]:
    """Independent streams of one seed: initial weights, choice and order of the pictures, dropout."""
    words = np.random.SeedSequence(seed).generate_state(4)
    return dict(zip(("init", "subset", "order", "dropout"), map(int, words), strict=True))


def plan_of(config: Config) -> tuple[Subject, ParamTable, Plan]:
    """The model, its table and the checked plan: no data, no weights, and for a declared model no framework."""
    assert config.steps is not None
    model = subject(config)
    table, made = make_plan(
        model.table,
        replace(config.grouping, convention=model.convention),
        config.optimizers_by_name(),
        config.schedules_by_name(),
        config.freeze,
        config.steps,
    )
    clip = Clip(config.clip_grad_norm, config.clip_grad_value)
    plan = replace(made, clip=clip, accumulate=config.accumulate)
    if config.batch_size == 1 and set(plan.batchnorms) - frozenset.intersection(
        *(plan.frozen(p.start) for p in plan.phases())
    ):
        raise UserError(
            f"batch_size=1: model {model.name} has batchnorm layers that train, and one picture has no statistics; "
            "take batch_size=2 or more"
        )
    return model, table, plan


def check_memory(config: Config) -> None:
    """Whether this machine can hold the run at all.

    Raises:
        UserError: weights, gradients and optimizer state, or the pictures, are more than its memory.
    """
    known, data = facts(config.data), config.data
    numel = sum(row.numel for row in subject(config).table)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for what, needs in (
        (f"model {config.model.name} has {numel:,} numbers; with gradients and optimizer state they need", 16 * numel),
        (
            f"data {data.name} at image_size={data.image_size} need",
            0 if READERS[data.name].files else known.pictures * data.channels * data.image_size**2,
        ),
    ):
        if needs > there:
            raise UserError(
                f"{what} {needs / 2**30:,.0f} GiB, this machine has {there / 2**30:,.0f}: take smaller sizes"
            )


def write_plan(folder: RunFolder, table: ParamTable, plan: Plan) -> None:
    """params.csv, plan.json and lrs.csv: all that is known before step 0."""
    of = plan.group_of()
    folder.write_text(
        "params.csv",
        table.csv(
            {
                "group": {n: g.name for n, g in of.items()},
                "lr_scale": {n: g.lr_scale for n, g in of.items()},
                "lr": {n: plan.base_lr * g.lr_scale for n, g in of.items()},
                "weight_decay": {n: g.weight_decay for n, g in of.items()},
                "rule": {n: hidden(g.rule) for n, g in of.items()},
            }
        ),
    )
    told = plan.to_dict()
    for group in told["groups"]:
        group["rule"] = hidden(group["rule"])
    folder.write_json("plan.json", told)
    rows = (",".join([str(step), *map(repr, plan.lrs(step))]) for step in plan.shown())
    folder.write_rows("lrs.csv", chain([",".join(["step", *(g.name for g in plan.groups)])], rows))


def make_framework(config: Config, device: str | None = None) -> Framework:
    """The plugin, on `device` or that of the config; what the run needs is checked against what the class says it has."""
    spec = config.framework
    names = dict.fromkeys(optimizer.name for optimizer in config.optimizers_by_name().values())
    if config.ema.decay is not None and spec.precision == "fp64":
        raise UserError(
            f"ema.decay={config.ema.decay}: weights leave a framework in 32 bits, and framework.precision=fp64 has 64 "
            "that would be lost when the average has been evaluated: framework.precision=fp32"
        )
    registry.check_abilities(spec.name, spec.mode, spec.precision, subject(config).kinds, names)
    several.check(spec)
    asked = (device or spec.device, spec.mode, spec.precision, spec.threads, spec.deterministic)
    if spec.distributed == "none":
        return registry.load(spec.name)(*asked)
    return registry.load(spec.name).among(spec.distributed)(*asked, processes=spec.processes)


def may_crash(config: Config) -> bool:
    """Whether a crash in this mode is the framework's own, and worth another try (a sweep's pool gives it one)."""
    found = registry.load(config.framework.name)
    return (config.framework.mode or found.modes[0]) in found.retry_on_signal


def summarise(config: Config, plan: Plan, loop: Loop, notes: list[str]) -> dict[str, Any]:
    """summary.json: what a table needs of a finished run; "val" and "test" are those of the weights that are kept."""
    return {
        "name": hidden(config.name),
        "seed": config.seed,
        "steps": loop.last["step"],
        "stopped_early": loop.last["step"] < plan.total_steps,
        **loop.result(),
        "last": {key: loop.last[key] for key in ("step", "val", "test")},
        "metric": config.metric,
        "train_seconds": loop.train_seconds,
        "seconds": loop.seconds(),
        "resumed": loop.resumed,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "config_sha256": config.sha256(),
        "plan_sha256": plan.sha256,
        "proof": loop.prover.summary(),
        "notes": list(map(hidden, notes)),
    }
