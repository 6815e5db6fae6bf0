"""nn.Graph, compiled: one that returns the gradients (mode graph), and one that updates too (graph_native).

Measured in OneFlow 0.9: a Graph built while any parameter has a gradient does not train, and says nothing; after the
build every gradient is a lazy tensor, on which eager code fails. So gradients are None before each call and after it.
lr, requires_grad and training mode are read once, when the Graph is built; so is the shape of the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import oneflow as flow
from oneflow import Tensor, nn

from layerwise_lr.framework import Clip, Plan, UserError, Weights

from . import layers, optimizers

WAYS_OUT = "take framework=oneflow or framework=oneflow_graph"
KEEPS = "a compiled OneFlow Graph keeps the parameters it was built with"
KNOWS = "a compiled OneFlow Graph knows OneFlow's own optimizers alone"
ACCUMULATES = "a compiled OneFlow Graph that accumulates gives no gradients back, and nothing could be measured"
CLIPS = (
    "a compiled OneFlow Graph bounds the norm within each of its optimizers' groups, not of all together, and no values"
)
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "frozen_do_not_move",
            "frozen_keep_state",
            "unfreezes_on_the_step",
            "late_start",
            "frozen_batchnorm",
            "batchnorm_trains_on",
            "mode_equals_first_mode",
        ),
        f"{KEEPS}: a plan whose groups start or stop within the run is refused; {WAYS_OUT}",
    ),
    **dict.fromkeys(
        (
            *(f"optimizer_{name}" for name in optimizers.OWN),
            *(
                f"{check}_{which}"
                for check in ("effective_lr", "resume", "reset")
                for which in ("layer_adaptive", "others")
            ),
        ),
        f"{KNOWS}: {', '.join(optimizers.OWN)} are refused; {WAYS_OUT}",
    ),
    **dict.fromkeys(
        ("accumulate", "accumulate_is_the_large_batch"), f"{ACCUMULATES}: accumulate is refused; {WAYS_OUT}"
    ),
    **dict.fromkeys(("clip_norm", "clip_value", "clip_parts"), f"{CLIPS}: clipping is refused; {WAYS_OUT}"),
}
"""Conformance check -> why mode graph_native cannot pass it; `check` refuses it before a run."""
MOST_CHANGES = 100_000
"""Constants in a row that a native schedule is made of: with 80,000 a run takes half a minute and 2.5 GB to begin (measured)."""
_FOREVER = 2**31
_STEP = "System-Train-TrainStep"


class Clock(nn.Module):
    """A parameter for an optimizer with nothing to do: a Graph without an optimizer may not call backward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(flow.zeros(1))

    def forward(self) -> Tensor:
        """0.0, in the graph of the loss."""
        return self.weight.sum()


