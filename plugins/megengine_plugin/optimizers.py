"""Optimizer names as MegEngine's own classes (and those that it lacks), every number explicit; state by canonical name."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from megengine import functional as F
from megengine.core._imperative_rt.core2 import get_auto_format_convert, set_auto_format_convert, set_option
from megengine.core.tensor.utils import set_convert_inputs
from megengine.optimizer import SGD, Adam, AdamW, Optimizer
from megengine.tensor import Tensor

from layerwise_lr.framework import STATE_KEYS, OptimizerSpec, Weights

SCALARS = ("step", "mu_product")
FRESH = {"mu_product": 1.0}
"""What a state begins with, where that is not zero."""
State = dict[str, Tensor]
Group = dict[str, Any]


class Own(Optimizer):
    """An optimizer that MegEngine lacks, its formula as in the reference plugin; state under torch's keys, counts of each
    parameter by itself.

    Args:
        params: groups.
        numbers: lr, weight_decay and whatever else the formula reads.
    """

    keys: ClassVar[tuple[str, ...]]
    """Of the state."""

    def __init__(self, params: Sequence[Group], **numbers: Any) -> None:
        super().__init__(params, numbers)

    def _create_state(self, param_group: Group) -> None:
        for param in param_group["params"]:
            for key in self.keys:
                self._add_state(param, key, FRESH.get(key, 0.0) if key in SCALARS else None)

    def _updates(self, param_group: Group) -> None:
        """In place, as MegEngine's own: `+=` on a Tensor changes what the state holds."""
        for param in (p for p in param_group["params"] if p.grad is not None):
            self.update(param, param.grad, self._state[param], param_group)

    @abstractmethod
    def update(self, param: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """In place."""


class LayerAdaptive(Own):
    """Seed document 002's LayerAdaptiveLR. betas, eps, weight_decay: as Adam's, decay L2."""

    keys = STATE_KEYS["layer_adaptive"]

    def update(self, param: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """p - lr * mean(|m| / (sqrt(v) + eps)) * m."""
        average, square = _moments(gradient + group["weight_decay"] * param, state, group["betas"])
        param -= group["lr"] * F.mean(F.abs(average) / (F.sqrt(square) + group["eps"])) * average


class Nadam(Own):
    """torch.optim.NAdam. betas, eps, momentum_decay, weight_decay: as there, decay L2."""

    keys = STATE_KEYS["nadam"]

    def update(self, param: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """Adam whose momentum grows to betas[0] and looks one step ahead. Counts stay tensors: nothing waits for the
        device."""
        gradient, step, product = gradient + group["weight_decay"] * param, state["step"], state["mu_product"]
        average, square = _moments(gradient, state, group["betas"])
        step += 1
        (beta1, beta2), decay = group["betas"], group["momentum_decay"]
        mu, following = (beta1 * (1 - 0.5 * 0.96 ** (n * decay)) for n in (step, step + 1))
        product *= mu
        ahead = gradient * ((1 - mu) / (1 - product)) + average * (following / (1 - product * following))
        param -= group["lr"] * ahead / (F.sqrt(square / (1 - beta2**step)) + group["eps"])


class RmsProp(Own):
    """torch.optim.RMSprop, not centered, under momentum. alpha, eps, momentum, weight_decay: as there, decay L2."""

    keys = STATE_KEYS["rmsprop"]

    def update(self, param: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """v = alpha v + (1 - alpha) g g; p - lr g / (sqrt(v) + eps), with momentum over the quotient."""
        gradient, square, step = gradient + group["weight_decay"] * param, state["square_avg"], state["step"]
        step += 1
        square *= group["alpha"]
        square += (1 - group["alpha"]) * gradient * gradient
        quotient = gradient / (F.sqrt(square) + group["eps"])
        if "momentum_buffer" in self.keys:
            buffer = state["momentum_buffer"]
            buffer *= group["momentum"]
            buffer += quotient
            quotient = buffer
        param -= group["lr"] * quotient


class PlainRmsProp(RmsProp):
    """Without momentum."""

    keys = tuple(key for key in RmsProp.keys if key != "momentum_buffer")


class Lion(Own):
    """Lion (Chen et al. 2023). betas, weight_decay: decay decoupled."""

    keys = STATE_KEYS["lion"]

    def update(self, param: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """p (1 - lr wd) - lr sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g."""
        (beta1, beta2), average = group["betas"], state["exp_avg"]
        sign = F.sign(beta1 * average + (1 - beta1) * gradient)
        param *= 1 - group["lr"] * group["weight_decay"]
        param -= group["lr"] * sign
        average *= beta2
        average += (1 - beta2) * gradient


class Muon(Own):
    """torch.optim.Muon in float32. momentum, nesterov, weight_decay: decay decoupled."""

    keys = STATE_KEYS["muon"]

    def update(self, param: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """p (1 - lr wd) - lr 0.2 sqrt(longer side) times the orthogonalized momentum."""
        buffer, keeps, lr = state["momentum_buffer"], group["momentum"], group["lr"]
        buffer *= keeps
        buffer += (1 - keeps) * gradient
        average = keeps * buffer + (1 - keeps) * gradient if group["nesterov"] else buffer
        param *= 1 - lr * group["weight_decay"]
        param -= lr * 0.2 * float(max(param.shape)) ** 0.5 * _newton_schulz(average)


def _newton_schulz(x: Tensor) -> Tensor:
    """[A, B] with its singular values brought near 1."""
    tall = int(x.shape[0]) > int(x.shape[1])
    x = (x.transpose(1, 0) if tall else x) / F.maximum(F.sqrt((x * x).sum()), 1e-7)
    for _ in range(5):
        square = F.matmul(x, x.transpose(1, 0))
        x = 3.4445 * x + F.matmul(2.0315 * F.matmul(square, square) - 4.7750 * square, x)
    return x.transpose(1, 0) if tall else x


def _moments(gradient: Tensor, state: State, betas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Adam's, after this gradient."""
    average, square = state["exp_avg"], state["exp_avg_sq"]
    average *= betas[0]
    average += (1 - betas[0]) * gradient
    square *= betas[1]
    square += (1 - betas[1]) * gradient * gradient
    return average, square


NATIVE: Mapping[str, Callable[[OptimizerSpec], tuple[Callable[..., Optimizer], dict[str, Any]]]] = {
    "sgd": lambda s: (SGD, {"momentum": 0.0, "nesterov": False}),
    "momentum": lambda s: (SGD, {"momentum": s.momentum, "nesterov": s.nesterov}),
    "adam": lambda s: (Adam, {"betas": tuple(s.betas), "eps": s.eps}),
    "adamw": lambda s: (AdamW, {"betas": tuple(s.betas), "eps": s.eps}),
    "nadam": lambda s: (Nadam, {"betas": tuple(s.betas), "eps": s.eps, "momentum_decay": s.momentum_decay}),
    "rmsprop": lambda s: (
        RmsProp if s.momentum else PlainRmsProp,
        {"alpha": s.alpha, "eps": s.eps, "momentum": s.momentum},
    ),
    "lion": lambda s: (Lion, {"betas": tuple(s.betas)}),
    "muon": lambda s: (Muon, {"momentum": s.momentum, "nesterov": s.nesterov}),
    "layer_adaptive": lambda s: (LayerAdaptive, {"betas": tuple(s.betas), "eps": s.eps}),
}


def make(spec: OptimizerSpec, groups: Sequence[Group]) -> Optimizer:
    """MegEngine's optimizer over its param_groups; it keeps these very dicts."""
    native, options = NATIVE[spec.name](spec)
    return native(list(groups), lr=spec.lr, weight_decay=spec.weight_decay, **options)


def step(optimizers: Sequence[Optimizer]) -> None:
    """One step of each; parameters without gradient are left alone: no weight decay, no momentum, no step count."""
    with switches():
        for optimizer in optimizers:
            optimizer.step()


@contextmanager
def switches() -> Iterator[None]:
    """An exception inside Optimizer.step leaves three global switches off, after which every `tensor + 1` raises
    "py_apply expects tensor as inputs": put them back."""
    formats = get_auto_format_convert()
    try:
        yield
    except BaseException:
        set_convert_inputs(True)
        set_option("record_computing_path", 1)
        set_auto_format_convert(formats)
        raise


def get_state(optimizer: Optimizer, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """State as "parameter/key" -> array. What no step has touched yet is left out, as torch has none of it."""
    state: Weights = {}
    for name, slots in _slots(optimizer):
        values = {key: np.array(slot.numpy(), np.float32) for key, slot in slots.items()}
        if any((value != FRESH.get(key, 0.0)).any() for key, value in values.items()):
            state |= {f"{name}/{key}": v.reshape(() if key in SCALARS else shapes[name]) for key, v in values.items()}
    return state


def set_state(optimizer: Optimizer, arrays: Mapping[str, np.ndarray]) -> None:
    """The reverse, in place. MegEngine's own load_state_dict refuses an SGD without momentum."""
    for name, slots in _slots(optimizer):
        for key, slot in slots.items():
            value = np.asarray(arrays.get(f"{name}/{key}", np.full(slot.shape, FRESH.get(key, 0.0))), np.float32)
            slot[...] = Tensor(value.reshape(slot.shape), no_cache=True)


def _slots(optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(canonical name, native state) of every parameter that has one; its keys are torch's."""
    for group in optimizer.param_groups:
        for name, param in zip(group["names"], group["params"], strict=True):
            if param in optimizer._state:
                yield name, optimizer._state[param]
