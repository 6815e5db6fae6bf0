"""What the trials of most frameworks share: their optimizers keep numbers by group, and take the gradients that are there.

A plugin says how its framework reads, writes and keeps; which steps are taken from where is said here.
"""

import inspect
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..planning import UserError, plain
from .finding import children
from .following import PlanScheduler
from .keeping import Memento
from .trials import Move, Subject, Trial

LENGTHS = ("decay_steps", "decay_batch", "T_max", "T_0", "total_iters", "steps", "step_size", "warmup_iters")
"""Attributes by which schedulers say how long they are."""
COUNTS = ("last_step", "last_epoch", "current_epoch")
"""And where they are."""
USUAL, MOST = 100, 10_000
"""Steps ahead, where a scheduler does not say; and where it says a very large number."""


class GroupTrial(Trial):
    """A model's optimizer and schedulers.

    Args:
        model, optimizer: native.
        schedulers: whatever has a step().
        batch: as in Native.trial.
        named: the model's parameters by bare name.
    """

    def __init__(
        self, model: Any, optimizer: Any, schedulers: Sequence[Any], batch: Any, named: Mapping[str, Any]
    ) -> None:
        self.model, self.optimizer, self.schedulers, self.batch, self.named = model, optimizer, schedulers, batch, named
        self._exact = True
        self._here: Memento | None = None

    @abstractmethod
    def memento(self, roots: Iterable[Any]) -> Memento:
        """Of all that these hold, and of the random generators."""

    @abstractmethod
    def gradients(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """(native gradient of every parameter that has one, trainable parameters that the batch does not reach)."""

    @abstractmethod
    def groups(self) -> list[tuple[Sequence[Any], Mapping[str, Any]]]:
        """The optimizer's: parameters and what else each holds, "lr" as a number."""

    @abstractmethod
    def array(self, parameter: Any) -> np.ndarray:
        """A copy, float64."""

    @abstractmethod
    def refine(self) -> None:
        """Makes the step that follows one from which nothing rounds away."""

    @abstractmethod
    def write(self, lr: float) -> None:
        """Into every group."""

    @abstractmethod
    def take(self, gradients: Mapping[str, Any], own: bool) -> None:
        """One step; own: as it is, with all that others have put in its place."""

    def trainable(self) -> dict[str, bool]:
        """By requires_grad."""
        return {name: p.requires_grad for name, p in self.named.items()}

    def notes(self) -> tuple[str, ...]:
        """As in Subject."""
        return ()

    def __enter__(self) -> "GroupTrial":
        self._all = self.memento([self.model, self.optimizer, *self.schedulers])
        try:
            self._gradients, self._unreached = self.gradients()
            self._all.restore()
            self._try()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._all.restore()

    def _try(self) -> None:
        for exact in (True, False):
            self._exact = exact
            try:
                self.move()
                return
            except UserError:
                raise
            except Exception as error:  # whatever a foreign step raises: it may want its own numbers
                last = error
        told = plain(re.sub(r"-{4,}", "", f"{type(last).__name__}: {last}"), 120)  # MindSpore draws lines
        name = type(self.optimizer).__name__
        raise UserError(f"cannot be measured: a step of {name} fails on gradients that are given to it ({told})")

    @cached_property
    def subject(self) -> Subject:
        """Read off the groups."""
        groups, strangers = self._members()
        held = [own for _, own in self.groups()]
        labels = [own.get("name") for own in held]
        inits = ["initial_lr" in own for own in held]
        parts = [part for s in self.schedulers for part in (s, *children(s))]
        return Subject(
            type(self.model).__name__,
            type(self.optimizer).__name__,
            " and ".join(type(s).__name__ for s in self.schedulers),
            self.trainable(),
            groups,
            tuple(label if isinstance(label, str) else f"group {i}" for i, label in enumerate(labels)),
            strangers,
            self._unreached,
            {name: str(p.dtype).rpartition(".")[2].lower() for name, p in self.named.items()},
            tuple(i for i, known in enumerate(inits) if not known) if any(inits) and self.schedulers else (),
            any(hasattr(part, "max_lrs") for part in parts),
            any(len(set(map(id, getattr(part, "lr_lambdas", ())))) > 1 for part in parts),
            max((horizon(s) for s in self.schedulers), default=0),
            next(((s.plan, s.last_step) for s in self.schedulers if isinstance(s, PlanScheduler)), None),
            self.notes(),
        )

    def _members(self) -> tuple[tuple[tuple[str, ...], ...], frozenset[str]]:
        """Names by group, and those that the model does not have."""
        names, groups = {id(p): name for name, p in self.named.items()}, []
        for index, (params, _) in enumerate(self.groups()):
            shapes = ("x".join(map(str, p.shape)) or "one number" for p in params)
            groups.append(tuple(names.get(id(p), f"{s} in group {index}") for p, s in zip(params, shapes, strict=True)))
        return tuple(groups), frozenset(name for own in groups for name in own) - set(self.named)

    @property
    def exact(self) -> bool:
        """Unless the optimizer cannot."""
        return self._exact

    def options(self) -> list[dict[str, Any]]:
        """Numbers, and tuples of some."""
        return [{k: v for k, v in own.items() if isinstance(v, int | float | tuple)} for _, own in self.groups()]

    def advance(self) -> bool:
        """A scheduler that waits for a metric is given one that does not improve, as often as it waits; one that raises
        has come to its end."""
        self._here = None
        try:
            for scheduler in self.schedulers:
                needed = [p for p in inspect.signature(scheduler.step).parameters.values() if p.default is p.empty]
                for _ in range(getattr(scheduler, "patience", 0) + getattr(scheduler, "cooldown", 0) + 1):
                    scheduler.step(*(1.0 for _ in needed))
        except UserError:
            raise
        except Exception:
            return False
        return bool(self.schedulers)

    def move(self, lr: float | None = None, exact: bool = True, times: int = 1) -> Move:
        """Everything around the step is kept and restored; with an lr the class's own step is taken."""
        here = self._here = self._here or self.memento([self.model, self.optimizer])
        try:
            if exact and self._exact:
                self.refine()
            held = self._arrays()
            if lr is not None:
                self.write(lr)
            for _ in range(times):
                self.take(self._gradients, own=lr is None)
            lrs = [float(own.get("lr", np.nan)) for _, own in self.groups()]
            moved = {name: array - held[name] for name, array in self._arrays().items()}
        finally:
            here.restore()
        return Move(moved, {}, lrs)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: self.array(p) for name, p in self.named.items()}


