"""Everything that a step may change, kept and put back in place: whoever holds a reference holds what it held."""

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, ClassVar

import numpy as np

PLAIN = (str, bytes, int, float, complex, bool, type(None), type)
CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType)


class Memento(ABC):
    """What optimizers, schedulers and modules hold now: their attributes, whatever these contain, tensors, gradients,
    random generators. Functions are not looked into: what a closure counts is not kept.

    Args:
        roots: modules with all of theirs; other objects with all that they reach, other modules left out.
    """

    tensor: ClassVar[type]
    module: ClassVar[Any]
    optimizer: ClassVar[type]
    generators: ClassVar[Any]
    plain: ClassVar[tuple[type, ...]]
    """The framework's own classes; `generators` is a tuple, and what is of a class in `plain` does not change."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self.optimizers: list[Any] = []
        self._undo: list[Callable[[], object]] = []
        self._seen: dict[int, Any] = {}
        for root in roots:
            for module in root.modules() if isinstance(root, self.module) else ():
                self._module(module)
            self._visit(root)

    def restore(self) -> None:
        """All as it was."""
        for undo in self._undo:
            undo()

    @abstractmethod
    def undo_tensor(self, tensor: Any) -> Callable[[], object]:
        """What gives it back its numbers, and its gradient, without a trace in any graph."""

    def _visit(self, thing: Any) -> None:
        if isinstance(thing, (*PLAIN, *CODE, *self.plain, self.module)) or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing
        generators: Any = (np.random.RandomState, *self.generators)
        if isinstance(thing, self.tensor):
            self._undo.append(self.undo_tensor(thing))
        elif isinstance(thing, generators):
            self.keep(thing.get_state(), thing.set_state)
        elif isinstance(thing, random.Random):
            self.keep(thing.getstate(), thing.setstate)
        elif isinstance(thing, np.random.Generator):
            bits, state = thing.bit_generator, thing.bit_generator.state
            self._undo.append(lambda: setattr(bits, "state", state))
        elif isinstance(thing, np.ndarray):
            self.keep(thing.copy(), lambda held: np.copyto(thing, held))
        else:
            self._container(thing)

    def keep(self, held: Any, put: Callable[[Any], object]) -> None:
        """`put` will be given `held`."""
        self._undo.append(lambda: put(held))

    def _container(self, thing: Any) -> None:
        inside: Iterable[Any] = ()
        if isinstance(thing, dict):
            self.keep(dict(thing), partial(refill, thing))
            inside = [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | deque):
            self.keep(list(thing), partial(refill, thing))
            inside = list(thing)
        elif isinstance(thing, set):
            self.keep(set(thing), partial(refill, thing))
        elif isinstance(thing, tuple):
            inside = thing
        for one in inside:
            self._visit(one)
        if isinstance(getattr(thing, "__dict__", None), dict):
            if isinstance(thing, self.optimizer):
                self.optimizers.append(thing)
            self._visit(thing.__dict__)

    def _module(self, module: Any) -> None:
        own = module.__dict__
        self.keep(dict(own), partial(refill, own))
        for value in own.values():
            if isinstance(value, dict):
                self.keep(dict(value), partial(refill, value))
            elif isinstance(value, self.generators):
                self._visit(value)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                self._visit(tensor)


def refill(container: Any, held: Any) -> None:
    """The very container, with what it held."""
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(held)
