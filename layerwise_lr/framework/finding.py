"""Somebody's script as far as its first optimizer step, and whose that optimizer is: what plugins share.

A plugin arms its framework; here the script is ended, and model and schedulers are found among all that is alive.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import wraps
from typing import Any

from ..planning import UserError

Caught = Callable[..., None]
"""Called with an optimizer that is about to step, and what else the plugin knows."""


class _Enough(BaseException):
    """Ends the script; no `except Exception` of its own holds it up."""


def until_first_step(
    run: Callable[[], object], arm: Callable[[Caught], AbstractContextManager[object]], act: Callable[..., object]
) -> None:
    """`run()`, and `act(optimizer, ...)` where the first optimizer is about to step; then the end.

    Args:
        run: the script.
        arm: a context in which each optimizer calls what it is given before it steps.
        act: what steps in it is let through.

    Raises:
        UserError: no optimizer stepped.
    """
    begun, ended = list[Any](), list[BaseException]()

    def caught(optimizer: Any, *more: Any) -> None:
        if not begun:
            begun.append(optimizer)
            try:
                act(optimizer, *more)
                ended.append(_Enough())
            except BaseException as error:
                ended.append(error)
        if ended:
            raise _Enough

    with arm(caught), suppress(_Enough):
        run()
    if not begun:
        raise UserError("it ended without an optimizer step: verify needs one")
    if not isinstance(ended[0], _Enough):
        raise ended[0]


@contextmanager
def stepping(base: type, caught: Caught) -> Iterator[None]:
    """Every `step()` of the optimizers that are made inside is told of.

    Args:
        base: the framework's class of optimizers.
        caught: of until_first_step.
    """
    init = base.__init__  # type: ignore[misc]

    @wraps(init)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        step = self.step

        @wraps(step)
        def told(*args: Any, **kwargs: Any) -> Any:
            caught(self)
            return step(*args, **kwargs)

        self.step = told

    base.__init__ = made  # type: ignore[misc]
    try:
        yield
    finally:
        base.__init__ = init  # type: ignore[misc]


def owner(
    optimizer: Any, held: set[int], others: Iterable[set[int]], modules: Iterable[tuple[Any, set[int], int]]
) -> Any:
    """The module that owns most of the optimizer's parameters and none of another optimizer's (a GAN has two); of
    several the largest, of equal ones the innermost.

    Args:
        optimizer: whose model is wanted.
        held: ids of its parameters.
        others: of all optimizers.
        modules: (module, ids of its parameters, number of modules in it) of all.

    Raises:
        UserError: none owns them.
    """
    foreign = {p for theirs in others if not theirs & held for p in theirs}
    rows = [(len(own & held), not own & foreign, len(own), -size, m) for m, own, size in modules if own & held]
    if not rows:
        raise UserError(
            f"no module owns the parameters of {type(optimizer).__name__}: write a --factory that gives the model"
        )
    return max(rows, key=lambda row: row[:-1])[-1]


def schedulers(wraps_it: Callable[[Any], bool], parts: Callable[[Any], Iterable[Any]]) -> list[Any]:
    """What writes an optimizer's lrs, with a step() of its own.

    Args:
        wraps_it: whether what a thing has as its `optimizer` is the one.
        parts: schedulers that one is made of; they are left out.
    """
    found = [
        thing
        for thing in alive(object)
        if getattr(type(thing), "step", None) and wraps_it(vars(thing).get("optimizer")) and _writes_lrs(thing)
    ]
    inner = {id(part) for whole in found for part in parts(whole)}
    return [thing for thing in found if id(thing) not in inner]


def _writes_lrs(thing: Any) -> bool:
    """A trainer has an optimizer and a step, too, and must not be stepped."""
    named = type(thing).__name__.lower()
    counts = any(hasattr(thing, name) for name in ("last_epoch", "last_step", "current_epoch", "step_update"))
    return counts or "sched" in named or named.endswith("lr")


def alive(kind: type) -> Iterator[Any]:
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


def children(scheduler: Any) -> Sequence[Any]:
    """Schedulers that it is made of."""
    found: Sequence[Any] = getattr(scheduler, "schedulers", None) or getattr(scheduler, "_schedulers", None) or ()
    return found
