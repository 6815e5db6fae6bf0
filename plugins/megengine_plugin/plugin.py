"""MegEngine, eager and traced: the verbs in the contract's order."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import megengine
import numpy as np
from megengine import Tensor
from megengine.optimizer import Optimizer, clip_grad_norm, clip_grad_value

from layerwise_lr import framework as core

from . import layers, optimizers
from .graph import Trainable
from .native import MegEngineNative

Group = dict[str, Any]


class MegEngineFramework(core.Framework):
    """MegEngine on CPU or CUDA; in mode trace, forward and backward run as one compiled graph."""

    kinds: ClassVar[tuple[str, ...]] = tuple(layers.KINDS)
    optimizers: ClassVar[tuple[str, ...]] = tuple(optimizers.NATIVE)
    modes: ClassVar[tuple[str, ...]] = ("eager", "trace")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16")
    fork_safe: ClassVar[bool] = False  # a child forked after use dies

    def start(self) -> None:
        """MegEngine's default device, which carries the number of threads."""
        cpu = f"multithread{self.threads}" if self.threads > 1 else "cpu0"
        megengine.set_default_device(cpu if self.device == "cpu" else self.device.replace("cuda:", "gpu"))
        megengine.config.deterministic_kernel = self.deterministic

    @staticmethod
    def cuda_devices() -> int:
        """Asked once (see _gpus)."""
        return _gpus()

    @staticmethod
    def native() -> type[core.Native]:
        """Any Module."""
        return MegEngineNative

    @staticmethod
    def version() -> str:
        """MegEngine's version and the commit it was built from."""
        return f"megengine {megengine.__version__} ({megengine.version.git_version[:8]})"

    def make_model(self, tree: core.Tree) -> Trainable:
        """On the default device."""
        return Trainable(tree, self.precision == "fp16", self.mode == "trace", self.loss_scale)

    def get_weights(self, model: Trainable) -> core.Weights:
        """Copies by canonical name, in PyTorch shapes."""
        return {name: _copy(tensor, model.shapes[name]) for name, tensor in model.arrays.items()}

    def set_weights(self, model: Trainable, weights: core.Weights) -> None:
        """In place: the optimizer keeps its parameters."""
        for name, tensor in model.arrays.items():
            value = np.asarray(weights[name], np.float32).reshape(tensor.shape)
            tensor[...] = Tensor(value, no_cache=True)

    def make_groups(self, model: Trainable, plan: core.Plan) -> list[Group]:
        """MegEngine's param_groups; `name`, `names` (in the order of `params`) and `central` are ours."""
        made = []
        for group in plan.groups:
            native: Group = {"params": [model.arrays[name] for name in group.params], "names": group.params}
            native |= {"name": group.name, "central": group.grad_centralization}
            made.append(native | {"lr": plan.base_lr * group.lr_scale, "weight_decay": group.weight_decay})
        return made

    def make_optimizer(self, model: Trainable, groups: Sequence[Group], plan: core.Plan) -> list[Optimizer]:
        """One native optimizer per name in use. MegEngine keeps these very dicts as its param_groups: what the
        scheduler writes into them is what the step reads."""
        return [optimizers.make(plan.optimizers[name], own) for name, own in core.by_optimizer(groups, plan).items()]

    def make_scheduler(self, optimizer: Sequence[Optimizer], plan: core.Plan, start: int) -> core.GroupScheduler:
        """MegEngine's optimizers read group["lr"] at every step, in every mode."""
        return core.GroupScheduler(core.in_plan_order(optimizer, plan), plan)

    def train_step(self, state: core.TrainState, x: np.ndarray, y: np.ndarray, step: core.Step) -> core.StepResult:
        """Forward, backward, one step of every optimizer. What does not train gets no gradient, and MegEngine's
        optimizers leave it alone."""
        names = tuple(n for group, on in zip(state.groups, step.active, strict=True) if on for n in group["names"])
        cut = zip(np.split(x, step.accumulate), np.split(y, step.accumulate), strict=True)
        loss, found = state.model.gradients([(_tensor(x), _tensor(y)) for x, y in cut], names, step)
        shapes = state.model.shapes
        gradients = {n: _copy(g, shapes[n]) for n, g in found.items()} if step.gradients else None
        for group in state.groups:
            for name, param in zip(group["names"], group["params"], strict=True):
                param.grad = found.get(name)
        _clip([state.model.arrays[name] for name in names], step.clip)
        for group in (group for group, on in zip(state.groups, step.active, strict=True) if on and group["central"]):
            for name, param in zip(group["names"], group["params"], strict=True):
                if core.central_axes(shapes[name]):
                    param.grad = _centralized(param.grad, shapes[name])
        optimizers.step(state.optimizer)
        return core.StepResult(loss, gradients)

    def predict(self, state: core.TrainState, x: np.ndarray) -> np.ndarray:
        """Logits, outside every trace."""
        return np.array(state.model(_tensor(x)).numpy(), np.float32)

    def get_optimizer_state(self, state: core.TrainState) -> core.Weights:
        """Native state, its keys already torch's."""
        shapes = state.model.shapes
        return {key: a for native in state.optimizer for key, a in optimizers.get_state(native, shapes).items()}

    def set_optimizer_state(self, state: core.TrainState, arrays: Mapping[str, np.ndarray]) -> None:
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


def _tensor(array: np.ndarray) -> Tensor:
    """On the default device; MegEngine has no int64: labels and token ids become int32."""
    return Tensor(array.astype(np.int32) if array.dtype == np.int64 else array, no_cache=True)


def _copy(tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return np.array(tensor.numpy(), np.float32).reshape(shape)


def _clip(params: Sequence[Tensor], clip: core.Clip) -> None:
    """MegEngine's own clipping, of all that trains."""
    if clip.norm is not None:
        clip_grad_norm(params, clip.norm)
    if clip.value is not None:
        clip_grad_value(params, -clip.value, clip.value)


def _centralized(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Without its mean, as `central_axes` says, whatever the native shape: one row per output."""
    rows = gradient.reshape(shape[0], -1)
    return (rows - rows.mean(1, keepdims=True)).reshape(gradient.shape)
