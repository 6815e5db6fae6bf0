"""The training loop: every step, the evaluations, the checkpoints, and what metrics.jsonl records of them."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..data import batches
from ..framework import Framework, TrainState, Weights, metrics, proof, take_step
from ..planning import Group, Plan, UserError
from . import answered
from .best import Best, Ema, Kept
from .checkpoints import Mark, Point
from .folder import Lines, RunFolder
from .proving import Prover
from .schema import Config
from .stopping import Pruned, Stop, listening
from .trackers import Trackers

Say = Callable[[str], None]
Track = Callable[[Iterable[int], int], Iterable[int]]
ORDINARY = 1e4
"""Pictures and start weights beyond it are the likelier cause of infinities than the lr."""


SHARE = 20
"""Writing what a run needs to go on takes at most about one part in this many of its time ..."""
SECONDS = 600.0
"""... and is done after so many at the latest, evaluation or not."""


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
        prover: Prover,
        facts: Mapping[str, str],
        say: Say,
        trackers: Trackers,
    ) -> None:
        self.config, self.plan, self.dataset, self.framework = config, plan, dataset, framework
        self.state, self.start, self.folder, self.streams, self.say = state, start, folder, streams, say
        self.prover, self.facts, self.trackers = prover, facts, trackers
        self.train_seconds = 0.0
        self.best = Best(config.metric, config.checkpoint.keep_best, config.early_stop)
        self.ema = None if config.ema.decay is None else Ema(config.ema, start)
        self.last: dict[str, Any] = {}
        self.answers: np.ndarray | None = None
        self.resumed: list[int] = []
        self.spent, self.began = 0.0, time.perf_counter()
        self._written: list[int] = []
        self._needed: list[set[int]] = []
        self._pointed, self._cost = time.perf_counter(), 0.0
        self._shown = frozenset(plan.shown())

    def seconds(self) -> float:
        """Since the run began, without the time between its attempts."""
        return self.spent + time.perf_counter() - self.began

    def recall(self, point: Point) -> None:
        """Go on from there: the state of the framework, and all that the loop remembers."""
        self.framework.set_weights(self.state.model, point.weights)
        self.framework.set_optimizer_state(self.state, point.optimizer)
        memory = point.memory
        self.best.recall(memory["best"])
        if self.ema and point.average:
            self.ema.weights = {name: array.copy() for name, array in point.average.items()}
        self.train_seconds, self.spent, self.last = memory["train_seconds"], memory["seconds"], memory["last"]
        self._written = [step for step in memory["written"] if (self.folder.path / f"checkpoints/step_{step}").is_dir()]
        self._needed = [set(memory["keep"])]
        self.resumed = [*memory["resumed"], point.step]

    def train(self, track: Track, point: Point | None = None) -> None:
        """All steps behind `point`, or until it is no use; `last` is the last evaluation.

        Raises:
            KeyboardInterrupt: asked to stop; what the run needs to go on is written. Pruned: given up.
        """
        total, begin = self.plan.total_steps, point.step if point else 0
        log = self.folder.metrics(Mark(*point.memory["files"]["metrics.jsonl"]) if point else None)
        self.trackers.begin(begin)
        log.heard = self.trackers.write
        with listening() as stop, stop.after_a_step():
            if not self.best.stalled:
                self._train(track(range(begin, total), total - begin), log, stop)
        log.close()

    def _train(self, steps: Iterable[int], log: Lines, stop: Stop) -> None:
        total = self.plan.total_steps
        for step in steps:
            due = (step + 1) % self.config.eval_every == 0 or step + 1 == total
            proved = self.prover.due(step, due)
            before = self.prover.hold(self.state) if proved else self._weights() if due else {}
            loss, gradients = self._step(step, log, due or proved)
            now = self._weights() if due or proved or self.ema else {}
            if self.ema:
                self.ema.update(step, now)
            if proved:
                self.prover.compare(step, now, gradients)
            if due:
                self._evaluate(step + 1, before, now, gradients, log)
                shown = " ".join(f"{k} {v:.4f}" for k, v in self.last["val"].items())
                if self.ema:
                    metric = self.config.metric
                    shown += f"  the average's {metric} {self.last['val_ema'][metric]:.4f}"
                self.say(f"step {step + 1}/{total}  training loss {loss:.4f}  validation {shown}")
            self._checkpoint(step + 1, due)
            self._point(step + 1, due, log, stop.asked)
            if stop.asked:
                raise KeyboardInterrupt
            if due and self.best.stalled:
                break
            if due and step + 1 < total and (why := self.folder.given_up()):
                raise Pruned(why)

    def result(self) -> dict[str, Any]:
        """Of the weights that are kept: which, and their metrics on validation and test; what they answer is written."""
        last = Kept((0, 0), self.last["step"], "model", self.last["val"])
        kept = self.best.kept[0] if self.best.kept else last
        if self.best.kept:
            self.folder.weights_file(kept.step, kept.weights)
        if (kept.step, kept.weights) == (last.step, last.weights):
            test = self.last["test"]
            logits = self._logits(self.dataset.test) if self.answers is None else self.answers
        else:
            logits = self._logits(self.dataset.test, self.folder.checkpoint(kept.step, kept.weights))
            test = _scores(logits, self.dataset.test)
            metric = self.config.metric
            self.say(
                f"kept: {'the average at ' if kept.weights == 'ema' else ''}step {kept.step}, validation {metric} "
                f"{kept.val[metric]:.4f}, test {test[metric]:.4f}; the last step, {self.last['step']}, has "
                f"{self.last['val'][metric]:.4f} and {self.last['test'][metric]:.4f}"
            )
        if len(logits):
            answered.write(self.folder, logits, self.dataset.test)
        return {"kept": {"step": kept.step, "weights": kept.weights}, "val": dict(kept.val), "test": test}

    def _step(self, step: int, log: Lines, due: bool) -> tuple[float, Weights]:
        batch = self.dataset.batch(step, self.config.pictures_a_step(), self.streams["order"])
        began = time.perf_counter()
        seed = (self.streams["dropout"] + step) % 2**32
        result = take_step(self.framework, self.state, self.plan, step, batch, seed, gradients=due)
        loss = float(result.loss)
        self.train_seconds += time.perf_counter() - began
        self._check("the loss", loss, step, moved=step > 0)
        lrs = {"lrs": self.state.scheduler.lrs()} if step in self._shown else {}
        log.write({"step": step, "loss": loss, **lrs})
        gradients = result.gradients or {}
        for group in self.plan.groups if due else ():  # before the proof: training that diverges is no wrong lr
            norm = _gradient_norm(group, gradients)
            self._check(f"the gradient of group {group.name}", norm, step, moved=step > 0)
        return loss, gradients

    def _evaluate(self, step: int, before: Weights, now: Weights, gradients: Weights, log: Lines) -> None:
        record: dict[str, Any] = {"step": step, "val": _scores(self._logits(self.dataset.val), self.dataset.val)}
        found = {"model": record["val"]}
        if self.ema:
            record["val_ema"] = found["ema"] = _scores(
                self._logits(self.dataset.val, self.ema.weights), self.dataset.val
            )
        record["best"] = self.best.offer(step, found)
        if step == self.plan.total_steps or self.best.stalled:
            self.answers = self._logits(self.dataset.test)
            record["test"] = _scores(self.answers, self.dataset.test)
        record["groups"] = {
            g.name: {
                "gradient_norm": _gradient_norm(g, gradients),
                "update_ratio": _ratio([now[n] - before[n] for n in g.params], [before[n] for n in g.params]),
                "distance": _ratio([now[n] - self.start[n] for n in g.params], [self.start[n] for n in g.params]),
            }
            for g in self.plan.groups
        }
        for group, numbers in record["groups"].items():
            self._check(f"the distance that group {group} has moved", numbers["distance"], step - 1)
        self._check("the validation loss", record["val"].get("loss", 0.0), step - 1)
        log.write(record)
        self.last = record

    def _check(self, what: str, number: float, step: int, moved: bool = True) -> None:
        """A number of the run that is none, with the cause that was measured; `moved`: the weights had by then."""
        if np.isfinite(number):
            return
        precision = self.config.framework.precision
        x, _ = self.dataset.batch(0, self.config.pictures_a_step(), self.streams["order"])
        if not moved:
            raise UserError(proof.not_a_number(what, number, x, self.start, precision))
        if max(np.abs(a).max(initial=0) for a in (x, *self.start.values())) > ORDINARY:
            raise UserError(f"{what} is {number} at step {step}: {proof.reach(x, self.start, precision)}")
        raise UserError(f"{what} is {number} at step {step}: {self._too_high(step)}{proof.half(precision)}")

    def _too_high(self, step: int) -> str:
        """What to lower, from the largest lr until `step`: weights grow where a step takes more than twice of them."""
        groups, base = self.plan.groups, self.plan.base_lr
        lrs = {g: max(self.plan.lr(s, g) for s in range(0, step + 1, step // 1000 + 1)) for g in groups}
        highest, decayed = max(groups, key=lambda g: lrs[g]), max(groups, key=lambda g: lrs[g] * g.weight_decay)
        share = lrs[decayed] * decayed.weight_decay
        if share > 2 and lrs[highest] <= 1:
            return (
                f"lower weight_decay: times the lr it is {share:.3g} in group {decayed.name}, and above 2 weights grow"
            )
        own = f"; group {highest.name} has {lrs[highest]:.3g}" if lrs[highest] > 1.001 * base else ""
        return f"lower optimizer.lr (it is {base:g}{own}) or lengthen scheduler.warmup"

    def _logits(self, split: batches.Split, weights: Weights | None = None) -> np.ndarray:
        """float32 [N, classes] over a split, in batches of the training's size (a graph has one shape only).

        Args:
            split: none of its pictures, none of the logits.
            weights: others than the model's, which come back.
        """
        if weights is not None:
            own = self._weights()
            self.framework.set_weights(self.state.model, weights)
            found = self._logits(split)
            self.framework.set_weights(self.state.model, own)
            return found
        size, logits = self.config.batch_size, []
        for x in self.dataset.batches(split, size):
            full = np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), np.float32)])
            logits.append(self.framework.predict(self.state, full)[: len(x)])
        return np.concatenate(logits) if logits else np.empty((0, self.dataset.classes), np.float32)

    def _weights(self) -> Weights:
        return self.framework.get_weights(self.state.model)

    def _checkpoint(self, done: int, evaluated: bool) -> None:
        """Where one is due, and where the weights are among the best so far; others go."""
        spec = self.config.checkpoint
        ends = done == self.plan.total_steps or (evaluated and self.best.stalled)
        due = ends or bool(spec.every and done % spec.every == 0)
        if not due and not (evaluated and self.last["best"]):
            return
        self._written = [*self._written, done][-spec.keep :] if due else self._written
        optimizer = self.framework.get_optimizer_state(self.state) if due and spec.optimizer else None
        facts = {"plan_sha256": self.plan.sha256, "framework": self.config.framework.name}
        average = self.ema.weights if self.ema else None
        self.folder.save_checkpoint(done, self._weights(), optimizer, facts, average)
        self._keep(set().union(*self._needed))

    def _keep(self, also: set[int]) -> None:
        self.folder.keep_checkpoints(self._written, [(kept.step, kept.weights) for kept in self.best.kept], also)

    def tidy(self) -> None:
        """The run has its result: what it would have needed to go on may go."""
        self._keep(set())
        self.folder.drop_points()

    def _point(self, done: int, evaluated: bool, log: Lines, now: bool) -> None:
        """What the run needs to go on: at evaluations, but not so often that training waits for it; `now`: anyway."""
        since = time.perf_counter() - self._pointed
        regular = bool(self.config.checkpoint.every and done % self.config.checkpoint.every == 0)
        due = regular or since > max(SECONDS, SHARE * self._cost) or (evaluated and since > SHARE * self._cost)
        if not self.config.can_resume() or not (now or (due and done < self.plan.total_steps)):
            return
        began = time.perf_counter()
        files = {"metrics.jsonl": log.mark(), **self.prover.mark()}
        keep = {kept.step for kept in self.best.kept}
        memory = {
            "train_seconds": self.train_seconds,
            "seconds": self.seconds(),
            "last": self.last,
            "best": self.best.memory(),
            "written": self._written,
            "keep": sorted(keep),
            "resumed": self.resumed,
            "files": files,
            **self.prover.memory(),
        }
        optimizer = self.framework.get_optimizer_state(self.state)
        average = self.ema.weights if self.ema else None
        self.folder.save_point(Point(done, self._weights(), optimizer, average, memory), self.facts)
        self._needed = [*self._needed, keep][-2:]
        self._pointed = time.perf_counter()
        self._cost = self._pointed - began


def _scores(logits: np.ndarray, split: batches.Split) -> dict[str, float]:
    """Every metric of what was answered to a split; none of none."""
    return metrics.measure(logits, split.y) if len(logits) else {}


def _gradient_norm(group: Group, gradients: Weights) -> float:
    return _norm([gradients[name] for name in group.params if name in gradients])


def _norm(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(float(np.vdot(a, a)) for a in arrays)))


def _ratio(change: list[np.ndarray], whole: list[np.ndarray]) -> float:
    return _norm(change) / max(_norm(whole), 1e-12)
