"""The page: run(folder) reads the folder's config and writes everything else beside it."""

import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..data import batches
from ..framework import Framework, TrainState, Weights, begin, metrics, proof, registry, take_step
from ..models import Tree, param_table, walk, weights
from ..plan import ParamTable, Plan, UserError, make_plan
from . import provenance, reading
from .folder import CONFIG, Metrics, RunFolder
from .schema import Config

Say = Callable[[str], None]
Track = Callable[[Iterable[int], int], Iterable[int]]


def run(path: Path, say: Say = print, track: Track = lambda steps, total: steps) -> dict[str, Any]:
    """Train what `path`/config.resolved.yaml says; returns summary.json.

    Args:
        path: a claimed run folder.
        say: told a line now and then.
        track: wraps the steps, for a progress bar.

    Raises:
        UserError: the input is at fault. LrMismatch: the framework does not do what the plan says.
    """
    folder = RunFolder(path)
    config = reading.read(path / CONFIG)
    with folder.running():
        began = time.perf_counter()
        streams = seed_streams(config.seed)
        dataset = batches.load(config.data, streams["subset"])
        tree, table, plan = plan_of(config)
        write_plan(folder, table, plan)
        folder.write_json("seed.json", {"seed": config.seed, "streams": streams})
        folder.write_json("data.json", dataset.fingerprint())

        framework = make_framework(config)
        folder.write_json(
            "env.json",
            {
                **provenance.environment(),
                "framework": config.framework.name,
                "framework_version": framework.version(),
                "device": config.framework.device,
                "devices": framework.devices(),
                "threads": config.framework.threads,
                "retry_on_signal": may_crash(config),
            },
        )
        start, told = weights.start_weights(tree, config.weights, streams["init"])
        notes = [*batches.notes(config.data), *told]
        model = framework.make_model(tree)
        framework.set_weights(model, start)
        for note in notes:
            say(note)
        if config.verify:
            say(
                prove(
                    folder,
                    framework,
                    model,
                    plan,
                    start,
                    dataset.batch(0, config.batch_size, streams["order"]),
                    streams["dropout"],
                )
            )

        state = begin(framework, model, plan)
        loop = Loop(config, plan, dataset, framework, state, start, folder, streams, say)
        last = loop.train(track)
        summary = summarise(config, plan, last, loop, time.perf_counter() - began, notes)
        folder.write_json("summary.json", summary)
    return summary


def seed_streams(seed: int) -> dict[str, int]:
    """Independent streams of one seed: initial weights, choice and order of the pictures, dropout."""
    words = np.random.SeedSequence(seed).generate_state(4)
    return dict(zip(("init", "subset", "order", "dropout"), map(int, words), strict=True))


def plan_of(config: Config) -> tuple[Tree, ParamTable, Plan]:
    """The declared model, its table and the checked plan: no data, no weights, no framework."""
    assert config.steps is not None
    tree = config.tree()
    table, plan = make_plan(
        param_table(tree),
        config.grouping,
        config.optimizers_by_name(),
        config.schedules_by_name(),
        config.freeze,
        config.steps,
    )
    return tree, table, plan


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
                "rule": {n: g.rule for n, g in of.items()},
            }
        ),
    )
    folder.write_json("plan.json", plan.to_dict())
    lines = [",".join(["step", *(g.name for g in plan.groups)])]
    lines += [",".join([str(step), *map(repr, plan.lrs(step))]) for step in range(plan.total_steps)]
    folder.write_text("lrs.csv", "\n".join(lines) + "\n")


def make_framework(config: Config) -> Framework:
    """The plugin, on its device; what the run needs is checked against what the class says it has."""
    spec = config.framework
    kinds = dict.fromkeys(layer.kind for _, layer, _ in walk(config.tree().root))
    names = dict.fromkeys(optimizer.name for optimizer in config.optimizers_by_name().values())
    registry.check_abilities(spec.name, spec.mode, spec.precision, kinds, names)
    return registry.load(spec.name)(spec.device, spec.mode, spec.precision, spec.threads, spec.deterministic)


def may_crash(config: Config) -> bool:
    """Whether a crash in this mode is the framework's own, and worth another try (see jobs.py)."""
    return config.framework.mode in registry.load(config.framework.name).retry_on_signal


