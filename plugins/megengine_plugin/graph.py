"""Forward and backward over the parameters that train: as Python runs it, or recorded by megengine.jit.trace.

The GradManager is attached to these parameters alone: that is MegEngine's freezing. A trace records a sequence of
operators on fixed shapes, so another set of parameters or another batch size needs another trace; the optimizer stays
outside, where it may change.
"""

from collections.abc import Sequence

from megengine import Tensor
from megengine.autodiff import GradManager
from megengine.jit import trace

from . import layers


class Step:
    """Loss and gradients of `names`.

    Args:
        model: in training mode when called.
        names: canonical names of the parameters that train.
        traced: record the first call, run the compiled graph from the second on.
        scale: of the loss in the backward pass; gradients are given without it.
    """

    def __init__(self, model: layers.Model, names: Sequence[str], traced: bool, scale: float) -> None:
        self.params = [model.arrays[name] for name in names]
        self._model, self._traced, self._scale = model, traced, scale
        self._manager = GradManager().attach(self.params)
        self._traces: dict[tuple[int, ...], trace] = {}

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(mean cross-entropy, gradients in the order of `params`)."""
        for param in self.params:
            param.grad = None  # or backward would add to it
        loss, *gradients = self._replay(x, y) if self._traced else self._run(x, y)
        return loss, gradients

    def _replay(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """One trace per shape: shapes are constants in it."""
        key = tuple(x.shape)
        if key not in self._traces:
            self._traces[key] = trace(self._run, symbolic=True, symbolic_shape=False)
        try:
            return self._traces[key](x, y)
        except BaseException:
            del self._traces[key]  # a trace that failed once is poisoned
            raise

    def _run(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        if not self.params:
            return (layers.loss(self._model(x), y),)
        with self._manager:
            loss = layers.loss(self._model(x), y)
            self._manager.backward(loss * self._scale)
        gradients = tuple(param.grad if self._scale == 1 else param.grad / self._scale for param in self.params)
        for param in self.params:
            param.grad = None
        return (loss, *gradients)


class Steps:
    """The steps of one model, one per set of training parameters, kept: a trace takes seconds to compile."""

    def __init__(self, model: layers.Model, traced: bool, scale: float) -> None:
        self._model, self._traced, self._scale = model, traced, scale
        self._made: dict[tuple[str, ...], Step] = {}

    def __call__(self, names: Sequence[str]) -> Step:
        """The step that trains `names`."""
        key = tuple(names)
        if key not in self._made:
            self._made[key] = Step(self._model, key, self._traced, self._scale)
        return self._made[key]
