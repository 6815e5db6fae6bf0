"""What goes wrong with single parameters: held by nobody, moved though frozen, stuck though trainable, too coarse."""

from collections.abc import Callable, Sequence

import numpy as np

from .faults import Case, Fault, shown

GONE = 0.5
"""Less of an lr than this share, and it counts as rounded away."""


def holdings(case: Case) -> list[Fault]:
    """Does the optimizer hold the model's parameters, each once?"""
    s, faults = case.m.subject, []
    held = [name for group in s.groups for name in group]
    planned = {name for group in case.plan.groups for name in group.params} if case.plan else set()
    if missing := tuple(n for n, on in s.trainable.items() if (on or n in planned) and n not in held):
        faults.append(
            Fault(
                "parameters in no group",
                missing,
                "in no group: they never move",
                "requires_grad: each in one group",
                "put them into a group, or freeze them with requires_grad_(False)",
            )
        )
    if s.strangers:
        faults.append(
            Fault(
                "parameters that the model does not have",
                tuple(sorted(s.strangers)),
                f"{len(s.strangers)} of the optimizer's {len(held)}",
                "only the model's",
                "make the optimizer after the last change of the model (a new head, .to(), a copy)",
            )
        )
    if twice := tuple(dict.fromkeys(n for i, n in enumerate(held) if n in held[:i])):
        faults.append(
            Fault(
                "parameters in two groups",
                twice,
                "stepped more than once",
                "each in one group",
                "leave them out of all groups but one",
            )
        )
    return faults


def frozen_that_move(case: Case) -> list[Fault]:
    """What must rest, moves."""
    m = case.m
    trainable = np.array([m.subject.trainable[name] for name in m.names], bool)
    moving = np.array(m.moves, bool)
    rest = np.repeat(~trainable[None], len(m.steps), axis=0)
    if case.plan is not None:
        for k in range(len(m.steps)):
            planned = case.planned(k)
            rest[k] |= (planned == 0) | (np.isnan(planned) & (not case.absolute))  # its scheduler leaves others alone
    names = [n for i, n in enumerate(m.names) if (moving & rest)[:, i].any()]
    if not names:
        return []
    still = [n for n in names if not m.subject.trainable[n]]
    remedy = (
        "its gradient is not None, so momentum and weight decay go on: zero_grad(set_to_none=True) after freezing, or "
        "leave it out of the groups"
        if still
        else "the plan has them frozen: take the groups from plan.param_groups(model) and step plan.scheduler"
    )
    told = "requires_grad is False, yet a step moves them" if still else "a step moves them"
    return [Fault("frozen parameters that move", tuple(names), told, "not a bit", remedy)]


def stuck(case: Case) -> list[Fault]:
    """What should train, cannot."""
    m, faults = case.m, []
    if m.subject.unreached:
        faults.append(
            Fault(
                "trainable parameters that cannot move",
                m.subject.unreached,
                "no gradient reaches them from this batch",
                "requires_grad: a gradient",
                "look for detach(), no_grad() or a branch that is not taken, or freeze them",
            )
        )
    lrs, held = np.array(m.lr), np.array(m.held)
    trains = tuple(n for n in m.names if m.subject.trainable[n] and n not in m.subject.unreached)
    if trains and not np.array(m.moves).any() and (held > 0).any():
        told = f"no step of {m.subject.optimizer} moves anything"
        remedy = "its steps do nothing, on this device at least: take another optimizer"
        return [*faults, Fault("trainable parameters that cannot move", trains, told, f"lr {shown(held[0])}", remedy)]
    zero = np.isfinite(lrs).all(axis=0) & (np.abs(lrs).max(axis=0) == 0)
    meant = np.zeros(len(m.names), bool)
    if case.plan is not None:
        meant = np.all([(case.planned(k) == 0) for k in range(len(m.steps))], axis=0)
    names = tuple(n for i, n in enumerate(m.names) if zero[i] and m.subject.trainable[n] and not meant[i])
    if names:
        until = f"now and until step {m.steps[-1]}" if m.steps[-1] else "now"
        faults.append(
            Fault(
                "trainable parameters that cannot move",
                names,
                f"lr 0 {until}",
                "an lr",
                "give them an lr, freeze them with requires_grad_(False), or verify with the scheduler that raises it",
            )
        )
    return faults


def rounded_away(case: Case) -> list[Fault]:
    """Updates below the last bit of the weights."""
    m = case.m
    best = np.nanmax(np.where(np.isnan(m.arrived), -np.inf, m.arrived), axis=0)
    there = np.isfinite(m.arrived).any(axis=0)
    names = [n for i, n in enumerate(m.names) if there[i] and best[i] < GONE and m.subject.trainable[n]]
    faults = []
    for dtype in dict.fromkeys(m.subject.dtypes[n] for n in names):
        own = [n for n in names if m.subject.dtypes[n] == dtype]
        share = best[[m.names.index(n) for n in own]]
        lrs = np.array(m.lr).max(axis=0)[[m.names.index(n) for n in own]]
        faults.append(
            Fault(
                f"updates too small for {dtype}",
                tuple(own),
                f"{100 * abs(share.min()):.0f} % of the lr arrives",
                f"lr {shown(lrs)}",
                "keep the weights in float32 (autocast for the forward), or raise the lr",
            )
        )
    return faults


CHECKS: Sequence[Callable[[Case], list[Fault]]] = (holdings, frozen_that_move, stuck, rounded_away)
"""Each speaks of other parameters: all that they find is told."""