class SmallTrial(GroupTrial):
    """Where there is no float64: steps are taken from weights so small that none of a step rounds away. The lr of a step
    does not depend on them, and weight decay and norms are of the same small weights in every step that is compared."""

    @abstractmethod
    def put(self, parameter: Any, array: np.ndarray) -> None:
        """Numbers (float64) into a parameter, in place."""

    @property
    def exact(self) -> bool:
        """But for 16 bits."""
        return self._exact and not self.subject.coarse

    @property
    def rounding(self) -> float:
        """Of float32, or of 16 bits."""
        return 1e-6 if self.exact else 1e-2

    def refine(self) -> None:
        """As small as the type bears."""
        for name, p in self.named.items():
            self.put(p, self.array(p) * 2.0 ** (-10 if self.subject.dtypes[name] == "float16" else -40))


def made_up(wanted: Mapping[str, Any], make: Callable[[np.ndarray, Any], Any]) -> dict[str, Any]:
    """Gradients drawn from N(0, 1), from a seed of their own: make(float64 array, parameter) gives the native one."""
    draw = np.random.RandomState(0)
    return {name: make(draw.standard_normal(tuple(p.shape)), p) for name, p in wanted.items()}


def check_loss(loss: Any, tensor: type) -> Any:
    """What a function of the model gave.

    Raises:
        UserError: it is neither a tensor nor None.
    """
    if loss is not None and not isinstance(loss, tensor):
        raise UserError(f"batch(model) gave a {type(loss).__name__}: it must give the loss, a tensor")
    return loss


def check_finite(found: Mapping[str, np.ndarray]) -> None:
    """Gradients as arrays.

    Raises:
        UserError: the first that is not finite.
    """
    for name, gradient in found.items():
        if not np.isfinite(gradient).all():
            raise UserError(f"the gradient of {name} is not finite: verify with another batch")


def horizon(scheduler: Any) -> int:
    """Steps from here to the end, as far as it says."""
    if hasattr(scheduler, "patience"):  # reductions: down to its floors, where it has some
        return USUAL if any(getattr(scheduler, "min_lrs", ())) else 4
    at = next((int(getattr(scheduler, name)) for name in COUNTS if hasattr(scheduler, name)), 0)
    if isinstance(scheduler, PlanScheduler):
        length = scheduler.plan.total_steps - 1
        length = length if length <= MOST else USUAL
    else:
        length = sum(map(_length, (scheduler, *children(scheduler)))) or USUAL
    return max(min(length, MOST) - max(at, 0), 1)


def _length(scheduler: Any) -> int:
    if milestones := getattr(scheduler, "milestones", None):
        return int(max(milestones)) + 1
    known = [getattr(scheduler, name, None) for name in LENGTHS]
    return int(max((n for n in known if isinstance(n, int | float) and not isinstance(n, bool)), default=0))
