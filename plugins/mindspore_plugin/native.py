"""Any MindSpore Cell: its parameters and nesting, groups for MindSpore's optimizers, lrs in PyNative and compiled steps."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import mindspore as ms
from mindspore import Parameter, Tensor, mint, nn, ops

from layerwise_lr import framework as core

from . import finding
from .trial import MindSporeTrial

LAYER_TYPES: Mapping[str, tuple[type, ...]] = {
    "conv": (nn.Conv2d.__base__, mint.nn.Conv2d.__base__),
    "batchnorm": (nn.BatchNorm2d.__base__, mint.nn.BatchNorm2d.__base__, nn.InstanceNorm2d.__base__),
    "layernorm": (nn.LayerNorm, nn.GroupNorm, mint.nn.LayerNorm, mint.nn.GroupNorm),
    "embedding": (nn.Embedding, nn.EmbeddingLookup, mint.nn.Embedding),
    "attention": (nn.MultiheadAttention,),
    "linear": (nn.Dense, mint.nn.Linear),
}
SERIES = (nn.SequentialCell, nn.CellList, nn.CellDict)


class MindSporeNative(core.Native):
    """Any Cell."""

    package: ClassVar[str] = "mindspore"

    def describe(self, batch: Any = None, trace: bool = True) -> core.Description:
        """From cells_and_names; the trace is by forward pre-hooks, in PyNative whatever the mode."""
        found = list(modules(self.model))
        given = map(Tensor, core.likely_inputs(found))
        calls, notes = core.first_calls(self._trace, batch, given) if trace else ({}, ())
        return core.describe(found, calls, notes)

    def param_groups(self, plan: core.Plan) -> list[dict[str, Any]]:
        """Groups of params, lr and weight_decay, which are all the keys that MindSpore takes, then `order_params`: an
        nn.Optimizer has its parameters, and wants their gradients, in the order of `trainable_params()` and not in that
        of the groups. mindspore.experimental.optim takes groups alone: give it all but the last, and it the gradients
        of `optimizer.parameters`."""
        named = core.tensors(modules(self.model))
        groups: list[dict[str, Any]] = [
            {"params": [named[name] for name in g.params], "lr": lr, "weight_decay": float(g.weight_decay)}
            for g, lr in zip(plan.groups, plan.lrs(0), strict=True)
        ]
        planned = {name for group in plan.groups for name in group.params}
        return [*groups, {"order_params": [parameter for name, parameter in named.items() if name in planned]}]

    def scheduler(self, optimizer: nn.Cell, plan: core.Plan, start: int) -> "PlanScheduler":
        """For PyNative and compiled steps alike."""
        return PlanScheduler(optimizer, core.tensors(modules(self.model)), plan, start)

    def trial(self, optimizer: Any, schedulers: Sequence[Any], batch: Any) -> MindSporeTrial:
        """Of an nn.Optimizer, or one of mindspore.experimental.optim; in PyNative, whatever the mode."""
        named = core.tensors(modules(self.model))
        return MindSporeTrial(self.model, optimizer, schedulers, batch, named, as_it_was(self.model))

    @classmethod
    def first_step(cls, run: Callable[[], object], act: Callable[[Any, Any, Sequence[Any], Any], object]) -> None:
        """By the call of every optimizer, with all that is compiled run as Python."""
        finding.first_step(run, act)

    def _trace(self, batch: Any) -> dict[str, int]:
        calls: dict[str, int] = {}
        handles = []
        with as_it_was(self.model):
            try:
                for path, cell in self.model.cells_and_names():
                    handles.append(cell.register_forward_pre_hook(_noting(path, calls)))
                core.run(self.model.set_train(False), batch)
                (Tensor(0.0) + 1.0).asnumpy()  # waits for what was queued: an error comes here and not later
            finally:
                for handle in handles:
                    handle.remove()
        return calls


class PlanScheduler(core.PlanScheduler):
    """The plan's lrs in an nn.Optimizer or one of mindspore.experimental.optim: step() after each optimizer step.

    Every group's lr is a Parameter, and is assigned: PyNative and compiled steps read it, without being compiled again.
    With Model.train, step() is called in a Callback's on_train_step_end, and dataset_sink_mode=False: between the steps
    of a sunk data set no Python runs. A hook in the optimizer does not compile, so that another writer is told of at
    step(), after his one step.

    Args:
        optimizer: made of the plan's param_groups.
        named: the model's parameters.
        plan: the lrs.
        start: the step whose lrs are written now.
    """

    def __init__(self, optimizer: nn.Cell, named: Mapping[str, Parameter], plan: core.Plan, start: int = 0) -> None:
        self.optimizer, self._lrs = optimizer, _lrs(optimizer, named, plan)
        super().__init__(plan, start)

    def read(self) -> list[float]:
        """The Parameters' values."""
        return [float(lr.asnumpy()) for lr in self._lrs]

    def write(self, lrs: Sequence[float]) -> None:
        """By assignment: `set_data` would read back and change nothing."""
        for parameter, lr in zip(self._lrs, lrs, strict=True):
            ops.assign(parameter, Tensor(lr, ms.float32))


