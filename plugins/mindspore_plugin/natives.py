"""The native optimizers of a plan, which groups they step now, and their state under torch's keys."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from layerwise_lr.framework import STATE_KEYS, Plan, by_optimizer

from .optimizers import NATIVE, Counted, Group, NAdam

BUFFERS = {nn.SGD: "accum", nn.Momentum: "moments"}
"""MindSpore's names of a momentum_buffer."""
STATE = (*BUFFERS.values(), "stat", "momentum_buffer", "square_avg", "exp_avg", "exp_avg_sq", "learning_rate")
"""Attributes of native optimizers that hold one Parameter per trained parameter."""


class Natives:
    """The native optimizers of a plan: per name in use one over all its groups, which owns lr and state, and for
    every other set of active groups one more that works on the same Parameters."""

    def __init__(self, groups: Sequence[Group], plan: Plan) -> None:
        self.groups, self.plan = groups, plan
        self.whole = {name: self._make(name, own) for name, own in by_optimizer(groups, plan).items()}
        self.lrs = [
            self.whole[g.optimizer].get_lr_parameter(native["params"][0])
            for g, native in zip(plan.groups, groups, strict=True)
        ]
        self.centralized = frozenset(n for g in plan.groups if g.grad_centralization for n in g.params)
        self.steps: dict[Hashable, Any] = {}
        """By active groups, resting batchnorm layers, clipping and parts: see steps.py."""

    def over(self, active: Sequence[bool]) -> list[nn.Optimizer]:
        """Native optimizers of the active groups alone; those without any are left out."""
        found = []
        for name, own in by_optimizer(list(zip(self.groups, active, strict=True)), self.plan).items():
            live = [native for native, on in own if on]
            if live:
                whole = self.whole[name]
                found.append(whole if len(live) == len(own) else _sharing(self._make(name, live), whole))
        return found

    def _make(self, name: str, groups: Sequence[Group]) -> nn.Optimizer:
        """One native optimizer; order_params keeps the plan's order."""
        spec, order = self.plan.optimizers[name], [p for native in groups for p in native["params"]]
        made = NATIVE[spec.name](spec, [*groups, {"order_params": order}])
        for attribute in (*STATE, "momentum", "global_step", *NAdam.starts):  # names must be unique in a compiled step
            held = getattr(made, attribute, ())
            for p in {id(p): p for p in ([held] if isinstance(held, Parameter) else held)}.values():
                p.name = f"{name}.{p.name}"
        return made


class Optimizers:
    """One run's native optimizers, fresh, and their state under torch's keys."""

    def __init__(self, natives: Natives) -> None:
        self.natives = natives
        self.set_state({})

    def state(self) -> dict[str, np.ndarray]:
        """Arrays by "parameter/key", of the parameters that have trained."""
        arrays: dict[str, np.ndarray] = {}
        for name, native in self.natives.whole.items():
            for key, held in self._held(name, native).items():
                arrays |= {
                    f"{p.name}/{key}": np.array(h.asnumpy()) for p, h in zip(native.parameters, held, strict=True)
                }
            for key, (held, _) in _numbers(native).items():
                arrays |= {f"{p.name}/{key}": n for p, n in zip(native.parameters, held.asnumpy(), strict=True)}
        return {key: np.asarray(array) for key, array in arrays.items() if key.rpartition("/")[0] in self.begun}

    def set_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The reverse; what has no entry starts fresh."""
        self.begun = {key.rpartition("/")[0] for key in arrays}
        for name, native in self.natives.whole.items():
            for key, held in self._held(name, native).items():
                for p, h in zip(native.parameters, held, strict=True):
                    _put(h, arrays.get(f"{p.name}/{key}", np.zeros(p.shape)))
            if isinstance(native, nn.SGD):  # stat 1: the next gradient replaces the buffer
                for p, stat in zip(native.parameters, native.stat, strict=True):
                    _put(stat, np.full(p.shape, f"{p.name}/momentum_buffer" not in arrays))
            for key, (held, start) in _numbers(native).items():
                _put(held, np.array([float(arrays.get(f"{p.name}/{key}", start)) for p in native.parameters]))

    def _held(self, name: str, native: nn.Optimizer) -> dict[str, ParameterTuple]:
        """torch's key -> one Parameter per trained parameter; what a Counted holds is one for all, and not here."""
        keys = STATE_KEYS[self.natives.plan.optimizers[name].name]
        buffer = BUFFERS.get(type(native), "momentum_buffer")
        attributes = {key: buffer if key == "momentum_buffer" else key for key in keys if key not in _numbers(native)}
        return {key: getattr(native, own) for key, own in attributes.items() if hasattr(native, own)}


def _sharing(part: nn.Optimizer, whole: nn.Optimizer) -> nn.Optimizer:
    """`part`, working on the lr and state Parameters of `whole`."""
    place = {id(p): i for i, p in enumerate(whole.parameters)}
    at = [place[id(p)] for p in part.parameters]
    for attribute in STATE:
        if hasattr(part, attribute):
            held = getattr(whole, attribute)
            setattr(part, attribute, ParameterTuple([held[i] for i in at]))
    if isinstance(part, Counted):
        part.count(at, {name: getattr(whole, name) for name in part.starts})
    return part


def _numbers(native: nn.Optimizer) -> dict[str, tuple[Parameter, float]]:
    """torch's key -> (what a Counted holds under it, how it starts)."""
    starts = native.starts if isinstance(native, Counted) else {}
    return {"step" if name == "steps" else name: (getattr(native, name), value) for name, value in starts.items()}


def _put(parameter: Parameter, array: np.ndarray) -> None:
    ops.assign(parameter, Tensor(np.ascontiguousarray(array, np.float32)))
