"""Checks of freezing: who does not train does not move, keeps its state, and comes back on the step."""

from dataclasses import replace

import numpy as np

from .kit import ADAMW, LAYER_ADAPTIVE, MOMENTUM, Kit, Session, close, curve, need, same_bits


def check_frozen_do_not_move(kit: Kit) -> None:
    """Outside its window a group does not move at all: no decay, no drift of momentum."""
    for optimizer in kit.some(MOMENTUM, ADAMW, LAYER_ADAPTIVE):
        tree, plan = kit.stop_and_go(optimizer)
        session = kit.session(tree, plan)
        for step in range(9):
            before = session.weights()
            session.step(step)
            now = session.weights()
            frozen = [n for g, on in zip(plan.groups, plan.active(step), strict=True) if not on for n in g.params]
            same_bits(f"{optimizer.name}, step {step}", {n: now[n] for n in frozen}, {n: before[n] for n in frozen})


def check_frozen_keep_state(kit: Kit) -> None:
    """A frozen group's optimizer state stays as it was, bit by bit."""
    for optimizer in kit.optimizers(MOMENTUM, ADAMW, LAYER_ADAPTIVE):
        tree, plan = kit.stop_and_go(optimizer)
        session = kit.session(tree, plan)
        held = {k: a for k, a in session.train(3).state.items() if k.startswith(("block", "mid"))}
        need(bool(held), f"{optimizer.name}: state of the group that stops", "some arrays", "none")
        for step in range(3, 5):
            session.step(step)
        now = kit.framework.get_optimizer_state(session.state)
        same_bits(f"{optimizer.name}, steps 3 and 4", {k: now.get(k, np.zeros(0)) for k in held}, held)


def check_unfreezes_on_the_step(kit: Kit) -> None:
    """A group moves from the first step of its window, not one early or late."""
    tree, plan = kit.stop_and_go(kit.some(MOMENTUM)[0])
    session = kit.session(tree, plan)
    moved: dict[str, list[int]] = {group.name: [] for group in plan.groups}
    for step in range(9):
        before = session.weights()
        session.step(step)
        now = session.weights()
        for group in plan.groups:
            if any(not np.array_equal(now[n], before[n]) for n in group.params):
                moved[group.name].append(step)
    for group in plan.groups:
        wanted = [s for s in range(9) if group.active[0] <= s < group.active[1]]
        need(moved[group.name] == wanted, f"group {group.name}: steps with movement", wanted, moved[group.name])


def check_late_start(kit: Kit) -> None:
    """A group that thaws late takes its optimizer's first step then: bias correction counts per parameter."""
    tree, plan = kit.stop_and_go(replace(ADAMW, eps=1e-4))
    mine, theirs = kit.both(tree, plan, 9)
    stem = [n for n in mine.weights if n.startswith("stem") and "running" not in n]
    close(
        "adamw, 4 steps after the thaw", {n: mine.weights[n] for n in stem}, {n: theirs.weights[n] for n in stem}, 2e-3
    )


def check_frozen_batchnorm(kit: Kit) -> None:
    """A batchnorm whose own parameters do not train runs on its running statistics and keeps them; others go on."""
    tree, plan = kit.stop_and_go(MOMENTUM)
    mine, theirs = kit.session(tree, plan), Session(kit.reference, tree, plan)
    for step in range(9):
        before = mine.weights()
        curve(f"step {step}", [mine.step(step)], [theirs.step(step)], 1e-4)
        now = mine.weights()
        for layer in plan.batchnorms:
            held = {f"{layer}.{name}": now[f"{layer}.{name}"] for name in ("running_mean", "running_var")}
            if layer in plan.frozen(step):
                same_bits(f"step {step}", held, {name: before[name] for name in held})
            else:
                moved = any(not np.array_equal(before[name], array) for name, array in held.items())
                need(moved, f"step {step}: statistics of {layer}, which trains", "move", "do not")
    close("9 steps", mine.weights(), theirs.weights(), 1e-3)


def check_batchnorm_trains_on(kit: Kit) -> None:
    """Under freeze.batchnorm=train a frozen layer's statistics follow the batches as before."""
    tree, plan = kit.stop_and_go(MOMENTUM)
    mine, theirs = kit.both(tree, replace(plan, batchnorms={}), 5)
    close("5 steps", mine.weights, theirs.weights, 1e-3)
