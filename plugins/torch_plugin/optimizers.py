"""Optimizer names as torch's own classes, every number explicit; and those that torch lacks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it anyway; here a forked job finds it imported
from torch import Tensor

from layerwise_lr.framework import OptimizerSpec

from . import fast

State = dict[str, Any]
Group = Mapping[str, Any]


class Own(torch.optim.Optimizer, ABC):
    """One that torch lacks: a formula for each parameter that has a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self.update(param, param.grad, self.state[param], group)
        return loss

    @abstractmethod
    def update(self, param: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """In place; an empty state is a fresh one."""


class LayerAdaptive(Own):
    """Seed document 002's LayerAdaptiveLR, its formula as in the reference plugin. Nothing waits for the device:
    the step size stays a tensor.

    Args:
        params: parameters, (name, parameter) pairs or groups, as of any torch optimizer.
        lr: per step.
        betas, eps, weight_decay: as Adam's; weight decay is L2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, param: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """p - lr * mean(|m| / (sqrt(v) + eps)) * m."""
        beta1, beta2 = group["betas"]
        if not state:
            state.update(exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
        average, square = state["exp_avg"], state["exp_avg_sq"]
        if group["weight_decay"]:
            gradient = gradient.add(param, alpha=group["weight_decay"])
        average.mul_(beta1).add_(gradient, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = group["lr"] * average.abs().div_(square.sqrt().add_(group["eps"])).mean()
        param.addcmul_(average, size, value=-1)


class Lion(Own):
    """Lion (Chen et al. 2023).

    Args:
        params: parameters, (name, parameter) pairs or groups, as of any torch optimizer.
        lr: per step; the paper takes a third to a tenth of AdamW's.
        betas, weight_decay: as AdamW's, decay decoupled.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def update(self, param: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """p (1 - lr wd) - lr sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g."""
        beta1, beta2 = group["betas"]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.add_(state["exp_avg"].lerp(gradient, 1 - beta1).sign_(), alpha=-group["lr"])
        state["exp_avg"].lerp_(gradient, 1 - beta2)


class Muon(Own):
    """torch.optim.Muon with adjust_lr_fn="match_rms_adamw", computed in float32: torch's own rounds the momentum to
    bfloat16, 3 digits, and which update that gives hangs on the kernel.

    Args:
        params: matrices, (name, matrix) pairs or groups, as of any torch optimizer.
        lr: per step; AdamW's will do.
        momentum, nesterov: of the buffer, an average of gradients.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    def update(self, param: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """p (1 - lr wd) - lr 0.2 sqrt(longer side) times the orthogonalized momentum."""
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        average = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.add_(_newton_schulz(average), alpha=-group["lr"] * 0.2 * max(param.shape) ** 0.5)


def _newton_schulz(x: Tensor) -> Tensor:
    """[A, B] with its singular values brought near 1."""
    tall = len(x) > x.shape[1]
    x = (x.T if tall else x) / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x


NATIVE: Mapping[str, Callable[[OptimizerSpec], tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]]] = {
    "sgd": lambda s: (fast.SGD, {"momentum": 0.0, "dampening": 0.0, "nesterov": False}),
    "momentum": lambda s: (fast.SGD, {"momentum": s.momentum, "dampening": 0.0, "nesterov": s.nesterov}),
    "adam": lambda s: (fast.Adam, {"betas": tuple(s.betas), "eps": s.eps}),
    "adamw": lambda s: (fast.AdamW, {"betas": tuple(s.betas), "eps": s.eps}),
    "nadam": lambda s: (
        torch.optim.NAdam,
        {"betas": tuple(s.betas), "eps": s.eps, "momentum_decay": s.momentum_decay, "decoupled_weight_decay": False},
    ),
    "rmsprop": lambda s: (
        torch.optim.RMSprop,
        {"alpha": s.alpha, "eps": s.eps, "momentum": s.momentum, "centered": False},
    ),
    "lion": lambda s: (Lion, {"betas": tuple(s.betas)}),
    "muon": lambda s: (Muon, {"momentum": s.momentum, "nesterov": s.nesterov}),
    "layer_adaptive": lambda s: (LayerAdaptive, {"betas": tuple(s.betas), "eps": s.eps}),
}


def make(
    spec: OptimizerSpec, groups: Sequence[dict[str, Any]], device: str = "cpu", dtype: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """torch's optimizer over its groups; of those in `fast` fused, where torch's kernel is right on that device."""
    native, options = NATIVE[spec.name](spec)
    fused = {"fused": True} if stepping(spec, device, dtype) in (fast.OURS, fast.FUSED) else {}
    return native(list(groups), lr=spec.lr, **fused, **options)


def stepping(spec: OptimizerSpec, device: str, dtype: torch.dtype) -> str:
    """How `fast` takes a step of it there; "": it is none of those."""
    native, _ = NATIVE[spec.name](spec)
    own = getattr(native, "own", None)
    return fast.way(own, torch.device(device).type, dtype) if own else ""
