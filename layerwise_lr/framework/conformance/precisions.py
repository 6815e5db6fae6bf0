"""Checks of the other precisions and of `deterministic`. Last, because a process may keep what it once selected."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ...planning import UserError
from .. import proof
from ..contract import Framework
from .kit import MOMENTUM, Failure, Kit, NotApplicable, Session, batch, close, need, plan_for, residual_net, same_bits

STEPS = 4
LOSS = {"bf16": 0.01, "fp16": 0.002}
"""How far a loss may be from fp32's, as a share of it: bf16 keeps 8 bits of a number, fp16 11."""
GRADIENTS = {"bf16": 0.1, "fp16": 0.02}
"""The same for the gradients of the first step."""
ROUNDING = 2.0**-24


def _make(kit: Kit, **others: Any) -> Framework:
    """An instance, or the plugin's own words for why there is none.

    Raises:
        NotApplicable: a UserError of `__init__`.
    """
    try:
        return kit.make(**others)
    except UserError as error:
        raise NotApplicable(str(error)) from None


def _in_precision(kit: Kit, precision: str) -> tuple[Session, Session]:
    """The same residual net (in that precision, in fp32), no step taken."""
    if precision not in kit.framework_class.precisions:
        raise NotApplicable(f"it lists no {precision} in precisions")
    tree = residual_net()
    plan = plan_for(tree, kit.optimizers(MOMENTUM)[0])
    plain = kit.session(tree, plan)
    return Session(_make(kit, precision=precision), tree, plan), plain


def _proved(where: str, session: Session) -> None:
    try:
        proof.check(session.framework, session.model, session.plan, session.initial, batch(session.tree), 0)
    except proof.LrMismatch as mismatch:
        raise Failure(f"{where}: wanted every group as planned, measured {mismatch}") from None
    session.state = proof.begin(session.framework, session.model, session.plan)


def _float32(where: str, session: Session) -> None:
    state = session.framework.get_optimizer_state(session.state)
    for what, arrays in (("weights", session.weights()), ("gradients", session.gradients), ("state", state)):
        for name, array in arrays.items():
            need(array.dtype == np.float32, f"{where}: type of {name} in {what}", "float32", array.dtype)


def _sixteen_bits(precision: str) -> Callable[[Kit], None]:
    def check(kit: Kit) -> None:
        narrow, plain = _in_precision(kit, precision)
        _proved(precision, narrow)
        first = [narrow.step(0)], [plain.step(0)]
        off = _distance(narrow, plain)
        need(
            off <= GRADIENTS[precision], f"{precision}: gradients, from fp32's", f"within {GRADIENTS[precision]:g}", off
        )
        rest = range(1, STEPS)
        got, wanted = (np.array(f + [s.step(n) for n in rest]) for f, s in zip(first, (narrow, plain), strict=True))
        error = float(np.abs(got / wanted - 1).max())
        need(error <= LOSS[precision], f"{precision}: loss, from fp32's", f"within {LOSS[precision]:g}", f"{error:.1e}")
        need(error > 8 * ROUNDING, f"{precision}: loss", "16 bits, not fp32's own", f"{error:.1e} from it")
        _float32(precision, narrow)

    check.__doc__ = f"A run in {precision} is proved, and its loss is within {LOSS[precision]:g} of fp32's."
    return check


check_precision_bf16 = _sixteen_bits("bf16")
check_precision_fp16 = _sixteen_bits("fp16")


def check_precision_fp64(kit: Kit) -> None:
    """A run in fp64 is proved, and it is nearer to the reference than fp32 is: gradients off by rounding alone."""
    wide, plain = _in_precision(kit, "fp64")
    _proved("fp64", wide)
    exact = Session(kit.reference, wide.tree, wide.plan)
    for session in (wide, plain, exact):
        session.step(0)
    far, near = _distance(plain, exact), _distance(wide, exact)
    need(near <= ROUNDING, "fp64: gradients, from the reference's", f"within {ROUNDING:.1e}", f"{near:.1e}")
    need(near < far, "fp64: gradients, from the reference's", f"nearer than fp32's {far:.1e}", f"{near:.1e}")
    close("fp64, after a step", wide.weights(), exact.weights(), 1e-6)


def _distance(session: Session, exact: Session) -> float:
    """Of all gradients, relative: the worst parameter's."""
    pairs = ((session.gradients[n].astype(np.float64), g) for n, g in exact.gradients.items())
    return max(float(np.linalg.norm(mine - g) / np.linalg.norm(g)) for mine, g in pairs)


def check_deterministic(kit: Kit) -> None:
    """deterministic=True gives two runs that are equal to the last bit, or a UserError."""
    framework = _make(kit, deterministic=True)
    tree = residual_net(dropout=0.3)
    plan = plan_for(tree, kit.optimizers(MOMENTUM)[0])
    kit.session(tree, plan)  # says what is lacking
    first, second = (Session(framework, tree, plan).train(STEPS) for _ in range(2))
    need(first.losses == second.losses, f"losses of {STEPS} steps", first.losses, second.losses)
    same_bits(f"weights after {STEPS} steps", second.weights, first.weights)
    same_bits(f"state after {STEPS} steps", second.state, first.state)
