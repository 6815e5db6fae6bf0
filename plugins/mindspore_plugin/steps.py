"""The training step over the groups that train: eager, or compiled whole.

MindSpore ignores a later `requires_grad = False`, so freezing is a step of its own per set of active groups, whose
gradient function knows the others not at all. It is kept: coming back to a set compiles nothing, and neither does a
new lr, which is a Parameter.
"""

from collections.abc import Sequence
from itertools import pairwise

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from layerwise_lr.framework import central_axes


class TrainStep:
    """Forward, backward, one update of each native optimizer. What is compiled is so at the first call, with the
    batchnorm layers that rest then.

    Args:
        network: in training mode.
        natives: optimizers over the active parameters, each a part of the gradients, in order.
        centralized: names of the parameters whose gradient loses its mean.
        compiled: one graph for all of it.
        scale: of the loss in the backward pass; loss and gradients are given without it.
    """

    def __init__(
        self,
        network: nn.Cell,
        natives: Sequence[nn.Optimizer],
        centralized: frozenset[str],
        compiled: bool,
        scale: float,
    ) -> None:
        params = [p for native in natives for p in native.parameters]
        self.names = [p.name for p in params]
        self._network, self._loss, self._natives, self._scale = network, nn.CrossEntropyLoss(), tuple(natives), scale
        edges = [sum(len(native.parameters) for native in natives[:i]) for i in range(len(natives) + 1)]
        self._parts = tuple(pairwise(edges))
        self._axes = tuple(central_axes(p.shape) if p.name in centralized else () for p in params)
        self._differentiate = ms.value_and_grad(self._forward, None, ParameterTuple(params)) if params else None
        step = self._step if params else self._look
        self._run = ms.jit(step) if compiled else step

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One update; the loss before it (float32 scalar) and the gradients, not yet centralized.

        Args:
            x: float32 [B, C, H, W] or int32 [B, T].
            y: int32 [B], the one type that the loss's kernel takes.
        """
        return self._run(x, y)  # type: ignore[no-any-return]

    def _forward(self, x, y):
        return self._loss(self._network(x), y) * self._scale

    def _look(self, x, y):
        """Nothing trains: the running statistics alone move."""
        return self._loss(self._network(x), y), ()

    def _step(self, x, y):
        loss, gradients = self._differentiate(x, y)
        if self._scale != 1.0:
            loss, gradients = loss / self._scale, self._unscale(gradients)
        given = self._centralize(gradients)
        for i in range(len(self._natives)):
            start, stop = self._parts[i]
            loss = ops.depend(loss, self._natives[i](given[start:stop]))
        return loss, gradients

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
