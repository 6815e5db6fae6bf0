"""Any eager OneFlow optimizer on trial: steps from one state, in float64 where it can."""

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import oneflow as flow
from oneflow import Tensor, nn
from oneflow.nn import functional

from layerwise_lr import framework as core

LENGTHS = ("decay_steps", "decay_batch", "T_max", "T_0", "total_iters", "steps", "step_size", "warmup_iters")
"""Attributes by which schedulers say how long they are."""
USUAL, MOST = 100, 10_000
"""Steps ahead, where a scheduler does not say; and where it says a very large number."""


class Memento(core.Memento):
    """Of OneFlow's optimizers, schedulers and modules."""

    tensor: ClassVar[type] = Tensor
    module: ClassVar[type] = nn.Module
    optimizer: ClassVar[type] = flow.optim.Optimizer
    generators: ClassVar[tuple[Any, ...]] = (type(flow.default_generator),)
    plain: ClassVar[tuple[type, ...]] = (flow.dtype, flow.device)

    def __init__(self, roots: Sequence[Any]) -> None:
        super().__init__(roots)
        self.keep(flow.get_rng_state(), flow.set_rng_state)
        self.keep(np.random.get_state(), np.random.set_state)
        self.keep(random.getstate(), random.setstate)

    @flow.no_grad()
    def restore(self) -> None:
        """All as it was."""
        super().restore()

    def undo_tensor(self, tensor: Tensor) -> Callable[[], object]:
        """Data, gradient, whether one is wanted."""
        data, held, asked, leaf = tensor.data, tensor.detach().clone(), tensor.requires_grad, tensor.is_leaf
        grad = tensor.grad if leaf else None
        numbers = None if grad is None else grad.detach().clone()

        def undo() -> None:
            if leaf:
                tensor.grad = None
                tensor.data = data
            tensor.detach().copy_(held)
            if leaf:
                tensor.requires_grad_(asked)
                if grad is not None:
                    grad.copy_(numbers)
                    tensor.grad = grad

        return undo


