"""Checks of what a step's gradient is made of: soft targets, parts of a batch, clipping."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...models import Tree
from ...planning import Clip, GroupingSpec, GroupSpec, Plan
from .kit import CLASSES, MOMENTUM, SGD, Kit, Session, batch, close, curve, plan_for, residual_net


def _soft(tree: Tree, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Each picture's class shares its target with the next, and pictures differ in weight."""
    x, y = batch(tree, step)
    hard = np.eye(CLASSES, dtype=np.float32)[y]
    mixed = np.float32(0.7) * hard + np.float32(0.3) * hard[::-1]
    return x, np.linspace(0.5, 1.5, len(y), dtype=np.float32)[:, None] * mixed


def check_soft_targets(kit: Kit) -> None:
    """Targets float32 [B, classes], whatever their rows sum to: the reference's loss and gradients, two steps long."""
    for name, tree in kit.trees():
        plan = plan_for(tree, kit.some(MOMENTUM)[0])
        mine, theirs = kit.session(tree, plan, data=_soft), Session(kit.reference, tree, plan, data=_soft)
        for step in range(2):
            curve(f"{name}, step {step}", [mine.step(step)], [theirs.step(step)], 1e-5)
            close(f"{name}, step {step}, gradients", mine.gradients, theirs.gradients, 2e-4)


def check_accumulate(kit: Kit) -> None:
    """Pictures cut into parts: the parts' mean loss and mean gradient, one update, statistics of each part in turn."""
    tree = kit.net()
    plan = replace(plan_for(tree, kit.some(MOMENTUM)[0]), accumulate=2)
    _agree(kit, tree.name, tree, plan, (0, 1))


def check_accumulate_is_the_large_batch(kit: Kit) -> None:
    """Without batchnorm layers the gradient is that of the whole batch, whatever the parts."""
    tree = kit.plain_tree()
    plan = plan_for(tree, SGD)
    whole = kit.session(tree, plan)
    loss = whole.step(0)
    for parts in (2, 8):
        session = kit.session(tree, replace(plan, accumulate=parts))
        curve(f"{parts} parts", [session.step(0)], [loss], 1e-5)
        close(f"{parts} parts, gradients", session.gradients, whole.gradients, 2e-4)


def check_clip_norm(kit: Kit) -> None:
    """Gradients of all groups that train are scaled together to the norm before the update.

    Where theirs is larger; those that are given are as they were.
    """
    tree = residual_net()
    groups = {"still": GroupSpec(["block"], start=9), "rest": GroupSpec(["*"], grad_centralization=True)}
    plan = plan_for(tree, SGD, GroupingSpec("by_module", groups=groups))
    session = Session(kit.reference, tree, plan)
    session.step(0)
    norm = float(np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in session.gradients.values())))
    for bound in (0.1 * norm, 10 * norm):
        _agree(kit, f"norm {norm:.3g} to {bound:.3g}", tree, replace(plan, clip=Clip(norm=bound)), (0, 1))


def check_clip_value(kit: Kit) -> None:
    """Each number of a gradient is brought into -value to value before the update; those that are given are not."""
    tree = kit.net()
    _agree(kit, "value 1e-3", tree, replace(plan_for(tree, kit.some(MOMENTUM)[0]), clip=Clip(value=1e-3)), (0, 1))


def check_clip_parts(kit: Kit) -> None:
    """Clipping is of the mean over the parts, once a step."""
    tree = kit.plain_tree()
    plan = replace(plan_for(tree, kit.some(MOMENTUM)[0]), clip=Clip(norm=1e-2), accumulate=4)
    _agree(kit, "lenet", tree, plan, (0, 1))


def _agree(kit: Kit, where: str, tree: Tree, plan: Plan, steps: Sequence[int]) -> None:
    mine, theirs = kit.session(tree, plan), Session(kit.reference, tree, plan)
    for step in steps:
        curve(f"{where}, step {step}", [mine.step(step)], [theirs.step(step)], 1e-5)
        close(f"{where}, step {step}, gradients", mine.gradients, theirs.gradients, 2e-4)
        now, wanted = mine.weights(), theirs.weights()
        moved = {name: now[name] - mine.initial[name] for name in now}
        close(f"{where}, step {step}, movement", moved, {n: wanted[n] - theirs.initial[n] for n in now}, 1e-3)
