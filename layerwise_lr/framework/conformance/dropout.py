"""The check of dropout. Its mask is read off a gradient: with a head of zeros and inputs of one, the head's own
gradient tells every element that the layer let through, and by how much it was scaled.
"""

from collections.abc import Sequence
from math import prod, sqrt

import numpy as np

from ...models import Layer, Node, Seq, Tree, conv, linear
from .. import metrics
from ..contract import Weights
from .kinds import ANY_OPTIMIZER, listed
from .kit import Kit, Session, close, curve, need, plan_for
from .nets import loud

SAMPLES, SEEDS = 16, (3, 4, 1000, 2**31 - 2)
SIGMAS = 5  # by chance one in two million is further off


def _tree(channels: int, *nodes: Node) -> Tree:
    """A layer that passes on what it gets, `nodes`, and a head with one class more than there are samples."""
    body = (conv("same", channels, channels, 1), *nodes, Layer("flatten"))
    root = Seq("", (*body, linear("head", channels * 15, SAMPLES + 1)), depth=0)
    return Tree("dropout", root, "head", (channels, 3, 5), SAMPLES + 1)


def _dropout(p: float) -> Layer:
    return Layer("dropout", "", {"p": p})


def _dropped(p: float) -> Layer:
    return Layer("drop_path", "", {"p": p})


Net = tuple[Tree, tuple[float, ...], tuple[int, ...]]
NETS: tuple[Net, ...] = (
    (_tree(6, _dropout(0.3)), (0.3,), (6, 3, 5)),
    (
        _tree(6, Layer("to_tokens"), _dropout(0.7), Layer("flatten"), _dropout(0.0), _dropout(0.4)),
        (0.7, 0.0, 0.4),
        (15, 6),
    ),
)
"""(tree, p of each of its dropouts, shape of one sample where they are): pictures; tokens, then vectors."""

PATHS: tuple[Net, ...] = (
    (_tree(6, _dropped(0.3)), (0.3,), ()),
    (_tree(6, Layer("to_tokens"), _dropped(0.4), Layer("flatten"), _dropped(0.0), _dropped(0.2)), (0.4, 0.0, 0.2), ()),
)
"""Likewise of drop_path, which draws once a sample."""


