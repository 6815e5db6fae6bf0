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
        self._last = plan.total_steps - 1
        self.plan, self._places = plan, core.places(plan, [group.get("name") for group in optimizer.param_groups])
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._own = self._places == list(range(len(self._places)))  # whether its groups are the first, in order
        self._plain = False  # whether every lr is a number
        self._told: list[Any] | None = None
        super().__init__(optimizer, start - 1)
        optimizer.register_step_pre_hook(self._check)

    def step(self, epoch: int | None = None) -> None:
        """The next step's lrs. torch's own takes ten times as long, and does what is more than to write numbers."""
        if epoch is not None or self._step_count < 2 or not self._plain:
            super().step(epoch)
            lrs = [group["lr"] for group in self.optimizer.param_groups]
            self._plain = self._own and not any(isinstance(lr, torch.Tensor) for lr in lrs)
            return
        self._step_count += 1
        self.last_epoch = step = self.last_epoch + 1
        self.plan.write_lrs(step if step < self._last else self._last, self.optimizer.param_groups)
        self._told = None

    @property
    def _last_lr(self) -> list[Any]:
        """Of all groups, as torch names it; found when it is asked for."""
        if self._told is None:
            self._told = self.get_lr()
        return self._told

    @_last_lr.setter
    def _last_lr(self, lrs: list[Any]) -> None:
        self._told = lrs

    def get_lr(self) -> list[Any]:
        """Those of `last_epoch`, which counts optimizer steps here; groups that are not the plan's keep theirs."""
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        for place, lr in zip(self._places, core.lrs_at(self.plan, self.last_epoch), strict=True):
            lrs[place] = lr
        return lrs

    def state_dict(self) -> dict[str, Any]:
        """The step and the plan's hash: the plan itself is made again by whoever resumes."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count, "plan_sha256": self.plan.sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there, under this scheduler's own plan.

        Raises:
            UserError: the state is another plan's.
        """
        core.check_state(self.plan, state_dict, state_dict["last_epoch"])
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _check(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        held = [self.optimizer.param_groups[place]["lr"] for place in self._places]
        if {*map(type, held)} == {float} and held == core.lrs_at(self.plan, self.last_epoch):
            return
        self._plain = False
        core.check_lrs(self.plan, self.last_epoch, [float(lr) for lr in held])
