"""Which evaluation's weights a run keeps, and whether it has stopped improving; the average of the weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..framework import Weights
from .schema import EarlyStopSpec, EmaSpec


class Kept(NamedTuple):
    """Weights worth keeping.

    Args:
        score: the metric on validation, then minus the loss there: small validation parts have many ties.
        step: steps behind it.
        weights: "model", or "ema" for their average.
        val: every metric on validation.
    """

    score: tuple[float, float]
    step: int
    weights: str
    val: Mapping[str, float]


class Best:
    """The best evaluations so far, the best first.

    Args:
        metric: the higher the better.
        count: how many are kept; 0: none, and the last step's weights are the run's.
        stop: when the run ends before its time.
    """

    def __init__(self, metric: str, count: int, stop: EarlyStopSpec) -> None:
        self._metric, self._count, self._stop = metric, count, stop
        self._highest, self._waited = -np.inf, 0
        self.kept: list[Kept] = []

    def offer(self, step: int, found: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether the weights of `step` are among the best; `found`: metrics of "model" and of "ema", where it is."""
        rivals = [Kept((val[self._metric], -val["loss"]), step, which, val) for which, val in found.items()]
        new = max(rivals, key=lambda kept: kept.score)
        self._waited += 1
        if new.score[0] > self._highest + self._stop.min_delta:
            self._highest, self._waited = new.score[0], 0
        self.kept = sorted([*self.kept, new], key=lambda kept: kept.score, reverse=True)[: self._count]
        return new in self.kept

    def memory(self) -> dict[str, Any]:
        """All of it, as plain data."""
        highest = float(self._highest) if np.isfinite(self._highest) else None
        kept = [[list(k.score), k.step, k.weights, dict(k.val)] for k in self.kept]
        return {"highest": highest, "waited": self._waited, "kept": kept}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """What `memory` gave."""
        self._highest = -np.inf if memory["highest"] is None else memory["highest"]
        self._waited = memory["waited"]
        self.kept = [Kept(tuple(score), step, weights, val) for score, step, weights, val in memory["kept"]]

    @property
    def stalled(self) -> bool:
        """As many evaluations without an improvement as early_stop.patience allows."""
        return self._stop.patience is not None and self._waited >= self._stop.patience


class Ema:
    """Exponential moving average of weights and buffers, in float32: ema = d * ema + (1 - d) * weights after each step,
    computed as ema + (1 - d) * (weights - ema): float32's d and 1 - d are not 1 together, and what is frozen would drift.

    With warm-up d = min(decay, (1 + step) / (10 + step)), as TensorFlow's ExponentialMovingAverage has it: so a short
    run is no average of its start weights.

    Args:
        spec: its decay.
        weights: where it begins.
    """

    def __init__(self, spec: EmaSpec, weights: Weights) -> None:
        assert spec.decay is not None
        self._decay, self._warmup = spec.decay, spec.warmup
        self.weights = {name: array.copy() for name, array in weights.items()}

    def update(self, step: int, weights: Weights) -> None:
        """After step `step`, counted from 0."""
        kept = min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay
        for name, average in self.weights.items():
            average += np.float32(1 - kept) * (weights[name] - average)
