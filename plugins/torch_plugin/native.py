"""Any nn.Module: its parameters and its nesting, param_groups for any torch optimizer, and a scheduler of torch's own kind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from layerwise_lr import framework as core

from . import finding
from .scheduler import PlanScheduler
from .tracing import made_up, traced
from .trial import TorchTrial
from .zoo import Foreign

LAYER_TYPES: Mapping[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.modules.conv._ConvNd,),
    "batchnorm": (nn.modules.batchnorm._NormBase,),
    "layernorm": (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "attention": (nn.MultiheadAttention,),
    "linear": (nn.Linear, nn.Bilinear),
}
SERIES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class TorchNative(core.Native):
    """Any nn.Module, wrapped or not."""

    package: ClassVar[str] = "torch"

    def describe(self, batch: Any = None, trace: bool = True) -> core.Description:
        """From named_modules; the trace is by forward hooks."""
        model = unwrapped(self.model)
        modules = list(_modules(model))
        given = made_up(model, modules)
        calls, notes = core.first_calls(lambda made: traced(model, made), batch, given) if trace else ({}, ())
        return core.describe(modules, calls, notes, _exempt(model), _heads(model), _matcher(model))

    def param_groups(self, plan: core.Plan) -> list[dict[str, Any]]:
        """Plain param_groups: params, lr, weight_decay, and a name."""
        tensors = {core.bare_name(name): tensor for name, tensor in self.model.named_parameters()}
        return core.param_groups(plan, tensors)

    def scheduler(self, optimizer: torch.optim.Optimizer, plan: core.Plan, start: int) -> PlanScheduler:
        """A torch LRScheduler."""
        return PlanScheduler(optimizer, plan, start)

    def trial(self, optimizer: Any, schedulers: Sequence[Any], batch: Any) -> TorchTrial:
        """Of any optimizer that has a torch optimizer inside."""
        return TorchTrial(unwrapped(self.model), optimizer, schedulers, batch)

    @classmethod
    def first_step(cls, run: Callable[[], object], act: Callable[[Any, Any, Sequence[Any], Any], object]) -> None:
        """By torch's global optimizer hook."""
        finding.first_step(run, act)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel, torch.compile and our own Foreign."""
    while True:
        inner = model.net if isinstance(model, Foreign) else getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _modules(model: nn.Module) -> Iterator[core.NativeModule]:
    """Every module with its parameters, tied ones with each of their owners, and its buffers that are saved."""
    for path, module in model.named_modules():
        own = [_parameter(path, key, p) for key, p in module._parameters.items() if p is not None]
        own += [
            core.NativeTensor(key, buffer, tuple(buffer.shape), False, True)
            for key, buffer in module._buffers.items()
            if buffer is not None and key not in module._non_persistent_buffers_set and key != "num_batches_tracked"
        ]
        kind = core.layer_type(module, LAYER_TYPES)
        yield core.NativeModule(path, type(module).__name__, kind, isinstance(module, SERIES), tuple(own))


def _parameter(path: str, key: str, parameter: nn.Parameter) -> core.NativeTensor:
    if isinstance(parameter, nn.UninitializedParameter):
        raise core.UserError(f"parameter {path}.{key} has no shape yet: run the model once on a batch, then plan")
    return core.NativeTensor(key, parameter, tuple(parameter.shape), parameter.requires_grad)


def _exempt(model: nn.Module) -> set[str]:
    """Names that the model's author exempts from weight decay (timm's `no_weight_decay`)."""
    asked = getattr(model, "no_weight_decay", None)
    return {core.bare_name(name) for name in asked()} if callable(asked) else set()


def _matcher(model: nn.Module) -> Mapping[str, Any] | None:
    asked = getattr(model, "group_matcher", None)
    return asked(coarse=False) if callable(asked) else None


def _heads(model: nn.Module) -> tuple[str, ...]:
    """As timm's models name their classifier."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)
