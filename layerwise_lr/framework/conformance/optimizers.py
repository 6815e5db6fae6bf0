"""Checks of optimizers: each against its NumPy formula, its state, going on from a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...models import Weights
from ...planning import GroupingSpec, GroupSpec, OptimizerSpec
from ..offers import STATE_KEYS
from .kit import (
    ADAMW,
    COSINE,
    DECAY,
    LAYER_ADAPTIVE,
    LION,
    MOMENTUM,
    MUON,
    NADAM,
    PARTS,
    RMSPROP,
    SGD,
    Kit,
    below_the_head,
    close,
    curve,
    need,
    plan_for,
    residual_net,
)


def check_weight_decay_per_group(kit: Kit) -> None:
    """Each group decays by its own weight decay, and no other."""
    tree = kit.net()
    first, middle = PARTS[tree.name]
    groups = {
        "strong": GroupSpec(middle[:1], weight_decay=0.5),
        "none": GroupSpec(first, weight_decay=0.0),
        "rest": GroupSpec(["*"]),
    }
    grouping = GroupingSpec("by_module", groups=groups, no_weight_decay=False)
    for optimizer in kit.some(MOMENTUM, ADAMW):
        mine, theirs = kit.both(tree, plan_for(tree, optimizer, grouping), 4)
        close(optimizer.name, mine.weights, theirs.weights, 1e-3)


def _optimizer_check(label: str, spec: OptimizerSpec, grouping: GroupingSpec = DECAY) -> Callable[[Kit], None]:
    def check(kit: Kit) -> None:
        tree = kit.plain_tree()
        mine, theirs = kit.both(tree, plan_for(tree, spec, grouping, COSINE), 5)
        curve(label, mine.losses, theirs.losses, 1e-5)
        close(label, mine.weights, theirs.weights, 2e-4)

    check.__doc__ = f"{label} equals its NumPy formula for 5 steps, per-group lr and weight decay included."
    return check


check_optimizer_sgd = _optimizer_check("sgd", replace(SGD, weight_decay=0.01))
check_optimizer_momentum = _optimizer_check("momentum", MOMENTUM)
check_optimizer_nesterov = _optimizer_check("nesterov", replace(MOMENTUM, nesterov=True))
check_optimizer_adam = _optimizer_check("adam", replace(ADAMW, name="adam", eps=1e-4))
check_optimizer_adamw = _optimizer_check("adamw", replace(ADAMW, eps=1e-4))
check_optimizer_nadam = _optimizer_check("nadam", NADAM)
check_optimizer_rmsprop = _optimizer_check("rmsprop", RMSPROP)
check_optimizer_lion = _optimizer_check("lion", LION)
check_optimizer_muon = _optimizer_check("muon, with adamw beside it", MUON)
check_optimizer_layer_adaptive = _optimizer_check(  # several parameters in a group: each has a step size of its own
    "layer_adaptive", replace(LAYER_ADAPTIVE, eps=1e-4), GroupingSpec("backbone_head", backbone_scale=0.5)
)


def check_two_optimizers(kit: Kit) -> None:
    """Groups under different optimizers are each stepped by their own, together."""
    tree = kit.plain_tree()
    groups = {"first": GroupSpec(below_the_head(tree)[:2], optimizer="slow"), "rest": GroupSpec(["*"])}
    plan = plan_for(
        tree, replace(ADAMW, eps=1e-4), GroupingSpec("by_module", groups=groups), optimizers={"slow": MOMENTUM}
    )
    mine, theirs = kit.both(tree, plan, 5)
    close("momentum for the first, adamw for the rest", mine.weights, theirs.weights, 2e-4)


def check_grad_centralization(kit: Kit) -> None:
    """A group that asks for it has each output's gradient mean removed; the others keep theirs."""
    tree = kit.plain_tree()
    groups = {"central": GroupSpec(below_the_head(tree)[::2], grad_centralization=True), "rest": GroupSpec(["*"])}
    mine, theirs = kit.both(tree, plan_for(tree, MOMENTUM, GroupingSpec("by_module", groups=groups)), 4)
    close("4 steps", mine.weights, theirs.weights, 2e-4)


