"""Another plan on an old optimizer state: matched by name, the difference shown, the choice said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...planning import Group, Plan, UserError

if TYPE_CHECKING:
    from .making import ModelPlan


@dataclass(frozen=True)
class Moved:
    """One parameter that the new plan treats otherwise; None where a plan does not have it.

    Args:
        name: bare.
        before, after: its group.
        lr_before, lr_after: at the step asked for.
    """

    name: str
    before: str | None
    after: str | None
    lr_before: float | None
    lr_after: float | None


@dataclass(frozen=True, eq=False)
class Change:
    """From an old plan to a new one, at `step`. Printed, it is a table; then `adopt()` or `keep()`.

        change = plan.on(old, step=scheduler.last_epoch)
        print(change)
        plan = change.adopt()                                     # or change.keep()
        optimizer = torch.optim.AdamW(plan.param_groups(model))
        optimizer.load_state_dict(change.state(old_state, plan))
        scheduler = plan.scheduler(optimizer, start=change.step)

    Args:
        new: the plan as it was asked for now.
        old: the plan that the state was trained under.
        step: the next optimizer step.
    """

    new: "ModelPlan"
    old: Plan
    step: int

    @property
    def moved(self) -> tuple[Moved, ...]:
        """Parameters whose group or lr is another, in the new plan's order; then those that are gone."""
        was, now = self.old.group_of(), self.new.plan.group_of()
        rows = []
        for name in [*now, *(name for name in was if name not in now)]:
            before, after = _place(self.old, self.step, was.get(name)), _place(self.new.plan, self.step, now.get(name))
            row = Moved(name, before[0], after[0], before[1], after[1])
            if (row.before, row.lr_before) != (row.after, row.lr_after):
                rows.append(row)
        return tuple(rows)

    def adopt(self) -> "ModelPlan":
        """The new plan."""
        return self.new

    def keep(self) -> "ModelPlan":
        """The old plan, for the same model.

        Raises:
            UserError: the model has other parameters by now.
        """
        was, now = set(self.old.group_of()), set(self.new.plan.group_of())
        if was != now:
            names = sorted(was ^ now)
            raise UserError(
                f"the old plan cannot be kept: {len(names)} parameters are not in both plans ({', '.join(names[:3])}"
                f"{', ...' if names[3:] else ''}); adopt() the new one"
            )
        return replace(self.new, plan=self.old)

    def state(self, held: Mapping[str, Any], plan: "ModelPlan") -> dict[str, Any]:
        """An optimizer's `state_dict()` from under the old plan, by position, as one from under `plan`: each parameter
        keeps its own state, a new one begins without; groups have the settings of `plan`, and what else theirs had.

        Args:
            held: with "state" by position and "param_groups" in the old plan's order, as torch writes it.
            plan: what adopt() or keep() gave.

        Raises:
            UserError: it was not written under the old plan.
        """
        names = [name for group in self.old.groups for name in group.params]
        counts = [len(group["params"]) for group in held["param_groups"]]
        if counts != [len(group.params) for group in self.old.groups]:
            raise UserError(
                f"this optimizer state has groups of {_few(counts)} parameters, the old plan "
                f"{_few([len(group.params) for group in self.old.groups])}: it was saved under another plan"
            )
        places = [place for group in held["param_groups"] for place in group["params"]]
        of = {name: held["state"][place] for name, place in zip(names, places, strict=True) if place in held["state"]}
        home = {name: i for i, group in enumerate(self.old.groups) for name in group.params}
        state: dict[int, Any] = {}
        groups, at = [], 0
        for group, lr in zip(plan.groups, plan.lrs(self.step), strict=True):
            own = range(at, at + len(group.params))
            state |= {place: of[name] for place, name in zip(own, group.params, strict=True) if name in of}
            origin = held["param_groups"][next((home[n] for n in group.params if n in home), 0)]
            settings = {"params": list(own), "lr": lr, "weight_decay": group.weight_decay, "name": group.name}
            groups.append({**origin, **settings, "initial_lr": plan.plan.base_lr * group.lr_scale})
            at += len(group.params)
        return {**held, "state": state, "param_groups": groups}

    def __str__(self) -> str:
        if not self.moved:
            return f"the plans are equal at step {self.step}"
        rows = [("parameter", "group before", "after", "lr before", "after")]
        rows += [(m.name, m.before or "-", m.after or "-", _shown(m.lr_before), _shown(m.lr_after)) for m in self.moved]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(
            [*lines, f"{len(self.moved)} parameters at step {self.step}: adopt() the new plan, or keep() the old"]
        )


def _place(plan: Plan, step: int, group: Group | None) -> tuple[str | None, float | None]:
    """(group's name, lr), where there is one."""
    return (group.name, plan.lr(min(step, plan.total_steps - 1), group)) if group else (None, None)


def _shown(lr: float | None) -> str:
    return "-" if lr is None else f"{lr:.3g}"


def _few(counts: Sequence[int]) -> str:
    return f"{', '.join(map(str, counts[:4]))}{', ...' if counts[4:] else ''}"
