"""In a script's first step: which model and which schedulers are a MindSpore optimizer's. All runs in PyNative, whatever
the script says: Python does not see the steps of what is compiled."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import mindspore as ms
from mindspore import nn
from mindspore.experimental import optim

from layerwise_lr import framework as core

from .trial import InHand

OPTIMIZERS = (nn.Optimizer, optim.Optimizer)


def first_step(run: Callable[[], object], act: Callable[[Any, Any, Sequence[Any], Any], object]) -> None:
    """As Native.first_step."""

    def given(optimizer: nn.Cell, gradients: Sequence[Any]) -> None:
        batch = InHand({id(p): g for p, g in zip(optimizer.parameters, gradients, strict=False)})
        act(_owner(optimizer), optimizer, core.schedulers(lambda w: w is optimizer, core.children), batch)

    core.until_first_step(run, _armed, given)


@contextmanager
def _armed(caught: Callable[..., None]) -> Iterator[None]:
    """Every call of a Cell; whoever sets the mode gets PyNative, where value_and_grad and ms.jit are Python."""
    call, put, mode, jit = nn.Cell.__call__, ms.set_context, ms.get_context("mode"), os.environ.get("MS_JIT")

    @wraps(call)
    def told(cell: nn.Cell, *args: Any, **kwargs: Any) -> Any:
        if isinstance(cell, OPTIMIZERS):
            caught(cell, args[0])
        return call(cell, *args, **kwargs)

    @wraps(put)
    def pynative(**given: Any) -> Any:
        return put(**{**given, "mode": ms.PYNATIVE_MODE})

    nn.Cell.__call__, os.environ["MS_JIT"] = told, "0"
    ms.set_context = ms.context.set_context = pynative
    ms.set_context()
    try:
        yield
    finally:
        nn.Cell.__call__ = call
        ms.set_context = ms.context.set_context = put
        ms.set_context(mode=mode)
        os.environ.pop("MS_JIT")
        os.environ |= {"MS_JIT": jit} if jit is not None else {}


def _owner(optimizer: nn.Cell) -> nn.Cell:
    """Cells that have an optimizer in them train a model, and are none."""
    others = [_held(other) for kind in OPTIMIZERS for other in core.alive(kind)]
    cells = ((cell, [own for _, own in cell.cells_and_names()]) for cell in core.alive(nn.Cell))
    modules = (
        (cell, {id(p) for p in cell.get_parameters()}, len(inner))
        for cell, inner in cells
        if not any(isinstance(own, OPTIMIZERS) for own in inner)
    )
    found: nn.Cell = core.owner(optimizer, _held(optimizer), others, modules)
    return found


def _held(optimizer: nn.Cell) -> set[int]:
    return {id(p) for p in optimizer.parameters}
