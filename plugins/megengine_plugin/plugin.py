"""MegEngine, eager and traced: the verbs in the contract's order."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import megengine
import numpy as np
from megengine import Tensor
from megengine.optimizer import Optimizer

from layerwise_lr.framework import KINDS as DECLARED
from layerwise_lr.framework import LOSS_SCALE, OPTIMIZERS, PLAIN_KINDS, Plan, TrainState, Tree, UserError, Weights

from . import layers, optimizers
from .graph import Steps

Group = dict[str, Any]


class MegEngineScheduler:
    """Writes group["lr"]; MegEngine's optimizers read it at every step."""

    def __init__(self, groups: Sequence[Group], plan: Plan) -> None:
        self._groups, self._plan = groups, plan

    def apply(self, step: int) -> None:
        """The plan's lr of every group at `step`."""
        for group, lr in zip(self._groups, self._plan.lrs(step), strict=True):
            group["lr"] = lr

    def lrs(self) -> list[float]:
        """group["lr"] as MegEngine holds it."""
        return [float(group["lr"]) for group in self._groups]


class MegEngineFramework:
    """MegEngine on CPU or CUDA; in mode trace, forward and backward run as one compiled graph."""

    modes: ClassVar[tuple[str, ...]] = ("eager", "trace")
    optimizers: ClassVar[tuple[str, ...]] = OPTIMIZERS
    kinds: ClassVar[tuple[str, ...]] = (*DECLARED, *PLAIN_KINDS)
    fork_safe: ClassVar[bool] = False  # a child forked after use dies
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16")

    def __init__(self, device: str, mode: str, seed: int, precision: str, threads: int, deterministic: bool) -> None:
        self._traced, self._half = mode == "trace", precision == "fp16"
        megengine.set_default_device(_device(device, threads))
        megengine.config.deterministic_kernel = deterministic
        self.reseed(seed)

    @staticmethod
    def devices() -> list[str]:
        """CUDA devices if any, then the CPU."""
        return [*(f"cuda:{i}" for i in range(_gpus())), "cpu"]

    @staticmethod
    def version() -> str:
        """MegEngine's version and the commit it was built from."""
        return f"{megengine.__version__} ({megengine.version.git_version[:8]})"

    def reseed(self, seed: int) -> None:
        """MegEngine's own generator, and the masks of dropout."""
        megengine.random.seed(seed)
        layers.MASKS.seed(seed)

    def make_model(self, tree: Tree) -> layers.Model:
        """A module on the default device, in training mode."""
        model = layers.Model(tree, self._half)
        model.train()
        model.steps = Steps(model, self._traced, LOSS_SCALE if self._half else 1.0)
        return model

    def get_weights(self, model: layers.Model) -> Weights:
        """Copies by canonical name, in PyTorch shapes."""
        return {name: _copy(tensor, model.shapes[name]) for name, tensor in model.arrays.items()}

    def set_weights(self, model: layers.Model, weights: Weights) -> None:
        """In place: the optimizer keeps its parameters."""
        for name, tensor in model.arrays.items():
            value = np.asarray(weights[name], np.float32).reshape(tensor.shape)
            tensor[...] = Tensor(value, no_cache=True)

    def make_groups(self, model: layers.Model, plan: Plan) -> list[Group]:
        """MegEngine's param_groups; `names` and `shapes` are ours, in the order of `params`."""
        return [
            {
                "params": [model.arrays[n] for n in g.params],
                "lr": plan.base_lr * g.lr_scale,
                "weight_decay": g.weight_decay,
                "name": g.name,
                "optimizer": g.optimizer,
                "grad_centralization": g.grad_centralization,
                "names": list(g.params),
                "shapes": [model.shapes[n] for n in g.params],
            }
            for g in plan.groups
        ]

    def make_optimizer(self, groups: Sequence[Group], plan: Plan) -> list[Optimizer]:
        """One native optimizer per name in use, stepped together. MegEngine keeps these very dicts as its
        param_groups: what the scheduler writes into them is what the step reads."""
        names = dict.fromkeys(group["optimizer"] for group in groups)
        return [optimizers.make(plan.optimizers[name], [g for g in groups if g["optimizer"] == name]) for name in names]

    def make_scheduler(self, optimizer: Sequence[Optimizer], plan: Plan, start: int) -> MegEngineScheduler:
        """Groups in the plan's order, across all optimizers."""
        groups = {group["name"]: group for native in optimizer for group in native.param_groups}
        scheduler = MegEngineScheduler([groups[g.name] for g in plan.groups], plan)
        scheduler.apply(start)
        return scheduler

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray) -> Tensor:
        """Forward, backward, one step of every optimizer; the gradients stay until the next step."""
        if state.compiled is None:
            self.set_active(state, [True] * len(state.groups))
        loss, gradients = state.compiled(_tensor(x), _tensor(y))
        for param, gradient in zip(state.compiled.params, gradients, strict=True):
            param.grad = gradient
        given = [pair for group in state.groups if group["grad_centralization"] for pair in _centralize(group)]
        optimizers.step(state.optimizer)
        for param, gradient in given:
            param.grad = gradient
        return loss

    def get_gradients(self, state: TrainState) -> Weights:
        """param.grad where there is one."""
        return {
            name: _copy(param.grad, shape)
            for g in state.groups
            for name, shape, param in zip(g["names"], g["shapes"], g["params"], strict=True)
            if param.grad is not None
        }

    def predict(self, state: TrainState, x: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode, outside every trace."""
        state.model.eval()
        try:
            logits = state.model(_tensor(x)).numpy()
        finally:
            state.model.train()
        return np.array(logits, np.float32)

    def set_active(self, state: TrainState, active: Sequence[bool]) -> None:
        """Another GradManager, attached to these groups alone; a parameter without gradient does not move."""
        for group in state.groups:
            for param in group["params"]:
                param.grad = None
        names = [n for group, on in zip(state.groups, active, strict=True) if on for n in group["names"]]
        state.compiled = state.model.steps(names)

    def get_optimizer_state(self, state: TrainState) -> Weights:
        """Native state, its keys already torch's."""
        return {key: array for native in state.optimizer for key, array in optimizers.get_state(native).items()}

    def set_optimizer_state(self, state: TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """The reverse."""
        for native in state.optimizer:
            optimizers.set_state(native, arrays)


@cache
def _gpus() -> int:
    """CUDA devices; asked once, because without a driver MegEngine answers with eight lines on stderr."""
    with _quiet():
        return int(megengine.get_device_count("gpu"))


@contextmanager
def _quiet() -> Iterator[None]:
    """The C++ library writes to file descriptor 2 past every log level: for a moment, that is a pipe nobody reads."""
    kept, (read, write) = os.dup(2), os.pipe()
    os.dup2(write, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        for descriptor in (kept, read, write):
            os.close(descriptor)


def _device(asked: str, threads: int) -> str:
    """MegEngine's name of a device: cuda:1 -> gpu1, cpu -> cpu0, or multithreadN for more than one thread."""
    there = MegEngineFramework.devices()
    if asked == "auto":
        asked = there[0]
    asked = "cuda:0" if asked == "cuda" else asked
    if asked not in there:
        raise UserError(
            f"framework.device={asked!r} is not here; megengine {megengine.__version__} sees: {', '.join(there)}"
        )
    if asked == "cpu":
        return f"multithread{threads}" if threads > 1 else "cpu0"
    return asked.replace("cuda:", "gpu")


def _tensor(array: np.ndarray) -> Tensor:
    """On the default device; MegEngine has no int64: labels and token ids become int32."""
    return Tensor(array.astype(np.int32) if array.dtype == np.int64 else array, no_cache=True)


def _copy(tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return np.array(tensor.numpy(), np.float32).reshape(shape)


def _centralize(group: Group) -> list[tuple[Tensor, Tensor]]:
    """Gradient centralization (Yong et al. 2020): each output's gradient loses its mean; 2-D and up. Returns the
    parameters with the gradients that the loss gave them: the proof must not take the plugin's word for it."""
    given = []
    for shape, param in zip(group["shapes"], group["params"], strict=True):
        if param.grad is not None and len(shape) > 1:
            given.append((param, param.grad))
            gradient = param.grad.reshape(shape[0], -1)
            param.grad = (gradient - gradient.mean(1, keepdims=True)).reshape(param.shape)
    return given
