"""Everything that a step of torch may change, kept and put back."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from layerwise_lr import framework as core


class Memento(core.Memento):
    """Of torch's optimizers, schedulers and modules."""

    tensor: ClassVar[type] = torch.Tensor
    module: ClassVar[type] = nn.Module
    optimizer: ClassVar[type] = torch.optim.Optimizer
    generators: ClassVar[tuple[Any, ...]] = (torch.Generator,)
    plain: ClassVar[tuple[type, ...]] = (torch.dtype, torch.device)

    @torch.no_grad()
    def restore(self) -> None:
        """All as it was."""
        super().restore()

    def undo_tensor(self, tensor: torch.Tensor) -> Callable[[], object]:
        """Data, gradient, hooks, whether a gradient is wanted."""
        data, held, asked, leaf = tensor.data, tensor.detach().clone(), tensor.requires_grad, tensor.is_leaf
        grad = tensor.grad if leaf else None
        numbers = None if grad is None else grad.detach().clone()
        for hooks in (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)):
            if hooks:
                self.keep(dict(hooks), partial(core.refill, hooks))

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

        return undo if leaf else undo_result


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
