"""Optimizer names as MegEngine's own classes, every number explicit; their state by canonical name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from megengine.core._imperative_rt.core2 import get_auto_format_convert, set_auto_format_convert, set_option
from megengine.core.tensor.utils import set_convert_inputs
from megengine.optimizer import SGD, Adam, AdamW, Optimizer
from megengine.tensor import Tensor

from layerwise_lr.framework import Weights
from layerwise_lr.plan import OptimizerSpec

Native = tuple[Callable[..., Optimizer], dict[str, Any]]

NATIVE: Mapping[str, Callable[[OptimizerSpec], Native]] = {
    "sgd": lambda s: (SGD, {"momentum": 0.0, "nesterov": False}),
    "momentum": lambda s: (SGD, {"momentum": s.momentum, "nesterov": s.nesterov}),
    "adam": lambda s: (Adam, {"betas": tuple(s.betas), "eps": s.eps}),
    "adamw": lambda s: (AdamW, {"betas": tuple(s.betas), "eps": s.eps}),
}


def make(spec: OptimizerSpec, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """MegEngine's optimizer over its param_groups; it keeps these very dicts."""
    native, options = NATIVE[spec.name](spec)
    return native(list(groups), lr=spec.lr, weight_decay=spec.weight_decay, **options)


def step(optimizers: Sequence[Optimizer]) -> None:
    """One step of each; parameters without gradient are left alone: no weight decay, no momentum, no step count."""
    with _switches():
        for optimizer in optimizers:
            optimizer.step()


@contextmanager
def _switches() -> Iterator[None]:
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


def get_state(optimizer: Optimizer) -> Weights:
    """State as "parameter/key" -> array. What no step has touched yet is left out, as torch has none of it."""
    state: Weights = {}
    for name, shape, slots in _slots(optimizer):
        values = {key: slot.numpy() for key, slot in slots.items()}
        if any(value.any() for value in values.values()):
            state |= {f"{name}/{key}": _copy(v, () if key == "step" else shape) for key, v in values.items()}
    return state


def set_state(optimizer: Optimizer, arrays: Mapping[str, np.ndarray]) -> None:
    """The reverse, in place; zero is fresh. MegEngine's own load_state_dict refuses an SGD without momentum."""
    for name, _, slots in _slots(optimizer):
        for key, slot in slots.items():
            value = np.asarray(arrays.get(f"{name}/{key}", np.zeros(slot.shape)), np.float32)
            slot[...] = Tensor(value.reshape(slot.shape), no_cache=True)


def _slots(optimizer: Optimizer) -> Iterator[tuple[str, tuple[int, ...], dict[str, Tensor]]]:
    """(canonical name, PyTorch shape, native state) of every parameter that has one. Their keys are torch's."""
    for group in optimizer.param_groups:
        for name, shape, param in zip(group["names"], group["shapes"], group["params"], strict=True):
            if param in optimizer._state:
                yield name, shape, optimizer._state[param]


def _copy(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.array(value, np.float32).reshape(shape)
