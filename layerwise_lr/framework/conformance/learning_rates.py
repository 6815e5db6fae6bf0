"""Checks of learning rates: what is written, and how far parameters really move."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...models import Tree
from ...planning import GroupingSpec, GroupSpec, OptimizerSpec, Plan, ScheduleSpec
from .. import proof
from .kit import (
    ADAMW,
    CONSTANT,
    COSINE,
    LAYER_ADAPTIVE,
    LION,
    MOMENTUM,
    MUON,
    NADAM,
    PARTS,
    RMSPROP,
    SGD,
    Failure,
    Kit,
    batch,
    below_the_head,
    need,
    plan_for,
    same_bits,
)


def check_lrs_read_back(kit: Kit) -> None:
    """scheduler.lrs() tells the plan's lr of every group at every step, in the plan's order."""
    tree = kit.net()
    plan = plan_for(tree, kit.some(MOMENTUM)[0], schedule=COSINE)
    session = kit.session(tree, plan)
    for step in range(5):
        session.step(step)
        for group, got, wanted in zip(plan.groups, session.state.scheduler.lrs(), plan.lrs(step), strict=True):
            need(abs(got - wanted) <= 1e-6 * wanted, f"group {group.name}, step {step}", wanted, got)


def check_effective_lr(kit: Kit) -> None:
    """Every parameter moves by its group's lr: measured by displacement, in each of torch's optimizers."""
    _effective_lr(kit, (SGD, MOMENTUM, replace(MOMENTUM, nesterov=True), replace(ADAMW, name="adam"), ADAMW))


def check_effective_lr_layer_adaptive(kit: Kit) -> None:
    """The same under layer_adaptive."""
    _effective_lr(kit, (LAYER_ADAPTIVE,))


def check_effective_lr_others(kit: Kit) -> None:
    """The same under nadam, rmsprop (with and without momentum), lion and muon."""
    _effective_lr(kit, (NADAM, RMSPROP, replace(RMSPROP, momentum=0.0), LION, MUON))


def _effective_lr(kit: Kit, optimizers: Sequence[OptimizerSpec]) -> None:
    """Every tree and every optimizer, in turn: an update knows nothing of the layer that it is for."""
    trees, specs = kit.trees(), kit.optimizers(*optimizers)
    for turn in range(max(len(trees), len(specs))):
        (name, tree), optimizer = trees[turn % len(trees)], specs[turn % len(specs)]
        plan = plan_for(tree, optimizer, schedule=COSINE)
        session = kit.session(tree, plan)
        try:
            proof.check(kit.framework, session.model, plan, session.initial, batch(tree), 0)
        except proof.LrMismatch as mismatch:
            worst = proof.table(mismatch.records)[0]
            raise Failure(
                f"{name}, {optimizer.name}: group {worst[0]}, step {worst[1]}: wanted lr {worst[2]}, "
                f"measured {worst[3]} ({worst[5]})"
            ) from None


def check_schedule_at_every_step(kit: Kit) -> None:
    """lr(step) = base_lr * lr_scale * schedule(step) at every step, not one early or late."""
    tree = kit.plain_tree()
    _displacements(kit, tree, plan_for(tree, SGD, schedule=COSINE))


def check_schedule_per_group(kit: Kit) -> None:
    """Each group follows its own schedule."""
    tree = kit.plain_tree()
    groups = {"early": GroupSpec(below_the_head(tree)[:2], lr_scale=0.5, schedule="falling"), "late": GroupSpec(["*"])}
    grouping = GroupingSpec("by_module", groups=groups)
    schedules = {"falling": ScheduleSpec("exponential", gamma=0.5, every=2)}
    _displacements(kit, tree, plan_for(tree, SGD, grouping, COSINE, schedules=schedules))


def check_lr_does_not_compound(kit: Kit) -> None:
    """Under a constant schedule the lr of the last step is that of the first."""
    tree = kit.plain_tree()
    _displacements(kit, tree, plan_for(tree, SGD, schedule=CONSTANT))


def check_zero_lr_moves_nothing(kit: Kit) -> None:
    """Where the plan's lr is 0 nothing moves, weight decay and momentum included."""
    tree = kit.net()
    first, middle = PARTS[tree.name]
    groups = {"still": GroupSpec([*first, middle[0]], lr=0.0), "rest": GroupSpec(["*"])}
    grouping = GroupingSpec("by_module", groups=groups)
    for optimizer in kit.some(MOMENTUM, ADAMW):
        plan = plan_for(tree, optimizer, grouping)
        session = kit.session(tree, plan)
        for step in range(3):
            session.step(step)
        names = [n for g in plan.groups if g.lr_scale == 0 for n in g.params]
        now = session.weights()
        same_bits(optimizer.name, {n: now[n] for n in names}, {n: session.initial[n] for n in names})


def _displacements(kit: Kit, tree: Tree, plan: Plan) -> None:
    """Plain sgd from the same weights and batch at every step: each group's lr is <-dw, g> / <g, g>."""
    session = kit.session(tree, plan)
    for step in range(plan.total_steps):
        kit.framework.set_weights(session.model, session.initial)
        session.step(step, data_step=0)
        now, gradients = session.weights(), session.gradients
        for group, wanted in zip(plan.groups, plan.lrs(step), strict=True):
            g = np.concatenate([gradients[n].ravel().astype(np.float64) for n in group.params])
            moved = np.concatenate([(session.initial[n] - now[n]).ravel().astype(np.float64) for n in group.params])
            measured = float(moved @ g / (g @ g))
            need(
                abs(measured - wanted) <= 2e-3 * plan.base_lr * group.lr_scale,
                f"group {group.name}, step {step}: lr",
                f"{wanted:.6g}",
                f"{measured:.6g}",
            )
