"""Compiling costs seconds, so what was compiled serves again: networks and optimizers are lent, and come back when
whoever held them is gone."""

import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")
Holder = TypeVar("Holder")


class Shelf(Generic[T]):
    """Things by what they were made of; those that nobody holds."""

    def __init__(self) -> None:
        self._free: dict[Hashable, list[T]] = {}

    def lend(self, key: Hashable, make: Callable[[], T], hold: Callable[[T], Holder]) -> Holder:
        """hold(thing), a new one if none of this key is free; it is free again once that object is collected."""
        free = self._free.setdefault(key, [])
        thing = free.pop() if free else make()
        holder = hold(thing)
        weakref.finalize(holder, free.append, thing).atexit = False
        return holder
