"""Somebody's script as far as its first optimizer step: which model and which schedulers are that optimizer's."""

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import optimizer as optimizers

from layerwise_lr import framework as core

from . import driving
from .trial import genuine, innermost


class _Enough(BaseException):
    """Ends the script; no `except Exception` of its own holds it up."""


def first_step(run: Callable[[], object], act: Callable[[Any, Any, Sequence[Any]], object]) -> None:
    """`run()`, and `act(model, optimizer, schedulers)` where the first optimizer is about to step; then the end.

    Raises:
        UserError: no optimizer stepped, or nothing owns its parameters.
    """
    begun: list[torch.optim.Optimizer] = []
    ended: list[BaseException] = []

    def caught(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not begun:
            begun.append(optimizer)  # what steps until the end is the trial's own doing
            try:
                act(owner(optimizer), optimizer, schedulers(optimizer))
                ended.append(_Enough())
            except BaseException as error:
                ended.append(error)
        if ended:
            raise _Enough

    handle = optimizers.register_optimizer_step_pre_hook(caught)
    try:
        run()
    except _Enough:
        pass
    finally:
        handle.remove()
    if not begun:
        raise core.UserError("it ended without an optimizer step: verify needs one")
    if not isinstance(ended[0], _Enough):
        raise ended[0]


def owner(optimizer: torch.optim.Optimizer) -> nn.Module:
    """The module that owns most of the optimizer's parameters and none of another optimizer's (a GAN has two); of
    several the largest, of equal ones the innermost."""
    held = _held(optimizer)
    alive = [_held(other) for other in _alive(torch.optim.Optimizer) if genuine(other)]
    others = {p for theirs in alive if not theirs & held for p in theirs}
    found: list[tuple[int, bool, int, int, nn.Module]] = []
    for module in _alive(nn.Module):
        own = {id(p) for p in module.parameters()}
        if own & held:
            found.append((len(own & held), not own & others, len(own), -sum(1 for _ in module.modules()), module))
    if not found:
        raise core.UserError(
            f"no nn.Module owns the parameters of {type(optimizer).__name__}: write a --factory that gives the model"
        )
    return max(found, key=lambda row: row[:-1])[-1]


def _held(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def schedulers(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What has this very optimizer as its `optimizer`, and a step() of its own; parts of others left out."""
    found = [
        thing
        for thing in _alive(object)
        if getattr(type(thing), "step", None)
        and isinstance(wrapped := vars(thing).get("optimizer"), torch.optim.Optimizer)
        and innermost(wrapped) is optimizer
        and _writes_lrs(thing)
    ]
    parts = {id(part) for whole in found for part in driving.tree([whole]) if part is not whole}
    return [thing for thing in found if id(thing) not in parts]


def _writes_lrs(thing: Any) -> bool:
    """A trainer has an optimizer and a step, too, and must not be stepped."""
    named = type(thing).__name__.lower()
    return hasattr(thing, "last_epoch") or hasattr(thing, "step_update") or "sched" in named or named.endswith("lr")


def _alive(kind: type) -> Iterator[Any]:
    """Objects with attributes of their own; no class, and none that only pretends to be of that kind."""
    for thing in gc.get_objects():
        cls = type(thing)
        if issubclass(cls, kind) and not issubclass(cls, type) and isinstance(_attributes(thing), dict):
            yield thing


def _attributes(thing: Any) -> Any:
    try:
        return object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return None