def _ones(tree: Tree, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Each sample in a class of its own; the last class has none."""
    return np.ones((SAMPLES, *tree.input_shape), np.float32), np.arange(SAMPLES)


def check_kind_dropout(kit: Kit) -> None:
    """dropout lets each element through by itself with probability 1 - p, divided by that; in evaluation, as it is."""
    _check(kit, "dropout", NETS, SEEDS)


def check_kind_drop_path(kit: Kit) -> None:
    """drop_path lets each sample through whole with probability 1 - p, divided by that; in evaluation, as it is."""
    _check(kit, "drop_path", PATHS, range(3, 15))


def _check(kit: Kit, kind: str, nets: Sequence[Net], seeds: Sequence[int]) -> None:
    listed(kit, kind)
    for tree, ps, shape in nets:
        weights = loud(tree)
        session = kit.session(tree, plan_for(tree, kit.optimizers(*ANY_OPTIMIZER)[0]), weights=weights, data=_ones)
        where, keep = f"p={ps}", prod(1 - p for p in ps)
        drawn = []
        for seed in seeds:
            seen = _let_through(session, weights, seed)
            mask = seen > 0.5
            close(f"{where}, seed {seed}", {"elements": seen}, {"elements": mask / keep}, 1e-4)
            _trains_behind(f"{where}, seed {seed}", session, weights, seen, seed)
            drawn.append(_of_samples(where, mask) if kind == "drop_path" else mask.reshape(SAMPLES, *shape))
        _is_random(where, np.stack(drawn), keep)
        again = _let_through(session, weights, seeds[0]) > 0.5
        need(
            np.array_equal(again, np.broadcast_to(drawn[0].reshape(SAMPLES, -1), again.shape)),
            f"{where}: mask of seed {seeds[0]}",
            "again",
            "another",
        )
        session.framework.set_weights(session.model, weights)
        got = {"logits": session.framework.predict(session.state, _ones(tree, 0)[0])}
        whole = {"logits": _logits(weights, np.ones((SAMPLES, weights["head.weight"].shape[1])))}
        close(f"{where}, evaluation", got, whole, 2e-5)


def _of_samples(where: str, mask: np.ndarray) -> np.ndarray:
    """[SAMPLES, 1] of a mask [SAMPLES, elements] that is the same throughout a sample."""
    parts = int((mask != mask[:, :1]).any(axis=1).sum())
    need(parts == 0, f"{where}: samples of which a part is let through", 0, parts)
    return mask[:, :1]


def _let_through(session: Session, weights: Weights, seed: int) -> np.ndarray:
    """[SAMPLES, elements] behind the dropouts. The head is zero, so every logit's gradient is known: 1 / classes, less
    1 in the sample's own class, over SAMPLES. The class without samples has the sum, each other one sample less."""
    blank = {name: np.zeros_like(a) if name.startswith("head") else a for name, a in weights.items()}
    session.framework.set_weights(session.model, blank)
    session.step(0, seed=seed)
    gradient = session.gradients["head.weight"].astype(np.float64)
    found: np.ndarray = SAMPLES * (gradient[-1] - gradient[:-1])
    return found


def _logits(weights: Weights, seen: np.ndarray) -> np.ndarray:
    found: np.ndarray = seen @ weights["head.weight"].astype(np.float64).T + weights["head.bias"]
    return found


def _trains_behind(where: str, session: Session, weights: Weights, seen: np.ndarray, seed: int) -> None:
    """Loss and gradients are those of what was let through. Scaling the layer before by 1 + d scales all of that by
    1 + d: so its weights by their gradients are the elements by theirs, whichever way the elements are laid out."""
    session.framework.set_weights(session.model, weights)
    logits = _logits(weights, seen)
    y = np.arange(SAMPLES)
    curve(where, [session.step(0, seed=seed)], [metrics.cross_entropy(logits, y)], 1e-5)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    down = (shares / shares.sum(axis=1, keepdims=True) - np.eye(SAMPLES, SAMPLES + 1)) / SAMPLES
    close(where, {"head.weight": session.gradients["head.weight"]}, {"head.weight": down.T @ seen}, 1e-4)
    back = down @ weights["head.weight"] * seen
    own, wanted = float((session.gradients["same.weight"] * weights["same.weight"]).sum()), float(back.sum())
    need(abs(own - wanted) <= 1e-4 * np.abs(back).sum(), f"{where}: gradient that comes back", wanted, own)


def _is_random(where: str, masks: np.ndarray, keep: float) -> None:
    """[seeds, SAMPLES, ...] of 0 and 1: their mean, and along every axis no correlation; the variance of a 0 or 1
    follows from its mean."""
    share, error = float(masks.mean()), SIGMAS * sqrt(keep * (1 - keep) / masks.size)
    need(abs(share - keep) <= error, f"{where}: share let through", f"{keep:.3f} to within {error:.3f}", f"{share:.3f}")
    centred = (masks - keep) / sqrt(keep * (1 - keep))
    names = ("samples", *(f"axis {i} of a sample" for i in range(1, masks.ndim - 1)), "seeds")
    for axis, name in zip((*range(1, masks.ndim), 0), names, strict=True):
        rows = np.moveaxis(centred, axis, 0)
        for distance in range(1, len(rows)):
            both = rows[distance:] * rows[:-distance]
            found, error = float(both.mean()), SIGMAS / sqrt(both.size)
            need(
                abs(found) <= error,
                f"{where}: correlation of what is {distance} apart along {name}",
                f"0 to within {error:.3f}",
                f"{found:.3f}",
            )
