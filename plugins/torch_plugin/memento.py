"""Everything that a step may change, kept and put back in place: whoever holds a reference holds what it held."""

import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

PLAIN = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device)
CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, nn.Module)


class Memento:
    """What optimizers, schedulers and modules hold now: their attributes, whatever these contain, tensors, gradients,
    random generators. Functions are not looked into: what a closure counts is not kept.

    Args:
        roots: modules with all of theirs; other objects with all that they reach, other modules left out.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.optimizers: list[torch.optim.Optimizer] = []
        self._undo: list[Callable[[], object]] = []
        self._seen: dict[int, Any] = {}
        for root in roots:
            for module in root.modules() if isinstance(root, nn.Module) else ():
                self._module(module)
            self._visit(root)

    def restore(self) -> None:
        """All as it was."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def _visit(self, thing: Any) -> None:
        if isinstance(thing, (*PLAIN, *CODE)) or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing
        if isinstance(thing, torch.Tensor):
            self._tensor(thing)
        elif isinstance(thing, torch.Generator | np.random.RandomState | random.Random):
            self._generator(thing)
        elif isinstance(thing, np.random.Generator):
            bits, state = thing.bit_generator, thing.bit_generator.state
            self._undo.append(lambda: setattr(bits, "state", state))
        elif isinstance(thing, np.ndarray):
            self._keep(thing.copy(), lambda held: np.copyto(thing, held))
        else:
            self._container(thing)

    def _keep(self, held: Any, put: Callable[[Any], object]) -> None:
        self._undo.append(lambda: put(held))

    def _container(self, thing: Any) -> None:
        inside: Iterable[Any] = ()
        if isinstance(thing, dict):
            self._keep(dict(thing), partial(_refill, thing))
            inside = [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | deque):
            self._keep(list(thing), partial(_refill, thing))
            inside = list(thing)
        elif isinstance(thing, set):
            self._keep(set(thing), partial(_refill, thing))
        elif isinstance(thing, tuple):
            inside = thing
        for one in inside:
            self._visit(one)
        if isinstance(getattr(thing, "__dict__", None), dict):
            if isinstance(thing, torch.optim.Optimizer):
                self.optimizers.append(thing)
            self._visit(thing.__dict__)

    def _module(self, module: nn.Module) -> None:
        own = module.__dict__
        self._keep(dict(own), partial(_refill, own))
        for value in own.values():
            if isinstance(value, dict):
                self._keep(dict(value), partial(_refill, value))
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                self._visit(tensor)

    def _tensor(self, tensor: torch.Tensor) -> None:
        data, held, asked, leaf = tensor.data, tensor.detach().clone(), tensor.requires_grad, tensor.is_leaf
        grad = tensor.grad if leaf else None
        numbers = None if grad is None else grad.detach().clone()
        for hooks in (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)):
            if hooks:
                self._keep(dict(hooks), partial(_refill, hooks))

        def undo() -> None:
            tensor.grad = None
            tensor.data = data
            tensor.copy_(held)
            if leaf:
                tensor.requires_grad_(asked)
                if grad is not None and numbers is not None:
                    grad.copy_(numbers)
                tensor.grad = grad

        def undo_result() -> None:
            tensor.detach().copy_(held)

        self._undo.append(undo if leaf else undo_result)

    def _generator(self, thing: Any) -> None:
        if isinstance(thing, torch.Generator | np.random.RandomState):
            self._keep(thing.get_state(), thing.set_state)
        else:
            self._keep(thing.getstate(), thing.setstate)


def _refill(container: Any, held: Any) -> None:
    """The very container, with what it held."""
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(held)


class Chance:
    """The random state of this process: torch's, on every device, NumPy's and Python's."""

    def __init__(self) -> None:
        self._torch, self._numpy, self._python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """As it was."""
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
