"""Plugins with one fault each, and the check that must catch it. The faults are real ones, seen in real code."""

import secrets
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from layerwise_lr.plugins.reference_plugin import layers, optimizers, plugin
from layerwise_lr.plugins.reference_plugin.plugin import Group, Model, ReferenceFramework, ReferenceScheduler

from layerwise_lr.framework import Clip, Plan, Step, StepResult, TrainState, Tree, Weights

SABOTEURS: list[tuple[str, type[ReferenceFramework]]] = []


def caught_by(*checks: str):  # type: ignore[no-untyped-def]
    def register(saboteur: type[ReferenceFramework]) -> type[ReferenceFramework]:
        SABOTEURS.extend((check, saboteur) for check in checks)
        return saboteur

    return register


@caught_by("names_and_shapes")
class OwnNames(ReferenceFramework):
    """Calls a BatchNorm weight gamma."""

    def get_weights(self, model: Model) -> Weights:
        return {n.replace("bn.weight", "bn.gamma"): a for n, a in super().get_weights(model).items()}


@caught_by("names_and_shapes")
class OwnShapes(ReferenceFramework):
    """Keeps convolution biases as (1, C, 1, 1)."""

    def get_weights(self, model: Model) -> Weights:
        return {n: a.reshape(1, -1, 1, 1) if n == "conv1.bias" else a for n, a in super().get_weights(model).items()}


@caught_by("weights_round_trip")
class HalfPrecision(ReferenceFramework):
    """Stores weights in 16 bits."""

    def set_weights(self, model: Model, weights: Weights) -> None:
        super().set_weights(model, {n: a.astype(np.float16) for n, a in weights.items()})


@caught_by("weights_are_copies")
class LiveWeights(ReferenceFramework):
    """Hands out its own memory."""

    def get_weights(self, model: Model) -> Weights:
        return {name: op.params[local] for name, (op, local) in model.where.items()}


class _OtherOptions(ReferenceFramework):
    changes: ClassVar[Mapping[str, Any]] = {}

    def make_model(self, tree: Tree) -> Model:
        model = super().make_model(tree)
        for _, op in model.ops:
            op.options = {**op.options, **{k: v for k, v in self.changes.items() if k in op.options}}  # type: ignore
        return model


@caught_by("same_logits", "gradients")
class OtherEps(_OtherOptions):
    """Trusts a framework's own eps."""

    changes: ClassVar[Mapping[str, Any]] = {"eps": 1e-3}


@caught_by("batchnorm_statistics")
class OtherMomentum(_OtherOptions):
    """Takes torch's BatchNorm momentum 0.1 for MegEngine's."""

    changes: ClassVar[Mapping[str, Any]] = {"momentum": 0.9}


@caught_by("loss_is_mean_cross_entropy")
class SumLoss(ReferenceFramework):
    """Returns the sum over the batch."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        result = super().train_step(state, x, y, step)
        return result._replace(loss=result.loss * len(y))


@caught_by("soft_targets")
class HardTargets(ReferenceFramework):
    """Takes the likeliest class of a soft target."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        return super().train_step(state, x, y if y.ndim == 1 else y.argmax(axis=1), step)


@caught_by("soft_targets")
class NormalisedTargets(ReferenceFramework):
    """Makes the rows of soft targets sum to one: class weights are gone."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        return super().train_step(state, x, y if y.ndim == 1 else y / y.sum(axis=1, keepdims=True), step)


@caught_by("accumulate")
class WholeBatch(ReferenceFramework):
    """Cuts nothing: right but for memory and batchnorm."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        return super().train_step(state, x, y, replace(step, accumulate=1))


@caught_by("accumulate", "accumulate_is_the_large_batch", "clip_parts")
class LastPartAlone(ReferenceFramework):
    """Clears the gradients between the parts."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        x, y = (np.split(a, step.accumulate)[-1] for a in (x, y))
        return super().train_step(state, x, y, replace(step, accumulate=1))


@caught_by("clip_norm", "clip_value", "clip_parts")
class NeverClips(ReferenceFramework):
    """Takes the bound and ignores it."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        return super().train_step(state, x, y, replace(step, clip=Clip()))


