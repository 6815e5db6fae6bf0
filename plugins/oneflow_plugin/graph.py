"""nn.Graph, compiled: one that returns the gradients (mode graph), and the pure one with lr_scale (graph_native).

Measured in OneFlow 0.9: a Graph built while any parameter has a gradient does not train, and says nothing; after the
build every gradient is a lazy tensor, on which eager code fails. So gradients are None before each call and after it.
lr, requires_grad and training mode are read once, when the Graph is built; so is the shape of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import oneflow as flow
from oneflow import Tensor, nn

from layerwise_lr.framework import Plan, UserError, Weights

from . import layers, optimizers

_FOREVER = 2**31
WAYS_OUT = "take framework=oneflow or framework=oneflow_graph"
FIXED = f"keeps the parameters it was built with; {WAYS_OUT}"
_STEP = "System-Train-TrainStep"


class Clock(nn.Module):
    """A parameter for an optimizer with nothing to do: a Graph without an optimizer may not call backward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(flow.zeros(1))

    def forward(self) -> Tensor:
        """0.0, in the graph of the loss."""
        return self.weight.sum()


class Gradients(nn.Graph):
    """Forward and backward: (x, y, masks of the dropouts) -> (loss, gradients of `params`); no parameter moves."""

    def __init__(self, model: nn.Module, params: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        self._wanted = list(params)
        self._dropouts = [m for m in model.modules() if isinstance(m, layers.Dropout)]
        self._add_optimizers()

    def _add_optimizers(self) -> None:
        self.clock = Clock().to(next(self.model.to(nn.Module).parameters()).device)
        self.add_optimizer(flow.optim.SGD(list(self.clock.to(nn.Module).parameters()), lr=0.0))

    def build(self, x: Tensor, y: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
        """What is compiled."""
        loss = self._loss(x, y, masks)
        (loss + self.clock()).backward()
        return (loss, *(p.grad for p in self._wanted))

    def _loss(self, x: Tensor, y: Tensor, masks: Sequence[Tensor]) -> Tensor:
        for layer, mask in zip(self._dropouts, masks, strict=True):
            layer.mask = mask
        try:
            return layers.loss(self.model(x), y)
        finally:
            for layer in self._dropouts:
                layer.mask = None

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One call; the gradients are put where eager code leaves them. The loss, not waited for."""
        model = self.model.to(nn.Module)
        if not self._is_compiled:
            self._shapes = _dropout_shapes(model, self._dropouts, x)
        masks = [layer.draw(shape, x.device) for layer, shape in zip(self._dropouts, self._shapes, strict=True)]
        _clear(model)
        loss, *gradients = self(x, y, *masks)
        _clear(model)
        for param, gradient in zip(self._wanted, gradients, strict=True):
            param.grad = gradient
        return loss


class Updates(Gradients):
    """Forward, backward and the native update with native lr_scale and schedule, all compiled."""

    def __init__(
        self,
        model: nn.Module,
        params: Sequence[Tensor],
        native: Sequence[optimizers.Optimizer],
        factors: Sequence[Sequence[float]],
    ) -> None:
        self._native, self._factors = native, factors
        super().__init__(model, params)

    def _add_optimizers(self) -> None:
        for optimizer, factors in zip(self._native, self._factors, strict=True):
            self.add_optimizer(optimizer, lr_sch=schedule(optimizer, factors))

    def build(self, x: Tensor, y: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
        """What is compiled."""
        loss = self._loss(x, y, masks)
        loss.backward()
        return (loss, *(p.grad for p in self._wanted))


def schedule(optimizer: optimizers.Optimizer, factors: Sequence[float]) -> flow.optim.lr_scheduler._LRScheduler:
    """factors[i] for the Graph's i-th update, as constants in a row. OneFlow takes factors in [0, 1] only, so the
    highest, where it is above 1, goes into the groups' lr."""
    native = flow.optim.lr_scheduler
    peak = max(1.0, *factors)
    for group in optimizer.param_groups:
        group["lr"] *= peak
    runs = [(value, len(list(same))) for value, same in groupby(factors)]
    constants = [native.ConstantLR(optimizer, factor=value / peak, total_iters=_FOREVER) for value, _ in runs]
    begins = np.cumsum([length for _, length in runs])[:-1].tolist()
    return native.SequentialLR(optimizer, constants, begins, interval_rescaling=False) if begins else constants[0]


class GraphSchedule:
    """The plan's schedule inside a Graph: compiled with it, counted by it."""

    def __init__(self, plan: Plan, start: int) -> None:
        self._plan, self._now, self.upcoming = plan, start, start

    def apply(self, step: int) -> None:
        """The compiled table advances by itself; here only that it is where the caller thinks it is."""
        if step != self.upcoming:
            raise RuntimeError(f"the Graph's next step is {self.upcoming}, not {step}: steps come without gaps")
        self._now = step

    def lrs(self) -> list[float]:
        """lr * lr_scale * factor as compiled; a Graph cannot be asked for it."""
        return self._plan.lrs(self._now)

    def factors(self, schedule_of: str, begun: int) -> list[float]:
        """The table of a Graph whose counter stands at `begun`, from the upcoming step to the end of the run."""
        group = next(g for g in self._plan.groups if g.schedule == schedule_of and g.active[0] == 0)
        rest = [self._plan.factor(s, group) for s in range(self.upcoming, self._plan.total_steps)] or [0.0]
        return [rest[0]] * begun + rest


@dataclass
class Compiled:
    """What graph_native keeps in TrainState: its Graph, and the optimizer state that Graph begins with.

    Args:
        state: "parameter/key" -> array.
        begun: updates behind it; the Graph's own counter.
        graph: None until the first training step.
    """

    state: Weights = field(default_factory=dict)
    begun: int = 0
    graph: Updates | None = None

    def load(self, graph: Updates, native_names: dict[str, str]) -> None:
        """Give the state to a Graph that is not built yet."""
        suffix = optimizers.GRAPH_STATE
        variables = {
            f"model.{native_names[name]}-{suffix[key]}": flow.tensor(array)
            for name, key, array in _entries(self.state)
            if key in suffix
        }
        graph.load_state_dict({**variables, _STEP: flow.tensor([self.begun], dtype=flow.int64)})
        self.graph = graph

    def read(self, native_names: dict[str, str], counts: Sequence[str]) -> Weights:
        """The state now; `counts` are the parameters whose optimizer counts steps."""
        if self.graph is None:
            return {name: array.copy() for name, array in self.state.items()}
        key_of = {suffix: key for key, suffix in optimizers.GRAPH_STATE.items()}
        name_of = {f"model.{native}": name for name, native in native_names.items()}
        found = {}
        for variable, tensor in self.graph.state_dict().items():
            param, _, suffix = variable.rpartition("-")
            if param in name_of and suffix in key_of:
                found[f"{name_of[param]}/{key_of[suffix]}"] = tensor.cpu().numpy().copy()
        return found | {f"{name}/step": np.asarray(self.begun, np.float32) for name in counts}


def check(plan: Plan) -> None:
    """Refuse what a compiled Graph cannot do.

    Raises:
        UserError: with the reason and the ways out.
    """
    ours = next((g.name for g in plan.groups if plan.optimizers[g.optimizer].name == "layer_adaptive"), None)
    if ours is not None:
        raise UserError(
            f"framework.mode=graph_native: group {ours} trains under layer_adaptive; a compiled OneFlow Graph "
            f"knows OneFlow's own optimizers alone; {WAYS_OUT}"
        )
    phases = plan.phases()
    if len(phases) > 1:
        raise UserError(
            f"framework.mode=graph_native: other groups train from step {phases[1].start} on; a compiled "
            f"OneFlow Graph {FIXED}"
        )
    if not any(phases[0].active):
        raise UserError(
            f"framework.mode=graph_native: no group trains, and OneFlow builds no Graph without a gradient; {WAYS_OUT}"
        )


def _entries(state: Weights) -> list[tuple[str, str, np.ndarray]]:
    return [(*name.rpartition("/")[::2], array) for name, array in state.items()]


def _clear(model: nn.Module) -> None:
    for param in model.parameters():
        param.grad = None


def _dropout_shapes(model: nn.Module, dropouts: Sequence[layers.Dropout], x: Tensor) -> list[tuple[int, ...]]:
    """Input shapes of the dropouts, by an eager forward in evaluation mode."""
    if dropouts:
        model.eval()
        with flow.no_grad():
            model(x)
        model.train()
    return [layer.shape for layer in dropouts]
