"""Deterministic NumPy batches from real pictures.

A Dataset is a pool's fixed test and validation parts and a training part drawn by the run's seed; batch `step` is a
function of the seed and the step alone.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..planning import Absent, UserError, plain
from .pictures import facts, load_pool, reader
from .spec import DataSpec
from .splitting import most, share, sized, split, train_count


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
    told: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """What must be told before a metric is read: what was met in the files, a small part of the set's own, classes
        that a part has no picture of."""
        found = list(self.told)
        for what, key, part in (("validation", "val_size", self.val), ("test", "test_size", self.test)):
            if len(part.y) < getattr(self.spec, key):
                found.append(f"the set's own {what} part has {len(part.y)} pictures, fewer than data.{key} asks for")
            missing = [plain(name) for label, name in enumerate(self.names) if not (part.y == label).any()]
            if missing and len(part.y):
                found.append(
                    f"the {what} part has no picture of {len(missing)} of {len(self.names)} classes "
                    f"({', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}): its balanced accuracy is a mean "
                    f"over the others; raise data.{key}, or add pictures"
                )
        return found

    def normalise(self, x: np.ndarray) -> np.ndarray:
        """uint8 [B, C, S, S] -> float32, (x / 255 - mean) / std."""
        shape = (1, -1, 1, 1)
        mean = np.array(self.spec.mean, np.float32).reshape(shape)
        std = np.array(self.spec.std, np.float32).reshape(shape)
        return np.ascontiguousarray((x.astype(np.float32) / np.float32(255) - mean) / std)

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
        val_size=most(spec.val_size, 300),
        test_size=most(spec.test_size, 500),
    )
    fits = not isinstance(spec.train_size, int) or spec.train_size <= train_count(replace(cut, train_size=None))
    return replace(cut, train_size=spec.train_size if fits else None)


def _absence(spec: DataSpec) -> str | None:
    """Where the files were looked for and how to get them; None: they are here."""
    try:
        reader(spec.name).find(spec)
    except Absent as absent:
        return str(absent)
    return None


def notes(spec: DataSpec) -> list[str]:
    """What must be told about a final spec: that others stand in for the data, or what of them is left out."""
    if spec.stands_for is None:
        return list(facts(spec).notes)
    why = (
        _absence(replace(spec, name=spec.stands_for)) or f"data {spec.stands_for!r} was not here when this was planned"
    )
    return [f"{why}; the shipped {spec.name} stand in for it"]


def load(spec: DataSpec, seed: int) -> Dataset:
    """The run's pictures: test and val fixed by split_seed, train drawn by `seed`; all with each class's share."""
    spec, pool, count = sized(spec), load_pool(spec), train_count(spec)
    names = pool.names or tuple(map(str, range(int(pool.y.max()) + 1)))
    free, val, test = split(pool.y, pool.parts, spec)
    train = free[share(pool.y[free], count, seed)]
    missing = sorted(set(pool.y.tolist()) - set(pool.y[train].tolist()))
    if missing:
        label = missing[0]
        raise UserError(
            f"data.train_size={count} leaves no picture of class {plain(names[label])}, which has "
            f"{(pool.y[free] == label).sum()} that val and test leave; take at least one a class"
        )
    assert pool.x is not None
    train_part, val_part, test_part = (Split(pool.x[i], pool.y[i]) for i in (train, val, test))
    return Dataset(train_part, val_part, test_part, spec, names, pool.notes)
