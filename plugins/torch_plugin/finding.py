"""Somebody's script as far as its first optimizer step: torch's hook, and which model and schedulers are that optimizer's."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import optimizer as optimizers

from layerwise_lr import framework as core

from . import driving
from .trial import genuine, innermost


def first_step(run: Callable[[], object], act: Callable[[Any, Any, Sequence[Any], Any], object]) -> None:
    """As Native.first_step."""
    core.until_first_step(run, _armed, lambda o: act(owner(o), o, schedulers(o), as_they_are))


def as_they_are(model: nn.Module) -> None:
    """The batch of a script: its gradients are in place already."""


@contextmanager
def _armed(caught: Callable[..., None]) -> Iterator[None]:
    handle = optimizers.register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: caught(optimizer))
    try:
        yield
    finally:
        handle.remove()


def owner(optimizer: torch.optim.Optimizer) -> nn.Module:
    """As core.owner."""
    others = [_held(other) for other in core.alive(torch.optim.Optimizer) if genuine(other)]
    modules = ((m, {id(p) for p in m.parameters()}, sum(1 for _ in m.modules())) for m in core.alive(nn.Module))
    found: nn.Module = core.owner(optimizer, _held(optimizer), others, modules)
    return found


def _held(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def schedulers(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What has this very optimizer, wrapped or not."""
    return core.schedulers(
        lambda wrapped: isinstance(wrapped, torch.optim.Optimizer) and innermost(wrapped) is optimizer,
        lambda whole: (part for part in driving.tree([whole]) if part is not whole),
    )