class TrainGraph(nn.Graph):
    """Forward and backward: (x, y, masks of the dropouts) -> (loss, gradients).

    Args:
        model: whose requires_grad are as they shall be.
        trained: parameters by canonical name, whose gradients are returned.
        frozen: batchnorm layers that run on their running statistics.
        native: optimizers that update `trained` in the Graph, each with its lr scheduler; none: no parameter moves.
    """

    def __init__(
        self,
        model: layers.Whole,
        trained: Mapping[str, Tensor],
        frozen: frozenset[str],
        native: Sequence[tuple[optimizers.Optimizer, Any]] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self._trained, self._frozen, self._dropouts, self._idle = dict(trained), frozen, model.dropouts, not native
        for optimizer, scheduler in native:
            self.add_optimizer(optimizer, lr_sch=scheduler)
        if self._idle:
            clock = Clock().to(next(model.parameters()).device)
            self.clock = clock
            self.add_optimizer(flow.optim.SGD(list(clock.parameters()), lr=0.0))

    def build(self, x: Tensor, y: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
        """What is compiled."""
        for layer, mask in zip(self._dropouts, masks, strict=True):
            layer.mask = mask
        try:
            loss = layers.loss(self.model(x), y)
        finally:
            for layer in self._dropouts:
                layer.mask = None
        (loss + self.clock() if self._idle else loss).backward()
        return (loss, *(param.grad for param in self._trained.values()))

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One call: the loss, not waited for, and the gradients."""
        model = self.model.to(nn.Module)
        if not self._is_compiled:
            if self._dropouts:
                model.evaluate(x)  # each keeps the shape of its input
            self._shapes = [layer.shape for layer in self._dropouts]
            model.rest(self._frozen)
        masks = [layer.draw(shape, x.device) for layer, shape in zip(self._dropouts, self._shapes, strict=True)]
        model.zero_grad(set_to_none=True)
        loss, *gradients = self(x, y, *masks)
        model.zero_grad(set_to_none=True)
        return loss, dict(zip(self._trained, gradients, strict=True))


class GraphSchedule:
    """The plan's schedule inside a Graph: compiled with it, counted by it."""

    def __init__(self, plan: Plan, start: int) -> None:
        self._plan, self._index = plan, start

    def apply(self, index: int) -> None:
        """The compiled table advances by itself."""
        self._index = index

    def lrs(self) -> list[float]:
        """lr * lr_scale * factor as compiled; a Graph cannot be asked for it."""
        return self._plan.lrs(self._index)

    def native(self, made: Sequence[optimizers.Optimizer], begun: int) -> list[tuple[optimizers.Optimizer, Any]]:
        """Each optimizer of `families` with its table from this step to the end of the run, for a Graph whose counter
        stands at `begun`."""
        plan, scheduled = self._plan, []
        for optimizer, own in zip(made, families(plan), strict=True):
            rest = [plan.factor(step, plan.groups[own[0]]) for step in range(self._index, plan.total_steps)]
            scheduled.append((optimizer, _schedule(optimizer, plan.base_lr, [rest[0]] * begun + rest)))
        return scheduled


def families(plan: Plan) -> list[list[int]]:
    """Places in the plan of the groups that train, those of one optimizer and one schedule together."""
    found: dict[tuple[str, str], list[int]] = {}
    for place, group in enumerate(plan.groups):
        if group.active[0] < plan.total_steps:
            found.setdefault((group.optimizer, group.schedule), []).append(place)
    return list(found.values())


def _schedule(
    optimizer: optimizers.Optimizer, lr: float, table: Sequence[float]
) -> flow.optim.lr_scheduler._LRScheduler:
    """lr * table[i] for the Graph's i-th update, as constants in a row. OneFlow takes factors in [0, 1] only, so the
    highest, where it is above 1, goes into the groups' lr; and a scheduler leaves initial_lr behind, which the next
    Graph would be built with."""
    native = flow.optim.lr_scheduler
    peak = max(1.0, *table)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = lr * peak
    runs = [(value, len(list(same))) for value, same in groupby(table)]
    constants = [native.ConstantLR(optimizer, factor=value / peak, total_iters=_FOREVER) for value, _ in runs]
    begins = np.cumsum([length for _, length in runs])[:-1].tolist()
    return native.SequentialLR(optimizer, constants, begins, interval_rescaling=False) if begins else constants[0]


@dataclass
class Native:
    """What graph_native keeps in TrainState: its Graph, and the optimizer state that Graph begins with.

    Args:
        state: "parameter/key" -> array.
        begun: updates behind it; the Graph's own counter.
        graph: None until the first training step.
        upcoming: the plan's step that the compiled table shows next.
    """

    state: Weights = field(default_factory=dict)
    begun: int = 0
    graph: TrainGraph | None = None
    upcoming: int = 0

    def begin(self, graph: TrainGraph, index: int, paths: Mapping[str, str]) -> None:
        """Give the state to a Graph that is not built yet, and whose first step is `index`."""
        parts = [(*name.rpartition("/")[::2], array) for name, array in self.state.items()]
        variables = {
            f"model.{paths[name]}-{optimizers.GRAPH_KEYS[key]}": flow.tensor(array)
            for name, key, array in parts
            if key in optimizers.GRAPH_KEYS
        }
        graph.load_state_dict({**variables, _STEP: flow.tensor([self.begun], dtype=flow.int64)})
        self.graph, self.upcoming = graph, index

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One call of the Graph."""
        assert self.graph is not None
        self.begun, self.upcoming = self.begun + 1, self.upcoming + 1
        return self.graph.step(x, y)

    def read(self, paths: Mapping[str, str]) -> Weights:
        """The state now. Whoever has Adam's moments counts the Graph's steps."""
        if self.graph is None:
            return {name: array.copy() for name, array in self.state.items()}
        variables, found = self.graph.state_dict(), {}
        for name, path in paths.items():
            for key, suffix in optimizers.GRAPH_KEYS.items():
                if (tensor := variables.get(f"model.{path}-{suffix}")) is not None:
                    found[f"{name}/{key}"] = layers.copy(tensor)
            if f"{name}/exp_avg" in found:
                found[f"{name}/step"] = np.asarray(self.begun, np.float32)
        return found


def check(plan: Plan) -> None:
    """Refuse what a compiled Graph cannot do.

    Raises:
        UserError: with the reason and the ways out.
    """
    names = {group.name: plan.optimizers[group.optimizer].name for group in plan.groups}
    ours = next((group for group, name in names.items() if name in optimizers.OWN), None)
    phases = plan.phases()
    why = None
    if ours is not None:
        why = f"group {ours} trains under {names[ours]}; {KNOWS}"
    elif plan.accumulate > 1:
        why = f"accumulate={plan.accumulate}; {ACCUMULATES}"
    elif plan.clip != Clip():
        why = f"clipping is asked for; {CLIPS}"
    elif len(phases) > 1:
        why = f"other groups train from step {phases[1].start} on; {KEEPS}"
    elif not any(phases[0].active):
        why = "no group trains, and OneFlow builds no Graph without a gradient"
    elif (count := changes(plan)) > MOST_CHANGES:
        every = -(-plan.total_steps // MOST_CHANGES)
        why = f"the lr changes {count:,} times, and each takes 31 KB; take scheduler.interval={every}"
        raise UserError(f"framework.mode=graph_native: {why}, or {WAYS_OUT.removeprefix('take ')}")
    if why:
        raise UserError(f"framework.mode=graph_native: {why}; {WAYS_OUT}")


def changes(plan: Plan) -> int:
    """How often the lr of the tables changes; 0 of a run that is too short for too many."""
    if plan.total_steps <= MOST_CHANGES:
        return 0
    groups = [plan.groups[own[0]] for own in families(plan)]
    return sum(sum(1 for _ in groupby(plan.factor(step, g) for step in range(plan.total_steps))) for g in groups)
