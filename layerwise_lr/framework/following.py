"""The plan's learning rates in an optimizer that is not ours: what the schedulers of all frameworks share."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import groupby
from typing import Any

from ..planning import FOREVER, Plan, UserError

HANDS = 1e-6
"""Relative difference of two lrs above which somebody else has written one; float32 rounds to 6e-8."""


def lrs_at(plan: Plan, step: int) -> list[float]:
    """lr of each group at `step`; after the last step that of the last."""
    return plan.lrs(min(step, plan.total_steps - 1))


def param_groups(plan: Plan, tensors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Plain param_groups: params, lr of step 0, weight_decay, and the name by which they are found again."""
    return [
        {
            "params": [tensors[name] for name in group.params],
            "lr": lr,
            "weight_decay": group.weight_decay,
            "name": group.name,
        }
        for group, lr in zip(plan.groups, plan.lrs(0), strict=True)
    ]


def places(plan: Plan, names: Sequence[Any]) -> list[int]:
    """Where each group of the plan stands among an optimizer's groups of these names.

    Raises:
        UserError: some are not there.
    """
    missing = [group.name for group in plan.groups if group.name not in names]
    if missing:
        raise UserError(
            f"the optimizer has no group {', '.join(missing[:3])}{', ...' if missing[3:] else ''}: "
            "make it of plan.param_groups(model)"
        )
    return [names.index(group.name) for group in plan.groups]


def check_lrs(plan: Plan, step: int, held: Sequence[float]) -> None:
    """Whether the optimizer still holds the plan's lrs.

    Raises:
        UserError: the first group that has another, and what is likely.
    """
    for group, lr, own in zip(plan.groups, lrs_at(plan, step), held, strict=True):
        if not abs(own - lr) <= HANDS * abs(lr):
            raise UserError(
                f"group {group.name}: its lr is {own:.4g}, the plan says {lr:.4g} at step {step}: somebody else writes "
                "learning rates (a second scheduler, a resumed optimizer state); let plan.scheduler alone do it"
            )


def check_state(plan: Plan, state: Mapping[str, Any], step: int) -> None:
    """Whether a scheduler's state is of this plan.

    Raises:
        UserError: it is another's.
    """
    if state.get("plan_sha256", plan.sha256) != plan.sha256:
        raise UserError(
            "this scheduler's state belongs to another plan: make the plan as it was, or go on with "
            f"plan.scheduler(optimizer, start={step})"
        )


def stretches(plan: Plan, start: int) -> list[list[tuple[float, int]]]:
    """For each group, from `start` on: (lr, number of steps) of each stretch of equal lr; the last one never ends."""
    edges = [edge for group in plan.groups for edge in group.active if edge < FOREVER - 1]
    settled = max([spec.warmup for spec in plan.schedules.values()] + edges)  # of a plan whose run has no end
    last = plan.total_steps if plan.total_steps < FOREVER - 1 else settled + 1
    table = [lrs_at(plan, step) for step in range(start, max(last, start + 1))]
    return [[(lr, len(list(same))) for lr, same in groupby(column)] for column in zip(*table, strict=True)]


class PlanScheduler(ABC):
    """The plan's lrs, optimizer step by optimizer step; a plugin says how its optimizer's lrs are read and written.

    Args:
        plan: the lrs.
        start: the step whose lrs are written now.
    """

    def __init__(self, plan: Plan, start: int) -> None:
        self.plan, self.last_step = plan, start
        self.write(self.get_last_lr())

    @abstractmethod
    def read(self) -> list[float]:
        """lr of each group of the plan, as the optimizer holds it."""

    @abstractmethod
    def write(self, lrs: Sequence[float]) -> None:
        """Gives each group of the plan its lr."""

    def get_last_lr(self) -> list[float]:
        """lr of each group of the plan, now."""
        return lrs_at(self.plan, self.last_step)

    def step(self) -> None:
        """After each optimizer step: the lrs of the next.

        Raises:
            UserError: somebody else has written another lr meanwhile.
        """
        self.check()
        self.last_step += 1
        self.write(self.get_last_lr())

    def check(self) -> None:
        """Raises UserError where the lrs are not the plan's any more."""
        check_lrs(self.plan, self.last_step, self.read())

    def state_dict(self) -> dict[str, Any]:
        """The step and the plan's hash: the plan itself is made again by whoever resumes."""
        return {"last_step": self.last_step, "plan_sha256": self.plan.sha256}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there, under this scheduler's own plan.

        Raises:
            UserError: the state is another plan's.
        """
        check_state(self.plan, state, state["last_step"])
        self.last_step = state["last_step"]
        self.write(self.get_last_lr())


class GroupPlanScheduler(PlanScheduler):
    """For optimizers that read group["lr"] at every step, and are stepped by `step()`: before each it looks whether the
    lrs are still the plan's.

    Args:
        optimizer: made of the plan's param_groups, whatever else it holds.
        names: of its groups, in order; None where one has none.
        plan, start: as in PlanScheduler.
    """

    def __init__(self, optimizer: Any, names: Sequence[Any], plan: Plan, start: int) -> None:
        self.optimizer, self.places = optimizer, places(plan, names)
        optimizer.step = self._looking(optimizer.step)
        super().__init__(plan, start)

    def read(self) -> list[float]:
        """group["lr"]."""
        return [float(self.optimizer.param_groups[place]["lr"]) for place in self.places]

    def write(self, lrs: Sequence[float]) -> None:
        """group["lr"]."""
        for place, lr in zip(self.places, lrs, strict=True):
            self.optimizer.param_groups[place]["lr"] = lr

    def _looking(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The optimizer's step, which asks this scheduler first, as long as that lives."""
        alive = weakref.ref(self)

        @wraps(step)
        def looking(*args: Any, **kwargs: Any) -> Any:
            if (scheduler := alive()) is not None:
                scheduler.check()
            return step(*args, **kwargs)

        return looking