def check_optimizer_state(kit: Kit) -> None:
    """Optimizer state comes by canonical parameter name under torch's keys, with torch's values."""
    for optimizer in kit.optimizers(MOMENTUM, ADAMW):
        tree = kit.plain_tree()
        mine, theirs = kit.both(tree, plan_for(tree, optimizer), 3)
        close(optimizer.name, mine.state, theirs.state, 1e-3)


def check_resume_is_seamless(kit: Kit) -> None:
    """10 steps = 5 steps, weights and optimizer state into a fresh model, 5 steps."""
    _resume(kit, (MOMENTUM, ADAMW))


def check_reset_optimizer_state(kit: Kit) -> None:
    """set_optimizer_state with nothing resets all: from the start weights on, steps equal those of a fresh session."""
    _reset(kit, (MOMENTUM, ADAMW))


def check_reset_others(kit: Kit) -> None:
    """The same under nadam, rmsprop, lion and muon."""
    _reset(kit, (NADAM, RMSPROP, LION, MUON))


def check_reset_layer_adaptive(kit: Kit) -> None:
    """The same under layer_adaptive."""
    _reset(kit, (LAYER_ADAPTIVE,))


def _reset(kit: Kit, optimizers: Sequence[OptimizerSpec]) -> None:
    for optimizer in kit.optimizers(*optimizers):
        tree = kit.plain_tree()
        plan = plan_for(tree, optimizer)
        fresh, used = kit.session(tree, plan).train(4), kit.session(tree, plan)
        used.train(3)
        kit.framework.set_optimizer_state(used.state, {})
        kit.framework.set_weights(used.model, used.initial)
        again = used.train(4)
        curve(optimizer.name, again.losses, fresh.losses, 1e-6)
        close(optimizer.name, again.weights, fresh.weights, 1e-5)
        close(f"{optimizer.name}, state", again.state, fresh.state, 1e-5)


def check_resume_others(kit: Kit) -> None:
    """The same under nadam, rmsprop (with and without momentum), lion and muon; state comes under torch's keys."""
    for optimizer in kit.optimizers(NADAM, RMSPROP, replace(RMSPROP, momentum=0.0), LION, MUON):
        names = ("muon", "adamw") if optimizer.name == "muon" else (optimizer.name,)
        wanted = {key for name in names for key in STATE_KEYS[name]} - (
            set() if optimizer.momentum else {"momentum_buffer"}
        )
        keys = {key.rpartition("/")[2] for key in _resume(kit, (optimizer,))}
        need(keys == wanted, f"keys of the state of {optimizer.name}", sorted(wanted), sorted(keys))


def check_resume_layer_adaptive(kit: Kit) -> None:
    """The same under layer_adaptive, whose state comes under torch's keys and is exp_avg and exp_avg_sq alone."""
    state = _resume(kit, (LAYER_ADAPTIVE,))
    keys = {key.rpartition("/")[2] for key in state}
    need(keys == {"exp_avg", "exp_avg_sq"}, "keys of the state", "exp_avg, exp_avg_sq", sorted(keys))


def _resume(kit: Kit, optimizers: Sequence[OptimizerSpec]) -> Weights:
    """State at the end, of the last optimizer."""
    for optimizer in kit.optimizers(*optimizers):
        tree = residual_net(dropout=0.3)
        plan = plan_for(tree, optimizer, schedule=COSINE)
        whole = kit.session(tree, plan).train(10)
        half = kit.session(tree, plan).train(5)
        second = kit.session(tree, plan, start=5)
        kit.framework.set_weights(second.model, half.weights)
        kit.framework.set_optimizer_state(second.state, half.state)
        rest = second.train(10)
        curve(optimizer.name, rest.losses, whole.losses[5:], 1e-6)
        close(optimizer.name, rest.weights, whole.weights, 1e-5)
    return rest.state