class OneflowTrial(core.Trial):
    """A model's optimizer and schedulers."""

    def __init__(self, model: nn.Module, optimizer: Any, schedulers: Sequence[Any], batch: Any) -> None:
        if not isinstance(optimizer, flow.optim.Optimizer):
            raise core.UserError(f"{type(optimizer).__name__} is no OneFlow optimizer: give the optimizer")
        self.model, self.optimizer, self.schedulers, self.batch = model, optimizer, schedulers, batch
        self.named = {core.bare_name(name): p for name, p in model.named_parameters()}
        self._exact = True

    def __enter__(self) -> "OneflowTrial":
        self._all = Memento([self.model, self.optimizer, *self.schedulers])
        self._here: Memento | None = None
        try:
            self._gradients = gradients(self.model, self.named, self.batch)
            self._all.restore()
            self._exact = self._takes_float64()
        except BaseException:
            self._all.restore()
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._all.restore()

    def _takes_float64(self) -> bool:
        try:
            self.move()
        except core.UserError:
            raise
        except Exception:  # whatever a foreign step raises: its own numbers are left
            return False
        return True

    @cached_property
    def subject(self) -> core.Subject:
        """Read off the groups."""
        names, groups, strangers = {id(p): name for name, p in self.named.items()}, [], set()
        for index, group in enumerate(self.optimizer.param_groups):
            own = [
                names.get(id(p), f"{'x'.join(map(str, p.shape)) or 'one number'} in group {index}")
                for p in group.parameters
            ]
            strangers |= set(own) - set(self.named)
            groups.append(tuple(own))
        labels = [group.options.get("name") for group in self.optimizer.param_groups]
        inits = ["initial_lr" in group for group in self.optimizer.param_groups]
        reached = self._gradients if self.batch is not None else self.named
        return core.Subject(
            type(self.model).__name__,
            type(self.optimizer).__name__,
            " and ".join(type(s).__name__ for s in self.schedulers),
            {name: p.requires_grad for name, p in self.named.items()},
            tuple(groups),
            tuple(label if isinstance(label, str) else f"group {i}" for i, label in enumerate(labels)),
            frozenset(strangers),
            tuple(name for name, p in self.named.items() if p.requires_grad and name not in reached),
            {name: str(p.dtype).removeprefix("oneflow.") for name, p in self.named.items()},
            tuple(i for i, known in enumerate(inits) if not known) if any(inits) and self.schedulers else (),
            per_group=any(len(set(map(id, getattr(s, "lr_lambdas", ())))) > 1 for s in self.schedulers),
            horizon=max((_horizon(s) for s in self.schedulers), default=0),
            planned=next(((s.plan, s.last_step) for s in self.schedulers if isinstance(s, core.PlanScheduler)), None),
        )

    @property
    def exact(self) -> bool:
        """float64, unless the optimizer cannot (Adagrad)."""
        return self._exact

    def options(self) -> list[dict[str, Any]]:
        """Numbers, and tuples of some."""
        return [
            {k: v for k, v in group.options.items() if isinstance(v, int | float | tuple)}
            for group in self.optimizer.param_groups
        ]

    def advance(self) -> bool:
        """A scheduler that waits for a metric is given one that does not improve, as often as it waits."""
        self._here = None
        for scheduler in self.schedulers:
            needed = [p for p in inspect.signature(scheduler.step).parameters.values() if p.default is p.empty]
            for _ in range(getattr(scheduler, "patience", 0) + getattr(scheduler, "cooldown", 0) + 1):
                scheduler.step(*(1.0 for _ in needed))
        return bool(self.schedulers)

    def move(self, lr: float | None = None, exact: bool = True, times: int = 1) -> core.Move:
        """Everything around the step is kept and restored. With an lr the class's own step is taken, without what
        schedulers and others have put in its place."""
        here = self._here = self._here or Memento([self.model, self.optimizer])
        groups = self.optimizer.param_groups
        try:
            if exact and self._exact:
                self._widen()
            held = {name: p.detach().clone() for name, p in self.named.items()}
            if lr is not None:
                for group in groups:
                    group["lr"] = lr
            for _ in range(times):
                for name, p in self.named.items():
                    given = self._gradients.get(name)
                    p.grad = None if given is None else given.to(p.dtype).clone()
                self.optimizer.step() if lr is None else type(self.optimizer).step(self.optimizer)
            lrs = [float(group.options.get("lr", np.nan)) for group in groups]
            moved = {n: (p.detach().double() - held[n].double()).cpu().numpy().copy() for n, p in self.named.items()}
        finally:
            here.restore()
        return core.Move(moved, {}, lrs)

    def _widen(self) -> None:
        """Weights and optimizer state become float64."""
        for p in self.named.values():
            p.grad = None
            p.data = p.data.double()
        for own in self.optimizer._state.values():
            if isinstance(own, dict):
                own.update({key: _wide(value) for key, value in own.items()})


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def gradients(model: nn.Module, named: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
    """Of every trainable parameter that the batch reaches, after its hooks. Without a batch they are drawn from a seed
    of their own; those of frozen parameters are theirs, stale or none."""
    stale = {name: p.grad.clone() for name, p in named.items() if not p.requires_grad and p.grad is not None}
    wanted = {name: p for name, p in named.items() if p.requires_grad}
    flow.manual_seed(0)
    if batch is not None:
        for p in wanted.values():
            p.grad = None
        loss = loss_of(model, batch)
        if loss is not None:
            loss.backward()
        found = {name: p.grad.detach().clone() for name, p in wanted.items() if p.grad is not None}
        bad = next((name for name, g in found.items() if not np.isfinite(g.numpy()).all()), None)
        if bad is not None:
            raise core.UserError(f"the gradient of {bad} is not finite: verify with another batch")
        if found or loss is not None:
            return stale | found
    draw = np.random.RandomState(0)
    return stale | {n: flow.tensor(draw.randn(*p.shape), dtype=p.dtype, device=p.device) for n, p in wanted.items()}


def loss_of(model: nn.Module, batch: Any) -> Tensor | None:
    """(x, y): cross-entropy of the logits; a function's result; else the mean square of what the model gives."""
    if callable(batch) and not isinstance(batch, Tensor):
        result = batch(model)
        if result is not None and not isinstance(result, Tensor):
            raise core.UserError(f"batch(model) gave a {type(result).__name__}: it must give the loss, a tensor")
        return result
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return functional.cross_entropy(core.logits(model(batch[0]), Tensor, model), batch[1])
    output = core.run(model, batch)
    if not isinstance(output, Tensor):
        raise core.UserError(f"the model gives a {type(output).__name__}: give batch=lambda model: the loss")
    return output.square().mean()


def _horizon(scheduler: Any) -> int:
    """Steps from here to the end, as far as it says."""
    if hasattr(scheduler, "patience"):  # reductions: down to its floors, where it has some
        return USUAL if any(scheduler.min_lrs) else 4
    if isinstance(scheduler, core.PlanScheduler):
        length = scheduler.plan.total_steps - 1
        length = length if length <= MOST else USUAL
    elif milestones := getattr(scheduler, "milestones", None):
        length = int(max(milestones)) + 1
    else:
        parts = (scheduler, *getattr(scheduler, "schedulers", ()))
        known = [getattr(part, name, None) for part in parts for name in LENGTHS]
        length = int(max((n for n in known if isinstance(n, int | float)), default=USUAL))
    return max(min(length, MOST) - max(scheduler.last_step, 0), 1)
