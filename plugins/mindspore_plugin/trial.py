"""Any MindSpore optimizer on trial, in PyNative: steps from one state, of small weights, for kernels take no float64."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.experimental import optim

from layerwise_lr import framework as core

from .lrs import Groups, NnGroups, fill


class Memento(core.Memento):
    """Of MindSpore's optimizers, schedulers and cells."""

    tensor: ClassVar[type] = Tensor
    module: ClassVar[Any] = ()  # a Cell holds all that it has among its attributes, as any object does
    optimizer: ClassVar[type] = nn.Cell
    generators: ClassVar[tuple[Any, ...]] = ()
    plain: ClassVar[tuple[type, ...]] = (ms.Type,)

    def __init__(self, roots: Iterable[Any]) -> None:
        super().__init__(roots)
        self.keep(ms.get_rng_state(), ms.set_rng_state)
        self.keep(np.random.get_state(), np.random.set_state)
        self.keep(random.getstate(), random.setstate)

    def undo_tensor(self, tensor: Tensor) -> Callable[[], object]:
        """Its numbers, and whether a gradient is wanted."""
        held, asked = np.array(tensor.asnumpy()), getattr(tensor, "requires_grad", None)

        def undo() -> None:
            if tensor.asnumpy().tobytes() != held.tobytes():
                fill(tensor, held)
            if isinstance(tensor, Parameter) and tensor.requires_grad != asked:
                tensor.requires_grad = asked

        return undo


class InHand(dict[int, Tensor]):
    """Gradients that a loop has given to its optimizer, by the parameter's id: a kind of batch."""


class MindSporeTrial(core.SmallTrial):
    """A model's optimizer and schedulers, and the schedules that an nn.Optimizer follows by itself.

    Args:
        model, optimizer, schedulers, batch, named: as in GroupTrial.
        still: a context in which cells run as Python, and after which flags, mode and random state are what they were.
    """

    def __init__(
        self,
        model: nn.Cell,
        optimizer: Any,
        schedulers: Sequence[Any],
        batch: Any,
        named: Mapping[str, Parameter],
        still: AbstractContextManager[None],
    ) -> None:
        if not isinstance(optimizer, nn.Optimizer | optim.Optimizer):
            raise core.UserError(f"{type(optimizer).__name__} is no MindSpore optimizer: give the optimizer")
        super().__init__(model, optimizer, schedulers, batch, named)
        self._still = still

    def __enter__(self) -> "MindSporeTrial":
        self._still.__enter__()
        nns = isinstance(self.optimizer, nn.Optimizer)
        self._lrs: Groups = NnGroups(self.optimizer) if nns else Groups(self.optimizer)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._still.__exit__(None, None, None)

    @cached_property
    def subject(self) -> core.Subject:
        """With the optimizer's own schedules."""
        found, own = super().subject, self._lrs
        return replace(
            found,
            scheduler=" and ".join(name for name in (own.scheduler, found.scheduler) if name),
            per_group=found.per_group or own.per_group,
            horizon=max(found.horizon, own.horizon),
        )

    def memento(self, roots: Iterable[Any]) -> Memento:
        """MindSpore's."""
        return Memento(roots)

    def notes(self) -> tuple[str, ...]:
        """Of what is compiled."""
        return self._lrs.notes()

    def groups(self) -> list[tuple[Sequence[Any], Mapping[str, Any]]]:
        """At the optimizer's step."""
        return self._lrs.all()

    def advance(self) -> bool:
        """The optimizer's own steps, too; False where both have come to their end."""
        given, own = super().advance(), self._lrs.advance()
        return given or own

    def array(self, parameter: Parameter) -> np.ndarray:
        """A snapshot; waits for what was queued."""
        return np.array(parameter.asnumpy(), np.float64)

    def put(self, parameter: Parameter, array: np.ndarray) -> None:
        """The very Parameter."""
        fill(parameter, array)

    def write(self, lr: float) -> None:
        """Into every group."""
        self._lrs.write(lr)

    def take(self, gradients: Mapping[str, Tensor], own: bool) -> None:
        """All gradients at once, in the optimizer's order; zeros, as value_and_grad has them, where there is none."""
        self._lrs.hold()
        by_id = {id(self.named[name]): g for name, g in gradients.items()}
        self.optimizer(tuple(by_id[id(p)] if id(p) in by_id else ops.zeros_like(p) for p in self.optimizer.parameters))
        (Tensor(0.0) + 1.0).asnumpy()  # waits for what was queued: some kernels do not say what they write

    def gradients(self) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """None of those that are frozen: value_and_grad has zeros for them."""
        wanted = {name: p for name, p in self.named.items() if p.requires_grad}
        if self.batch is None:
            return core.made_up(wanted, lambda g, p: Tensor(g, p.dtype)), ()
        if isinstance(self.batch, InHand):
            found = {name: self.batch[id(p)] for name, p in wanted.items() if id(p) in self.batch}
        else:
            found = self._differentiated(wanted)
        arrays = {name: np.array(g.asnumpy(), np.float64) for name, g in found.items()}
        core.check_finite(arrays)
        zero = {name for name, g in arrays.items() if not g.any()}
        if not zero or isinstance(self.batch, InHand):
            return found, ()
        for name, p in self.named.items():  # a zero at any weights is one that nothing reaches
            noise = np.random.RandomState(len(name)).standard_normal(tuple(p.shape))
            self.put(p, self.array(p) + 0.1 * noise)
        again = self._differentiated({name: self.named[name] for name in wanted})
        return found, tuple(name for name in wanted if name in zero and not again[name].asnumpy().any())

    def _differentiated(self, wanted: Mapping[str, Parameter]) -> dict[str, Tensor]:
        """Dropouts rest: what they draw is not all in the random state."""
        for _, cell in self.model.cells_and_names():
            if isinstance(cell, nn.Dropout):
                cell.training = False
        run = ms.value_and_grad(lambda: loss_of(self.model, self.batch), None, ParameterTuple(list(wanted.values())))
        return dict(zip(wanted, run()[1], strict=True))


def loss_of(model: nn.Cell, batch: Any) -> Tensor:
    """(x, y): cross-entropy of the logits; a function's result; else the mean square of what the model gives."""
    if callable(batch) and not isinstance(batch, Tensor):
        loss = core.check_loss(batch(model), Tensor)
        if loss is None:
            raise core.UserError("batch(model) gave nothing: it must give the loss, a tensor")
        return loss
    if isinstance(batch, tuple | list) and len(batch) == 2:
        x, y = (part if isinstance(part, Tensor) else Tensor(part) for part in batch)
        return ops.cross_entropy(core.logits(model(x), Tensor, model), y.astype(ms.int32))
    output = core.run(model, batch)
    if not isinstance(output, Tensor):
        raise core.UserError(f"the model gives a {type(output).__name__}: give batch=lambda model: the loss")
    return ops.mean(ops.square(output))
