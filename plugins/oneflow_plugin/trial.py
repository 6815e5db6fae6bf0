"""Any eager OneFlow optimizer on trial: steps from one state, in float64 where it can."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import oneflow as flow
from oneflow import Tensor, nn
from oneflow.nn import functional

from layerwise_lr import framework as core


class Memento(core.Memento):
    """Of OneFlow's optimizers, schedulers and modules."""

    tensor: ClassVar[type] = Tensor
    module: ClassVar[type] = nn.Module
    optimizer: ClassVar[type] = flow.optim.Optimizer
    generators: ClassVar[tuple[Any, ...]] = (type(flow.default_generator),)
    plain: ClassVar[tuple[type, ...]] = (flow.dtype, flow.device)

    def __init__(self, roots: Iterable[Any]) -> None:
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


class OneflowTrial(core.GroupTrial):
    """A model's optimizer and schedulers."""

    def __init__(self, model: nn.Module, optimizer: Any, schedulers: Sequence[Any], batch: Any) -> None:
        if not isinstance(optimizer, flow.optim.Optimizer):
            raise core.UserError(f"{type(optimizer).__name__} is no OneFlow optimizer: give the optimizer")
        named = {core.bare_name(name): p for name, p in model.named_parameters()}
        super().__init__(model, optimizer, schedulers, batch, named)

    def memento(self, roots: Iterable[Any]) -> Memento:
        """OneFlow's."""
        return Memento(roots)

    def groups(self) -> list[tuple[Sequence[Any], Mapping[str, Any]]]:
        """A ParamGroup is no dict."""
        return [(group.parameters, group.options) for group in self.optimizer.param_groups]

    def array(self, parameter: Tensor) -> np.ndarray:
        """A snapshot: numpy() may alias."""
        copied: np.ndarray = parameter.detach().double().cpu().numpy().copy()
        return copied

    def refine(self) -> None:
        """Weights and optimizer state become float64."""
        for p in self.named.values():
            p.grad = None
            p.data = p.data.double()
        for own in self.optimizer._state.values():
            if isinstance(own, dict):
                own.update({key: _wide(value) for key, value in own.items()})

    def write(self, lr: float) -> None:
        """group["lr"]."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def take(self, gradients: Mapping[str, Tensor], own: bool) -> None:
        """Schedulers put steps of their own in the optimizer's place."""
        for name, p in self.named.items():
            given = gradients.get(name)
            p.grad = None if given is None else given.to(p.dtype).clone()
        self.optimizer.step() if own else type(self.optimizer).step(self.optimizer)

    def gradients(self) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """After the parameters' hooks. Those of frozen parameters are theirs, stale or none."""
        stale = {n: p.grad.clone() for n, p in self.named.items() if not p.requires_grad and p.grad is not None}
        wanted = {name: p for name, p in self.named.items() if p.requires_grad}
        if self.batch is not None:
            flow.manual_seed(0)
            loss = loss_of(self.model, self.batch)
            if loss is not None:
                for p in wanted.values():
                    p.grad = None
                loss.backward()
            found = {name: p.grad.detach().clone() for name, p in wanted.items() if p.grad is not None}
            core.check_finite({name: g.numpy() for name, g in found.items()})
            if found or loss is not None:
                return stale | found, tuple(name for name in wanted if name not in found)
        return stale | core.made_up(wanted, lambda g, p: flow.tensor(g, dtype=p.dtype, device=p.device)), ()


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def loss_of(model: nn.Module, batch: Any) -> Tensor | None:
    """(x, y): cross-entropy of the logits; a function's result; else the mean square of what the model gives."""
    if callable(batch) and not isinstance(batch, Tensor):
        return core.check_loss(batch(model), Tensor)
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return functional.cross_entropy(core.logits(model(batch[0]), Tensor, model), batch[1])
    output = core.run(model, batch)
    if not isinstance(output, Tensor):
        raise core.UserError(f"the model gives a {type(output).__name__}: give batch=lambda model: the loss")
    return output.square().mean()
