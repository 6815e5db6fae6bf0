"""The training step over the groups that train: eager, or compiled whole.

MindSpore ignores a later `requires_grad = False`, so freezing is a step of its own per set of active groups, whose
gradient function knows the others not at all. It is kept: coming back to a set compiles nothing, and neither does a
new lr, which is a Parameter. The underscored methods are code that the compiler transforms: it knows loops over
indices and tuples that grow, and no comprehensions.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from layerwise_lr.framework import Clip, central_axes

from .layers import Whole


class TrainStep:
    """Forward, backward, one update of each native optimizer. What is compiled is so at the first call, with the
    batchnorm layers that rest then: one graph for all of it; where the batch comes in parts, one that each part goes
    through and one for the update, so that neither compiling nor memory grows with their number.

    Args:
        network: in training mode.
        natives: optimizers over the active parameters, each a part of the gradients, in order.
        centralized: names of the parameters whose gradient loses its mean.
        compiled: not op by op.
        scale: of the loss in the backward pass; loss and gradients are given without it.
        clip: of all gradients together.
        accumulate: number of parts.
    """

    def __init__(
        self,
        network: Whole,
        natives: Sequence[nn.Optimizer],
        centralized: frozenset[str],
        compiled: bool,
        scale: float,
        clip: Clip,
        accumulate: int,
    ) -> None:
        params = [p for native in natives for p in native.parameters]
        self.names = [p.name for p in params]
        self._network, self._loss, self._natives, self._scale = network, nn.CrossEntropyLoss(), tuple(natives), scale
        self._norm, self._value, self._parts = clip.norm, clip.value, accumulate
        edges = [sum(len(native.parameters) for native in natives[:i]) for i in range(len(natives) + 1)]
        self._ranges = tuple(pairwise(edges))
        self._axes = tuple(central_axes(p.shape) if p.name in centralized else () for p in params)
        self._differentiate = ms.value_and_grad(self._forward, None, ParameterTuple(params)) if params else None
        jit: Callable[[Any], Any] = ms.jit if compiled else lambda function: function
        self._run, self._adding, self._updating = jit(self._step), jit(self._add), jit(self._update)
        self._nothing = Tensor(0.0, ms.float32), tuple(Tensor(np.zeros(p.shape, np.float32)) for p in params)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One update; the loss before it (float32 scalar) and the gradients, neither clipped nor centralized.

        Args:
            x: float32 [B, C, H, W], or tokens [B, T].
            y: [B], or float32 [B, classes].
        """
        if self._parts == 1:
            self._starts_at(0)
            return self._run(tensor(x), tensor(y))  # type: ignore[no-any-return]
        (loss, gradients), size = self._nothing, len(x) // self._parts
        for first in range(0, len(x), size):
            self._starts_at(first)
            part = slice(first, first + size)
            loss, gradients = self._adding(tensor(x[part]), tensor(y[part]), loss, *gradients)
        return self._updating(loss, *gradients)  # type: ignore[no-any-return]

    def _starts_at(self, first: int) -> None:
        if self._network.dropouts:
            ops.assign(self._network.draw.first, Tensor(first, ms.int32))

    def _forward(self, x, y):
        return self._loss(self._network(x), y) * (self._scale / self._parts)

    def _step(self, x, y):
        loss, gradients = self._gradients(x, y)
        return self._update(loss, *gradients)

    def _add(self, x, y, loss, *gradients):
        """One part of the batch more: its share of loss and gradients."""
        more, own = self._gradients(x, y)
        result = ()
        for i in range(len(gradients)):
            result = (*result, gradients[i] + own[i])
        return loss + more, result

    def _gradients(self, x, y):
        """Where nothing trains, the running statistics alone move."""
        if self._differentiate is None:
            return self._loss(self._network(x), y) / self._parts, ()
        loss, gradients = self._differentiate(x, y)
        if self._scale != 1.0:
            loss, gradients = loss / self._scale, self._unscale(gradients)
        return loss, gradients

    def _update(self, loss, *gradients):
        """A tuple that is given whole is a constant to the compiler, and another one a new graph."""
        given = self._centralize(self._clip(gradients))
        for i in range(len(self._natives)):
            start, stop = self._ranges[i]
            loss = ops.depend(loss, self._natives[i](given[start:stop]))
        return loss, gradients

    def _clip(self, gradients):
        """As torch.nn.utils has it; ops.clip_by_norm is of each gradient by itself."""
        result = ()
        if self._norm is not None:
            squares, _ = self._nothing
            for i in range(len(gradients)):
                squares = squares + ops.sum(gradients[i] * gradients[i])
            factor = ops.minimum(self._norm / (ops.sqrt(squares) + 1e-6), 1.0)
            for i in range(len(gradients)):
                result = (*result, gradients[i] * factor)
            return result
        if self._value is not None:
            for i in range(len(gradients)):
                result = (*result, ops.clamp(gradients[i], -self._value, self._value))
            return result
        return gradients

    def _unscale(self, gradients):
        result = ()
        for i in range(len(gradients)):
            result = (*result, gradients[i] / self._scale)
        return result

    def _centralize(self, gradients):
        """Gradient centralization (Yong et al. 2020).

        MindSpore's own has no kernel on a CPU ("Unsupported op [Centralization]"), acts after weight decay and skips
        every layer whose inputs are no multiple of 16: so it is never the one that runs.
        """
        result = ()
        for i in range(len(gradients)):
            g = gradients[i]
            if self._axes[i]:
                g = g - ops.mean(g, self._axes[i], True)
            result = (*result, g)
        return result


def tensor(array: np.ndarray) -> Tensor:
    """float32 as it is; tokens and labels as int32, which every kernel takes."""
    return Tensor(array if array.dtype == np.float32 else array.astype(np.int32))