@caught_by("clip_norm")
class ValueForNorm(ReferenceFramework):
    """Bounds each number where the norm was asked for."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        return super().train_step(state, x, y, replace(step, clip=Clip(value=step.clip.norm)))


class _Clips(ReferenceFramework):
    """Clips otherwise."""

    clips: ClassVar[Any]

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        before, plugin._clipped = plugin._clipped, type(self).clips
        try:
            return super().train_step(state, x, y, step)
        finally:
            plugin._clipped = before


@caught_by("clip_norm")
class ClipsEachParameter(_Clips):
    """Each gradient by its own norm."""

    clips = staticmethod(lambda gs, c: {n: g * min(1, (c.norm or 1e9) / np.sqrt((g**2).sum())) for n, g in gs.items()})


@caught_by("clip_norm")
class AlwaysScales(_Clips):
    """Scales up, too, what is below the norm."""

    clips = staticmethod(
        lambda gs, c: {n: g * ((c.norm or 1) / np.sqrt(sum((h**2).sum() for h in gs.values()))) for n, g in gs.items()}
    )


@caught_by("clip_norm", "clip_value", "clip_parts")
class GivesClipped(ReferenceFramework):
    """Gives the gradients after clipping, so that the proof would take its word for it."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        result = super().train_step(state, x, y, step)
        return result._replace(gradients=dict(plugin._clipped(result.gradients or {}, step.clip)))


