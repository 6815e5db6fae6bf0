"""Any MegEngine optimizer on trial: steps from one state, of small weights, for there is no float64."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import megengine.functional as F
import megengine.module as M
import numpy as np
from megengine import Tensor
from megengine.autodiff import GradManager
from megengine.optimizer import Optimizer
from megengine.utils.naming import AutoNaming

from layerwise_lr import framework as core

from . import optimizers


class Memento(core.Memento):
    """Of MegEngine's optimizers, schedulers and modules. Its random generator cannot be read, and is not kept."""

    tensor: ClassVar[type] = Tensor
    module: ClassVar[Any] = ()  # a module holds its tensors among its attributes, as any object does
    optimizer: ClassVar[type] = Optimizer
    generators: ClassVar[tuple[Any, ...]] = ()
    plain: ClassVar[tuple[type, ...]] = ()

    def __init__(self, roots: Iterable[Any]) -> None:
        super().__init__(roots)
        self.keep(np.random.get_state(), np.random.set_state)
        self.keep(random.getstate(), random.setstate)

    def undo_tensor(self, tensor: Tensor) -> Callable[[], object]:
        """Its numbers, and its gradient."""
        held, grad = np.array(tensor.numpy()), tensor.grad
        numbers = None if grad is None else np.array(grad.numpy())

        def undo() -> None:
            _put(tensor, held)
            tensor.grad = grad
            if grad is not None:
                _put(grad, numbers)

        return undo


def _put(tensor: Tensor, array: Any) -> None:
    if tensor.numpy().tobytes() != array.tobytes():
        tensor[...] = Tensor(array, no_cache=True)


class MegEngineTrial(core.SmallTrial):
    """A model's optimizer and schedulers. MegEngine has no requires_grad: what no group holds counts as frozen, and so
    does what has no gradient where the user's own gradients are in place."""

    def __init__(
        self, model: M.Module, optimizer: Any, schedulers: Sequence[Any], batch: Any, named: Mapping[str, Tensor]
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise core.UserError(f"{type(optimizer).__name__} is no MegEngine optimizer: give the optimizer")
        super().__init__(model, optimizer, schedulers, batch, named)
        self._rests: set[str] = set()

    def memento(self, roots: Iterable[Any]) -> Memento:
        """MegEngine's."""
        return Memento(roots)

    def groups(self) -> list[tuple[Sequence[Any], Mapping[str, Any]]]:
        """Plain dicts."""
        return [(group["params"], group) for group in self.optimizer.param_groups]

    def trainable(self) -> dict[str, bool]:
        """What some group holds, unless it rests."""
        held = {id(p) for params, _ in self.groups() for p in params}
        return {name: id(p) in held and name not in self._rests for name, p in self.named.items()}

    def array(self, parameter: Tensor) -> np.ndarray:
        """A snapshot."""
        return np.array(parameter.numpy(), np.float64)

    def put(self, parameter: Tensor, array: np.ndarray) -> None:
        """In place: the optimizer keeps its parameters."""
        parameter[...] = Tensor(array.astype(parameter.dtype), no_cache=True)

    def write(self, lr: float) -> None:
        """group["lr"]."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def take(self, gradients: Mapping[str, Tensor], own: bool) -> None:
        """Schedulers put steps of their own in the optimizer's place."""
        for name, p in self.named.items():
            p.grad = gradients.get(name)
        step = self.optimizer.step if own else partial(type(self.optimizer).step, self.optimizer)
        with optimizers.switches():
            step()

    def gradients(self) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Of all that the groups hold: whatever a GradManager of the user's is attached to, he alone knows."""
        wanted = {name: self.named[name] for name, on in self.trainable().items() if on}
        if self.batch is not None:
            stale = {name: p.grad for name, p in wanted.items() if p.grad is not None}
            for p in wanted.values():
                p.grad = None
            loss = differentiated(self.model, self.batch, list(wanted.values()))
            found = stale if loss is None else {n: p.grad for n, p in wanted.items() if p.grad is not None}
            core.check_finite({name: g.numpy() for name, g in found.items()})
            missing = tuple(name for name in wanted if name not in found)
            if loss is None and found:
                self._rests, missing = set(missing), ()
            if loss is not None or found:
                return {name: Tensor(g.numpy(), no_cache=True) for name, g in found.items()}, missing
        return core.made_up(wanted, lambda g, p: Tensor(g.astype(np.float32), no_cache=True)), ()


def differentiated(model: M.Module, batch: Any, parameters: Sequence[Tensor]) -> Tensor | None:
    """The loss, its gradients left in the parameters; None where the user's function has done all that. Dropouts rest:
    they would draw on the generator that cannot be put back. Flags are put back with all else."""
    for module in model.modules():
        if isinstance(module, M.Dropout):
            module.training = False
    depth = len(AutoNaming.scopes)
    try:
        with GradManager().attach(list(parameters)) as manager:
            loss = loss_of(model, batch)
            if loss is not None:
                manager.backward(loss)
    finally:
        while len(AutoNaming.scopes) > depth:  # a failed forward leaves them
            AutoNaming.pop_scope()
    return loss


def loss_of(model: M.Module, batch: Any) -> Tensor | None:
    """(x, y): cross-entropy of the logits; a function's result; else the mean square of what the model gives."""
    if callable(batch) and not isinstance(batch, Tensor):
        return core.check_loss(batch(model), Tensor)
    if isinstance(batch, tuple | list) and len(batch) == 2:
        x, y = (part if isinstance(part, Tensor) else Tensor(part) for part in batch)
        return F.nn.cross_entropy(core.logits(model(x), Tensor, model), y)
    output = core.run(model, batch)
    if not isinstance(output, Tensor):
        raise core.UserError(f"the model gives a {type(output).__name__}: give batch=lambda model: the loss")
    return (output * output).mean()
