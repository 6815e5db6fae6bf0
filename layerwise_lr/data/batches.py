"""Deterministic NumPy batches from real pictures.

A Dataset is a pool's fixed test and validation parts and a training part drawn by the run's seed; batch `step` is a
function of the seed and the step alone.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..planning import Absent, UserError
from .pictures import facts, load_pool, reader
from .spec import DataSpec, normalise


class Split(NamedTuple):
    """x uint8 [N, C, S, S], y int64 [N]."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """One run's pictures."""

    train: Split
    val: Split
    test: Split
    spec: DataSpec
    names: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """What must be told before a metric is read: a small test part, classes that a part has no picture of."""
        found = []
        if len(self.test.y) < self.spec.test_size:
            found.append(f"the set's own test part has {len(self.test.y)} pictures, fewer than data.test_size asks for")
        for what, split in (("validation", self.val), ("test", self.test)):
            missing = [name for label, name in enumerate(self.names) if not (split.y == label).any()]
            if missing and len(split.y):
                found.append(
                    f"the {what} part has no picture of {len(missing)} of {len(self.names)} classes "
                    f"({', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}): its balanced accuracy is a mean "
                    f"over the others; raise data.{what[:3] if what == 'validation' else what}_size"
                )
        return found

    def normalise(self, x: np.ndarray) -> np.ndarray:
        """uint8 [B, C, S, S] -> float32, (x / 255 - mean) / std."""
        return normalise(x, self.spec)

    def batch(self, step: int, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(float32 [B, C, S, S], int64 [B]) of `step`; every epoch is a new permutation, its rest is dropped."""
        epoch, index = divmod(step, len(self.train.y) // batch_size)
        order = np.random.default_rng([seed, epoch]).permutation(len(self.train.y))
        chosen = order[index * batch_size : (index + 1) * batch_size]
        x = self.train.x[chosen]
        if self.spec.flip:
            mirrored = np.random.default_rng([seed, epoch, index]).random(len(x)) < 0.5
            x[mirrored] = x[mirrored, :, :, ::-1]
        return self.normalise(x), self.train.y[chosen]

    def fingerprint(self) -> dict[str, object]:
        """data.json: sizes, class counts, sha256 of the very bytes."""
        parts = {}
        for name in ("train", "val", "test"):
            split: Split = getattr(self, name)
            digest = hashlib.sha256(np.ascontiguousarray(split.x).tobytes() + split.y.tobytes()).hexdigest()
            counts = np.bincount(split.y).tolist() if len(split.y) else []
            parts[name] = {"n": len(split.y), "class_counts": counts, "sha256": digest}
        classes = dict(enumerate(self.names))
        return {"name": self.spec.name, "shape": list(self.train.x.shape[1:]), "classes": classes, **parts}


def available(spec: DataSpec) -> DataSpec:
    """`spec`, or the stand-in it allows where its files are absent; what comes out allows none.

    The stand-in keeps the shape of the pictures and their normalisation; sizes are cut to what the digits have.
    """
    if spec.stand_in is None or _absence(spec) is None:
        return replace(spec, stand_in=None)
    cut = replace(
        spec,
        name=spec.stand_in,
        stand_in=None,
        stands_for=spec.name,
        val_size=min(spec.val_size, 300),
        test_size=min(spec.test_size, 500),
    )
    fits = spec.train_size is not None and spec.train_size <= train_count(replace(cut, train_size=None))
    return replace(cut, train_size=spec.train_size if fits else None)


def _absence(spec: DataSpec) -> str | None:
    """Where the files were looked for and how to get them; None: they are here."""
    try:
        reader(spec.name).find(spec)
    except Absent as absent:
        return str(absent)
    return None


def notes(spec: DataSpec) -> list[str]:
    """What must be told about a final spec: that others stand in for the data."""
    if spec.stands_for is None:
        return []
    why = (
        _absence(replace(spec, name=spec.stands_for)) or f"data {spec.stands_for!r} was not here when this was planned"
    )
    return [f"{why}; the shipped {spec.name} stand in for it"]


def train_count(spec: DataSpec) -> int:
    """Training pictures of a run: train_size, or all that val and test leave."""
    known = facts(spec)
    left = known.pictures - spec.val_size - (known.test or spec.test_size)
    count = left if spec.train_size is None else spec.train_size
    if count < 1 or count > left:
        fifth = max(known.pictures // 5, 1)
        raise UserError(
            f"data {spec.name}: train_size={spec.train_size}, val_size={spec.val_size} and "
            f"test_size={spec.test_size} do not fit into {known.pictures} pictures; "
            + (f"{left} are left to train on" if left > 0 else f"try data.val_size={fifth} data.test_size={fifth}")
        )
    return count


def load(spec: DataSpec, seed: int) -> Dataset:
    """The run's pictures: test and val fixed by split_seed, train drawn by `seed`; all with each class's share."""
    pool, count = load_pool(spec), train_count(spec)
    if pool.test:
        rest, test = np.arange(len(pool.y) - pool.test), np.arange(len(pool.y) - pool.test, len(pool.y))
        test = test[_share(pool.y[test], min(spec.test_size, len(test)), spec.split_seed)]
    else:
        rest, test = _cut(np.arange(len(pool.y)), pool.y, spec.test_size, spec.split_seed)
    rest, val = _cut(rest, pool.y, spec.val_size, spec.split_seed + 1)
    train = rest[_share(pool.y[rest], count, seed)]
    missing = sorted(set(pool.y.tolist()) - set(pool.y[train].tolist()))
    if missing:
        raise UserError(f"data.train_size={count} leaves no picture of class {missing[0]}; take at least one a class")
    train_part, val_part, test_part = (Split(pool.x[i], pool.y[i]) for i in (train, val, test))
    names = pool.names or tuple(map(str, range(int(pool.y.max()) + 1)))
    return Dataset(train_part, val_part, test_part, spec, names)


def _share(y: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` indices into `y`, each class by its share (largest remainders), at random."""
    rng = np.random.default_rng([seed, 7])
    classes, sizes = np.unique(y, return_counts=True)
    exact = sizes * count / max(len(y), 1)
    take = np.floor(exact).astype(int)
    take[np.argsort(-(exact - take), kind="stable")[: count - take.sum()]] += 1
    chosen = [rng.permutation(np.flatnonzero(y == c))[:n] for c, n in zip(classes, take, strict=True)]
    return np.sort(np.concatenate(chosen)) if chosen else np.array([], int)


def _cut(index: np.ndarray, y: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(the rest, `count` of `index`)."""
    chosen = index[_share(y[index], count, seed)]
    return np.setdiff1d(index, chosen), chosen
