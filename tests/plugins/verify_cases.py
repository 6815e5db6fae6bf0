"""Models, optimizers and groups that the tests of verify share."""

import copy
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

LRS = (1e-5, 1e-4, 1e-3)


class Net(nn.Module):
    """Stem, block and head; batchnorm, so that a forward changes buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.block = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.block(torch.relu(self.norm(self.stem(x))))))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def groups(model: Net, lrs: Sequence[float] = LRS, **keys: Sequence[Any]) -> list[dict[str, Any]]:
    """Stem, middle, head; of each key one value per group."""
    parts = ([model.stem, model.norm], [model.block], [model.head])
    return [
        {
            "params": [p for layer in layers for p in layer.parameters()],
            "lr": lr,
            **{key: values[i] for key, values in keys.items()},
        }
        for i, (layers, lr) in enumerate(zip(parts, lrs, strict=True))
    ]


def batch(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(6, 4, generator=source), torch.tensor([0, 1, 2, 0, 1, 2])


def train(model: nn.Module, optimizer: Any, times: int = 2) -> None:
    """Leaves momentum behind, and gradients."""
    x, y = batch()
    for _ in range(times):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, as its authors wrote it."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.data.mul_(1 - group["lr"] * group["weight_decay"])
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                average, (beta1, beta2) = state["exp_avg"], group["betas"]
                p.add_(torch.sign(average * beta1 + p.grad * (1 - beta1)), alpha=-group["lr"])
                average.mul_(beta2).add_(p.grad, alpha=1 - beta2)
        return loss


class SAM(torch.optim.Optimizer):
    """Foret et al. 2021, as in davda54/sam: wraps a base optimizer, wants a closure."""

    def __init__(
        self, params: Iterable[Any], base: type[torch.optim.Optimizer], rho: float = 0.05, **keys: Any
    ) -> None:
        super().__init__(params, {"rho": rho, **keys})
        self.base_optimizer = base(self.param_groups, **keys)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        assert closure is not None, "SAM requires closure"
        again = torch.enable_grad()(closure)
        again()
        norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old_p"] = p.data.clone()
                    p.add_(p.grad, alpha=group["rho"] / (float(norm) + 1e-12))
        self.zero_grad()
        again()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old_p"]
        self.base_optimizer.step()


class Quantized(torch.optim.Optimizer):
    """A stand-in for 8-bit optimizers: momentum held in int8 with one scale per tensor."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                old = state["q"].to(p.dtype) * state["scale"] if state else torch.zeros_like(p)
                now = 0.9 * old + p.grad
                state["scale"] = float(now.abs().max()) / 127
                state["q"] = torch.round(now / state["scale"]).to(torch.int8)
                p.add_(now, alpha=-group["lr"])


class Lars(torch.optim.Optimizer):
    """You et al. 2017: a step as long as the weight is, times lr."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    trust = p.norm() / p.grad.norm() if p.norm() > 0 else 1.0
                    p.add_(p.grad * trust, alpha=-group["lr"])


def _frozen(thing: Any) -> Any:
    """Tensors as bytes: equal means bit by bit."""
    if isinstance(thing, torch.Tensor):
        return (
            str(thing.dtype),
            tuple(thing.shape),
            thing.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(thing, dict):
        return {str(id(k)) if isinstance(k, torch.Tensor) else k: _frozen(v) for k, v in thing.items()}
    if isinstance(thing, list | tuple):
        return [_frozen(v) for v in thing]
    return thing if isinstance(thing, str | int | float | bool | type(None)) else copy.copy(str(thing))


def everything(model: nn.Module, optimizer: Any, schedulers: Sequence[Any] = ()) -> dict[str, Any]:
    """All that verify must leave as it was: from public state, by another route than verify's own."""
    inner = getattr(optimizer, "base_optimizer", None)
    return {
        "weights": _frozen(model.state_dict()),
        "places": [p.data_ptr() for p in model.parameters()],
        "grads": [_frozen(p.grad) for p in model.parameters()],
        "grad objects": [id(p.grad) if p.grad is not None else None for p in model.parameters()],
        "flags": [(p.requires_grad, p.dtype) for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": [
            {k: list(v) for k, v in vars(m).items() if k.endswith("_hooks") and isinstance(v, dict)}
            for m in model.modules()
        ],
        "tensor hooks": [list(p._backward_hooks or ()) for p in model.parameters()],
        "optimizer": [_frozen(o.state_dict()) for o in (optimizer, inner) if o is not None],
        "state objects": [sorted(id(v) for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))],
        "groups": [_frozen({k: v for k, v in g.items() if k != "params"}) for g in optimizer.param_groups],
        "members": [[id(p) for p in g["params"]] for g in optimizer.param_groups],
        "attributes": sorted(vars(optimizer)),
        "called": getattr(optimizer, "_opt_called", None),
        "step hooks": [list(optimizer._optimizer_step_pre_hooks), list(optimizer._optimizer_step_post_hooks)],
        "schedulers": [_frozen({k: v for k, v in vars(s).items() if k != "optimizer"}) for s in schedulers],
        "chance": (_frozen(torch.get_rng_state()), str(np.random.get_state()), random.getstate()),
    }
