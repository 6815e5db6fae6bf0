"""Any MegEngine Module: its parameters and nesting, groups for MegEngine's optimizers, lrs in eager and traced steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import megengine.module as M
import numpy as np
from megengine import Parameter, Tensor
from megengine.optimizer import Optimizer
from megengine.utils.naming import AutoNaming

from layerwise_lr import framework as core

from . import finding
from .trial import MegEngineTrial

LAYER_TYPES: Mapping[str, tuple[type, ...]] = {
    "conv": (M.Conv2d.__base__,),
    "batchnorm": (M.BatchNorm2d.__base__,),
    "layernorm": (M.LayerNorm, M.GroupNorm, M.InstanceNorm),
    "embedding": (M.Embedding,),
    "attention": (M.MultiHeadAttention,),
    "linear": (M.Linear,),
}


class MegEngineNative(core.Native):
    """Any Module. MegEngine has no requires_grad: a parameter is frozen where no GradManager is attached to it, so all
    are planned for, and `freeze` or `groups` of the plan say which are not to move."""

    package: ClassVar[str] = "megengine"

    def describe(self, batch: Any = None, trace: bool = True) -> core.Description:
        """From the modules' attributes, in the order in which they were assigned (named_modules sorts by name); the trace
        is by forward pre-hooks."""
        modules = list(_modules(self.model))
        given = map(Tensor, core.likely_inputs(modules))
        calls, notes = core.first_calls(self._trace, batch, given) if trace else ({}, ())
        return core.describe(modules, calls, notes)

    def param_groups(self, plan: core.Plan) -> list[dict[str, Any]]:
        """Plain param_groups: params, lr, weight_decay, and a name. The optimizer keeps these very dicts."""
        return core.param_groups(plan, core.tensors(_modules(self.model)))

    def scheduler(self, optimizer: Optimizer, plan: core.Plan, start: int) -> core.GroupPlanScheduler:
        """For eager steps and for traced ones, with the optimizer inside of the trace or outside: Python runs at each, and
        reads group["lr"]. Only step() itself stays outside."""
        return core.GroupPlanScheduler(optimizer, [group.get("name") for group in optimizer.param_groups], plan, start)

    def trial(self, optimizer: Any, schedulers: Sequence[Any], batch: Any) -> MegEngineTrial:
        """Of any optimizer with param_groups; a traced step reads the same lrs at each call."""
        return MegEngineTrial(self.model, optimizer, schedulers, batch, core.tensors(_modules(self.model)))

    @classmethod
    def first_step(cls, run: Callable[[], object], act: Callable[[Any, Any, Sequence[Any], Any], object]) -> None:
        """By the step of every optimizer that it makes."""
        finding.first_step(run, act)

    def _trace(self, batch: Any) -> dict[str, int]:
        calls: dict[str, int] = {}
        modules = [(path, m) for path, m in _walk(self.model, "", set()) if isinstance(m, M.Module)]
        handles = [m.register_forward_pre_hook(_noting(core.bare_name(path), calls)) for path, m in modules]
        try:
            with _as_it_was(self.model):
                self.model.eval()
                core.run(self.model, batch)
        finally:
            for handle in handles:
                handle.remove()
        return calls


def _modules(model: M.Module) -> Iterator[core.NativeModule]:
    for path, owner in _walk(model, "", set()):
        own = tuple(_tensor(owner, key, value) for key, value in _held(owner) if isinstance(value, Tensor))
        series = isinstance(owner, M.Sequential | list | tuple | dict)
        yield core.NativeModule(path, type(owner).__name__, core.layer_type(owner, LAYER_TYPES), series, own)


def _walk(owner: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Modules, and the lists, tuples and dicts that hold some: MegEngine names through those."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    yield path, owner
    for key, value in _held(owner):
        if not isinstance(value, Tensor):
            yield from _walk(value, f"{path}.{key}" if path else key, seen)


def _held(owner: Any) -> Iterator[tuple[str, Any]]:
    """What it holds, by name."""
    if isinstance(owner, list | tuple):
        items = [(str(i), value) for i, value in enumerate(owner)]
    else:
        items = list((owner if isinstance(owner, dict) else vars(owner)).items())
    for key, value in items:
        if isinstance(value, Tensor | M.Module) or (isinstance(value, list | tuple | dict) and any(_held(value))):
            yield key, value


def _tensor(owner: Any, key: str, tensor: Tensor) -> core.NativeTensor:
    """MegEngine keeps a bias as (1, C, 1, 1) and grouped filters as (groups, out, in, h, w)."""
    shape, conv = tuple(tensor.shape), isinstance(owner, LAYER_TYPES["conv"])
    if conv and key == "weight":
        shape = (shape[0] * shape[1], *shape[2:]) if owner.groups > 1 else shape
    elif conv or isinstance(owner, LAYER_TYPES["batchnorm"]):
        shape = (int(np.prod(shape)),)
    buffer = not isinstance(tensor, Parameter)
    return core.NativeTensor(key, tensor, shape, not buffer, buffer)


def _noting(path: str, calls: dict[str, int]) -> Callable[[M.Module, Any], None]:
    def first(module: M.Module, args: Any) -> None:
        calls.setdefault(path, len(calls))

    return first


@contextmanager
def _as_it_was(model: M.Module) -> Iterator[None]:
    """Training flags, buffers, and the scopes of names, which a failed forward leaves behind."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, np.array(buffer.numpy())) for buffer in model.buffers()]
    depth = len(AutoNaming.scopes)
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        for buffer, before in buffers:
            if not np.array_equal(buffer.numpy(), before):
                buffer[...] = Tensor(before, no_cache=True)
        while len(AutoNaming.scopes) > depth:
            AutoNaming.pop_scope()
