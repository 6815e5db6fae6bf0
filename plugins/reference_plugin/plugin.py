"""NumPy in float64 over float32 weights: the verbs in the contract's order. Slow, and meant to be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from layerwise_lr.framework import OPTIMIZERS, OptimizerSpec, Plan, TrainState, Tree, UserError, Weights

from . import layers, optimizers


@dataclass
class Model:
    """The executable tree, and every array by canonical name: (layer, local name)."""

    chain: layers.Chain
    where: dict[str, tuple[layers.Op, str]]


@dataclass
class Group:
    """A parameter group: where its parameters are, its numbers, and the state of each parameter."""

    names: tuple[str, ...]
    places: list[tuple[layers.Op, str]]
    lr: float
    weight_decay: float
    spec: OptimizerSpec
    grad_centralization: bool
    active: bool = True
    state: dict[str, optimizers.State] = field(default_factory=dict)


class ReferenceScheduler:
    """Writes Group.lr."""

    def __init__(self, groups: Sequence[Group], plan: Plan) -> None:
        self._groups, self._plan = groups, plan

    def apply(self, step: int) -> None:
        """The plan's lr of every group."""
        for group, lr in zip(self._groups, self._plan.lrs(step), strict=True):
            group.lr = lr

    def lrs(self) -> list[float]:
        """Group.lr."""
        return [group.lr for group in self._groups]


class ReferenceFramework:
    """The contract in NumPy."""

    modes: ClassVar[tuple[str, ...]] = ("eager",)
    optimizers: ClassVar[tuple[str, ...]] = OPTIMIZERS
    kinds: ClassVar[tuple[str, ...]] = tuple(layers.KINDS)
    fork_safe: ClassVar[bool] = True

    def __init__(self, device: str, mode: str, seed: int, precision: str, threads: int, deterministic: bool) -> None:
        if device not in ("cpu", "auto"):
            raise UserError(f"framework.device={device!r} is not here; the reference has: cpu")
        self.reseed(seed)

    @staticmethod
    def devices() -> list[str]:
        """The CPU."""
        return ["cpu"]

    @staticmethod
    def version() -> str:
        """NumPy's."""
        return f"numpy {np.__version__}"

    def reseed(self, seed: int) -> None:
        """Dropout's generator."""
        self._rng = np.random.default_rng(seed)

    def make_model(self, tree: Tree) -> Model:
        """All arrays zero until `set_weights`."""
        chain = layers.Chain((tree.root,), "")
        where = {f"{path}.{name}" if path else name: (op, name) for path, op in chain.ops() for name in op.params}
        return Model(chain, where)

    def get_weights(self, model: Model) -> Weights:
        """Copies."""
        return {name: op.params[local].copy() for name, (op, local) in model.where.items()}

    def set_weights(self, model: Model, weights: Weights) -> None:
        """Copies."""
        for name, (op, local) in model.where.items():
            op.params[local] = weights[name].astype(np.float32)

    def make_groups(self, model: Model, plan: Plan) -> list[Group]:
        """One Group per plan group."""
        return [
            Group(
                g.params,
                [model.where[n] for n in g.params],
                plan.base_lr * g.lr_scale,
                g.weight_decay,
                plan.optimizers[g.optimizer],
                g.grad_centralization,
            )
            for g in plan.groups
        ]

    def make_optimizer(self, groups: Sequence[Group], plan: Plan) -> list[Group]:
        """The groups are the optimizer: each knows its formula and keeps its state."""
        return list(groups)

    def make_scheduler(self, optimizer: Sequence[Group], plan: Plan, start: int) -> ReferenceScheduler:
        """Over the groups."""
        scheduler = ReferenceScheduler(optimizer, plan)
        scheduler.apply(start)
        return scheduler

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray) -> float:
        """Forward, backward by hand, one update of every active group."""
        logits = state.model.chain.forward(_wide(x), True, self._rng)
        value, gradient = layers.loss(logits, y)
        state.model.chain.backward(gradient)
        for group in state.optimizer:
            if group.active:
                _update(group)
        return value

    def get_gradients(self, state: TrainState) -> Weights:
        """Of the active groups."""
        return {
            name: op.grads[local].astype(np.float32)
            for group in state.groups
            if group.active
            for name, (op, local) in zip(group.names, group.places, strict=True)
        }

    def predict(self, state: TrainState, x: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode."""
        return state.model.chain.forward(_wide(x), False, self._rng).astype(np.float32)

    def set_active(self, state: TrainState, active: Sequence[bool]) -> None:
        """Inactive groups are skipped by the update."""
        for group, on in zip(state.groups, active, strict=True):
            group.active = on

    def get_optimizer_state(self, state: TrainState) -> Weights:
        """float32, under torch's keys."""
        return {
            f"{name}/{key}": np.array(a, np.float32)
            for group in state.groups
            for name, own in group.state.items()
            for key, a in own.items()
        }

    def set_optimizer_state(self, state: TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """The reverse."""
        for group in state.groups:
            group.state = {}
            for key, array in arrays.items():
                name, _, part = key.rpartition("/")
                if name in group.names:
                    group.state.setdefault(name, {})[part] = np.array(array, np.float32)


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def _gradient(group: Group, place: tuple[layers.Op, str]) -> Any:
    op, local = place
    gradient = op.grads[local]
    if group.grad_centralization and gradient.ndim > 1:
        gradient = gradient - gradient.mean(axis=tuple(range(1, gradient.ndim)), keepdims=True)
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
