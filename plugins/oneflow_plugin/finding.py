"""Whose an OneFlow optimizer is: an nn.Graph's, or in a script's first step some model's and some schedulers'."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import oneflow as flow
from oneflow import nn

from layerwise_lr import framework as core


def refuse_graphs(optimizer: Any) -> None:
    """An nn.Graph steps by itself, from state of its own that cannot be put back.

    Raises:
        UserError: one has this optimizer.
    """
    gc.collect()
    for graph in core.alive(nn.Graph):
        if any(own["optim"] is optimizer for own in vars(graph).get("_opts", ())):
            name = type(graph).__name__
            raise core.UserError(
                f"cannot be measured: the nn.Graph {name} compiles the lrs of this {type(optimizer).__name__} in, and keeps "
                "state that cannot be put back; verify the module and the optimizer before the Graph is made"
            )


def first_step(run: Callable[[], object], act: Callable[[Any, Any, Sequence[Any], Any], object]) -> None:
    """As Native.first_step."""
    core.until_first_step(run, _armed, lambda o: act(_owner(o), o, _schedulers(o), as_they_are))


def as_they_are(model: nn.Module) -> None:
    """The batch of a script: its gradients are in place already."""


@contextmanager
def _armed(caught: Callable[..., None]) -> Iterator[None]:
    """Graphs that have an optimizer, too."""
    call = nn.Graph.__call__

    @wraps(call)
    def told(graph: nn.Graph, *args: Any, **kwargs: Any) -> Any:
        for own in graph._opts:
            caught(own["optim"])
        return call(graph, *args, **kwargs)

    nn.Graph.__call__ = told
    try:
        with core.stepping(flow.optim.Optimizer, caught):
            yield
    finally:
        nn.Graph.__call__ = call


def _owner(optimizer: Any) -> nn.Module:
    others = [_held(other) for other in core.alive(flow.optim.Optimizer)]
    modules = ((m, {id(p) for p in m.parameters()}, sum(1 for _ in m.modules())) for m in core.alive(nn.Module))
    found: nn.Module = core.owner(optimizer, _held(optimizer), others, modules)
    return found


def _held(optimizer: Any) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group.parameters}


def _schedulers(optimizer: Any) -> list[Any]:
    return core.schedulers(lambda wrapped: wrapped is optimizer, core.children)
