"""OneFlow, eager and nn.Graph: the verbs in the contract's order."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import oneflow as flow
from oneflow import Tensor, nn

from layerwise_lr.framework import KINDS as DECLARED
from layerwise_lr.framework import (
    LOSS_SCALE,
    OPTIMIZERS,
    PLAIN_KINDS,
    Plan,
    Scheduler,
    TrainState,
    Tree,
    UserError,
    Weights,
)

from . import graph, layers, optimizers

Group = dict[str, Any]


class GroupScheduler:
    """Writes group["lr"]; eager OneFlow reads it at every step (and ignores lr_scale, so there is none)."""

    def __init__(self, optimizer: Sequence[flow.optim.Optimizer], plan: Plan) -> None:
        self._groups, self._plan = [native.param_groups[0] for native in optimizer], plan

    def apply(self, step: int) -> None:
        """The plan's lr of every group at `step`."""
        for group, lr in zip(self._groups, self._plan.lrs(step), strict=True):
            group["lr"] = lr

    def lrs(self) -> list[float]:
        """group["lr"] as OneFlow holds it."""
        return [float(group["lr"]) for group in self._groups]


class OneflowFramework:
    """OneFlow on CPU or CUDA.

    eager: everything as it comes. graph: an nn.Graph returns loss and gradients, one per set of active groups, and
    the eager optimizers step. graph_native: the Graph updates too, with its own lr_scale and schedule.
    """

    modes: ClassVar[tuple[str, ...]] = ("eager", "graph", "graph_native")
    optimizers: ClassVar[tuple[str, ...]] = OPTIMIZERS
    kinds: ClassVar[tuple[str, ...]] = (*DECLARED, *PLAIN_KINDS)
    fork_safe: ClassVar[bool] = False  # its threads start with the import
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16")
    retry_on_signal: ClassVar[tuple[str, ...]] = ("graph", "graph_native")
    """OneFlow 0.9 enters a Graph's job into a queue after it has started it; one that ends first finds the queue
    empty: SIGSEGV. With steps below 2 ms 6 of 10 runs of 4000 steps died so, with LeNet's 7 ms none."""

    known_failures: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "graph_native": {
            **dict.fromkeys(
                (
                    "frozen_do_not_move",
                    "frozen_keep_state",
                    "unfreezes_on_the_step",
                    "late_start",
                    "mode_equals_first_mode",
                ),
                "a compiled OneFlow Graph keeps the parameters it was built with: a plan whose groups start or stop "
                "within the run is refused; take framework=oneflow or framework=oneflow_graph",
            ),
            **dict.fromkeys(
                ("optimizer_layer_adaptive", "effective_lr_layer_adaptive", "resume_layer_adaptive"),
                "a compiled OneFlow Graph knows OneFlow's own optimizers alone: layer_adaptive is refused; take "
                "framework=oneflow or framework=oneflow_graph",
            ),
        }
    }

    def __init__(self, device: str, mode: str, seed: int, precision: str, threads: int, deterministic: bool) -> None:
        self.device, self.mode = _device(device), mode
        self.scale = LOSS_SCALE if precision == "fp16" else 1.0
        if precision == "fp16":
            _check_half(self.device, mode)
        if deterministic and self.device.type == "cuda":
            raise UserError("framework.deterministic=true: OneFlow 0.9 has no such switch for CUDA; its CPU needs none")
        flow.set_num_threads(threads)
        self._graphs: dict[tuple[Any, ...], graph.Gradients] = {}
        self._centralized: dict[Tensor, bool] = {}
        self.reseed(seed)

    @staticmethod
    def devices() -> list[str]:
        """CUDA devices if any, then the CPU. Asking OneFlow for a device that is not there aborts the process."""
        count = flow.cuda.device_count() if flow.cuda.is_available() else 0
        return [*(f"cuda:{i}" for i in range(count)), "cpu"]

    @staticmethod
    def version() -> str:
        """Version and commit."""
        return f"{flow.__version__} ({flow.__git_commit__})"

    def reseed(self, seed: int) -> None:
        """The default generators. Kernels still in the queue draw from them too: let those finish first."""
        flow._oneflow_internal.eager.Sync()
        flow.manual_seed(seed)

    def make_model(self, tree: Tree) -> nn.Module:
        """A module on the device, in training mode."""
        model = layers.build_tree(tree).to(self.device).train()
        return model if self.scale == 1 else layers.lower(model)

    def get_weights(self, model: nn.Module) -> Weights:
        """Copies by canonical name."""
        return {layers.canonical(n): _copy(t) for n, t in model.state_dict().items()}

    @flow.no_grad()
    def set_weights(self, model: nn.Module, weights: Weights) -> None:
        """In place: optimizers and compiled Graphs keep their parameters."""
        for name, tensor in model.state_dict().items():
            tensor.copy_(self._tensor(weights[layers.canonical(name)]))

    def make_groups(self, model: nn.Module, plan: Plan) -> list[Group]:
        """OneFlow's param_groups: the lr resolved, or base lr and lr_scale for the Graph that multiplies them."""
        native = self.mode == "graph_native"
        if native:
            graph.check(plan)
        params = _params(model)
        groups = [
            {
                "params": [params[n] for n in g.params],
                "names": g.params,
                "weight_decay": g.weight_decay,
                "optimizer": g.optimizer,
                "schedule": g.schedule,
                "kind": plan.optimizers[g.optimizer].name,
                "grad_centralization": g.grad_centralization,
                "trains": g.active[0] < plan.total_steps,
                "active": True,
                **({"lr": plan.base_lr, "lr_scale": g.lr_scale} if native else {"lr": plan.base_lr * g.lr_scale}),
            }
            for g in plan.groups
        ]
        self._centralize_in_graph(groups if native else [])
        return groups

    def make_optimizer(self, groups: Sequence[Group], plan: Plan) -> list[flow.optim.Optimizer]:
        """One per group: OneFlow's Adam counts steps per optimizer, and a group that thaws late must count its own.
        In a native Graph, where all begin together, one per optimizer and schedule."""
        if self.mode != "graph_native":
            return [optimizers.make(plan.optimizers[g["optimizer"]], [g]) for g in groups]
        return [optimizers.make(plan.optimizers[key[0]], members) for key, members in _families(groups).items()]

    def make_scheduler(self, optimizer: Sequence[flow.optim.Optimizer], plan: Plan, start: int) -> Scheduler:
        """Eager: of the groups in the plan's order. In a native Graph: the table it is to be compiled with."""
        if self.mode == "graph_native":
            return graph.GraphSchedule(plan, start)
        scheduler = GroupScheduler(optimizer, plan)
        scheduler.apply(start)
        return scheduler

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray) -> Tensor:
        """Forward, backward, one step of the optimizer of every active group; the gradients stay until the next."""
        batch = self._tensor(x), self._tensor(y)
        if self.mode == "graph_native":
            return self._native_step(state, *batch)
        if self.mode == "graph":
            loss = self._graph(state, batch[0]).step(*batch)
        else:
            state.model.zero_grad(set_to_none=True)  # zeros instead of None would let a frozen group drift
            loss = layers.loss(state.model(batch[0]), batch[1])
            self._backward(state.model, loss)
        for group, native in zip(state.groups, state.optimizer, strict=True):
            if group["active"]:
                given = [(p, p.grad) for p in group["params"] if group["grad_centralization"]]
                for param, gradient in given:
                    param.grad = optimizers.centralize(gradient)
                native.step()
                for param, gradient in given:
                    param.grad = gradient
        return loss.detach()

    def get_gradients(self, state: TrainState) -> Weights:
        """p.grad where there is one; a native Graph gives them centralized where the group asks for that."""
        return {
            n: _copy(p.grad)
            for g in state.groups
            for n, p in zip(g["names"], g["params"], strict=True)
            if p.grad is not None
        }

    @flow.no_grad()
    def predict(self, state: TrainState, x: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode, always eager: a Graph shares its weights with the module."""
        state.model.eval()
        logits = _copy(state.model(self._tensor(x)))
        state.model.train()
        return logits

    def set_active(self, state: TrainState, active: Sequence[bool]) -> None:
        """No gradient, and no step of that group's optimizer: weight decay, momentum and step count stay."""
        if state.compiled and state.compiled.graph and [g["active"] for g in state.groups] != list(active):
            raise UserError(f"framework.mode=graph_native: a compiled OneFlow Graph {graph.FIXED}")
        for group, on in zip(state.groups, active, strict=True):
            group["active"] = on
            for param in group["params"]:
                param.requires_grad_(on)
                if not on:
                    param.grad = None

    def get_optimizer_state(self, state: TrainState) -> Weights:
        """Arrays by "parameter/exp_avg" and so on."""
        if self.mode == "graph_native":
            counts = [n for g in state.groups if g["trains"] and "adam" in g["kind"] for n in g["names"]]
            return (state.compiled or graph.Compiled()).read(_native_names(state.model), counts)
        return {
            key: array
            for group, native in zip(state.groups, state.optimizer, strict=True)
            for key, array in optimizers.state_of(native, group).items()
        }

    def set_optimizer_state(self, state: TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """The reverse. A native Graph takes it only when it is built: it will be built anew."""
        if self.mode == "graph_native":
            names = [n for g in state.groups for n in g["names"]]
            state.compiled = graph.Compiled(dict(arrays), optimizers.steps_in(arrays, names))
            return
        for group, native in zip(state.groups, state.optimizer, strict=True):
            optimizers.set_state(native, group, arrays)

    def _backward(self, model: nn.Module, loss: Tensor) -> None:
        """Gradients; from here on nobody sees the scale."""
        if self.scale == 1:
            loss.backward()
            return
        (loss * self.scale).backward()
        for param in model.parameters():
            if param.grad is not None:
                param.grad = param.grad / self.scale

    def _tensor(self, array: np.ndarray) -> Tensor:
        return flow.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _graph(self, state: TrainState, x: Tensor) -> graph.Gradients:
        """The Graph of this model, these active groups, this shape: kept, so that the proof's serves the run."""
        params = [p for g in state.groups if g["active"] for p in g["params"]]
        key = (id(state.model), tuple(map(id, params)), tuple(x.shape))
        if key not in self._graphs:
            self._graphs[key] = graph.Gradients(state.model, params)
        return self._graphs[key]

    def _native_step(self, state: TrainState, x: Tensor, y: Tensor) -> Tensor:
        compiled = state.compiled = state.compiled or graph.Compiled()
        scheduler: Any = state.scheduler  # this mode's own, which knows the schedules' factors
        if compiled.graph is None:
            params = [p for g in state.groups if g["active"] for p in g["params"]]
            factors = [scheduler.factors(schedule, compiled.begun) for _, schedule in _families(state.groups)]
            compiled.load(graph.Updates(state.model, params, state.optimizer, factors), _native_names(state.model))
        running: Any = compiled.graph
        loss = running.step(x, y)
        compiled.begun += 1
        scheduler.upcoming += 1
        return loss

    def _centralize_in_graph(self, groups: Sequence[Group]) -> None:
        """A native Graph takes the gradient from backward to update by itself; a hook, which OneFlow compiles with
        it, is the way in. OneFlow gives no handle to take a hook away, so it asks."""
        for group in groups:
            for param in group["params"]:
                if group["grad_centralization"] and param not in self._centralized:
                    param.register_hook(partial(self._hook, param))
                if group["grad_centralization"] or param in self._centralized:
                    self._centralized[param] = group["grad_centralization"]

    def _hook(self, param: Tensor, gradient: Tensor) -> Tensor:
        return optimizers.centralize(gradient) if self._centralized[param] else gradient


def _device(asked: str) -> flow.device:
    there = OneflowFramework.devices()
    if asked == "auto":
        asked = there[0]
    asked = "cuda:0" if asked == "cuda" else asked
    if asked not in there:
        raise UserError(f"framework.device={asked!r} is not here; oneflow {flow.__version__} sees: {', '.join(there)}")
    return flow.device(asked)


def _check_half(device: flow.device, mode: str) -> None:
    """Raises UserError where OneFlow 0.9 does not compute in float16 what `lower` says."""
    if device.type == "cpu":
        raise UserError(
            "framework.precision='fp16': OneFlow has no float16 kernels for a CPU, autocast warns and stays "
            "fp32; take framework.device=cuda:0 or framework=torch"
        )
    if mode != "eager":
        raise UserError(
            f"framework.precision='fp16': framework.mode={mode!r} cannot, autocast is off in a Graph and its "
            "enable_amp takes softmax and loss down with it; take framework=oneflow"
        )


def _families(groups: Sequence[Group]) -> dict[tuple[str, str], list[Group]]:
    """Groups that train, by (optimizer, schedule)."""
    training = [g for g in groups if g["trains"]]
    keys = dict.fromkeys((g["optimizer"], g["schedule"]) for g in training)
    return {key: [g for g in training if (g["optimizer"], g["schedule"]) == key] for key in keys}


def _params(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by canonical name."""
    return {layers.canonical(n): p for n, p in model.named_parameters()}


def _native_names(model: nn.Module) -> dict[str, str]:
    """canonical name -> OneFlow's."""
    return {layers.canonical(n): n for n, _ in model.named_parameters()}


def _copy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
