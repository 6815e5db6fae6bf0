"""How the core drives a plugin: everything native that a run needs, and one step. Nobody else calls train_step."""

from typing import Any

import numpy as np

from ..planning import Plan
from .contract import Framework, Step, StepResult, TrainState


def begin(framework: Framework, model: Any, plan: Plan, start: int = 0) -> TrainState:
    """Groups, optimizer and scheduler of a run from step `start` on."""
    groups = framework.make_groups(model, plan)
    optimizer = framework.make_optimizer(model, groups, plan)
    return TrainState(model, groups, optimizer, framework.make_scheduler(optimizer, plan, start))


def take_step(
    framework: Framework,
    state: TrainState,
    plan: Plan,
    index: int,
    batch: tuple[np.ndarray, np.ndarray],
    seed: int,
    gradients: bool = False,
) -> StepResult:
    """Step `index` of the plan on `batch`: (x float32 [B, C, H, W], y int64 [B] or float32 [B, classes])."""
    state.scheduler.apply(index)
    step = Step(index, plan.active(index), plan.frozen(index), seed, gradients, plan.clip, plan.accumulate)
    return framework.train_step(state, *batch, step)
