"""NumPy in float64 over float32 weights: the verbs in the contract's order. Slow, and meant to be read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from layerwise_lr import framework as core

from . import layers, optimizers
from .layers import Model


@dataclass
class Group:
    """A parameter group: where its parameters are, its numbers, and the state of each parameter."""

    names: tuple[str, ...]
    places: list[tuple[layers.Op, str]]
    lr: float
    weight_decay: float
    spec: core.OptimizerSpec
    grad_centralization: bool
    state: dict[str, optimizers.State] = field(default_factory=dict)


class ReferenceScheduler(core.GroupScheduler):
    """Writes Group.lr."""

    def apply(self, index: int) -> None:
        """The plan's lr of every group."""
        for group, lr in zip(self._groups, self._plan.lrs(index), strict=True):
            group.lr = lr

    def lrs(self) -> list[float]:
        """Group.lr."""
        return [group.lr for group in self._groups]


class ReferenceFramework(core.Framework):
    """The contract in NumPy."""

    kinds: ClassVar[tuple[str, ...]] = tuple(layers.KINDS)
    optimizers: ClassVar[tuple[str, ...]] = core.OPTIMIZERS
    fork_safe: ClassVar[bool] = True

    @staticmethod
    def version() -> str:
        """NumPy's."""
        return f"numpy {np.__version__}"

    def make_model(self, tree: core.Tree) -> Model:
        """All arrays zero until `set_weights`."""
        return Model(tree)

    def get_weights(self, model: Model) -> core.Weights:
        """Copies."""
        return {name: op.params[local].copy() for name, (op, local) in model.where.items()}

    def set_weights(self, model: Model, weights: core.Weights) -> None:
        """Copies."""
        for name, (op, local) in model.where.items():
            op.params[local] = weights[name].astype(np.float32)

    def make_groups(self, model: Model, plan: core.Plan) -> list[Group]:
        """One Group per plan group."""
        return [
            Group(
                group.params,
                [model.where[name] for name in group.params],
                plan.base_lr * group.lr_scale,
                group.weight_decay,
                plan.optimizers[group.optimizer],
                group.grad_centralization,
            )
            for group in plan.groups
        ]

    def make_optimizer(self, model: Model, groups: Sequence[Group], plan: core.Plan) -> list[Group]:
        """The groups are the optimizer: each knows its formula and keeps its state."""
        return list(groups)

    def make_scheduler(self, optimizer: Sequence[Group], plan: core.Plan, start: int) -> ReferenceScheduler:
        """Over the groups."""
        return ReferenceScheduler(optimizer, plan)

    def train_step(self, state: core.TrainState, x: np.ndarray, y: np.ndarray, step: core.Step) -> core.StepResult:
        """Forward, backward by hand, one update of every active group."""
        for name, op in state.model.ops:
            if isinstance(op, layers.BatchNorm):
                op.frozen = name in step.frozen
        active = [group for group, on in zip(state.optimizer, step.active, strict=True) if on]
        draw, losses, sums = np.random.default_rng(step.seed), [], dict[str, Any]()
        for pictures, targets in zip(np.split(x, step.accumulate), np.split(y, step.accumulate), strict=True):
            logits = state.model.chain.forward(_wide(pictures), True, draw)
            loss, gradient = layers.loss(logits, targets)
            state.model.chain.backward(gradient)
            losses.append(loss)
            for name, (op, local) in _places(active):
                sums[name] = sums.get(name, 0.0) + op.grads[local] / step.accumulate
        gradients = {name: gradient.astype(np.float32) for name, gradient in sums.items()}
        clipped = _clipped(sums, step.clip)
        for name, (op, local) in _places(active):
            op.grads[local] = clipped[name]
        for group in active:
            _update(group)
        return core.StepResult(float(np.mean(losses)), gradients if step.gradients else None)

    def predict(self, state: core.TrainState, x: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode."""
        logits: np.ndarray = state.model.chain.forward(_wide(x), False, np.random.default_rng(0))
        return logits.astype(np.float32)

    def get_optimizer_state(self, state: core.TrainState) -> core.Weights:
        """float32, under torch's keys."""
        return {
            f"{name}/{key}": np.array(array, np.float32)
            for group in state.groups
            for name, own in group.state.items()
            for key, array in own.items()
        }

    def set_optimizer_state(self, state: core.TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """The reverse."""
        for group in state.groups:
            group.state = {}
            for key, array in arrays.items():
                name, _, part = key.rpartition("/")
                if name in group.names:
                    group.state.setdefault(name, {})[part] = np.array(array, np.float32)


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def _places(groups: Sequence[Group]) -> Iterator[tuple[str, tuple[layers.Op, str]]]:
    return ((n, place) for g in groups for n, place in zip(g.names, g.places, strict=True))


def _clipped(gradients: Mapping[str, Any], clip: core.Clip) -> Mapping[str, Any]:
    if clip.value is not None:
        return {name: np.clip(g, -clip.value, clip.value) for name, g in gradients.items()}
    if clip.norm is not None:
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        return {name: g * min(1.0, clip.norm / (norm + 1e-6)) for name, g in gradients.items()}
    return gradients


def _gradient(group: Group, place: tuple[layers.Op, str]) -> Any:
    op, local = place
    gradient = op.grads[local]
    if group.grad_centralization and (axes := core.central_axes(gradient.shape)):
        gradient = gradient - gradient.mean(axes, keepdims=True)
    return gradient


def _update(group: Group) -> None:
    """Computed in float64, kept in float32, so that a checkpoint loses nothing."""
    rule = optimizers.UPDATES[group.spec.name]
    for name, (op, local) in zip(group.names, group.places, strict=True):
        own = {k: a.astype(np.float64) for k, a in group.state.get(name, {}).items()}
        new = rule(
            group.spec,
            op.params[local].astype(np.float64),
            _gradient(group, (op, local)),
            own,
            group.lr,
            group.weight_decay,
        )
        op.params[local] = new.astype(np.float32)
        group.state[name] = {k: np.asarray(a, np.float32) for k, a in own.items()}
