"""The lrs that MindSpore's optimizers hold: read, written, and gone on with where an optimizer follows a schedule itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.experimental import optim

LENGTHS = ("decay_steps", "warmup_steps", "total_steps")
"""Attributes by which schedules say how long they are."""
USUAL, MOST = 100, 10_000
"""Steps ahead, where none says; and where one says a very large number."""

Held = list[tuple[Sequence[Parameter], Mapping[str, Any]]]
"""Parameters of each group, and what else it holds, its lr as a number."""


class Groups:
    """Of mindspore.experimental.optim, and so of mindspore.mint.optim: plain dicts.

    Args:
        optimizer: native.
    """

    scheduler = ""
    """The schedules that the optimizer follows by itself."""
    per_group = False
    """Whether each group has another one, and that is meant."""
    horizon = 0
    """Steps to their end."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.groups = optimizer.param_groups

    def all(self) -> Held:
        """At the optimizer's step."""
        return [(own["params"], {**own, "lr": _number(own["lr"])}) for own in self.groups]

    def write(self, lr: float) -> None:
        """Into every group."""
        for group in self.groups:
            if isinstance(group["lr"], Parameter):
                fill(group["lr"], lr)
            else:
                group["lr"] = lr

    def advance(self) -> bool:
        """Its schedules' next step; False where there is none."""
        return False

    def hold(self) -> None:
        """Before a step: it is of the same lr as the one before, `advance` alone goes on."""

    def notes(self) -> tuple[str, ...]:
        """A compiled step reads Parameters alone."""
        baked = [str(i) for i, own in enumerate(self.groups) if not isinstance(own["lr"], Parameter)]
        told = f"the lr of group {', '.join(baked)} is a Python number: a compiled step keeps what it was compiled with"
        return (told,) if baked else ()


class NnGroups(Groups):
    """Of nn.Optimizer, which forgets the groups that it was made of: here, parameters of one lr and one weight decay. An
    lr is a Parameter, or a Cell that is asked at each step: a list of lrs, or a schedule.

    Args:
        optimizer: native; nn.LARS has another one inside.
    """

    def __init__(self, optimizer: nn.Optimizer) -> None:
        while isinstance(optimizer, nn.LARS):
            optimizer = optimizer.opt
        self.counter: Parameter = optimizer.global_step
        self.at = int(self.counter.asnumpy().item())
        number = len(optimizer.parameters)
        lrs = list(optimizer.learning_rate) if optimizer.is_group_lr else [optimizer.learning_rate] * number
        decays = optimizer.group_weight_decay if optimizer.is_group else [0.0] * number
        self.found: dict[tuple[int, Any], tuple[Any, Any, list[Parameter]]] = {}
        for parameter, lr, decay in zip(optimizer.parameters, lrs, decays, strict=True):
            self.found.setdefault((id(lr), decay), (lr, decay, []))[2].append(parameter)
        self.lrs = list({id(lr): lr for lr, _, _ in self.found.values()}.values())
        kinds = [_kind(lr) for lr in self.lrs]
        self.scheduler = " and ".join(dict.fromkeys(kind for kind in kinds if kind))
        if self.scheduler:
            lists = [len(array) for lr in self.lrs if (array := _list(lr)) is not None]
            self.end = min(lists) if lists else MOST + self.at
            length = self.end if lists else max(map(_length, self.lrs)) or USUAL + self.at
            self.horizon = max(min(length - 1 - self.at, MOST), 0)
            self.per_group = not self._one_floor()

    def all(self) -> Held:
        """Weight decay may be a schedule, too."""
        now = Tensor([self.at], ms.int32)
        return [
            (own, {"lr": _number(lr, now), "weight_decay": _number(decay, now)})
            for lr, decay, own in self.found.values()
        ]

    def write(self, lr: float) -> None:
        """Into what is asked for it."""
        for source in self.lrs:
            held = source if isinstance(source, Parameter) else getattr(source, "learning_rate", None)
            if isinstance(held, Parameter):
                fill(held, lr)
            else:
                source.__dict__["construct"] = Constant(lr)

    def advance(self) -> bool:
        """A list ends."""
        if not self.scheduler or self.at + 1 >= self.end:
            return False
        self.at += 1
        fill(self.counter, self.at)
        return True

    def hold(self) -> None:
        """A list may have no next lr."""
        if self.scheduler:
            fill(self.counter, self.at)

    def notes(self) -> tuple[str, ...]:
        """All that it holds is a Parameter or a Cell."""
        return ()

    def _one_floor(self) -> bool:
        """Whether groups that differ end, or begin, at one and the same lr, the least that they have: one number for all
        is no schedule of their own."""
        steps = np.unique(np.linspace(self.at, self.at + self.horizon, 20).round())
        rows = np.array([[_number(lr, Tensor([step], ms.int32)) for step in steps.astype(int)] for lr in self.lrs])
        for edge in (0, -1):
            own = rows[(rows[:, edge] > 0) & (rows[:, edge] <= rows.min(axis=1)) & (np.ptp(rows, axis=1) > 0)]
            for i, row in enumerate(own):
                for other in own[:i]:
                    if np.isclose(row[edge], other[edge]) and not np.isclose(row.max(), other.max()):
                        return True
        return False


class Constant:
    """In the place of a schedule's construct."""

    def __init__(self, lr: float) -> None:
        self.lr = Tensor(lr, ms.float32)

    def __call__(self, step: Tensor) -> Tensor:
        """The same at each step."""
        return self.lr


def _list(lr: Any) -> np.ndarray | None:
    """What an nn.Optimizer makes of a list."""
    held = getattr(lr, "learning_rate", None)
    return held.asnumpy() if isinstance(held, Parameter) and held.ndim == 1 else None


def _kind(lr: Any) -> str:
    """ "" for what stays as it is."""
    if not isinstance(lr, nn.Cell) or (
        isinstance(held := getattr(lr, "learning_rate", None), Parameter) and not held.ndim
    ):
        return ""
    return "lr list" if _list(lr) is not None else type(lr).__name__


def _length(lr: Any) -> int:
    """As far as a schedule, or what it is made of, says."""
    cells = [cell for _, cell in lr.cells_and_names()] if isinstance(lr, nn.Cell) else []
    known = [getattr(cell, name, None) for cell in cells for name in LENGTHS]
    return sum(n for n in known if isinstance(n, int)) + 1 if any(isinstance(n, int) for n in known) else 0


def _number(value: Any, step: Tensor | None = None) -> float:
    """A float, a Parameter, or a Cell's word at a step."""
    made = value(step) if isinstance(value, nn.Cell) else value
    return float(made.asnumpy().item()) if isinstance(made, Tensor) else float(made)


def fill(tensor: Tensor, numbers: np.ndarray | float) -> None:
    """All of it, in place. Many kernels go on with what a Parameter had before `assign_value`; but on a CPU there is no
    assignment of bfloat16, and none for what is no Parameter."""
    given = Tensor(np.broadcast_to(numbers, tensor.shape), tensor.dtype)
    if isinstance(tensor, Parameter) and tensor.dtype != ms.bfloat16:
        ops.assign(tensor, given)
    else:
        tensor.assign_value(given)
