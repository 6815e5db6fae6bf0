"""Optimizer names as OneFlow's own classes (and those that it lacks), every number explicit; state under torch's keys."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import oneflow as flow
from oneflow import Tensor

from layerwise_lr.framework import STATE_KEYS, OptimizerSpec, UserError

from . import layers

Optimizer = Any  # flow.optim.Optimizer; OneFlow has no types


class Own(flow.optim.Optimizer, ABC):
    """An optimizer that OneFlow lacks, its formula as in the reference plugin; eager. A compiled Graph knows OneFlow's own
    alone (graph.check). State is kept under torch's keys, counts as numbers, for each parameter by itself.

    Args:
        params: groups.
        lr: per step.
        numbers: whatever else the formula reads.
    """

    keys: ClassVar[tuple[str, ...]]
    """Of the state; those of one number are kept as floats."""

    def __init__(self, params: Sequence[dict[str, Any]], lr: float, **numbers: Any) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, **numbers})
        for group in self.param_groups:
            self._state |= {param: {} for param in group.parameters}

    @flow.no_grad()
    def step(self) -> None:
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            for param in group.parameters:
                if param.grad is not None:
                    self.update(param, param.grad, self._state[param], group)

    @abstractmethod
    def update(self, param: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """In place; an empty state is a fresh one."""


class LayerAdaptive(Own):
    """Seed document 002's LayerAdaptiveLR. betas, eps, weight_decay: as Adam's, decay L2."""

    keys = STATE_KEYS["layer_adaptive"]

    def update(self, param: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """p - lr * mean(|m| / (sqrt(v) + eps)) * m."""
        average, square = _moments(param, gradient + group["weight_decay"] * param, state, group["betas"])
        size = group["lr"] * (average.abs() / (square.sqrt() + group["eps"])).mean()
        param.sub_(average * size)  # size * average takes OneFlow 0.9 150 times as long on a CPU


class Nadam(Own):
    """torch.optim.NAdam. betas, eps, momentum_decay, weight_decay: as there, decay L2."""

    keys = STATE_KEYS["nadam"]

    def update(self, param: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Adam whose momentum grows to betas[0] and looks one step ahead."""
        gradient = gradient + group["weight_decay"] * param
        average, square = _moments(param, gradient, state, group["betas"])
        step = state["step"] = state.get("step", 0.0) + 1
        mu, following = (
            group["betas"][0] * (1 - 0.5 * 0.96 ** (n * group["momentum_decay"])) for n in (step, step + 1)
        )
        product = state["mu_product"] = float(np.float32(state.get("mu_product", 1.0) * mu))  # as a checkpoint holds it
        denominator = (square / (1 - group["betas"][1] ** step)).sqrt() + group["eps"]
        ahead = gradient * ((1 - mu) / (1 - product)) + average * (following / (1 - product * following))
        param.sub_(ahead / denominator * group["lr"])


