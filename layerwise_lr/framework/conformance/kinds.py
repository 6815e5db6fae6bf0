"""Checks of kinds: every layer that a plugin lists, over its options, against the reference: output, every gradient,
every buffer. Residual, which is no kind, has its own."""

from collections.abc import Callable
from dataclasses import replace

from ...models import param_table
from ...planning import FreezeSpec
from .kit import (
    ADAMW,
    LAYER_ADAPTIVE,
    MOMENTUM,
    NO_FREEZE,
    SGD,
    Failure,
    Kit,
    NotApplicable,
    Session,
    close,
    curve,
    plan_for,
)
from .ladder import not_yet
from .nets import NETS, RESIDUAL, Net, loud

ANY_OPTIMIZER = (
    replace(SGD, lr=1e-2),
    replace(MOMENTUM, lr=1e-2),
    replace(ADAMW, lr=1e-3, eps=1.0),
    replace(LAYER_ADAPTIVE, lr=1e-2),
)


def listed(kit: Kit, kind: str) -> None:
    """Only what the plugin lists is asked of it.

    Raises:
        NotApplicable: it does not list `kind`.
    """
    if kind not in kit.framework_class.kinds:
        raise NotApplicable(f"it lists no {kind} in kinds")


def agrees(kit: Kit, where: str, net: Net) -> None:
    """All that a plugin shows of a net is the reference's. What it raises is a Failure that says of which net."""
    freeze = FreezeSpec("only", match=list(net.trains)) if net.trains else NO_FREEZE
    plan, weights = plan_for(net.tree, kit.optimizers(*ANY_OPTIMIZER)[0], freeze=freeze), loud(net.tree)
    theirs = Session(kit.reference, net.tree, plan, weights_given=weights, data=net.data)
    try:
        _agree(where, kit.session(net.tree, plan, weights=weights, data=net.data), theirs)
    except (Failure, NotApplicable):
        raise
    except Exception as error:
        if not_yet(error):
            raise
        raise Failure(f"{where}: wanted what the reference does, measured {type(error).__name__}: {error}") from error


def _agree(where: str, mine: Session, theirs: Session) -> None:
    """Two steps from the same parameters, on two batches; buffers go on."""
    weights, buffers = theirs.initial, {row.name for row in param_table(theirs.tree) if row.role == "buffer"}
    for step in range(2):
        _same_logits(f"{where}, before step {step}", mine, theirs)
        curve(f"{where}, step {step}", [mine.step(step)], [theirs.step(step)], 1e-5)
        close(f"{where}, step {step}, gradients", mine.gradients, theirs.gradients, 1e-4)
        after = theirs.weights()
        close(f"{where}, after step {step}", mine.weights(), after, 1e-4)
        held = weights | {name: after[name] for name in buffers}
        for session in (mine, theirs):
            session.framework.set_weights(session.model, held)
    _same_logits(f"{where}, after the steps", mine, theirs)


def _same_logits(where: str, mine: Session, theirs: Session) -> None:
    x = mine.data(mine.tree, 5)[0]  # of the steps' shape: compilers need no further graph
    got, wanted = (s.framework.predict(s.state, x) for s in (mine, theirs))
    close(where, {"logits": got}, {"logits": wanted}, 2e-5)


def _kind_check(kind: str) -> Callable[[Kit], None]:
    def check(kit: Kit) -> None:
        listed(kit, kind)
        for number, net in enumerate(NETS[kind], 1):
            agrees(kit, f"{kind}, net {number}", net)

    check.__doc__ = f"{kind} gives the reference's output, gradients and buffers, whatever its options."
    return check


globals().update({f"check_kind_{kind}": _kind_check(kind) for kind in NETS})


def check_residual_shortcut(kit: Kit) -> None:
    """Sums of a body and a shortcut, as it is, projected and nested, have the reference's output and gradients."""
    agrees(kit, "residual", Net(RESIDUAL))
