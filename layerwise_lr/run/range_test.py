"""The lr range test (Smith 2017, arXiv 1506.01186; fastai's lr_find): one short training whose base lr rises from step to
step, for all groups alike, so that the ratios between layers stay as planned.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..data import batches
from ..framework import Framework, TrainState, begin, metrics, take_step
from ..planning import FOREVER, Plan, ScheduleSpec, UserError
from . import page
from .folder import RunFolder
from .loop import Say, Track
from .proving import Prover
from .schema import Config

MOMENTUM = 0.7
"""Of the moving average that smooths the losses."""
DIVERGED = 4.0
"""The test ends where the smoothed loss is so many times the lowest one."""
SKIPPED = 5
"""First steps, at which the average is still of few losses: none of them is suggested."""
PICTURES = 200
"""Validation pictures, at most, that the loss is of: the same after every step. That of training pictures would go to 0
where they are few, and each is seen many times."""
_HALF = 5  # steps on either side of the one whose slope is asked: that of one step is the noise of two batches


@dataclass(frozen=True)
class RangeSpec:
    """What is tried.

    Args:
        low: base lr of the first step.
        high: that of the last.
        steps: how many.
    """

    low: float = 1e-6
    high: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high <= 1e3:
            raise UserError(f"--from {self.low:g} --to {self.high:g}: lrs above 0, the lower first, up to 1000")
        if not 20 <= self.steps <= 1000:
            raise UserError(f"--steps {self.steps} must be from 20 to 1000")

    @property
    def gamma(self) -> float:
        """What the lr grows by from one step to the next."""
        return (self.high / self.low) ** (1 / (self.steps - 1))


@dataclass(frozen=True)
class RangeTest:
    """What came of it.

    Args:
        lrs: base lr of every step that was taken.
        losses: loss of the same validation pictures after each step (without such, of its training pictures before it).
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def smoothed(self) -> list[float]:
        """The losses' moving average, without its bias to the beginning."""
        return smooth(self.losses)

    def lowest(self) -> float:
        """The lr at which the smoothed loss is lowest."""
        smoothed = self.smoothed[SKIPPED:]
        return self.lrs[SKIPPED + smoothed.index(min(smoothed))]

    def steepest(self) -> float:
        """The lr before that one at which the smoothed loss falls fastest, by the logarithm of the lr, over some steps."""
        smoothed, lowest = self.smoothed, self.lrs.index(self.lowest())
        falls = {
            smoothed[min(step + _HALF, lowest)] - smoothed[max(step - _HALF, SKIPPED)]: step
            for step in range(SKIPPED, lowest + 1)
        }
        return self.lrs[falls[min(falls)]]

    def suggestion(self) -> float:
        """A tenth of the lr of the lowest loss (fastai's "minimum"), to two digits. Where it falls fastest hangs more on
        where the test begins and on how long it is."""
        return float(f"{self.lowest() / 10:.1e}")

    def doubts(self) -> list[str]:
        """Why the suggestion may be worth little."""
        smoothed, found = self.smoothed, []
        if min(smoothed) > 0.9 * max(smoothed[: SKIPPED + 1]):
            found.append("the loss hardly fell in the test: more --steps, or the weights have nothing to learn here")
        if self.lowest() == self.lrs[-1]:
            found.append("the loss still fell at the last lr: go higher (--to)")
        if self.lrs.index(self.lowest()) <= SKIPPED:
            found.append("the loss was lowest at the first lrs: begin lower (--from)")
        return found

    def ended(self, smoothed: Sequence[float]) -> bool:
        """Whether it diverged, instead of trying all."""
        return not math.isfinite(self.losses[-1]) or smoothed[-1] > DIVERGED * min(smoothed)

    def to_dict(self) -> dict[str, Any]:
        """For lr_find.json; a loss that was no number is null."""
        finite = [loss if math.isfinite(loss) else None for loss in self.losses]
        told = {"suggestion": self.suggestion(), "lowest": self.lowest(), "steepest": self.steepest()}
        return {**told, "doubts": self.doubts(), "lrs": self.lrs, "losses": finite}


def smooth(losses: Sequence[float]) -> list[float]:
    """Exponential moving average, divided by the weight that it has seen; what is no number counts as the largest."""
    held, found = 0.0, []
    worst = max((loss for loss in losses if math.isfinite(loss)), default=0.0)
    for step, loss in enumerate(losses, 1):
        held = MOMENTUM * held + (1 - MOMENTUM) * (loss if math.isfinite(loss) else DIVERGED * worst)
        found.append(held / (1 - MOMENTUM**step))
    return found


def ramp(plan: Plan, spec: RangeSpec) -> Plan:
    """`plan` with a base lr that rises by an equal factor from step to step. A group that is to train at some time trains from
    the first step on; lr_scale, weight decay and optimizers stay."""
    rising = ScheduleSpec("exponential", gamma=spec.gamma, every=1)
    groups = tuple(
        group if group.active[0] == FOREVER else replace(group, active=(0, FOREVER)) for group in plan.groups
    )
    return replace(
        plan, groups=groups, base_lr=spec.low, schedules=dict.fromkeys(plan.schedules, rising), total_steps=spec.steps
    )


def range_test(config: Config, spec: RangeSpec, folder: RunFolder, say: Say, track: Track) -> RangeTest:
    """Train with a rising lr from the run's own start weights on its own pictures, until the loss diverges.

    Args:
        config: final.
        spec: the lrs.
        folder: gets the plan (params.csv, plan.json, lrs.csv), the proof of it, and lr_find.json.
        say: told a line now and then.
        track: wraps the steps.

    Raises:
        LrMismatch: the framework does not do what the plan says.
    """
    streams = page.seed_streams(config.seed)
    model_of, table, planned = page.plan_of(config)
    plan = ramp(planned, spec)
    plan.check(table)
    page.write_plan(folder, table, plan)
    lrs, losses = [], []
    with (
        closing(page.make_framework(config)) as framework,
        closing(page.load(config, streams)) as dataset,
        np.errstate(all="ignore"),
    ):
        model, start, _ = model_of.start(framework, config, streams["init"])
        first = dataset.batch(0, config.pictures_a_step(), streams["order"])
        Prover(config.verify, folder, framework, plan, say).rehearse(model, start, first, streams["dropout"])
        state = begin(framework, model, plan, 0)
        for step in track(range(spec.steps), spec.steps):
            batch = dataset.batch(step, config.pictures_a_step(), streams["order"])
            seed = (streams["dropout"] + step) % 2**32
            training = float(take_step(framework, state, plan, step, batch, seed, gradients=False).loss)
            losses.append(_loss(framework, state, dataset, config.batch_size) if len(dataset.val.y) else training)
            lrs.append(spec.low * spec.gamma**step)
            if not math.isfinite(losses[0]):
                raise UserError(
                    f"the loss is {losses[0]} at the first step, before anything has moved: verify tells more"
                )
            made = RangeTest(tuple(lrs), tuple(losses))
            if step > SKIPPED and made.ended(made.smoothed):
                break
    folder.write_json("lr_find.json", {"spec": asdict(spec), **made.to_dict()})
    return made


def _loss(framework: Framework, state: TrainState, dataset: batches.Dataset, size: int) -> float:
    """Of the first validation pictures, in batches of the training's size (a graph has one shape only)."""
    logits: list[np.ndarray] = []
    for x in dataset.batches(dataset.val, size):
        full = np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), np.float32)])
        logits.append(framework.predict(state, full)[: len(x)])
        if size * len(logits) >= PICTURES:
            break
    made = np.concatenate(logits)
    return metrics.measure(made, dataset.val.y[: len(made)])["loss"]
