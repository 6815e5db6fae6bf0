"""In a script's first step: which model and which schedulers are a MegEngine optimizer's."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import megengine.module as M
from megengine.optimizer import Optimizer

from layerwise_lr import framework as core


def first_step(run: Callable[[], object], act: Callable[[Any, Any, Sequence[Any], Any], object]) -> None:
    """As Native.first_step."""
    core.until_first_step(
        run, partial(core.stepping, Optimizer), lambda o: act(_owner(o), o, _schedulers(o), as_they_are)
    )


def as_they_are(model: M.Module) -> None:
    """The batch of a script: its gradients are in place already."""


def _owner(optimizer: Optimizer) -> M.Module:
    others = [_held(other) for other in core.alive(Optimizer)]
    modules = ((m, {id(p) for p in m.parameters()}, sum(1 for _ in m.modules())) for m in core.alive(M.Module))
    found: M.Module = core.owner(optimizer, _held(optimizer), others, modules)
    return found


def _held(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _schedulers(optimizer: Optimizer) -> list[Any]:
    return core.schedulers(lambda wrapped: wrapped is optimizer, core.children)