class RmsProp(Own):
    """torch.optim.RMSprop, not centered: OneFlow's own adds eps inside the root, and has no momentum."""

    keys = STATE_KEYS["rmsprop"]

    def update(self, param: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """v = alpha v + (1 - alpha) g g; p - lr g / (sqrt(v) + eps), with momentum over the quotient."""
        gradient = gradient + group["weight_decay"] * param
        square = _kept(state, "square_avg", param)
        state["step"] = state.get("step", 0.0) + 1
        square.mul_(group["alpha"]).add_((1 - group["alpha"]) * gradient * gradient)
        quotient = gradient / (square.sqrt() + group["eps"])
        if group["momentum"]:
            quotient = _kept(state, "momentum_buffer", param).mul_(group["momentum"]).add_(quotient)
        param.sub_(group["lr"] * quotient)


class Lion(Own):
    """Lion (Chen et al. 2023). betas, weight_decay: decay decoupled."""

    keys = STATE_KEYS["lion"]

    def update(self, param: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """p (1 - lr wd) - lr sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g."""
        (beta1, beta2), lr = group["betas"], group["lr"]
        average = _kept(state, "exp_avg", param)
        sign = (beta1 * average + (1 - beta1) * gradient).sign()
        param.mul_(1 - lr * group["weight_decay"]).sub_(lr * sign)
        average.mul_(beta2).add_((1 - beta2) * gradient)


class Muon(Own):
    """torch.optim.Muon in float32. momentum, nesterov, weight_decay: decay decoupled."""

    keys = STATE_KEYS["muon"]

    def update(self, param: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """p (1 - lr wd) - lr 0.2 sqrt(longer side) times the orthogonalized momentum."""
        keeps, lr = group["momentum"], group["lr"]
        average = _kept(state, "momentum_buffer", param).mul_(keeps).add_((1 - keeps) * gradient)
        if group["nesterov"]:
            average = keeps * average + (1 - keeps) * gradient
        param.mul_(1 - lr * group["weight_decay"])
        param.sub_(_newton_schulz(average) * (lr * 0.2 * max(param.shape) ** 0.5))


def _newton_schulz(x: Tensor) -> Tensor:
    """[A, B] with its singular values brought near 1."""
    tall = x.shape[0] > x.shape[1]
    x = (x.transpose(0, 1) if tall else x) / (x * x).sum().sqrt().clamp(min=1e-7)
    for _ in range(5):
        square = flow.matmul(x, x.transpose(0, 1))
        x = 3.4445 * x + flow.matmul(2.0315 * flow.matmul(square, square) - 4.7750 * square, x)
    return x.transpose(0, 1) if tall else x


def _kept(state: dict[str, Any], key: str, param: Tensor) -> Tensor:
    """Zeros at first."""
    if key not in state:
        state[key] = flow.zeros_like(param)
    kept: Tensor = state[key]
    return kept


def _moments(param: Tensor, gradient: Tensor, state: dict[str, Any], betas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Adam's, after this gradient."""
    average, square = _kept(state, "exp_avg", param), _kept(state, "exp_avg_sq", param)
    average.mul_(betas[0]).add_((1 - betas[0]) * gradient)
    square.mul_(betas[1]).add_((1 - betas[1]) * gradient * gradient)
    return average, square


NATIVE: Mapping[str, Callable[[OptimizerSpec], tuple[Callable[..., Optimizer], dict[str, Any]]]] = {
    "sgd": lambda s: (flow.optim.SGD, {"momentum": 0.0, "dampening": 0.0, "nesterov": False}),
    "momentum": lambda s: (flow.optim.SGD, {"momentum": s.momentum, "dampening": 0.0, "nesterov": s.nesterov}),
    "adam": lambda s: (flow.optim.Adam, _adam(s)),
    "adamw": lambda s: (flow.optim.AdamW, _adam(s)),
    "nadam": lambda s: (Nadam, {"betas": tuple(s.betas), "eps": s.eps, "momentum_decay": s.momentum_decay}),
    "rmsprop": lambda s: (RmsProp, {"alpha": s.alpha, "eps": s.eps, "momentum": s.momentum}),
    "lion": lambda s: (Lion, {"betas": tuple(s.betas)}),
    "muon": lambda s: (Muon, {"momentum": s.momentum, "nesterov": s.nesterov}),
    "layer_adaptive": lambda s: (LayerAdaptive, {"betas": tuple(s.betas), "eps": s.eps}),
}

OWN = ("nadam", "rmsprop", "lion", "muon", "layer_adaptive")
"""Those that OneFlow lacks."""

EAGER_KEYS = {"momentum_buffer": "momentum_buf", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
"""torch's key -> OneFlow's, of the arrays that an eager optimizer keeps for each parameter."""

GRAPH_KEYS = {"momentum_buffer": "momentum", "exp_avg": "m", "exp_avg_sq": "v"}
"""torch's key -> the suffix of the variable in a compiled Graph."""


def _adam(spec: OptimizerSpec) -> dict[str, Any]:
    return {"betas": tuple(spec.betas), "eps": spec.eps, "do_bias_correction": True, "amsgrad": False}


def make(spec: OptimizerSpec, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """OneFlow's optimizer over its groups. It keeps copies of the dicts, takes any key, and ignores what it does not
    know; so it is given only what it reads."""
    native, options = NATIVE[spec.name](spec)
    keys = ("params", "lr", "lr_scale", "weight_decay")
    return native([{key: group[key] for key in keys if key in group} for group in groups], lr=spec.lr, **options)


def state_of(native: Optimizer, group: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by "parameter/exp_avg" and so on; nothing for parameters that have not moved yet."""
    arrays: dict[str, np.ndarray] = {}
    for name, param in zip(group["names"], group["params"], strict=True):
        own = native._state[param]
        keys = {key: key for key in own} if isinstance(native, Own) else EAGER_KEYS
        arrays |= {f"{name}/{key}": _array(own[ours]) for key, ours in keys.items() if ours in own}
        if "exp_avg" in own and not isinstance(native, Own):
            arrays[f"{name}/step"] = np.asarray(native._state["step"], np.float32)
    return arrays


def set_state(native: Optimizer, group: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """The reverse; a parameter without an entry starts fresh."""
    keys = {key: key for key in native.keys} if isinstance(native, Own) else EAGER_KEYS
    if not isinstance(native, Own):
        native._state["step"] = steps_in(arrays, group["names"])
    for name, param in zip(group["names"], group["params"], strict=True):
        native._state[param] = {
            ours: _value(arrays[f"{name}/{key}"], param) for key, ours in keys.items() if f"{name}/{key}" in arrays
        }


def _array(value: Tensor | float) -> np.ndarray:
    return layers.copy(value) if isinstance(value, Tensor) else np.asarray(value, np.float32)


def _value(array: np.ndarray, param: Tensor) -> Tensor | float:
    return flow.tensor(array, device=param.device) if array.ndim else float(array)


def steps_in(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> int:
    """How many updates the state of these parameters has behind it: OneFlow counts once for all of an optimizer."""
    counts = {int(arrays[f"{name}/step"]) for name in names if f"{name}/step" in arrays}
    if len(counts) > 1:
        raise UserError(
            f"optimizer state: {names[0]} and others beside it have made {sorted(counts)} steps; OneFlow "
            "counts once per optimizer: resume with framework=torch"
        )
    return counts.pop() if counts else 0
