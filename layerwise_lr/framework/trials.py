"""Somebody else's optimizer on trial: a plugin derives from Trial and hands it out in `Native.trial`.

A trial takes optimizer steps from one state, each time from the same one, and lets the schedulers go on in between.
What it measures are displacements in float64; what they mean is `native/`'s to say. attempts.py has what most trials
share.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from ..planning import OptimizerSpec, Plan

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """What is on trial.

    Args:
        model, optimizer, scheduler: names of their classes; "" without a scheduler.
        trainable: every parameter of the model by bare name -> requires_grad.
        groups: bare names per group; arrays that the model lacks under a name of their own, see `strangers`.
        labels: what the groups are called.
        strangers: of the arrays in `groups` those that are no parameters of the model.
        unreached: trainable parameters to which the batch brings no gradient; empty without a batch.
        dtypes: of every parameter.
        late: groups that came after the scheduler had been made.
        peaks: the scheduler writes peaks of its own, whatever lr the groups had (OneCycleLR, CyclicLR).
        per_group: it has a function of its own for each group: what they do is meant.
        horizon: after how many steps it has shown its shape; 0 without one.
        planned: the plan that it applies itself, and the step that it is at.
        notes: what people should know of the framework's part.
    """

    model: str
    optimizer: str
    scheduler: str
    trainable: Mapping[str, bool]
    groups: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    strangers: frozenset[str] = frozenset()
    unreached: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)
    late: tuple[int, ...] = ()
    peaks: bool = False
    per_group: bool = False
    horizon: int = 0
    planned: tuple[Plan, int] | None = None
    notes: tuple[str, ...] = ()

    @property
    def coarse(self) -> frozenset[str]:
        """Parameters of 16 bits: small updates may round away."""
        return frozenset(name for name, dtype in self.dtypes.items() if dtype.endswith("16"))


class Move(NamedTuple):
    """What one optimizer step did.

    Args:
        moved: parameter -> how far, float64.
        factors: parameter -> what hooks multiplied its gradient by before the optimizer saw it.
        lrs: each group's lr after the step; NaN where it has none.
    """

    moved: Arrays
    factors: Mapping[str, float]
    lrs: list[float]


class Known(NamedTuple):
    """An update that updates.py predicts.

    Args:
        spec, weight_decay: of the group.
        before: parameter -> in float64 itself, its gradient before any hook (None: it has none), its state under
            STATE_KEYS.
    """

    spec: OptimizerSpec
    weight_decay: float
    before: Callable[[str], tuple[np.ndarray, np.ndarray | None, Arrays]]


class Trial(ABC):
    """A context: inside, steps are tried; afterwards everything is bit by bit what it was, whatever happened."""

    @abstractmethod
    def __enter__(self) -> "Trial": ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    @abstractmethod
    def subject(self) -> Subject:
        """What is on trial."""

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether steps are taken so that nothing rounds away: in float64, or from weights made small."""

    @property
    def rounding(self) -> float:
        """What a displacement may be off by, as a share of the largest: of its own numbers."""
        return 1e-12 if self.exact else 1e-4

    @abstractmethod
    def options(self) -> list[dict[str, Any]]:
        """Per group what else it holds beside its parameters, as plain numbers: lr, lr_scale, weight_decay, betas."""

    @abstractmethod
    def move(self, lr: float | None = None, exact: bool = True, times: int = 1) -> Move:
        """Optimizer steps from the state as it was, and back.

        Args:
            lr: put into every group, with the step's own hooks left out; None: as it is.
            exact: so that nothing rounds away; else from the weights as they are, in their own numbers.
            times: how many.
        """

    @abstractmethod
    def advance(self) -> bool:
        """The schedulers' next step; False where they have come to their end."""

    def known(self, group: int) -> Known | None:
        """The group's update, where it is one of updates.py without any of what that leaves out; None, the default: two
        steps with known lrs tell."""
        return None
