"""Optimizer names as MegEngine's own classes (and the one that it lacks), every number explicit; state by canonical name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from megengine import functional as F
from megengine.core._imperative_rt.core2 import get_auto_format_convert, set_auto_format_convert, set_option
from megengine.core.tensor.utils import set_convert_inputs
from megengine.optimizer import SGD, Adam, AdamW, Optimizer
from megengine.tensor import Tensor

from layerwise_lr.framework import OptimizerSpec, Weights


class LayerAdaptive(Optimizer):
    """Seed document 002's LayerAdaptiveLR, its formula as in the reference plugin.

    Args:
        params: groups.
        numbers: lr, betas, eps and weight_decay, as Adam's; weight decay is L2.
    """

    def __init__(self, params: Sequence[dict[str, Any]], **numbers: Any) -> None:
        super().__init__(params, numbers)

    def _create_state(self, param_group: dict[str, Any]) -> None:
        for param in param_group["params"]:
            self._add_state(param, "exp_avg")
            self._add_state(param, "exp_avg_sq")

    def _updates(self, param_group: dict[str, Any]) -> None:
        """In place, as MegEngine's own: `+=` on a Tensor changes what the state holds."""
        beta1, beta2 = param_group["betas"]
        for param in (p for p in param_group["params"] if p.grad is not None):
            gradient = param.grad + param_group["weight_decay"] * param
            average, square = self._state[param]["exp_avg"], self._state[param]["exp_avg_sq"]
            average *= beta1
            average += (1 - beta1) * gradient
            square *= beta2
            square += (1 - beta2) * gradient * gradient
            param -= param_group["lr"] * F.mean(F.abs(average) / (F.sqrt(square) + param_group["eps"])) * average


NATIVE = {"sgd": SGD, "momentum": SGD, "adam": Adam, "adamw": AdamW, "layer_adaptive": LayerAdaptive}


def make(spec: OptimizerSpec, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """MegEngine's optimizer over its param_groups; it keeps these very dicts."""
    options: dict[str, Any] = {"betas": tuple(spec.betas), "eps": spec.eps}
    if NATIVE[spec.name] is SGD:
        heavy = spec.name == "momentum"
        options = {"momentum": spec.momentum if heavy else 0.0, "nesterov": heavy and spec.nesterov}
    return NATIVE[spec.name](list(groups), lr=spec.lr, weight_decay=spec.weight_decay, **options)


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
        if any(value.any() for value in values.values()):
            state |= {f"{name}/{key}": v.reshape(() if key == "step" else shapes[name]) for key, v in values.items()}
    return state


def set_state(optimizer: Optimizer, arrays: Mapping[str, np.ndarray]) -> None:
    """The reverse, in place; zero is fresh. MegEngine's own load_state_dict refuses an SGD without momentum."""
    for name, slots in _slots(optimizer):
        for key, slot in slots.items():
            value = np.asarray(arrays.get(f"{name}/{key}", np.zeros(slot.shape)), np.float32)
            slot[...] = Tensor(value.reshape(slot.shape), no_cache=True)


def _slots(optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(canonical name, native state) of every parameter that has one; its keys are torch's."""
    for group in optimizer.param_groups:
        for name, param in zip(group["names"], group["params"], strict=True):
            if param in optimizer._state:
                yield name, optimizer._state[param]
