"""What a fault is, and what the checks look at."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...planning import FOREVER, Plan
from .measuring import Measured


@dataclass(frozen=True)
class Fault:
    """One disease found.

    Args:
        name: of the disease.
        where: groups or parameters.
        measured, expected: what is, and what should be.
        remedy: what to do, in one line.
    """

    name: str
    where: tuple[str, ...]
    measured: str
    expected: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """What the checks look at.

    Args:
        m: what was measured.
        plan: what should be, where somebody says so.
        absolute: the plan's own scheduler writes the lrs, so that they are known at each step; else their ratios are.
        at: the plan's step now.
    """

    m: Measured
    plan: Plan | None = None
    absolute: bool = False
    at: int = 0

    def labels(self, groups: Iterable[int]) -> tuple[str, ...]:
        """What the groups are called."""
        return tuple(self.m.subject.labels[g] for g in groups)

    def planned(self, k: int) -> np.ndarray:
        """Per parameter at row k: the plan's lr, or its lr_scale where only ratios are known; NaN where it is silent."""
        assert self.plan is not None
        step = min(self.at + self.m.steps[k], self.plan.total_steps - 1)
        of = {name: group for group in self.plan.groups for name in group.params}
        found = np.full(len(self.m.names), np.nan)
        for i, name in enumerate(self.m.names):
            if (group := of.get(name)) and self.absolute:
                found[i] = self.plan.lr(step, group)
            elif group:  # at an unknown step: a group with a window may rest
                rests = group.active[0] >= FOREVER or (group.active != (0, FOREVER) and not self.m.lr[k, i] > 0)
                found[i] = 0.0 if rests else group.lr_scale
        return found


def shown(lrs: Iterable[float]) -> str:
    """Several lrs in few words."""
    found = sorted({f"{lr:.3g}": float(lr) for lr in lrs if np.isfinite(lr)}.items(), key=lambda pair: pair[1])
    words = [word for word, _ in found]
    return " ".join(words) if len(words) < 4 else f"{len(words)} from {words[0]} to {words[-1]}"


def alike(a: float, b: float, near: float) -> bool:
    """Equal but for a share of `near`."""
    return abs(a - b) <= near * max(abs(a), abs(b))
