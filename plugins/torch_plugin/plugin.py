"""PyTorch, eager or compiled: the verbs in the contract's order."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch._dynamo
from torch import nn
from torch.nn import functional

from layerwise_lr import framework as core

from . import exporting, optimizers, zoo
from .layers import Model
from .native import TorchNative

Group = dict[str, Any]
M = TypeVar("M", bound=nn.Module)
AUTOCAST: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchFramework(core.Framework):
    """PyTorch on CPU or CUDA."""

    kinds: ClassVar[tuple[str, ...]] = (*core.KINDS, *core.PLAIN_KINDS)
    optimizers: ClassVar[tuple[str, ...]] = core.OPTIMIZERS
    modes: ClassVar[tuple[str, ...]] = ("eager", "compile")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp64", *AUTOCAST)  # fp64: to tell rounding from error
    sources: ClassVar[tuple[str, ...]] = tuple(zoo.BUILDERS)
    distributions: ClassVar[tuple[str, ...]] = ("ddp", "fsdp")
    fork_safe: ClassVar[bool] = True  # as long as the parent runs no parallel region: it imports, the children train

    def start(self) -> None:
        """What torch keeps per process."""
        self.dtype = torch.float64 if self.precision == "fp64" else torch.float32
        torch.set_num_threads(self.threads)
        if self.mode == "compile":  # once per model and set of training groups; past its limit torch is eager
            torch._dynamo.config.recompile_limit = 256
        if self.deterministic:  # not called with False: the call alone imports torch's compiler, two seconds
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS raises
            torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.allow_tf32 = False  # torch's default, which rounds fp32 convolutions to 10 bits

    @staticmethod
    def cuda_devices() -> int:
        """As torch counts them."""
        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    @classmethod
    def among(cls, how: str) -> Callable[..., core.Framework]:
        """DistributedDataParallel, or fully_shard."""
        from .distributed import CLASSES  # a second of imports

        return CLASSES[how]

    @classmethod
    def follow(cls) -> int:
        """As its first process says."""
        from .follower import follow

        return follow()

    @staticmethod
    def native() -> type[core.Native]:
        """Any nn.Module."""
        return TorchNative

    @staticmethod
    def version() -> str:
        """torch's version, which names the build."""
        return f"torch {torch.__version__}"

    def stepping(self, spec: core.OptimizerSpec) -> str:
        """With one fused call for equal groups, where a trial of it gives torch's bits."""
        return optimizers.stepping(spec, self.device, self.dtype)

    def make_model(self, tree: core.Tree) -> Model:
        """On the device, in training mode."""
        return self._ready(Model(tree))

    @classmethod
    def build(cls, asked: core.ZooModel, seed: int | None, make: Callable[..., Any] | None = None) -> nn.Module:
        """timm's, torchvision's, transformers', or who makes it; without a seed on the meta device."""
        if seed is not None:
            torch.manual_seed(seed)
            return zoo.build(asked, make)
        with torch.device("meta"):
            return zoo.build(replace(asked, pretrained=False), make)

    def adopt(self, native: nn.Module) -> zoo.Foreign:
        """Any nn.Module that gives logits."""
        return self._ready(zoo.Foreign(native))

    def _ready(self, model: M) -> M:
        """On the device, in training mode. channels_last: a third less time in convolutions on a CPU."""
        model = model.to(self.device, self.dtype).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        if self.mode == "compile":
            model.compile()
        return model

    def get_weights(self, model: Model) -> core.Weights:
        """Copies by canonical name."""
        return {name: self._copy(tensor.float()) for name, tensor in model.arrays().items()}

    @torch.no_grad()
    def set_weights(self, model: Model, weights: core.Weights) -> None:
        """In place: the optimizer keeps its parameters."""
        for name, tensor in model.arrays().items():
            tensor.copy_(torch.from_numpy(weights[name]))

    def make_groups(self, model: Model, plan: core.Plan) -> list[Group]:
        """torch's param_groups; the lr is resolved, no key is left that torch would ignore."""
        arrays = model.arrays()
        return [
            {
                "params": [(name, arrays[name]) for name in group.params],
                "lr": plan.base_lr * group.lr_scale,
                "weight_decay": group.weight_decay,
                "name": group.name,
                "grad_centralization": group.grad_centralization,
            }
            for group in plan.groups
        ]

    def make_optimizer(self, model: Model, groups: Sequence[Group], plan: core.Plan) -> list[torch.optim.Optimizer]:
        """One native optimizer per name in use. torch keeps these very dicts as its param_groups: what the
        scheduler writes into them is what the step reads."""
        own = core.by_optimizer(groups, plan)
        return [optimizers.make(plan.optimizers[name], same, self.device, self.dtype) for name, same in own.items()]

    def make_scheduler(
        self, optimizer: Sequence[torch.optim.Optimizer], plan: core.Plan, start: int
    ) -> core.GroupScheduler:
        """Eager torch reads group["lr"] at every step."""
        return core.GroupScheduler(core.in_plan_order(optimizer, plan), plan)

    def train_step(self, state: core.TrainState, x: np.ndarray, y: np.ndarray, step: core.Step) -> core.StepResult:
        """Forward, backward, one step of every optimizer. What has no gradient, torch's optimizers leave alone,
        weight decay and momentum and all: so a group that does not train is one without requires_grad."""
        torch.manual_seed(step.seed)
        for group, on in zip(state.groups, step.active, strict=True):
            for param in group["params"]:
                param.requires_grad_(on)
        state.model.rest(step.frozen)
        state.model.zero_grad(set_to_none=True)
        losses: list[torch.Tensor] = []
        for pictures, targets in zip(np.split(x, step.accumulate), np.split(y, step.accumulate), strict=True):
            with self._part(state.model, last=len(losses) + 1 == step.accumulate):
                loss = self._loss(state.model, pictures, targets)
                losses.append(loss.detach())
                if loss.requires_grad:  # else no group trains at this step
                    (loss * (self.loss_scale / step.accumulate)).backward()
        if self.loss_scale != 1:
            for _, gradient, _ in _trained(state):
                gradient /= self.loss_scale
        gradients = None
        if step.gradients:
            gradients = {name: self._copy(gradient.float()) for name, gradient, _ in _trained(state)}
        _clip(state, step.clip)
        for _, gradient, group in _trained(state):
            if group["grad_centralization"] and (axes := core.central_axes(gradient.shape)):
                gradient -= gradient.mean(axes, keepdim=True)
        for optimizer in state.optimizer:
            optimizer.step()
        return core.StepResult(losses[0] if len(losses) == 1 else torch.stack(losses).mean(), gradients)

    def _part(self, model: Model, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a part of the pictures; `last`: no other follows in this step."""
        return nullcontext()

    def _loss(self, model: Model, pictures: np.ndarray, targets: np.ndarray) -> torch.Tensor:
        """Mean over the pictures."""
        return functional.cross_entropy(self._forward(model, pictures), self._tensor(targets))

    @torch.no_grad()
    def predict(self, state: core.TrainState, x: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode."""
        state.model.eval()
        logits = self._copy(self._forward(state.model, x).float())
        state.model.train()
        return logits

    def to_onnx(self, model: nn.Module, shape: tuple[int, ...], scale: tuple[np.ndarray, np.ndarray] | None) -> bytes:
        """By torch.onnx's exporter."""
        return exporting.onnx(model, shape, scale)

    def get_optimizer_state(self, state: core.TrainState) -> core.Weights:
        """ "parameter/exp_avg" and so on: torch's own keys."""
        return {
            f"{name}/{key}": self._copy(torch.as_tensor(value))
            for name, param, native in _stepped(state)
            for key, value in native.state[param].items()
            if value is not None
        }

    @torch.no_grad()
    def set_optimizer_state(self, state: core.TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """The reverse."""
        for name, param, native in _stepped(state):
            own = {key[len(name) + 1 :]: a for key, a in arrays.items() if key.rpartition("/")[0] == name}
            native.state[param] = {key: self._like(param, array) for key, array in own.items()}

    def _forward(self, model: Model, x: np.ndarray) -> torch.Tensor:
        """Logits, float32 or wider."""
        tensor = self._tensor(x)
        half = AUTOCAST.get(self.precision)
        with torch.autocast(torch.device(self.device).type, half, enabled=half is not None):
            logits: torch.Tensor = model(tensor.to(self.dtype) if tensor.is_floating_point() else tensor)
        return logits.to(self.dtype)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def _copy(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().cpu().numpy().copy()

    def _like(self, param: torch.Tensor, array: np.ndarray) -> torch.Tensor:
        """State as torch lays it out: in the parameter's memory format; a step count stays as it is."""
        if array.shape != param.shape:
            return torch.from_numpy(np.array(array)).to(param.device)
        return torch.empty_like(param).copy_(self._placed(param, np.array(array)))

    def _placed(self, like: torch.Tensor, array: np.ndarray) -> torch.Tensor:
        """An array as a tensor that `like` can take."""
        return torch.from_numpy(array).to(like.device)


def _clip(state: core.TrainState, clip: core.Clip) -> None:
    """torch's own clipping, over all groups that train."""
    params = [p for group in state.groups for p in group["params"] if p.grad is not None]
    if clip.norm is not None:
        nn.utils.clip_grad_norm_(params, clip.norm)
    if clip.value is not None:
        nn.utils.clip_grad_value_(params, clip.value)


def _trained(state: core.TrainState) -> Iterator[tuple[str, torch.Tensor, Group]]:
    """(canonical name, gradient, its group) of the parameters that have one."""
    for group in state.groups:
        for name, param in zip(group["param_names"], group["params"], strict=True):
            if param.grad is not None:
                yield name, param.grad, group


def _stepped(state: core.TrainState) -> Iterator[tuple[str, torch.Tensor, torch.optim.Optimizer]]:
    """(canonical name, parameter, its optimizer)."""
    for native in state.optimizer:
        for group in native.param_groups:
            for name, param in zip(group["param_names"], group["params"], strict=True):
                yield name, param, native