def prove(
    folder: RunFolder,
    framework: Framework,
    model: Any,
    plan: Plan,
    start: Weights,
    batch: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> str:
    """Write lr_check.json whatever it says; returns the line to tell."""
    try:
        report = proof.check(framework, model, plan, start, batch, seed)
    except proof.LrMismatch as mismatch:
        folder.write_json("lr_check.json", mismatch.report)
        raise
    folder.write_json("lr_check.json", report)
    count = sum(len(g.params) for g in plan.groups)
    return (
        f"effective lr proved: {count} parameters in {len(plan.groups)} groups move as planned "
        f"(largest error {report['max_relative_error']:.0e})"
    )


class Loop:
    """The training loop and what it records."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        dataset: batches.Dataset,
        framework: Framework,
        state: TrainState,
        start: Weights,
        folder: RunFolder,
        streams: dict[str, int],
        say: Say,
    ) -> None:
        self.config, self.plan, self.dataset, self.framework = config, plan, dataset, framework
        self.state, self.start, self.folder, self.streams, self.say = state, start, folder, streams, say
        self.train_seconds = 0.0

    def train(self, track: Track) -> dict[str, Any]:
        """All steps; returns the last evaluation."""
        log, total = self.folder.metrics(), self.plan.total_steps
        last: dict[str, Any] = {}
        for step in track(range(total), total):
            due = (step + 1) % self.config.eval_every == 0 or step + 1 == total
            before = self.framework.get_weights(self.state.model) if due else {}
            loss, gradients = self._step(step, log, due)
            if due:
                last = self._evaluate(step + 1, before, gradients, log)
                shown = " ".join(f"{k} {v:.4f}" for k, v in last["val"].items())
                self.say(f"step {step + 1}/{total}  training loss {loss:.4f}  validation {shown}")
            self._checkpoint(step + 1)
        log.close()
        return last

    def _step(self, step: int, log: Metrics, due: bool) -> tuple[float, Weights]:
        batch = self.dataset.batch(step, self.config.batch_size, self.streams["order"])
        began = time.perf_counter()
        seed = (self.streams["dropout"] + step) % 2**32
        result = take_step(self.framework, self.state, self.plan, step, batch, seed, gradients=due)
        loss = float(result.loss)
        self.train_seconds += time.perf_counter() - began
        self._check("the loss", loss, step)
        log.write({"step": step, "loss": loss, "lrs": self.state.scheduler.lrs()})
        return loss, result.gradients or {}

    def _evaluate(self, step: int, before: Weights, gradients: Weights, log: Metrics) -> dict[str, Any]:
        now = self.framework.get_weights(self.state.model)
        record: dict[str, Any] = {"step": step, "val": self._measure(self.dataset.val)}
        if step == self.plan.total_steps:
            record["test"] = self._measure(self.dataset.test)
        record["groups"] = {
            g.name: {
                "gradient_norm": _norm([gradients[n] for n in g.params if n in gradients]),
                "update_ratio": _ratio([now[n] - before[n] for n in g.params], [before[n] for n in g.params]),
                "distance": _ratio([now[n] - self.start[n] for n in g.params], [self.start[n] for n in g.params]),
            }
            for g in self.plan.groups
        }
        for group, numbers in record["groups"].items():
            self._check(f"the gradient of group {group}", numbers["gradient_norm"], step - 1)
            self._check(f"the distance that group {group} has moved", numbers["distance"], step - 1)
        self._check("the validation loss", record["val"].get("loss", 0.0), step - 1)
        log.write(record)
        return record

    def _check(self, what: str, number: float, step: int) -> None:
        if not np.isfinite(number):
            half = " or take framework.precision=fp32" if self.config.framework.precision == "fp16" else ""
            raise UserError(
                f"{what} is {number} at step {step}: lower optimizer.lr (it is {self.plan.base_lr:g}) "
                f"or lengthen scheduler.warmup{half}"
            )

    def _measure(self, split: batches.Split) -> dict[str, float]:
        """Every metric over a split, in batches of the training's size (a graph has one shape only)."""
        size, logits = self.config.batch_size, []
        for first in range(0, len(split.y), size):
            x = self.dataset.normalise(split.x[first : first + size])
            full = np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), np.float32)])
            logits.append(self.framework.predict(self.state, full)[: len(x)])
        return metrics.measure(np.concatenate(logits), split.y) if logits else {}

    def _checkpoint(self, done: int) -> None:
        spec = self.config.checkpoint
        if done == self.plan.total_steps or (spec.every and done % spec.every == 0):
            optimizer = self.framework.get_optimizer_state(self.state) if spec.optimizer else None
            facts = {"plan_sha256": self.plan.sha256, "framework": self.config.framework.name}
            weights_now = self.framework.get_weights(self.state.model)
            self.folder.save_checkpoint(done, weights_now, optimizer, facts, spec.keep)


def summarise(
    config: Config, plan: Plan, last: dict[str, Any], loop: Loop, seconds: float, notes: list[str]
) -> dict[str, Any]:
    """summary.json: what a table needs of a finished run."""
    return {
        "name": config.name,
        "seed": config.seed,
        "steps": plan.total_steps,
        "val": last["val"],
        "test": last["test"],
        "metric": config.metric,
        "train_seconds": loop.train_seconds,
        "seconds": seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "config_sha256": config.sha256(),
        "plan_sha256": plan.sha256,
        "notes": notes,
    }


def _norm(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(float(np.vdot(a, a)) for a in arrays)))


def _ratio(change: list[np.ndarray], whole: list[np.ndarray]) -> float:
    return _norm(change) / max(_norm(whole), 1e-12)
