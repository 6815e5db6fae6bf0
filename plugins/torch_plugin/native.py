"""Any nn.Module: its parameters and its nesting, param_groups for any torch optimizer, and a scheduler of torch's own kind."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from layerwise_lr import framework as core

from . import finding
from .scheduler import PlanScheduler
from .tracing import called
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
        calls, notes = called(model, batch) if trace else ({}, ())
        exempt = _exempt(model)
        rows: list[core.ParamInfo] = []
        arrays: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        users: dict[int, list[str]] = {}
        paths = {core.bare_name(path): module for path, module in model.named_modules()}
        for path, module in paths.items():
            for tensor in module._parameters.values():
                if tensor is not None:
                    users.setdefault(id(tensor), []).append(path)
        for name, tensor, trainable in _tensors(model):
            path, _, key = name.rpartition(".")
            owner = paths[path]
            kind = "token" if name in exempt or _loose(key, owner) else layer_type(owner)
            rows.append(core.ParamInfo(name, tuple(tensor.shape), kind, _role(key, kind, trainable), 0, trainable))
            first = min(users.get(id(tensor), [path]), key=lambda p: calls.get(p, len(calls)))
            arrays.setdefault(first, []).append((name, tuple(tensor.shape)))
        modules = tuple(
            core.Module(path, type(m).__name__, isinstance(m, SERIES), tuple(arrays.get(path, ())), calls.get(path))
            for path, m in paths.items()
        )
        return core.Description(tuple(rows), modules, _heads(model), _matcher(model), notes)

    def param_groups(self, plan: core.Plan) -> list[dict[str, Any]]:
        """Plain param_groups: params, lr, weight_decay, and a name."""
        tensors = {core.bare_name(name): tensor for name, tensor in self.model.named_parameters()}
        return [
            {
                "params": [tensors[name] for name in group.params],
                "lr": lr,
                "weight_decay": group.weight_decay,
                "name": group.name,
            }
            for group, lr in zip(plan.groups, plan.lrs(0), strict=True)
        ]

    def scheduler(self, optimizer: torch.optim.Optimizer, plan: core.Plan, start: int) -> PlanScheduler:
        """A torch LRScheduler."""
        return PlanScheduler(optimizer, plan, start)

    def trial(self, optimizer: Any, schedulers: Sequence[Any], batch: Any) -> TorchTrial:
        """Of any optimizer that has a torch optimizer inside."""
        return TorchTrial(unwrapped(self.model), optimizer, schedulers, batch)

    @classmethod
    def first_step(cls, run: Callable[[], object], act: Callable[[Any, Any, Sequence[Any]], object]) -> None:
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


def layer_type(module: nn.Module) -> str:
    """In the words of ParamInfo; a layer of another kind by its class's name."""
    known = (name for name, classes in LAYER_TYPES.items() if isinstance(module, classes))
    named = type(module).__name__.lower()
    return next(known, "layernorm" if named.endswith("norm") else "conv" if named.startswith("conv") else named)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Parameters, then buffers that are saved, by bare name; tied ones once."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise core.UserError(f"parameter {name} has no shape yet: run the model once on a batch, then plan")
        yield core.bare_name(name), parameter, parameter.requires_grad
    saved = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in saved and not name.endswith("num_batches_tracked"):
            yield core.bare_name(name), buffer, False


def _role(key: str, kind: str, parameter: bool) -> str:
    if kind.endswith("norm"):
        return {"weight": "scale", "bias": "shift"}.get(key, "buffer")
    return "bias" if key.endswith("bias") else "weight"


def _loose(key: str, owner: nn.Module) -> bool:
    """Whether an array is no layer's weight, but a token or a position table beside layers."""
    beside = any(next(child.parameters(), None) is not None for child in owner.children())
    return beside and not re.search("weight|bias", key)


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
