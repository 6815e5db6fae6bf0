"""Any oneflow nn.Module: its parameters and nesting, groups for OneFlow's optimizers, lrs in eager steps and in an nn.Graph."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import oneflow as flow
from oneflow import nn

from layerwise_lr import framework as core

from . import finding
from .trial import OneflowTrial

LAYER_TYPES: Mapping[str, tuple[type, ...]] = {
    "conv": tuple(getattr(nn, f"Conv{kind}{n}d") for kind in ("", "Transpose") for n in (1, 2, 3)),
    "batchnorm": (nn.BatchNorm1d.__base__, nn.FusedBatchNorm2d.__base__),
    "layernorm": (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.RMSLayerNorm),
    "embedding": (nn.Embedding,),
    "linear": (nn.Linear,),
}
SERIES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class OneflowNative(core.Native):
    """Any nn.Module; OneFlow's DistributedDataParallel leaves it the same object."""

    package: ClassVar[str] = "oneflow"

    def __init__(self, model: nn.Module) -> None:
        if isinstance(model, nn.Graph):
            raise core.UserError(f"{type(model).__name__} is an nn.Graph: give the module that it runs")
        super().__init__(model)

    def describe(self, batch: Any = None, trace: bool = True) -> core.Description:
        """From named_modules; the trace is by forward pre-hooks."""
        modules = list(_modules(self.model))
        given = (_tensor(self.model, array) for array in core.likely_inputs(modules))
        calls, notes = core.first_calls(self._trace, batch, given) if trace else ({}, ())
        return core.describe(modules, calls, notes)

    def param_groups(self, plan: core.Plan) -> list[dict[str, Any]]:
        """Plain param_groups: params, lr, weight_decay, and a name. There is no lr_scale: eager OneFlow ignores it, and
        an nn.Graph would multiply with it once more."""
        return core.param_groups(plan, core.tensors(_modules(self.model)))

    def scheduler(self, optimizer: flow.optim.Optimizer, plan: core.Plan, start: int) -> "PlanScheduler":
        """For eager steps and for an nn.Graph that is given the optimizer afterwards."""
        return PlanScheduler(optimizer, plan, start)

    def trial(self, optimizer: Any, schedulers: Sequence[Any], batch: Any) -> OneflowTrial:
        """Of any eager optimizer; what an nn.Graph compiles of one cannot be taken back, and is refused."""
        finding.refuse_graphs(optimizer)
        return OneflowTrial(self.model, optimizer, schedulers, batch)

    @classmethod
    def first_step(cls, run: Callable[[], object], act: Callable[[Any, Any, Sequence[Any], Any], object]) -> None:
        """By the step of every optimizer that it makes."""
        finding.first_step(run, act)

    def _trace(self, batch: Any) -> dict[str, int]:
        calls: dict[str, int] = {}
        with _as_it_was(self.model), flow.no_grad():
            for path, module in self.model.named_modules():
                module.register_forward_pre_hook(_noting(core.bare_name(path), calls))
            core.run(self.model.eval(), batch)
        return calls


class PlanScheduler(core.GroupPlanScheduler, flow.optim.lr_scheduler._LRScheduler):
    """The plan's lrs in a OneFlow optimizer: step() after each optimizer step.

    An nn.Graph bakes lrs in when it is compiled, at its first call, and steps by itself. Where the scheduler is there by
    then, the plan's whole table is compiled with it, from the scheduler's step on: `add_optimizer(optimizer)`, with
    lr_sch=scheduler or without. step() then only counts, for state_dict().

    Args:
        optimizer: made of the plan's param_groups, whatever else it holds.
        plan: the lrs.
        start: the step whose lrs are written now.
    """

    verbose = False  # a Graph asks its lr_sch

    def __init__(self, optimizer: flow.optim.Optimizer, plan: core.Plan, start: int = 0) -> None:
        native = type(optimizer)._generate_conf_for_graph.__get__(optimizer)  # and not an earlier scheduler's
        optimizer._generate_conf_for_graph = self._tabled(native)
        super().__init__(optimizer, [group.options.get("name") for group in optimizer.param_groups], plan, start)

    def _tabled(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """What a Graph asks an optimizer for, one conf per group, with the group's own lrs in it: its highest, and
        factors of that in [0, 1], all that OneFlow takes."""

        def confs(*args: Any) -> Any:
            tables = dict(zip(self.places, core.stretches(self.plan, self.last_step), strict=True))
            for place, table in tables.items():
                self.optimizer.param_groups[place]["initial_lr"] = max(lr for lr, _ in table)
            made, begun = make(*args), _begun()
            for place, table in tables.items():
                _write_table(made[place].learning_rate_decay, table, begun)
            return made

        return confs

    def _generate_conf_for_graph(self, lr_conf: Any) -> None:
        """As lr_sch: the optimizer's confs have it already."""


def _write_table(conf: Any, table: Sequence[tuple[float, int]], begun: int) -> None:
    """A SequentialLR of ConstantLRs, as OneFlow's own would write it, for a Graph whose counter stands at `begun`."""
    highest, at = max(lr for lr, _ in table) or 1.0, begun
    row = conf.sequential_scheduler_conf
    row.SetInParent()
    for i, (lr, steps) in enumerate(table):
        constant = row.schedulers.add().constant_lr_conf
        constant.factor, constant.total_iters = lr / highest, 2**31
        at += steps
        if i < len(table) - 1:
            row.milestones.append(at)
            row.interval_rescaling.append(False)


def _begun() -> int:
    """The steps behind the Graph that is being compiled: its loaded counter, which an optimizer is not told."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        graph = frame.f_locals.get("self")
        if isinstance(graph, nn.Graph):
            counter = graph._additional_variable_tobe_loaded.get("System-Train-TrainStep")
            return 0 if counter is None else int(counter.numpy().item())
    return 0


def _modules(model: nn.Module) -> Iterator[core.NativeModule]:
    saved = model.state_dict()
    for path, module in model.named_modules():
        own = [
            core.NativeTensor(key, tensor, tuple(tensor.shape), tensor.requires_grad)
            for key, tensor in module._parameters.items()
            if tensor is not None
        ]
        own += [
            core.NativeTensor(key, tensor, tuple(tensor.shape), False, True)
            for key, tensor in module._buffers.items()
            if tensor is not None and key != "num_batches_tracked" and (f"{path}.{key}" if path else key) in saved
        ]
        kind = core.layer_type(module, LAYER_TYPES)
        yield core.NativeModule(path, type(module).__name__, kind, isinstance(module, SERIES), tuple(own))


def _noting(path: str, calls: dict[str, int]) -> Callable[[nn.Module, Any], None]:
    def first(module: nn.Module, args: Any) -> None:
        calls.setdefault(path, len(calls))

    return first


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Training flags, hooks (OneFlow gives no handle to remove one), buffers and the random state."""
    held = [(module, module.training, dict(module._forward_pre_hooks)) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    state = flow.get_rng_state()
    try:
        yield
    finally:
        for module, training, hooks in held:
            module.training = training
            module._forward_pre_hooks.clear()
            module._forward_pre_hooks.update(hooks)
        with flow.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        flow.set_rng_state(state)


def _tensor(model: nn.Module, array: Any) -> flow.Tensor:
    """Token ids as int64, the rest in the model's type; on its device."""
    like = next(model.parameters())
    made = flow.tensor(array)
    return made.to(like.device) if array.dtype.kind == "f" else made.to(flow.int64).to(like.device)