def _lrs(optimizer: nn.Cell, named: Mapping[str, Parameter], plan: core.Plan) -> list[Parameter]:
    """Each group's lr, the same for all of its parameters and no other group's.

    Raises:
        UserError: the optimizer's groups are not the plan's.
    """
    if isinstance(optimizer, nn.Optimizer):
        grouped = optimizer.learning_rate if optimizer.is_group_lr else [None] * len(optimizer.parameters)
        lr_of = {id(p): lr for p, lr in zip(optimizer.parameters, grouped, strict=True)}
    else:
        groups = getattr(optimizer, "param_groups", ())
        if any("lr_float" in group for group in groups):
            raise core.UserError(
                "mindspore.mint.optim.SGD keeps the lr that it was made with, and takes its own for one of 0: take nn.SGD "
                "or mindspore.experimental.optim.SGD"
            )
        lr_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    found: list[Parameter] = []
    for group in plan.groups:
        own = {id(lr): lr for lr in (lr_of.get(id(named[name])) for name in group.params)}
        lr = next(iter(own.values()))
        if len(own) > 1 or not isinstance(lr, Parameter) or any(lr is other for other in found):
            raise core.UserError(f"the optimizer has no group {group.name}: make it of plan.param_groups(model)")
        found.append(lr)
    return found


def modules(model: nn.Cell) -> Iterator[core.NativeModule]:
    """Every cell with its parameters, tied ones with each of their owners, and its buffers."""
    for path, cell in model.cells_and_names():
        kind = core.layer_type(cell, LAYER_TYPES)
        own = [_tensor(cell, key, p) for key, p in cell._params.items() if p is not None]
        own += [core.NativeTensor(k, b, tuple(b.shape), False, True) for k, b in cell._buffers.items() if b is not None]
        yield core.NativeModule(path, type(cell).__name__, kind, isinstance(cell, SERIES), tuple(own))


def _tensor(cell: nn.Cell, key: str, parameter: Parameter) -> core.NativeTensor:
    """MindSpore's running statistics are Parameters, and its one-dimensional filters two-dimensional."""
    shape = tuple(parameter.shape)
    if isinstance(cell, nn.Conv1d | nn.Conv1dTranspose) and len(shape) == 4:
        shape = (*shape[:2], *shape[3:])
    return core.NativeTensor(key, parameter, shape, parameter.requires_grad, key.startswith("moving_"))


def _noting(path: str, calls: dict[str, int]) -> Callable[[nn.Cell, Any], None]:
    def first(cell: nn.Cell, inputs: Any) -> None:
        calls.setdefault(path, len(calls))

    return first


@contextmanager
def as_it_was(model: nn.Cell) -> Iterator[None]:
    """Mode, training flags, running statistics and the random state are afterwards what they were. Inside, what is
    decorated with ms.jit runs as Python, for a compiled cell calls no hooks."""
    mode, state, jit = ms.get_context("mode"), ms.get_rng_state(), os.environ.get("MS_JIT")
    cells = [(cell, cell.training, cell._phase, dict(cell.get_flags())) for _, cell in model.cells_and_names()]
    buffers = [(p, p.asnumpy().copy()) for p in model.untrainable_params()]
    os.environ["MS_JIT"] = "0"
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        yield
    finally:
        for cell, training, phase, flags in cells:
            cell.training, cell._phase, cell._func_graph_flags = training, phase, flags
        for parameter, before in buffers:
            ops.assign(parameter, Tensor(before))
        ms.set_context(mode=mode)
        ms.set_rng_state(state)
        os.environ.pop("MS_JIT")
        if jit is not None:
            os.environ["MS_JIT"] = jit
