"""Checks of values: weights in and out, logits, loss, gradients, BatchNorm's statistics."""

from dataclasses import replace

import numpy as np

from ...models import param_table
from .. import metrics
from .kit import ADAMW, MOMENTUM, SGD, Kit, Session, batch, close, curve, need, plan_for, residual_net, same_bits


def check_names_and_shapes(kit: Kit) -> None:
    """get_weights has exactly the declared names, in float32 and in PyTorch shapes."""
    for name, tree in kit.trees():
        weights = kit.framework.get_weights(kit.framework.make_model(tree))
        wanted = {row.name: row.shape for row in param_table(tree)}
        need(set(weights) == set(wanted), f"{name}: names", sorted(wanted)[:3], sorted(set(weights) ^ set(wanted))[:6])
        for key, shape in wanted.items():
            need(weights[key].shape == shape, f"{name}: shape of {key}", shape, weights[key].shape)
            need(weights[key].dtype == np.float32, f"{name}: type of {key}", "float32", weights[key].dtype)


def check_arrays_are_numpys(kit: Kit) -> None:
    """Weights, gradients, optimizer state and logits are numpy.ndarray itself, in float32: no subclass, no tensor."""
    tree = kit.plain_tree()
    for optimizer in kit.optimizers(MOMENTUM, ADAMW):
        session = kit.session(tree, plan_for(tree, optimizer))
        session.step(0)
        found = {
            "weights": session.weights(),
            "gradients": session.gradients,
            "optimizer state": kit.framework.get_optimizer_state(session.state),
            "predict": {"logits": kit.framework.predict(session.state, batch(tree)[0])},
        }
        for what, arrays in found.items():
            need(bool(arrays), f"{optimizer.name}: {what}", "some arrays", "none")
            for name, array in arrays.items():
                need(type(array) is np.ndarray, f"{what}: class of {name}", "numpy.ndarray", type(array).__name__)
                need(array.dtype == np.float32, f"{what}: type of {name}", "float32", array.dtype)


def check_weights_round_trip(kit: Kit) -> None:
    """set_weights then get_weights gives the same bits."""
    for name, tree in kit.trees():
        session = kit.session(tree, plan_for(tree, SGD))
        same_bits(name, session.weights(), session.initial)


def check_weights_are_copies(kit: Kit) -> None:
    """Neither what get_weights gave nor what set_weights took is tied to the model."""
    tree = kit.net()
    session = kit.session(tree, plan_for(tree, SGD))
    given = {name: array.copy() for name, array in session.initial.items()}
    kit.framework.set_weights(session.model, given)
    taken = session.weights()
    for array in [*given.values(), *taken.values()]:
        array += 1
    same_bits("after changing the arrays outside", session.weights(), session.initial)
    session.step(0)
    close("arrays taken before a step", taken, {n: a + 1 for n, a in session.initial.items()}, 1e-6)


def check_same_logits(kit: Kit) -> None:
    """The same weights give the reference's logits in evaluation mode."""
    for name, tree in kit.trees():
        plan, x = plan_for(tree, SGD), batch(tree)[0]
        mine, theirs = kit.session(tree, plan), Session(kit.reference, tree, plan)
        got = kit.framework.predict(mine.state, x)
        need(got.dtype == np.float32, f"{name}: type of the logits", "float32", got.dtype)
        close(name, {"logits": got}, {"logits": kit.reference.predict(theirs.state, x)}, 2e-5)


def check_loss_is_mean_cross_entropy(kit: Kit) -> None:
    """train_step returns the mean cross-entropy of the batch before its update."""
    tree = kit.plain_tree()  # no BatchNorm: training and evaluation see the same
    plan = plan_for(tree, SGD)
    session = kit.session(tree, plan)
    x, y = batch(tree)
    wanted = metrics.cross_entropy(kit.framework.predict(session.state, x), y)
    curve("lenet", [session.step(0)], [wanted], 1e-5)


def check_gradients(kit: Kit) -> None:
    """A step that is asked for gradients gives the reference's."""
    for name, tree in kit.trees():
        plan = plan_for(tree, kit.some(MOMENTUM)[0])
        mine, theirs = kit.session(tree, plan), Session(kit.reference, tree, plan)
        mine.step(0), theirs.step(0)
        close(name, mine.gradients, theirs.gradients, 2e-4)


def check_gradients_are_cleared(kit: Kit) -> None:
    """A step's gradient owes nothing to the steps before it."""
    tree = kit.plain_tree()
    session = kit.session(tree, plan_for(tree, SGD))
    seen = []
    for step in range(3):
        kit.framework.set_weights(session.model, session.initial)
        session.step(step, data_step=0)
        seen.append(session.gradients)
    close("third step from the same weights", seen[2], seen[0], 1e-5)


def check_predict_changes_nothing(kit: Kit) -> None:
    """predict leaves weights, BatchNorm statistics, randomness and training mode as they were."""
    tree = residual_net(dropout=0.3)
    plan = plan_for(tree, MOMENTUM)
    disturbed, quiet = kit.session(tree, plan), kit.session(tree, plan)
    for step in range(3):
        for session in (disturbed, quiet):
            session.step(step)
        before = disturbed.weights()
        kit.framework.predict(disturbed.state, batch(tree, 50 + step)[0])
        same_bits(f"step {step}", disturbed.weights(), before)
    same_bits("three steps with and without predict between them", disturbed.weights(), quiet.weights())


def check_batchnorm_statistics(kit: Kit) -> None:
    """Running mean and (unbiased) variance follow the batches as in torch, momentum 0.1."""
    tree = residual_net()
    mine, theirs = kit.both(tree, plan_for(tree, replace(SGD, lr=1e-6)), 3)
    buffers = [row.name for row in param_table(tree) if row.role == "buffer"]
    close("3 steps", {n: mine.weights[n] for n in buffers}, {n: theirs.weights[n] for n in buffers}, 1e-5)
