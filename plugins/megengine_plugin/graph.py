"""Forward and backward over the parameters that train: as Python runs it, or recorded by megengine.jit.trace.

A GradManager is attached to these parameters alone: that is MegEngine's freezing. A trace records a sequence of
operators on fixed shapes, so another set of parameters, other batchnorm layers at rest or another batch size needs
another trace; the optimizer stays outside, where it may change.
"""

from collections.abc import Callable, Sequence

import megengine.functional as F
import numpy as np
from megengine import Tensor
from megengine.autodiff import GradManager
from megengine.jit import trace

from layerwise_lr.framework import Step, Tree

from .layers import Model

Run = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class Trainable(Model):
    """A model with its loss and gradients. What has been recorded is kept: a trace takes seconds to compile.

    Args:
        tree, half: as in Model.
        traced: record the first call, run the compiled graph from the second on.
        scale: of the loss in the backward pass; gradients are given without it.
    """

    def __init__(self, tree: Tree, half: bool, traced: bool, scale: float) -> None:
        super().__init__(tree, half)
        self._traced, self._scale = traced, scale
        self._runs: dict[tuple[object, ...], Run] = {}

    def gradients(
        self, parts: Sequence[tuple[Tensor, Tensor]], names: tuple[str, ...], step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(mean cross-entropy, gradients of the parameters `names`), of each part by itself: their means."""
        self.step, self.rng = step, np.random.default_rng(step.seed)
        try:
            sums = self._part(*parts[0], names, step)
            for x, y in parts[1:]:
                sums = tuple(a + b for a, b in zip(sums, self._part(x, y, names, step), strict=True))
        finally:
            self.step = self.rng = None
        loss, *gradients = sums if len(parts) == 1 else (a / len(parts) for a in sums)
        return loss, dict(zip(names, gradients, strict=True))

    def _part(self, x: Tensor, y: Tensor, names: tuple[str, ...], step: Step) -> tuple[Tensor, ...]:
        key = names, step.frozen, tuple(x.shape), tuple(y.shape)
        if key not in self._runs:
            run = self._run(names)
            self._runs[key] = trace(run, symbolic=True, symbolic_shape=False) if self._traced else run
        try:
            return self._runs[key](x, y)
        except BaseException:
            del self._runs[key]  # a trace that failed once is poisoned
            raise

    def _run(self, names: tuple[str, ...]) -> Run:
        params = [self.arrays[name] for name in names]
        manager = GradManager().attach(params)

        def run(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            if not params:
                return (_loss(self(x), y),)
            for param in params:
                param.grad = None  # or backward would add to it
            with manager:
                loss = _loss(self(x), y)
                manager.backward(loss * self._scale)
            gradients = [param.grad if self._scale == 1 else param.grad / self._scale for param in params]
            for param in params:
                param.grad = None
            return (loss, *gradients)

        return run


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy; y: int32 [B], or soft targets float32 [B, classes]."""
    if y.ndim == 1:
        return F.loss.cross_entropy(logits, y, axis=1, with_logits=True, label_smooth=0, reduction="mean")
    return -F.sum(y * F.logsoftmax(logits, 1)) / y.shape[0]
