"""OneFlow, eager and nn.Graph: the verbs in the contract's order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import oneflow as flow
from oneflow import Tensor, nn

from layerwise_lr import framework as core

from . import graph, layers, optimizers, zoo
from .layers import Model, Whole
from .native import OneflowNative

Group = dict[str, Any]
Batch = tuple[Tensor, Tensor]
W = TypeVar("W", bound=Whole)
Result = tuple[Tensor, dict[str, Tensor]]  # loss, gradients by canonical name


class OneflowFramework(core.Framework):
    """OneFlow on CPU or CUDA.

    eager: everything as it comes. graph: an nn.Graph returns loss and gradients, one per set of active groups and
    frozen batchnorms, and the eager optimizers step. graph_native: the Graph updates too, with its own lr_scale and
    schedule.
    """

    kinds: ClassVar[tuple[str, ...]] = (*core.KINDS, *core.PLAIN_KINDS)
    optimizers: ClassVar[tuple[str, ...]] = tuple(optimizers.NATIVE)
    modes: ClassVar[tuple[str, ...]] = ("eager", "graph", "graph_native")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16")
    sources: ClassVar[tuple[str, ...]] = tuple(zoo.BUILDERS)
    fork_safe: ClassVar[bool] = False  # its threads start with the import
    retry_on_signal: ClassVar[tuple[str, ...]] = ("graph", "graph_native")
    """OneFlow 0.9 enters a Graph's job into a queue after it has started it; one that ends first finds the queue
    empty: SIGSEGV. With steps below 2 ms 6 of 10 runs of 4000 steps died so, with LeNet's 7 ms none."""

    known_failures: ClassVar[Mapping[str, Mapping[str, str]]] = {"graph_native": graph.REFUSED}

    def start(self) -> None:
        """Threads; what OneFlow lacks is refused."""
        if self.precision == "fp16":
            _check_half(self.device, self.mode)
        if self.deterministic and self.device != "cpu":
            raise core.UserError(
                "framework.deterministic=true: OneFlow 0.9 has no such switch for CUDA; its CPU needs none"
            )
        flow.set_num_threads(self.threads)
        self._graphs: dict[tuple[Any, ...], graph.TrainGraph] = {}

    @staticmethod
    def cuda_devices() -> int:
        """Counted first: asking OneFlow for a device that is not there aborts the process."""
        return int(flow.cuda.device_count()) if flow.cuda.is_available() else 0

    @staticmethod
    def native() -> type[core.Native]:
        """Any nn.Module."""
        return OneflowNative

    @staticmethod
    def version() -> str:
        """Version and commit."""
        return f"oneflow {flow.__version__} ({flow.__git_commit__})"

    def make_model(self, tree: core.Tree) -> Model:
        """On the device, in training mode."""
        return self._ready(Model(tree))

    @classmethod
    def build(cls, asked: core.ZooModel, seed: int | None, make: Callable[..., Any] | None = None) -> nn.Module:
        """flowvision's, or who makes it. Without a seed it has numbers too (OneFlow 0.9 has no meta device), and is
        tried on a picture."""
        if seed is not None:
            flow.manual_seed(seed)
            return zoo.build(asked, make)
        return zoo.tried(zoo.build(replace(asked, pretrained=False), make), asked)

    def check_native(self, native: nn.Module) -> None:
        """A Graph must not draw by itself."""
        if self.mode != "eager":
            zoo.check_graph(native, self.mode)

    def adopt(self, native: nn.Module) -> zoo.Foreign:
        """Any nn.Module that gives logits."""
        self.check_native(native)
        return self._ready(zoo.Foreign(native))

    def _ready(self, model: W) -> W:
        """On the device, in training mode."""
        model = model.to(self.device).train()
        return layers.lower(model) if self.precision == "fp16" else model

    def get_weights(self, model: Whole) -> core.Weights:
        """Copies by canonical name."""
        return {name: layers.copy(tensor) for name, tensor in model.arrays().items()}

    @flow.no_grad()
    def set_weights(self, model: Whole, weights: core.Weights) -> None:
        """In place: optimizers and compiled Graphs keep their parameters."""
        for name, tensor in model.arrays().items():
            tensor.copy_(self._tensor(weights[name]))

    def make_groups(self, model: Whole, plan: core.Plan) -> list[Group]:
        """OneFlow's param_groups: the lr resolved, or base lr and lr_scale for the Graph that multiplies them. Eager
        OneFlow ignores lr_scale, so there is none."""
        native, arrays = self.mode == "graph_native", model.arrays()
        if native:
            graph.check(plan)
        return [
            {
                "params": [arrays[name] for name in group.params],
                "names": group.params,
                "weight_decay": group.weight_decay,
                "grad_centralization": group.grad_centralization,
                "lr": plan.base_lr * (1.0 if native else group.lr_scale),
                **({"lr_scale": group.lr_scale} if native else {}),
            }
            for group in plan.groups
        ]

    def make_optimizer(self, model: Whole, groups: Sequence[Group], plan: core.Plan) -> list[flow.optim.Optimizer]:
        """One per group: OneFlow's Adam counts steps per optimizer, and a group that thaws late must count its own.
        In a native Graph, where all begin together, one per optimizer and schedule."""
        single = [[place] for place in range(len(groups))]
        return [
            optimizers.make(plan.optimizers[plan.groups[own[0]].optimizer], [groups[place] for place in own])
            for own in (graph.families(plan) if self.mode == "graph_native" else single)
        ]

    def make_scheduler(self, optimizer: Sequence[flow.optim.Optimizer], plan: core.Plan, start: int) -> core.Scheduler:
        """Eager OneFlow reads group["lr"] at every step; a native Graph is compiled with the whole table."""
        if self.mode == "graph_native":
            return graph.GraphSchedule(plan, start)
        return core.GroupScheduler(
            [native.param_groups[0] for native in optimizer], plan
        )  # OneFlow's copies of our dicts

    def train_step(self, state: core.TrainState, x: np.ndarray, y: np.ndarray, step: core.Step) -> core.StepResult:
        """Forward, backward, and one step of the optimizer of every active group: without it weight decay, momentum
        and step count of the others stay as they are."""
        if state.model.draws:  # kernels still in the queue draw too: let those finish first
            flow._oneflow_internal.eager.Sync()
            flow.manual_seed(step.seed)
        trained: dict[str, Tensor] = {}
        for group, on in zip(state.groups, step.active, strict=True):
            for name, param in zip(group["names"], group["params"], strict=True):
                param.requires_grad_(on)
                trained |= {name: param} if on else {}
        run = {"eager": self._eager, "graph": self._graph, "graph_native": self._native}[self.mode]
        losses, means = [], dict[str, Tensor]()
        for part in zip(np.split(x, step.accumulate), np.split(y, step.accumulate), strict=True):
            loss, gradients = run(state, trained, (self._tensor(part[0]), self._tensor(part[1])), step)
            losses.append(loss.detach())
            means = _added(means, gradients, step.accumulate)
        copies = {name: layers.copy(gradient) for name, gradient in means.items()} if step.gradients else None
        if self.mode != "graph_native":
            _update(state, step, means)
        return core.StepResult(losses[0] if len(losses) == 1 else flow.stack(losses).mean(), copies)

    def predict(self, state: core.TrainState, x: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode, always eager: a Graph shares its weights with the module."""
        return layers.copy(state.model.evaluate(self._tensor(x)))

    def get_optimizer_state(self, state: core.TrainState) -> core.Weights:
        """Arrays by "parameter/exp_avg" and so on."""
        if self.mode == "graph_native":
            return (state.compiled or graph.Native()).read(state.model.paths())
        return {
            key: array
            for group, native in zip(state.groups, state.optimizer, strict=True)
            for key, array in optimizers.state_of(native, group).items()
        }

    def set_optimizer_state(self, state: core.TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """The reverse. A native Graph takes it only when it is built: it will be built anew."""
        if self.mode == "graph_native":
            names = [name for group in state.groups for name in group["names"]]
            state.compiled = graph.Native(dict(arrays), optimizers.steps_in(arrays, names))
            return
        for group, native in zip(state.groups, state.optimizer, strict=True):
            optimizers.set_state(native, group, arrays)

    def _eager(self, state: core.TrainState, trained: Mapping[str, Tensor], batch: Batch, step: core.Step) -> Result:
        """The gradients without the scale of the loss."""
        state.model.zero_grad(set_to_none=True)  # zeros instead of None would let a frozen group drift
        state.model.rest(step.frozen)
        loss = layers.loss(state.model(batch[0]), batch[1])
        if self.loss_scale == 1:
            if trained:
                loss.backward()
            return loss, {name: param.grad for name, param in trained.items()}
        if trained:
            (loss * self.loss_scale).backward()
        return loss, {name: param.grad / self.loss_scale for name, param in trained.items()}

    def _graph(self, state: core.TrainState, trained: Mapping[str, Tensor], batch: Batch, step: core.Step) -> Result:
        """The Graph of this model, these parameters, this shape: kept, so that the proof's serves the run."""
        key = (id(state.model), tuple(trained), step.frozen, *(tuple(tensor.shape) for tensor in batch))
        if key not in self._graphs:
            self._graphs[key] = graph.TrainGraph(state.model, trained, step.frozen)
        return self._graphs[key].step(*batch)

    def _native(self, state: core.TrainState, trained: Mapping[str, Tensor], batch: Batch, step: core.Step) -> Result:
        """The one Graph of the run; where it is not at this step, it is built anew from here."""
        if state.compiled and state.compiled.graph and state.compiled.upcoming != step.index:
            self.set_optimizer_state(state, self.get_optimizer_state(state))
        kept = state.compiled = state.compiled or graph.Native()
        if kept.graph is None:
            state.model.centralize({n for g in state.groups if g["grad_centralization"] for n in g["names"]})
            native = state.scheduler.native(state.optimizer, kept.begun)  # type: ignore[attr-defined]  # this mode's own
            compiled = graph.TrainGraph(state.model, trained, step.frozen, native)
            kept.begin(compiled, step.index, state.model.paths())
        return kept.step(*batch)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return flow.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _added(means: Mapping[str, Tensor], gradients: Mapping[str, Tensor], parts: int) -> dict[str, Tensor]:
    """The mean over the parts so far and this one."""
    if parts == 1:
        return dict(gradients)
    return {n: g / parts + means[n] if means else g / parts for n, g in gradients.items()}


def _update(state: core.TrainState, step: core.Step, gradients: Mapping[str, Tensor]) -> None:
    """Clipping by OneFlow's own, and one step of the eager optimizers of the active groups."""
    trained = [(g, o) for g, o, on in zip(state.groups, state.optimizer, step.active, strict=True) if on]
    pairs = [pair for group, _ in trained for pair in zip(group["names"], group["params"], strict=True)]
    for name, param in pairs:
        param.grad = gradients[name]
    if step.clip.norm is not None:
        nn.utils.clip_grad_norm_([param for _, param in pairs], step.clip.norm)
    if step.clip.value is not None:
        nn.utils.clip_grad_value_([param for _, param in pairs], step.clip.value)
    for group, native in trained:
        if group["grad_centralization"]:
            for param in group["params"]:
                param.grad = layers.centralize(param.grad)
        native.step()


def _check_half(device: str, mode: str) -> None:
    """Raises UserError where OneFlow 0.9 does not compute in float16 what `lower` says."""
    if device == "cpu":
        raise core.UserError(
            "framework.precision='fp16': OneFlow has no float16 kernels for a CPU, autocast warns and stays "
            "fp32; take framework.device=cuda:0 or framework=torch"
        )
    if mode != "eager":
        raise core.UserError(
            f"framework.precision='fp16': framework.mode={mode!r} cannot, autocast is off in a Graph and its "
            "enable_amp takes softmax and loss down with it; take framework=oneflow"
        )
