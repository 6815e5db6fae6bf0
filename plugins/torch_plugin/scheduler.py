"""The plan's learning rates as a torch LRScheduler."""

from typing import Any

import torch

from layerwise_lr import framework as core


class PlanScheduler(torch.optim.lr_scheduler.LRScheduler):
    """The plan's lrs, step by step; a loop, Lightning, Trainer or Accelerate drives it as any torch scheduler.

    Before every optimizer step it looks whether the lrs are still the plan's, and raises where somebody else has
    written another.

    Args:
        optimizer: made of the plan's param_groups, whatever else it holds.
        plan: the lrs.
        start: the step whose lrs are written now.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, plan: core.Plan, start: int = 0) -> None:
        named = {group.get("name"): i for i, group in enumerate(optimizer.param_groups)}
        missing = [group.name for group in plan.groups if group.name not in named]
        if missing:
            raise core.UserError(
                f"the optimizer has no group {', '.join(missing[:3])}{', ...' if missing[3:] else ''}: "
                "make it of plan.param_groups(model)"
            )
        self.plan, self._at = plan, {named[group.name]: i for i, group in enumerate(plan.groups)}
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        super().__init__(optimizer, start - 1)
        optimizer.register_step_pre_hook(self._check)

    def get_lr(self) -> list[Any]:
        """Those of `last_epoch`, which counts optimizer steps here; groups that are not the plan's keep theirs."""
        lrs = self.plan.lrs(min(self.last_epoch, self.plan.total_steps - 1))
        return [lrs[self._at[i]] if i in self._at else g["lr"] for i, g in enumerate(self.optimizer.param_groups)]

    def state_dict(self) -> dict[str, Any]:
        """The step and the plan's hash: the plan itself is made again by whoever resumes."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count, "plan_sha256": self.plan.sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there, under this scheduler's own plan.

        Raises:
            UserError: the state is another plan's.
        """
        if state_dict.get("plan_sha256", self.plan.sha256) != self.plan.sha256:
            raise core.UserError(
                "this scheduler's state belongs to another plan: make the plan as it was, or go on with "
                f"plan.scheduler(optimizer, start={state_dict['last_epoch']})"
            )
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _check(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if abs(float(group["lr"]) - lr) > 1e-6 * abs(lr):
                raise core.UserError(
                    f"group {group.get('name')}: its lr is {float(group['lr']):.4g}, the plan says {lr:.4g} at step "
                    f"{self.last_epoch}: somebody else writes learning rates (a second scheduler, a resumed "
                    "optimizer state); let plan.scheduler alone do it"
                )
