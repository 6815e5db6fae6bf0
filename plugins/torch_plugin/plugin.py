"""PyTorch, eager or compiled: the verbs in the contract's order."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from layerwise_lr.framework import KINDS as DECLARED
from layerwise_lr.framework import LOSS_SCALE, OPTIMIZERS, PLAIN_KINDS, Plan, TrainState, Tree, UserError, Weights

from . import layers, optimizers

Group = dict[str, Any]
AUTOCAST: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchScheduler:
    """Writes group["lr"]; eager torch reads it at every step."""

    def __init__(self, groups: Sequence[Group], plan: Plan) -> None:
        self._groups, self._plan = groups, plan

    def apply(self, step: int) -> None:
        """The plan's lr of every group at `step`."""
        for group, lr in zip(self._groups, self._plan.lrs(step), strict=True):
            group["lr"] = lr

    def lrs(self) -> list[float]:
        """group["lr"] as torch holds it."""
        return [float(group["lr"]) for group in self._groups]


class TorchFramework:
    """PyTorch on CPU or CUDA."""

    modes: ClassVar[tuple[str, ...]] = ("eager", "compile")
    optimizers: ClassVar[tuple[str, ...]] = OPTIMIZERS
    kinds: ClassVar[tuple[str, ...]] = (*DECLARED, *PLAIN_KINDS)
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp64", *AUTOCAST)  # fp64: to tell rounding from error
    fork_safe: ClassVar[bool] = True  # as long as the parent runs no parallel region: it imports, the children train

    def __init__(self, device: str, mode: str, seed: int, precision: str, threads: int, deterministic: bool) -> None:
        self.device, self.mode = _device(device), mode
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.autocast = AUTOCAST.get(precision)
        self.scale = LOSS_SCALE if precision == "fp16" else 1.0
        torch.set_num_threads(threads)
        if deterministic:  # not called with False: the call alone imports torch's compiler, two seconds
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS raises
            torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.allow_tf32 = False  # torch's default, which rounds fp32 convolutions to 10 bits
        self.reseed(seed)

    @staticmethod
    def devices() -> list[str]:
        """CUDA devices if any, then the CPU."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return [*(f"cuda:{i}" for i in range(count)), "cpu"]

    @staticmethod
    def version() -> str:
        """torch's version, which names the build."""
        return torch.__version__

    def reseed(self, seed: int) -> None:
        """CPU and CUDA generators."""
        torch.manual_seed(seed)

    def make_model(self, tree: Tree) -> nn.Module:
        """A module on the device, in training mode. channels_last: a third less time in convolutions on a CPU."""
        model = layers.build_tree(tree).to(self.device, self.dtype).train()
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def get_weights(self, model: nn.Module) -> Weights:
        """Copies by canonical name."""
        return {layers.canonical(n): _copy(t.float()) for n, t in model.state_dict().items()}

    @torch.no_grad()
    def set_weights(self, model: nn.Module, weights: Weights) -> None:
        """In place: the optimizer keeps its parameters."""
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(weights[layers.canonical(name)]))

    def make_groups(self, model: nn.Module, plan: Plan) -> list[Group]:
        """torch's param_groups; the lr is resolved, no key is left that torch would ignore."""
        params = {layers.canonical(n): p for n, p in model.named_parameters()}
        return [
            {
                "params": [(n, params[n]) for n in g.params],
                "lr": plan.base_lr * g.lr_scale,
                "weight_decay": g.weight_decay,
                "name": g.name,
                "optimizer": g.optimizer,
                "grad_centralization": g.grad_centralization,
            }
            for g in plan.groups
        ]

    def make_optimizer(self, groups: Sequence[Group], plan: Plan) -> list[torch.optim.Optimizer]:
        """One native optimizer per name in use. torch keeps these very dicts as its param_groups: what the
        scheduler writes into them is what the step reads."""
        names = dict.fromkeys(group["optimizer"] for group in groups)
        return [optimizers.make(plan.optimizers[name], [g for g in groups if g["optimizer"] == name]) for name in names]

    def make_scheduler(self, optimizer: Sequence[torch.optim.Optimizer], plan: Plan, start: int) -> TorchScheduler:
        """Groups in the plan's order, across all optimizers."""
        groups = {group["name"]: group for native in optimizer for group in native.param_groups}
        scheduler = TorchScheduler([groups[g.name] for g in plan.groups], plan)
        scheduler.apply(start)
        return scheduler

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray) -> torch.Tensor:
        """Forward, backward, one step of every optimizer; the gradients stay until the next step."""
        state.model.zero_grad(set_to_none=True)
        loss = layers.loss(self._forward(state, x), self._tensor(y))
        if loss.requires_grad:  # else no group trains at this step
            self._backward(state.model, loss)
        given = [
            pair for group in state.groups if group["grad_centralization"] for pair in _centralize(group["params"])
        ]
        for optimizer in state.optimizer:
            optimizer.step()
        for param, gradient in given:
            param.grad = gradient
        return loss.detach()

    def get_gradients(self, state: TrainState) -> Weights:
        """p.grad where there is one."""
        return {
            n: _copy(p.grad.float())
            for g in state.groups
            for n, p in zip(g["param_names"], g["params"], strict=True)
            if p.grad is not None
        }

    @torch.no_grad()
    def predict(self, state: TrainState, x: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode."""
        state.model.eval()
        logits = _copy(self._forward(state, x).float())
        state.model.train()
        return logits

    def set_active(self, state: TrainState, active: Sequence[bool]) -> None:
        """requires_grad_ and no gradient: torch's optimizers skip such a parameter, weight decay and all."""
        for group, on in zip(state.groups, active, strict=True):
            for param in group["params"]:
                param.requires_grad_(on)
                if not on:
                    param.grad = None

    def get_optimizer_state(self, state: TrainState) -> Weights:
        """ "parameter/exp_avg" and so on."""
        return {
            f"{n}/{key}": _copy(torch.as_tensor(value))
            for n, p, native in _params(state)
            for key, value in native.state[p].items()
            if value is not None
        }

    @torch.no_grad()
    def set_optimizer_state(self, state: TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """The reverse."""
        for name, param, native in _params(state):
            own = {
                key.rpartition("/")[2]: torch.from_numpy(np.array(a))
                for key, a in arrays.items()
                if key.rpartition("/")[0] == name
            }
            native.state[param] = {
                k: torch.empty_like(param).copy_(v) if v.shape == param.shape else v.to(self.device)
                for k, v in own.items()
            }

    def _forward(self, state: TrainState, x: np.ndarray) -> torch.Tensor:
        """Logits; the compiled forward shares the model's parameters."""
        if state.compiled is None:
            state.compiled = torch.compile(state.model) if self.mode == "compile" else state.model
        tensor = self._tensor(x)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            logits: torch.Tensor = state.compiled(tensor.to(self.dtype) if tensor.is_floating_point() else tensor)
        return logits if self.dtype == torch.float64 else logits.float()

    def _backward(self, model: nn.Module, loss: torch.Tensor) -> None:
        """Gradients; from here on nobody sees the scale."""
        (loss * self.scale).backward()
        if self.scale != 1:
            for param in model.parameters():
                if param.grad is not None:
                    param.grad /= self.scale

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def _device(asked: str) -> torch.device:
    there = TorchFramework.devices()
    if asked == "auto":
        asked = there[0]
    asked = "cuda:0" if asked == "cuda" else asked
    if asked not in there:
        raise UserError(f"framework.device={asked!r} is not here; torch {torch.__version__} sees: {', '.join(there)}")
    return torch.device(asked)


def _copy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def _centralize(params: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Gradient centralization (Yong et al. 2020): each output's gradient loses its mean; 2-D and up. Returns the
    parameters with the gradients that the loss gave them: the proof must not take the plugin's word for it."""
    given = [(p, p.grad) for p in params if p.grad is not None and p.ndim > 1]
    for param, gradient in given:
        param.grad = gradient - gradient.mean(dim=tuple(range(1, param.ndim)), keepdim=True)
    return given


def _params(state: TrainState) -> list[tuple[str, torch.Tensor, torch.optim.Optimizer]]:
    """(canonical name, parameter, its optimizer)."""
    return [
        (n, p, native)
        for native in state.optimizer
        for g in native.param_groups
        for n, p in zip(g["param_names"], g["params"], strict=True)
    ]
