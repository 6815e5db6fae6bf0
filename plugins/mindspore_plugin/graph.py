"""The training step over the groups that train: eager, or compiled whole.

MindSpore ignores a later `requires_grad = False`, so freezing is a step of its own per set of active groups, whose
gradient function knows the others not at all. It is kept: coming back to a set compiles nothing, and neither does a
new lr, which is a Parameter.
"""

from collections.abc import Sequence

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from . import layers
from .optimizers import Natives

Part = tuple[nn.Optimizer, int, int]


class Step:
    """Forward, backward, one update of each native optimizer.

    Args:
        model: in training mode.
        natives: optimizers over the active parameters, each a part of the gradients, in order.
        centralized: names of the parameters whose gradient loses its mean.
        compiled: one graph for all of it.
        scale: of the loss in the backward pass; loss and gradients are given without it.
    """

    def __init__(
        self, model: nn.Cell, natives: Sequence[nn.Optimizer], centralized: frozenset[str], compiled: bool, scale: float
    ) -> None:
        params = [p for native in natives for p in native.parameters]
        self.names = [p.name for p in params]
        self._loss, self._natives, edge = layers.Loss(model).set_train(True), tuple(natives), 0
        self._scale = scale
        edges = [edge := edge + len(native.parameters) for native in natives]
        self._parts = tuple(zip([0, *edges], edges, strict=False))
        self._centralized = tuple(p.name in centralized and p.ndim > 1 for p in params)
        self._differentiate = ms.value_and_grad(self._forward, None, ParameterTuple(params)) if params else None
        self._run = ms.jit(self._step) if compiled else self._step

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One update; the loss before it (float32 scalar) and what the optimizers were given."""
        if self._differentiate is None:
            return self._loss(x, y), ()  # everything is frozen: the running statistics alone move
        return self._run(x, y)  # type: ignore[no-any-return]

    def _forward(self, x, y):
        return self._loss(x, y) * self._scale

    def _step(self, x, y):
        loss, gradients = self._differentiate(x, y)
        loss, gradients = self._unscale(loss, gradients)
        given = self._centralize(gradients)
        for i in range(len(self._natives)):
            start, stop = self._parts[i]
            loss = ops.depend(loss, self._natives[i](given[start:stop]))
        return loss, gradients

    def _unscale(self, loss, gradients):
        if self._scale == 1.0:
            return loss, gradients
        result = ()
        for i in range(len(gradients)):
            result = (*result, gradients[i] / self._scale)
        return loss / self._scale, result

    def _centralize(self, gradients):
        """Gradient centralization (Yong et al. 2020): each output's gradient loses its mean; 2-D and up.

        MindSpore's own has no kernel on a CPU ("Unsupported op [Centralization]"), acts after weight decay and skips
        every layer whose inputs are no multiple of 16: so it is never the one that runs.
        """
        result = ()
        for i in range(len(gradients)):
            g = gradients[i]
            if self._centralized[i]:
                g = g - ops.mean(g, tuple(range(1, g.ndim)), True)
            result = (*result, g)
        return result


class Steps:
    """One `Step` per set of active groups, made once per `Natives`; the gradients of the last one."""

    def __init__(self, model: nn.Cell, natives: Natives, compiled: bool, scale: float) -> None:
        self._model, self._natives, self._compiled, self._scale = model, natives, compiled, scale
        self.gradients: dict[str, Tensor] = {}

    def take(self, active: tuple[bool, ...]) -> None:
        """Use the step of these groups from now on."""
        made = self._natives.steps
        if active not in made:
            natives = self._natives
            made[active] = Step(self._model, natives.over(active), natives.centralized(), self._compiled, self._scale)
        self._step: Step = made[active]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """One update; the loss before it (float32 scalar)."""
        loss, gradients = self._step(x, y)
        self.gradients = dict(zip(self._step.names, gradients, strict=True))
        return loss
