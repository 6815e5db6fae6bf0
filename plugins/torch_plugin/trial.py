"""Any torch optimizer on trial: steps from one state, in float64 where it can."""

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from layerwise_lr import framework as core

from . import driving, fast
from .gradients import factor, gradients, hooked
from .memento import Chance, Memento

INNER = ("optimizer", "_optimizer", "base_optimizer", "optim")
"""Attributes in which wrappers of optimizers keep the one that they wrap."""
KNOWN: Mapping[type, str] = {torch.optim.SGD: "momentum", torch.optim.Adam: "adam", torch.optim.AdamW: "adamw"}
KNOWN = {**KNOWN, **{fast.CLASSES[own]: name for own, name in KNOWN.items()}}


def genuine(optimizer: Any) -> bool:
    """torch's own base class made it: Accelerate's wrapper derives from that class, and is none."""
    return isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "_optimizer_step_pre_hooks")


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside Accelerate's, Lightning's and other wrappers.

    Raises:
        UserError: there is none.
    """
    inner = optimizer
    while not genuine(inner):
        wrapped = [getattr(inner, name) for name in INNER if hasattr(getattr(inner, name, None), "step")]
        if not wrapped:
            raise core.UserError(f"{type(optimizer).__name__} is no torch optimizer and holds none: give the optimizer")
        inner = wrapped[0]
    return inner


class TorchTrial(core.Trial):
    """A model's optimizer and schedulers."""

    def __init__(self, model: nn.Module, optimizer: Any, schedulers: Sequence[Any], batch: Any) -> None:
        self.model, self.outer, self.inner, self.batch = model, optimizer, innermost(optimizer), batch
        self.drivers = [driving.Driver(driving.unwrapped_scheduler(s)) for s in schedulers]
        self.named = {core.bare_name(name): p for name, p in model.named_parameters()}
        self._names = {id(p): name for name, p in self.named.items()}
        self._exact, self._closure = True, False
        self._unreached: tuple[str, ...] = ()

    def __enter__(self) -> "TorchTrial":
        self._quiet = warnings.catch_warnings()
        self._quiet.__enter__()
        warnings.simplefilter("ignore")
        self._chance = Chance()
        self._all = Memento([self.model, self.outer, self.inner, *(d.scheduler for d in self.drivers)])
        self._here: Memento | None = None
        try:
            self._prepare()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._all.restore()
        self._chance.restore()
        self._quiet.__exit__(None, None, None)

    def _prepare(self) -> None:
        """Gradients, and whether a step wants a closure."""
        hooks = {n: dict(p._backward_hooks) for n, p in self.named.items() if p._backward_hooks}
        torch.manual_seed(0)
        self.raw, self._unreached = gradients(self.model, self.named, self.batch)
        self._all.restore()
        self.seen = {n: hooked(g.clone(), self.named[n], hooks.get(n, {})) for n, g in self.raw.items()}
        self.stale = {n: p.grad.clone() for n, p in self.named.items() if n not in self.raw and p.grad is not None}
        self.stale = {n: g for n, g in self.stale.items() if not self.named[n].requires_grad}
        for exact, closure in ((True, False), (True, True), (False, False), (False, True)):
            self._exact, self._closure = exact, closure
            try:
                self.move()
                return
            except core.UserError:
                raise
            except Exception as error:  # whatever a foreign step raises: it may want a closure, or its own numbers
                last = error
        told = f"{type(last).__name__}: {last}".splitlines()[0][:120]
        name = type(self.outer).__name__
        raise core.UserError(f"cannot be measured: {name}.step() fails on gradients that are given to it ({told})")

    @cached_property
    def subject(self) -> core.Subject:
        """Read off the groups."""
        groups, strangers = [], set()
        for index, group in enumerate(self.inner.param_groups):
            names = []
            for p in group["params"]:
                name = self._names.get(id(p))
                if name is None:
                    name = f"{'x'.join(map(str, p.shape)) or 'one number'} in group {index}"
                    strangers.add(name)
                names.append(name)
            groups.append(tuple(names))
        inits = ["initial_lr" in group for group in self.inner.param_groups]
        tree = list(driving.tree([d.scheduler for d in self.drivers]))
        peaks = any(hasattr(s, "max_lrs") for s in tree) or any("max_lr" in g for g in self.inner.param_groups)
        return core.Subject(
            type(self.model).__name__,
            type(self.outer).__name__,
            " and ".join(type(d.scheduler).__name__ for d in self.drivers),
            {name: p.requires_grad for name, p in self.named.items()},
            tuple(groups),
            tuple(_label(i, g) for i, g in enumerate(self.inner.param_groups)),
            frozenset(strangers),
            self._unreached,
            {name: str(p.dtype).removeprefix("torch.") for name, p in self.named.items()},
            tuple(i for i, known in enumerate(inits) if not known) if any(inits) and self.drivers else (),
            bool(peaks and self.drivers),
            any(d.per_group for d in self.drivers),
            max((d.horizon for d in self.drivers), default=0),
            driving.planned([*tree, *self._checkers()]),
        )

    def _checkers(self) -> list[Any]:
        """Schedulers that look at the lrs before each step: ours is known by that, given or not."""
        return [getattr(hook, "__self__", None) for hook in self.inner._optimizer_step_pre_hooks.values()]

    @property
    def exact(self) -> bool:
        """float64, unless the optimizer cannot."""
        return self._exact

    def options(self) -> list[dict[str, Any]]:
        """Tensors become numbers; what is no number is left out."""
        return [{k: made for k, v in g.items() if (made := _plain(v)) is not None} for g in self.inner.param_groups]

    def advance(self) -> bool:
        """A scheduler that raises has come to its end (OneCycleLR does)."""
        self._here = None
        try:
            for driver in self.drivers:
                driver.advance()
        except core.UserError:
            raise
        except Exception:
            return False
        return bool(self.drivers)

    def move(self, lr: float | None = None, exact: bool = True, times: int = 1) -> core.Move:
        """Everything around the step is kept and restored; the random state is the same for each."""
        if self._here is None:
            self._here = Memento([self.model, self.outer, self.inner])
        seen: dict[str, torch.Tensor] = {}
        try:
            if exact and self._exact:
                self._widen()
            held = {n: p.detach().clone() for n, p in self.named.items()}
            if lr is None:
                self.inner.register_step_pre_hook(lambda *_: seen.update(self._gradients()))
            else:
                for hooks in (self.inner._optimizer_step_pre_hooks, self.inner._optimizer_step_post_hooks):
                    hooks.clear()
                for group in self.inner.param_groups:
                    was = group["lr"]
                    group["lr"] = torch.full_like(was, lr) if isinstance(was, torch.Tensor) else lr
            lrs: list[float] = []
            for _ in range(times):
                torch.manual_seed(0)
                self._place(raw=lr is not None)
                self._step(raw=lr is not None)
                lrs = [_number(group.get("lr")) for group in self.inner.param_groups]
            moved = {n: (p.detach().double() - held[n].double()).cpu().numpy() for n, p in self.named.items()}
        finally:
            self._here.restore()
        factors = {n: factor(seen[n], g) for n, g in self.raw.items() if n in seen}
        return core.Move(moved, factors, lrs)

    def _gradients(self) -> dict[str, torch.Tensor]:
        return {n: p.grad.detach().clone() for n, p in self.named.items() if p.grad is not None}

    def _widen(self) -> None:
        """Weights and optimizer state become float64; steps are counted in what they were."""
        for p in self.named.values():
            p.grad = None
            if p.is_floating_point():
                p.data = p.data.double()
        assert self._here is not None
        for optimizer in self._here.optimizers:
            for owner, state in optimizer.state.items():
                if isinstance(state, dict) and isinstance(owner, torch.Tensor):
                    state.update({k: _wide(v, owner) for k, v in state.items() if k != "step"})

    def _place(self, raw: bool) -> None:
        for name, p in self.named.items():
            given = (self.raw if raw else self.seen).get(name, self.stale.get(name))
            p.grad = None if given is None else given.detach().clone().to(p.dtype)

    def _step(self, raw: bool) -> None:
        def closure() -> torch.Tensor:
            self._place(raw)
            return torch.ones(())

        # the lr of a wrapper's inner optimizer is known where the wrapper's own doings are left out
        stepping = self.inner if raw and not genuine(self.outer) else self.outer
        stepping.step(*((closure,) if self._closure else ()))

    def known(self, group: int) -> core.Known | None:
        """torch's own SGD, Adam and AdamW, as long as nothing wraps them."""
        own, kind = self.inner.param_groups[group], type(self.inner)
        plain = kind in KNOWN and self.outer is self.inner and self._exact
        if not plain or own.get("maximize") or own.get("amsgrad") or own.get("dampening"):
            return None
        name = "adamw" if own.get("decoupled_weight_decay") else KNOWN[kind]
        name = "sgd" if name == "momentum" and not own["momentum"] else name
        spec = core.OptimizerSpec(
            name,
            lr=1.0,
            momentum=own.get("momentum", 0.0),
            nesterov=own.get("nesterov", False),
            betas=[_number(b) for b in own.get("betas", (0.9, 0.999))],
            eps=own.get("eps", 0.0),
        )
        return core.Known(spec, float(own["weight_decay"]), self._before)

    def _before(self, name: str) -> tuple[np.ndarray, np.ndarray | None, core.Weights]:
        """As NumPy sees them."""
        p, gradient = self.named[name], self.raw.get(name, self.stale.get(name))
        state = {k: _array(torch.as_tensor(v)) for k, v in self.inner.state.get(p, {}).items() if v is not None}
        return _array(p), None if gradient is None else _array(gradient), state


def _array(tensor: torch.Tensor) -> np.ndarray:
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return dense.double().cpu().numpy()


def _wide(value: Any, parameter: torch.Tensor) -> Any:
    if (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and (value.dim() or value.shape == parameter.shape)
    ):
        return value.double()
    return value


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _plain(value: Any) -> Any:
    """A number, or a tuple of some; None for anything else."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 else None
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    return value if isinstance(value, int | float) else None


def _label(index: int, group: Mapping[str, Any]) -> str:
    named = group.get("name") or group.get("group_name")
    return str(named) if isinstance(named, str) else f"group {index}"
