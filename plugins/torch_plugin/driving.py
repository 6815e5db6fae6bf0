"""Schedulers of any make, driven one step at a time: torch's, timm's, transformers', anything with step()."""

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from layerwise_lr import framework as core

from .scheduler import PlanScheduler

LENGTHS = ("total_steps", "T_max", "t_initial", "total_size", "total_iters", "T_0", "step_size")
"""Attributes by which schedulers say how long they are."""
USUAL = 100
"""Steps, where a scheduler does not say."""
MOST = 10_000
METRICS = ("metric", "metrics", "val_loss", "loss")


def unwrapped_scheduler(scheduler: Any) -> Any:
    """The one inside Accelerate's and the like: theirs go on only when an accumulation is complete."""
    while not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler) and hasattr(
        inner := getattr(scheduler, "scheduler", None), "step"
    ):
        scheduler = inner
    return scheduler


class Driver:
    """One scheduler."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.count = scheduler, 0
        self.children: Sequence[Any] = getattr(scheduler, "_schedulers", ())
        needed = [p for p in inspect.signature(scheduler.step).parameters.values() if p.default is p.empty]
        self._needs = [p.name for p in needed if p.kind is p.POSITIONAL_OR_KEYWORD]
        updates = hasattr(scheduler, "step_update") and not getattr(scheduler, "t_in_epochs", True)
        self._step = scheduler.step_update if updates else scheduler.step
        patience = getattr(scheduler, "patience", None)
        self.pace = 1 if patience is None else patience + 1 + getattr(scheduler, "cooldown", 0)

    def advance(self) -> None:
        """The next step; of one that waits for a metric to stagnate, as many as it waits for."""
        for _ in range(self.pace):
            self.count += 1
            self._step(*(1.0 if name in METRICS else self.count for name in self._needs))

    @property
    def horizon(self) -> int:
        """Steps from here to the end, as far as it says."""
        at = 0 if hasattr(self.scheduler, "patience") else max(getattr(self.scheduler, "last_epoch", 0) or 0, 0)
        lengths = [_length(part) for part in (self.scheduler, *self.children)]
        return max(min(max(sum(lengths), 0) or USUAL, MOST) - at, 1)

    @property
    def per_group(self) -> bool:
        """Its functions differ from group to group."""
        functions = [f for s in (self.scheduler, *self.children) for f in getattr(s, "lr_lambdas", ())]
        return len({id(f) for f in functions}) > max(len(self.children), 1)


def _length(scheduler: Any) -> int:
    if isinstance(scheduler, PlanScheduler):
        total = scheduler.plan.total_steps
        return total - 1 if total <= MOST else USUAL
    if milestones := getattr(scheduler, "milestones", None):
        return int(max(milestones)) + 1
    if hasattr(scheduler, "lr_lambdas"):  # transformers' are partials with the length among their keywords
        words = [getattr(f, "keywords", None) or {} for f in scheduler.lr_lambdas]
        return max((int(w.get("num_training_steps", 0)) for w in words), default=0)
    if (floors := getattr(scheduler, "min_lrs", None)) and hasattr(scheduler, "factor"):
        return _reductions(scheduler, floors)
    known = [getattr(scheduler, name, None) for name in LENGTHS]
    return int(max((n for n in known if isinstance(n, int | float) and not isinstance(n, bool)), default=0))


def _reductions(scheduler: Any, floors: Sequence[float]) -> int:
    """How often ReduceLROnPlateau can reduce before every group is at its floor; 4 where it has none."""
    lrs = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
    falls = [math.log(lr / low) for lr, low in zip(lrs, floors, strict=True) if 0 < low < lr]
    return math.ceil(max(falls) / -math.log(scheduler.factor)) if falls else 4


def planned(schedulers: Sequence[Any]) -> tuple[core.Plan, int] | None:
    """The plan that one of them applies, and its step."""
    return next(((s.plan, s.last_epoch) for s in schedulers if isinstance(s, PlanScheduler)), None)


def tree(schedulers: Sequence[Any]) -> Iterator[Any]:
    """They, and those that they are made of."""
    for scheduler in schedulers:
        yield scheduler
        yield from tree(getattr(scheduler, "_schedulers", ()))