@caught_by("gradients")
class DecayInGradients(ReferenceFramework):
    """Reports gradients with the weight decay in them."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        before, result = self.get_weights(state.model), super().train_step(state, x, y, step)
        decay = {name: group.weight_decay for group in state.groups for name in group.names}
        given = {name: g + decay[name] * before[name] for name, g in (result.gradients or {}).items()}
        return result._replace(gradients=given)


class _Adding(dict):  # type: ignore[type-arg]
    """Gradients that add to what is there."""

    def __setitem__(self, local: str, gradient: np.ndarray) -> None:
        super().__setitem__(local, gradient + self.get(local, 0))


@caught_by("gradients_are_cleared")
class NeverClears(ReferenceFramework):
    """Forgets to clear gradients: they add up."""

    def make_model(self, tree: Tree) -> Model:
        model = super().make_model(tree)
        for _, op in model.ops:
            op.grads = _Adding()
        return model


@caught_by("predict_changes_nothing")
class PredictTrains(ReferenceFramework):
    """Predicts in training mode."""

    def predict(self, state: TrainState, x: np.ndarray) -> np.ndarray:
        return state.model.chain.forward(x.astype(np.float64), True, np.random.default_rng(0)).astype(np.float32)


@caught_by("predict_changes_nothing")
class PredictDraws(ReferenceFramework):
    """Ends predict in evaluation mode: the next step trains without dropout."""

    def predict(self, state: TrainState, x: np.ndarray) -> np.ndarray:
        for _, op in state.model.ops:
            if isinstance(op, layers.Dropout):
                op.options = {"p": 0.0}
        return super().predict(state, x)


class _Scheduler(ReferenceScheduler):
    def value(self, step: int, index: int) -> float:
        raise AssertionError

    def apply(self, index: int) -> None:
        for place, group in enumerate(self._groups):
            group.lr = self.value(index, place)


class _Scheduled(ReferenceFramework):
    scheduler: type[ReferenceScheduler]

    def make_scheduler(self, optimizer: Sequence[Group], plan: Plan, start: int) -> ReferenceScheduler:
        return self.scheduler(optimizer, plan)


@caught_by("lrs_read_back")
class LogsUnscaled(_Scheduled):
    """Applies the scaled lr and logs the unscaled one (seed document 001's LayerScaleLR)."""

    class scheduler(ReferenceScheduler):
        def lrs(self) -> list[float]:
            return [lr / g.lr_scale for lr, g in zip(super().lrs(), self._plan.groups, strict=True)]


@caught_by("effective_lr", "schedule_at_every_step")
class IgnoresScale(_Scheduled):
    """lr_scale sits in a key that nobody reads (timm under a torch scheduler, OneFlow eager)."""

    class scheduler(_Scheduler):
        def value(self, step: int, index: int) -> float:
            return self._plan.lrs(step)[index] / self._plan.groups[index].lr_scale

        def lrs(self) -> list[float]:
            return [lr * g.lr_scale for lr, g in zip(super().lrs(), self._plan.groups, strict=True)]


@caught_by("effective_lr", "schedule_at_every_step")
class ScalesTwice(_Scheduled):
    """Writes the scaled lr beside lr_scale, and the graph multiplies again."""

    class scheduler(_Scheduler):
        def value(self, step: int, index: int) -> float:
            return self._plan.lrs(step)[index] * self._plan.groups[index].lr_scale


@caught_by("schedule_at_every_step")
class OneStepLate(_Scheduled):
    """Steps the scheduler before the optimizer."""

    class scheduler(_Scheduler):
        def value(self, step: int, index: int) -> float:
            return self._plan.lrs(max(step - 1, 0))[index]


@caught_by("schedule_per_group")
class OneSchedule(_Scheduled):
    """All groups follow the default schedule."""

    class scheduler(_Scheduler):
        def value(self, step: int, index: int) -> float:
            default = next(i for i, g in enumerate(self._plan.groups) if g.schedule == "default")
            factor = self._plan.lrs(step)[default] / self._plan.groups[default].lr_scale
            return factor * self._plan.groups[index].lr_scale


@caught_by("lr_does_not_compound")
class Compounds(_Scheduled):
    """lr *= lr_scale at every step (OneFlow's official guide)."""

    class scheduler(_Scheduler):
        def value(self, step: int, index: int) -> float:
            return self._plan.lrs(step)[index] * self._plan.groups[index].lr_scale ** step


@caught_by("schedule_at_every_step", "zero_lr_moves_nothing")
class ReadsBackWhatItWasTold(_Scheduled):
    """Keeps the lr it was built with, and reports the one it was told (MindSpore's set_data)."""

    class scheduler(ReferenceScheduler):
        def apply(self, index: int) -> None:
            self.told = self._plan.lrs(index)
            for group in self._groups:
                group.lr = self._plan.base_lr

        def lrs(self) -> list[float]:
            return self.told


class _Rules(ReferenceFramework):
    """Another formula for an optimizer."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        before = dict(optimizers.UPDATES)
        optimizers.UPDATES.update({n: r for n, r in vars(type(self)).items() if n in before})  # type: ignore[attr-defined]
        try:
            return super().train_step(state, x, y, step)
        finally:
            optimizers.UPDATES.update(before)  # type: ignore[attr-defined]


@caught_by("zero_lr_moves_nothing")
class DecaysWithoutLr(_Rules):
    """Weight decay apart from the lr."""

    adamw = staticmethod(lambda s, p, g, state, lr, wd: optimizers.adamw(s, p * (1 - 1e-3 * wd), g, state, lr, 0.0))


@caught_by("optimizer_sgd")
class SgdWithoutDecay(_Rules):
    """Ignores weight decay."""

    sgd = staticmethod(lambda s, p, g, state, lr, wd: optimizers.sgd(s, p, g, state, lr, 0.0))


@caught_by("optimizer_momentum")
class LrInTheBuffer(_Rules):
    """Keeps the lr inside the momentum buffer (Sutskever's form): a changing lr acts late."""

    @staticmethod
    def momentum(s, p, g, state, lr, wd):  # type: ignore[no-untyped-def]
        state["momentum_buffer"] = s.momentum * state.get("momentum_buffer", 0 * p) + lr * (g + wd * p)
        return p - state["momentum_buffer"]


@caught_by("optimizer_nesterov")
class NoNesterov(_Rules):
    """Forgets nesterov."""

    @staticmethod
    def momentum(s, p, g, state, lr, wd):  # type: ignore[no-untyped-def]
        g = g + wd * p
        state["momentum_buffer"] = s.momentum * state.get("momentum_buffer", 0 * p) + g
        return p - lr * state["momentum_buffer"]


@caught_by("optimizer_adam")
class EpsInside(_Rules):
    """eps outside the bias correction."""

    @staticmethod
    def adam(s, p, g, state, lr, wd):  # type: ignore[no-untyped-def]
        optimizers.adam(s, p, g, state, lr, wd)
        t, (b1, b2) = float(state["step"]), s.betas
        return p - lr * np.sqrt(1 - b2**t) / (1 - b1**t) * state["exp_avg"] / (np.sqrt(state["exp_avg_sq"]) + s.eps)


@caught_by("optimizer_adamw", "effective_lr")
class NoBiasCorrection(_Rules):
    """AdamW without bias correction (mindspore.nn.AdamWeightDecay)."""

    @staticmethod
    def adamw(s, p, g, state, lr, wd):  # type: ignore[no-untyped-def]
        optimizers.adamw(s, p, g, state, lr, wd)
        return p * (1 - lr * wd) - lr * state["exp_avg"] / (np.sqrt(state["exp_avg_sq"]) + s.eps)


@caught_by("optimizer_nadam", "effective_lr_others")
class NadamWithoutItsSchedule(_Rules):
    """Adam with Nesterov's look ahead, at full momentum from the first step on."""

    nadam = staticmethod(lambda s, p, g, st, lr, wd: optimizers.nadam(replace(s, momentum_decay=1e6), p, g, st, lr, wd))


@caught_by("optimizer_nadam")
class NadamDecoupled(_Rules):
    """Decays apart from the gradient."""

    nadam = staticmethod(lambda s, p, g, state, lr, wd: optimizers.nadam(s, p * (1 - lr * wd), g, state, lr, 0.0))


@caught_by("optimizer_rmsprop", "effective_lr_others")
class RmspropEpsInside(_Rules):
    """eps inside the root (TensorFlow's, mindspore.nn.RMSProp)."""

    @staticmethod
    def rmsprop(s, p, g, state, lr, wd):  # type: ignore[no-untyped-def]
        g = g + wd * p
        state["step"] = state.get("step", np.zeros(())) + 1
        state["square_avg"] = s.alpha * state.get("square_avg", 0 * p) + (1 - s.alpha) * g * g
        quotient = g / np.sqrt(state["square_avg"] + s.eps)
        if s.momentum:
            quotient = state["momentum_buffer"] = s.momentum * state.get("momentum_buffer", 0 * p) + quotient
        return p - lr * quotient


@caught_by("optimizer_rmsprop")
class RmspropWithoutMomentum(_Rules):
    """Takes momentum and ignores it."""

    rmsprop = staticmethod(lambda s, p, g, st, lr, wd: optimizers.rmsprop(replace(s, momentum=0.0), p, g, st, lr, wd))


@caught_by("optimizer_lion")
class LionLooksAtTheNextMean(_Rules):
    """Takes the sign of the mean that it keeps, not of the one between."""

    @staticmethod
    def lion(s, p, g, state, lr, wd):  # type: ignore[no-untyped-def]
        optimizers.lion(s, p, g, state, lr, wd)
        return p * (1 - lr * wd) - lr * np.sign(state["exp_avg"] - 1e-3 * g)


@caught_by("optimizer_lion", "effective_lr_others")
class LionDecaysInTheGradient(_Rules):
    """L2, which the sign swallows."""

    lion = staticmethod(lambda s, p, g, state, lr, wd: optimizers.lion(s, p, g + wd * p, state, lr, 0.0))


@caught_by("optimizer_muon", "effective_lr_others")
class MuonOfItsOwnSize(_Rules):
    """Leaves out what brings the update to AdamW's size (the first Muon)."""

    @staticmethod
    def muon(s, p, g, state, lr, wd):  # type: ignore[no-untyped-def]
        new = optimizers.muon(s, p, g, state, lr, wd)
        return p * (1 - lr * wd) + (new - p * (1 - lr * wd)) / (0.2 * np.sqrt(max(p.shape)))


@caught_by("optimizer_muon")
class MuonWithoutNesterov(_Rules):
    """Orthogonalizes the buffer alone."""

    muon = staticmethod(lambda s, p, g, st, lr, wd: optimizers.muon(replace(s, nesterov=False), p, g, st, lr, wd))


@caught_by("optimizer_layer_adaptive", "effective_lr_layer_adaptive")
class LayerAdaptiveWithoutDecay(_Rules):
    """Takes weight_decay and ignores it (seed document 002's LayerAdaptiveLR)."""

    layer_adaptive = staticmethod(lambda s, p, g, state, lr, wd: optimizers.layer_adaptive(s, p, g, state, lr, 0.0))


@caught_by("optimizer_layer_adaptive")
class OneStepSizePerGroup(ReferenceFramework):
    """Averages over the whole group instead of the parameter."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        before, result = self.get_weights(state.model), super().train_step(state, x, y, step)
        for group in state.optimizer:
            ratios = [np.abs(s["exp_avg"]) / (np.sqrt(s["exp_avg_sq"]) + group.spec.eps) for s in group.state.values()]
            size = group.lr * np.concatenate([ratio.ravel() for ratio in ratios]).mean()
            for name, (op, local) in zip(group.names, group.places, strict=True):
                op.params[local] = (before[name] - size * group.state[name]["exp_avg"]).astype(np.float32)
        return result


@caught_by("optimizer_layer_adaptive", "effective_lr_layer_adaptive")
class LayerAdaptiveCorrected(_Rules):
    """Corrects the bias as Adam does."""

    @staticmethod
    def layer_adaptive(s, p, g, state, lr, wd):  # type: ignore[no-untyped-def]
        optimizers.adam(s, p, g, state, lr, wd)
        t, (b1, b2) = float(state.pop("step")), s.betas
        m, v = state["exp_avg"] / (1 - b1**t), state["exp_avg_sq"] / (1 - b2**t)
        return p - lr * (np.abs(m) / (np.sqrt(v) + s.eps)).mean() * m


@caught_by("weight_decay_per_group", "effective_lr")
class DecaysEverything(ReferenceFramework):
    """One weight decay for all groups."""

    def make_groups(self, model: Model, plan: Plan) -> list[Group]:
        groups = super().make_groups(model, plan)
        for group in groups:
            group.weight_decay = max(g.weight_decay for g in groups)
        return groups


@caught_by("two_optimizers")
class OneOptimizer(ReferenceFramework):
    """Steps every group by the default optimizer."""

    def make_groups(self, model: Model, plan: Plan) -> list[Group]:
        groups = super().make_groups(model, plan)
        for group in groups:
            group.spec = plan.optimizers["default"]
        return groups


@caught_by("grad_centralization")
class NoCentralization(ReferenceFramework):
    """Accepts the flag and does nothing (no CPU kernel in MindSpore)."""

    def make_groups(self, model: Model, plan: Plan) -> list[Group]:
        groups = super().make_groups(model, plan)
        for group in groups:
            group.grad_centralization = False
        return groups


def all_train(step: Step) -> Step:
    """The step without any freezing of groups."""
    return replace(step, active=(True,) * len(step.active))


@caught_by("frozen_keep_state")
class FreezesByLrAlone(ReferenceFramework):
    """Takes lr 0 for freezing: the moments go on."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        return super().train_step(state, x, y, all_train(step))


@caught_by("frozen_do_not_move", "unfreezes_on_the_step")
class KeepsMoving(ReferenceFramework):
    """module.requires_grad = False: freezes nothing."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        for group in state.groups:
            group.lr = group.lr or 0.05
        return super().train_step(state, x, y, all_train(step))


class _Zeros(dict):  # type: ignore[type-arg]
    """Gradients that are zero."""

    def __setitem__(self, local: str, gradient: np.ndarray) -> None:
        super().__setitem__(local, np.zeros_like(gradient))


@caught_by("frozen_do_not_move")
class ZeroGradientsDrift(ReferenceFramework):
    """Freezes by zero gradients: momentum and weight decay go on."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        for group, on in zip(state.groups, step.active, strict=True):
            group.lr = group.lr or 0.01
            for op, _ in group.places:
                op.grads = {} if on else _Zeros()
        return super().train_step(state, x, y, all_train(step))


@caught_by("frozen_keep_state")
class ForgetsState(ReferenceFramework):
    """Builds the optimizer anew whenever the active set changes."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        if step.active != state.compiled:
            self.set_optimizer_state(state, {})
        state.compiled = step.active
        return super().train_step(state, x, y, step)


@caught_by("unfreezes_on_the_step")
class ThawsLate(ReferenceFramework):
    """A change of the active set takes effect one step later."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        before, state.compiled = state.compiled or step.active, step.active
        return super().train_step(state, x, y, replace(step, active=before))


@caught_by("frozen_batchnorm")
class StatisticsMove(ReferenceFramework):
    """Normalises by the running statistics, and lets them follow the batches (a graph that updates its buffers)."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        result = super().train_step(state, x, y, step)
        for name, op in state.model.ops:
            if name in step.frozen:
                op.params["running_mean"] = op.params["running_mean"] * np.float32(0.9) + np.float32(0.01)
        return result


@caught_by("frozen_batchnorm")
class NormalisesByTheBatch(ReferenceFramework):
    """Keeps the statistics, but uses the batch's (momentum 0 in the place of evaluation)."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        resting = [op for name, op in state.model.ops if name in step.frozen]
        held = [{n: a for n, a in op.params.items() if n.startswith("running")} for op in resting]
        result = super().train_step(state, x, y, replace(step, frozen=frozenset()))
        for op, statistics in zip(resting, held, strict=True):
            op.params |= statistics
        return result


@caught_by("batchnorm_trains_on")
class AlwaysRests(ReferenceFramework):
    """Rests every batchnorm layer whose group does not train, whatever the plan says."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        off = {n for group, on in zip(state.groups, step.active, strict=True) if not on for n in group.names}
        frozen = frozenset(name for name, _ in state.model.ops if f"{name}.weight" in off)
        return super().train_step(state, x, y, replace(step, frozen=frozen))


@caught_by("late_start")
class GlobalStep(_Rules):
    """Bias correction counts the run's steps, not the parameter's (OneFlow's AdamW)."""

    count = 0

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        type(self).count += 1
        return super().train_step(state, x, y, step)

    def make_optimizer(self, model: Model, groups: Sequence[Group], plan: Plan) -> list[Group]:
        type(self).count = 0
        return super().make_optimizer(model, groups, plan)

    @staticmethod
    def adamw(s, p, g, state, lr, wd):  # type: ignore[no-untyped-def]
        state["step"] = np.array(GlobalStep.count - 1.0)
        return optimizers.adamw(s, p, g, state, lr, wd)


@caught_by("resume_is_seamless", "resume_layer_adaptive", "resume_others")
class FreshOptimizer(ReferenceFramework):
    """Starts again with an empty optimizer."""

    def set_optimizer_state(self, state: TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        pass


@caught_by("reset_optimizer_state", "reset_layer_adaptive", "reset_others")
class KeepsWhatHasNoEntry(ReferenceFramework):
    """Writes what it is given and leaves the rest as it was (load_state_dict of a part)."""

    def set_optimizer_state(self, state: TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        super().set_optimizer_state(state, {**self.get_optimizer_state(state), **arrays})


@caught_by("optimizer_state", "resume_layer_adaptive", "resume_others")
class OwnKeys(ReferenceFramework):
    """Calls the moments m and v."""

    def get_optimizer_state(self, state: TrainState) -> Weights:
        short = {"exp_avg": "m", "exp_avg_sq": "v", "momentum_buffer": "m"}
        return {
            f"{k.rpartition('/')[0]}/{short.get(k.rpartition('/')[2], k.rpartition('/')[2])}": a
            for k, a in super().get_optimizer_state(state).items()
        }


@caught_by("same_seed_same_curve", "dropout_follows_seed")
class NeverSeeds(ReferenceFramework):
    """Dropout from the machine's own entropy."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        return super().train_step(state, x, y, replace(step, seed=secrets.randbits(32)))


@caught_by("dropout_follows_seed")
class OneMask(ReferenceFramework):
    """The same mask whatever the seed (a traced dropout)."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        return super().train_step(state, x, y, replace(step, seed=0))


@caught_by("mode_equals_first_mode")
class GraphForgetsFreezing(ReferenceFramework):
    """The compiled mode trains what the eager one freezes (OneFlow's Graph after compile)."""

    modes = ("eager", "graph")

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        for group in state.groups if self.mode == "graph" else ():
            group.lr = group.lr or 0.05
        return super().train_step(state, x, y, all_train(step) if self.mode == "graph" else step)


@caught_by("absent_device")
class AnyDevice(ReferenceFramework):
    """Takes any device and computes on the CPU."""

    def __init__(self, device: str, *rest: Any) -> None:
        super().__init__("cpu", *rest)


@caught_by("golden_curve_cnn", "golden_curve_vit")
class SixteenBits(ReferenceFramework):
    """Rounds the weights to 16 bits after every step."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        result = super().train_step(state, x, y, step)
        for op, local in state.model.where.values():
            op.params[local] = op.params[local].astype(np.float16).astype(np.float32)
        return result


@caught_by("gradients")
class TanhGelu(ReferenceFramework):
    """GELU by tanh, MindSpore's default."""

    def make_model(self, tree: Tree) -> Model:
        model = super().make_model(tree)
        for _, op in model.ops:
            if isinstance(op, layers.Gelu):
                op.__class__ = _Tanh
        return model


class _Tanh(layers.Gelu):
    f = staticmethod(lambda x: x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


# --- right at first: what only the proof during training can see, or sees as well


class _Baked(ReferenceFramework):
    """From some step on the lrs of that step stay (a constant of the compiled step), and read back as planned."""

    @abstractmethod
    def bakes(self, state: TrainState, step: Step) -> bool:
        """Whether the lrs of this step are those that stay."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        written = [group.lr for group in state.groups]
        held = state.compiled if isinstance(state.compiled, list) else None
        if held is None and self.bakes(state, step):
            state.compiled = held = written
        for group, lr in zip(state.groups, held or written, strict=True):
            group.lr = lr
        result = super().train_step(state, x, y, step)
        for group, lr in zip(state.groups, written, strict=True):
            group.lr = lr
        return result


@caught_by("schedule_at_every_step", "schedule_per_group", "effective_lr")
class BakesTheFirst(_Baked):
    """Takes the lr once, at the first step."""

    def bakes(self, state: TrainState, step: Step) -> bool:
        return True


class BakesAtABoundary(_Baked):
    """Compiles anew where the active groups change, and the lr with it."""

    def bakes(self, state: TrainState, step: Step) -> bool:
        before, state.compiled = state.compiled or step.active, step.active
        return bool(before != step.active)


@caught_by("resume_is_seamless", "resume_layer_adaptive")
class BakesOnResume(_Baked):
    """Keeps the lr of the first step after optimizer state came in."""

    def set_optimizer_state(self, state: TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        super().set_optimizer_state(state, arrays)
        state.compiled = "resumed" if arrays else None

    def bakes(self, state: TrainState, step: Step) -> bool:
        return bool(state.compiled == "resumed")


class _Late(ReferenceFramework):
    """Right for LATE steps, then wrong."""

    LATE = 12

    @abstractmethod
    def wrong(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        """What it does instead."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        state.compiled = (state.compiled or 0) + 1
        if state.compiled <= self.LATE:
            return super().train_step(state, x, y, step)
        return self.wrong(state, x, y, step)


class FrozenDriftsLate(_Late):
    """What is frozen decays by a hair."""

    def wrong(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        result = ReferenceFramework.train_step(self, state, x, y, step)
        for group, on in zip(state.groups, step.active, strict=True):
            for op, local in () if on else group.places:
                op.params[local] = op.params[local] * np.float32(1 - 1e-6)
        return result


class ResetsState(_Late):
    """Loses momentum buffers and moments."""

    def wrong(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        for group in state.groups:
            group.state = {}
        return ReferenceFramework.train_step(self, state, x, y, step)


class ResetsOnce(ResetsState):
    """Loses them at one step only."""

    def wrong(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        once = super().wrong if state.compiled == self.LATE + 1 else partial(ReferenceFramework.train_step, self)
        return once(state, x, y, step)


class StopsDecay(_Late):
    """Loses the weight decay."""

    def wrong(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        for group in state.groups:
            group.weight_decay = 0.0
        return ReferenceFramework.train_step(self, state, x, y, step)


class StaleGradients(_Late):
    """Applies the gradients of the step before, and reports this one's."""

    def wrong(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        places = [place for group in state.groups for place in group.places]
        before, held = self.get_weights(state.model), self.get_optimizer_state(state)
        stale = [op.grads[local] for op, local in places]
        result = ReferenceFramework.train_step(self, state, x, y, step)
        for (op, local), gradient in zip(places, stale, strict=True):
            op.grads[local] = gradient
        for name, (op, local) in state.model.where.items():
            op.params[local] = op.params[local] if "running" in name else before[name]
        self.set_optimizer_state(state, held)
        for group, on in zip(state.groups, step.active, strict=True):
            if on:
                plugin._update(group)
        return result
