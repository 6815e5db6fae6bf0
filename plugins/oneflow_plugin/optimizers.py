"""Optimizer names as OneFlow's own classes (and the one that it lacks), every number explicit; state under torch's keys."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import oneflow as flow

from layerwise_lr.framework import OptimizerSpec, UserError

from . import layers

Optimizer = Any  # flow.optim.Optimizer; OneFlow has no types


class LayerAdaptive(flow.optim.Optimizer):
    """Seed document 002's LayerAdaptiveLR, its formula as in the reference plugin; eager. A compiled Graph knows
    OneFlow's own optimizers alone (graph.check).

    Args:
        params: groups.
        lr: per step.
        betas, eps: as Adam's.
    """

    def __init__(self, params: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        for group in self.param_groups:
            self._state |= {param: {} for param in group.parameters}

    @flow.no_grad()
    def step(self) -> None:
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            for param in group.parameters:
                if param.grad is not None:
                    self._update(param, param.grad, group)

    def _update(self, param: flow.Tensor, gradient: flow.Tensor, group: Mapping[str, Any]) -> None:
        state, (beta1, beta2) = self._state[param], group["betas"]
        if not state:
            state.update(exp_avg=flow.zeros_like(param), exp_avg_sq=flow.zeros_like(param))
        average, square = state["exp_avg"], state["exp_avg_sq"]
        gradient = gradient + group["weight_decay"] * param
        average.mul_(beta1).add_((1 - beta1) * gradient)
        square.mul_(beta2).add_((1 - beta2) * gradient * gradient)
        size = group["lr"] * (average.abs() / (square.sqrt() + group["eps"])).mean()
        param.sub_(average * size)  # size * average takes OneFlow 0.9 150 times as long on a CPU


NATIVE: Mapping[str, Callable[[OptimizerSpec], tuple[Callable[..., Optimizer], dict[str, Any]]]] = {
    "sgd": lambda s: (flow.optim.SGD, {"momentum": 0.0, "dampening": 0.0, "nesterov": False}),
    "momentum": lambda s: (flow.optim.SGD, {"momentum": s.momentum, "dampening": 0.0, "nesterov": s.nesterov}),
    "adam": lambda s: (flow.optim.Adam, _adam(s)),
    "adamw": lambda s: (flow.optim.AdamW, _adam(s)),
    "layer_adaptive": lambda s: (LayerAdaptive, {"betas": tuple(s.betas), "eps": s.eps}),
}

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
        arrays |= {f"{name}/{key}": layers.copy(own[ours]) for key, ours in EAGER_KEYS.items() if ours in own}
        if "exp_avg" in own and not isinstance(native, LayerAdaptive):
            arrays[f"{name}/step"] = np.asarray(native._state["step"], np.float32)
    return arrays


def set_state(native: Optimizer, group: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """The reverse; a parameter without an entry starts fresh."""
    native._state["step"] = steps_in(arrays, group["names"])
    for name, param in zip(group["names"], group["params"], strict=True):
        native._state[param] = {
            ours: flow.tensor(arrays[f"{name}/{key}"], device=param.device)
            for key, ours in EAGER_KEYS.items()
            if f"{name}/{key}" in arrays
        }


def steps_in(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> int:
    """How many updates the state of these parameters has behind it: OneFlow counts once for all of an optimizer."""
    counts = {int(arrays[f"{name}/step"]) for name in names if f"{name}/step" in arrays}
    if len(counts) > 1:
        raise UserError(
            f"optimizer state: {names[0]} and others beside it have made {sorted(counts)} steps; OneFlow "
            "counts once per optimizer: resume with framework=torch"
        )
    return counts.pop() if counts else 0
