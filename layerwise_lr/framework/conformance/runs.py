"""Checks of whole runs: seeds, modes, devices, and forty steps beside the reference."""

from dataclasses import replace

from ...models import Tree
from ...planning import GroupingSpec, OptimizerSpec, UserError
from .kit import (
    ADAMW,
    COSINE,
    MOMENTUM,
    SGD,
    TREES,
    Failure,
    Kit,
    NotApplicable,
    Session,
    curve,
    need,
    plan_for,
    residual_net,
    same_bits,
)


def check_same_seed_same_curve(kit: Kit) -> None:
    """Two runs of the same plan, weights and batches are the same, bit by bit, dropout included."""
    tree = residual_net(dropout=0.3)
    plan = plan_for(tree, ADAMW)
    first, second = (kit.session(tree, plan).train(6) for _ in range(2))
    need(first.losses == second.losses, "losses of 6 steps", first.losses, second.losses)
    same_bits("weights after 6 steps", second.weights, first.weights)


def check_dropout_follows_seed(kit: Kit) -> None:
    """What dropout draws in a step follows from the step's seed alone; another seed draws otherwise."""
    tree = residual_net(dropout=0.5)
    session = kit.session(tree, plan_for(tree, replace(SGD, lr=1e-7)))
    losses = []
    for seed in (3, 4, 3):
        kit.framework.set_weights(session.model, session.initial)
        losses.append(session.step(0, seed=seed))
    need(abs(losses[0] - losses[2]) < 1e-6, "loss under seed 3, drawn again", losses[0], losses[2])
    need(abs(losses[0] - losses[1]) > 1e-4, "loss under another seed", "another", losses[1])


def check_mode_equals_first_mode(kit: Kit) -> None:
    """A graph or traced mode trains as the framework's first mode does, freezing included."""
    first = kit.framework_class.modes[0]
    if kit.mode == first:
        raise NotApplicable(f"{first} is the first mode")
    tree, plan = kit.stop_and_go(kit.some(MOMENTUM)[0])
    mine, theirs = kit.session(tree, plan).train(9), Session(kit.make(first), tree, plan).train(9)
    curve("9 steps", mine.losses, theirs.losses, 2e-5)


def check_absent_device(kit: Kit) -> None:
    """A device that is not there is a UserError that says what is."""
    absent = "cuda:97"
    try:
        kit.framework_class(absent, kit.mode)
    except UserError as error:
        need("cpu" in str(error) and absent in str(error), "message", f"names {absent} and what is there", str(error))
        return
    raise Failure(f"device {absent}: wanted a UserError, measured none")


def check_golden_curve_cnn(kit: Kit) -> None:
    """40 steps of a residual net with BatchNorm, momentum, weight decay, layer_decay, warm-up and cosine."""
    _golden(kit, residual_net(), MOMENTUM, 5e-5, 2e-3)


def check_golden_curve_vit(kit: Kit) -> None:
    """40 steps of a small ViT with layer scale under adamw, layer_decay, warm-up and cosine."""
    _golden(kit, TREES["vit"](), replace(ADAMW, lr=1e-2), 1e-5, 5e-4)


def _golden(kit: Kit, tree: Tree, optimizer: OptimizerSpec, early: float, late: float) -> None:
    plan = plan_for(tree, optimizer, GroupingSpec(layer_decay=0.75), COSINE, steps=40)
    mine, theirs = kit.both(tree, plan, 40)
    need(theirs.losses[-1] < 0.7 * theirs.losses[0], "the reference", "learns", theirs.losses[-1])
    curve("first 10 steps", mine.losses[:10], theirs.losses[:10], early)
    curve("40 steps", mine.losses, theirs.losses, late)
