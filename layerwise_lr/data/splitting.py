"""Which pictures train, which choose, which are only reported: sizes as numbers or shares, each class by its share."""

import re
from dataclasses import replace

import numpy as np

from ..planning import UserError
from .pictures import facts
from .spec import TEST, TRAIN, VAL, DataSpec, Size

DEFAULT = "15%"
"""Of a part that the set does not bring, where its size is null."""


def is_size(size: Size) -> bool:
    """Whether it is a number of pictures, or a share of them below all: 60, "20%", 0.2."""
    return _share_of(size) is not None or (isinstance(size, int) and not isinstance(size, bool) and size >= 1)


def _share_of(size: Size) -> float | None:
    """0.2 of "20%" and of 0.2; None: it is no share."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", size.strip()) if isinstance(size, str) else None
    share = float(match[1]) / 100 if match else size if isinstance(size, float) else 0.0
    return share if 0 < share < 1 else None


def most(size: Size, limit: int) -> Size:
    """`size`, where it is a number at most `limit`."""
    return min(size, limit) if isinstance(size, int) else size


def sized(spec: DataSpec) -> DataSpec:
    """`spec` with every size a number of pictures; train_size null stays: all that are left."""
    if {type(spec.val_size), type(spec.test_size)} == {int} and _share_of(spec.train_size) is None:
        return spec
    known = facts(spec)
    free = known.pictures - known.test - known.val
    val = _number(spec.val_size, known.val, free, known.classes)
    test = _number(spec.test_size, known.test, free, known.classes)
    spec = replace(spec, val_size=val, test_size=test)
    share = _share_of(spec.train_size)
    return replace(spec, train_size=_part(share, _left(spec), known.classes)) if share else spec


def _number(size: Size, own: int, free: int, classes: int) -> int:
    """Of a part that is `own` pictures in the set, or is taken from those that are free."""
    if size is None and own:
        return own
    share = _share_of(DEFAULT if size is None else size)
    return int(size) if share is None else _part(share, own, classes) if own else _part(share, free, classes, free // 3)


def _part(share: float, of: int, classes: int, limit: int | None = None) -> int:
    """A share in whole pictures; one of each class where that is not more than the limit."""
    return max(round(share * of), min(classes, of if limit is None else limit), 1)


def _left(spec: DataSpec) -> int:
    """Pictures that val and test leave to train on."""
    known = facts(spec)
    return known.pictures - (known.val or spec.val_size) - (known.test or spec.test_size)


def train_count(spec: DataSpec) -> int:
    """Training pictures of a run: train_size, or all that val and test leave."""
    spec = sized(spec)
    known, left = facts(spec), _left(spec)
    count = left if spec.train_size is None else spec.train_size
    if count < 1 or count > left:
        fifth = max(known.pictures // 5, 1)
        raise UserError(
            f"data {spec.name}: train_size={spec.train_size}, val_size={spec.val_size} and "
            f"test_size={spec.test_size} do not fit into {known.pictures} pictures; "
            + (f"{left} are left to train on" if left > 0 else f"try data.val_size={fifth} data.test_size={fifth}")
        )
    return int(count)


def split(y: np.ndarray, parts: np.ndarray | None, spec: DataSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(all that may train, val, test): indices into `y`, fixed by split_seed, each class by its share.

    Args:
        y: labels int64 [N].
        parts: as in Pool; a part that the set brings is drawn from it alone.
        spec: sized.
    """
    free, val, test = (np.flatnonzero((np.zeros(len(y)) if parts is None else parts) == p) for p in (TRAIN, VAL, TEST))
    if len(test):
        test = test[share(y[test], min(spec.test_size, len(test)), spec.split_seed)]
    else:
        free, test = _cut(free, y, spec.test_size, spec.split_seed, spare=1 if len(val) else 2)
    if len(val):
        val = val[share(y[val], min(spec.val_size, len(val)), spec.split_seed + 1)]
    else:
        free, val = _cut(free, y, spec.val_size, spec.split_seed + 1, spare=1)
    return free, val, test


def _cut(index: np.ndarray, y: np.ndarray, count: int, seed: int, spare: int) -> tuple[np.ndarray, np.ndarray]:
    """(the rest, `count` of `index`)."""
    chosen = index[share(y[index], count, seed, spare)]
    return np.setdiff1d(index, chosen), chosen


def share(y: np.ndarray, count: int, seed: int, spare: int = 0) -> np.ndarray:
    """`count` indices into `y` at random, each class by its share (largest remainders).

    A rare class is in it all the same, with one picture, and leaves `spare` of its pictures, where the count allows.
    """
    rng = np.random.default_rng([seed, 7])
    classes, sizes = np.unique(y, return_counts=True)
    exact = sizes * count / max(len(y), 1)
    take = np.floor(exact).astype(int)
    take[np.argsort(-(exact - take), kind="stable")[: count - take.sum()]] += 1
    take = _within(take, exact, sizes, spare)
    chosen = [rng.permutation(np.flatnonzero(y == c))[:n] for c, n in zip(classes, take, strict=True)]
    return np.sort(np.concatenate(chosen)) if chosen else np.array([], int)


def _within(take: np.ndarray, exact: np.ndarray, sizes: np.ndarray, spare: int) -> np.ndarray:
    """`take`, of equal sum, with at least one of each class and `spare` of its `sizes` left, where that is possible."""
    count = take.sum()
    high = np.maximum(sizes - spare, 0)
    high = high if high.sum() >= count else sizes
    low = np.minimum(1, high)
    take = np.clip(take, low if low.sum() <= count else 0, high)
    while take.sum() > count:
        take[np.argmax(np.where(take > low, take - exact, -np.inf))] -= 1
    while take.sum() < count:
        take[np.argmax(np.where(take < high, exact - take, -np.inf))] += 1
    return take
