"""Deterministic NumPy batches from real pictures.

A Dataset is a pool's fixed test and validation parts and a training part drawn by the run's seed; batch `step` is a
function of the seed and the step alone, whoever makes it and when.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..planning import Absent, UserError, plain
from . import augmenting
from .augmenting import AugmentSpec
from .loading import Ahead, Files, Pixels, held, picture, workers_of
from .pictures import facts, load_pool, reader
from .spec import TEST, DataSpec, Pool, filling, normalise
from .splitting import most, share, sized, split, train_count
from .targets import ClassWeights, class_weights, one_hot, targets


class Split(NamedTuple):
    """x uint8 [N, C, S, S], or files that are read as such when indexed; y int64 [N]."""

    x: Pixels
    y: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """One run's pictures.

    Args:
        train, val, test: the parts.
        spec: what was asked for.
        names: of the classes.
        augment: what is changed at random in training.
        smoothing: of the labels, in training.
        weights: float64 [K] of the classes, in training; None: all alike.
    """

    train: Split
    val: Split
    test: Split
    spec: DataSpec
    names: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    smoothing: float = 0.0
    weights: np.ndarray | None = None
    _ahead: Ahead = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ahead", Ahead(workers_of(self.spec)))

    def close(self) -> None:
        """No thread is left."""
        self._ahead.close()

    def notes(self) -> list[str]:
        """What must be told before a metric is read: what was met in the files, pictures that are not held, a small part
        of the set's own, classes that a part has no picture of."""
        found = list(self.told)
        needs = int(np.prod(self.train.x.shape)) / 2**30
        if isinstance(self.train.x, Files) and needs > self.spec.memory:
            found.append(
                f"{len(self.train.y)} training pictures would take {needs:.3g} GiB, data.memory is {self.spec.memory:g}: "
                "they are read from their files in every epoch"
            )
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
        return normalise(x, self.spec)

    def batch(self, step: int, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(x float32 [B, C, S, S], y) of `step`; every epoch is a new permutation, its rest is dropped.

        y is int64 [B], or float32 [B, K] where labels are smoothed, weighted or mixed: see data/targets.py. Where
        there is work in a batch, those of the next steps are made meanwhile.

        Raises:
            UserError: a picture cannot be read, or is gone.
        """
        key = (step, batch_size, seed)
        if isinstance(self.train.x, np.ndarray) and not self.augment.any():
            return self._make(key)
        return self._ahead.get(
            self._make, key, [(step + k, batch_size, seed) for k in range(1, self._ahead.workers + 1)]
        )

    def batches(self, split: Split, size: int) -> Iterator[np.ndarray]:
        """The pictures of a part in their order, float32 [`size` or fewer, C, S, S] each."""
        begins = range(0, len(split.y), size)

        def normalised(begin: int) -> np.ndarray:
            return self.normalise(split.x[begin : begin + size])

        return self._ahead.each(normalised, begins) if isinstance(split.x, Files) else map(normalised, begins)

    def _make(self, key: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The batch of (step, batch_size, seed)."""
        step, batch_size, seed = key
        epoch, index = divmod(step, len(self.train.y) // batch_size)
        first = index * batch_size
        chosen = _order(len(self.train.y), seed, epoch)[first : first + batch_size]
        changed = self.augment.of_pictures() or self.augment.random_erasing
        rngs = [_rng(seed, epoch, first + i, PICTURE) for i in range(batch_size if changed else 0)]
        x = self._pictures(chosen, rngs)
        if mirror := self.augment.hflip or 0.5 * self.spec.flip:
            mirrored = _rng(seed, epoch, index).random(len(x)) < mirror
            x[mirrored] = x[mirrored, :, :, ::-1]
        x, y = self.normalise(x), self.train.y[chosen]
        for one, rng in zip(x, rngs, strict=False):
            if rng.random() < self.augment.random_erasing:
                augmenting.erased(one, rng)
        if not (self.smoothing or self.weights is not None or self.augment.mixes()):
            return x, y
        shares = one_hot(y, self.classes)
        if self.augment.mixes():
            x, shares = augmenting.mixed(x, shares, self.augment, _rng(seed, epoch, index, BATCH))
        return x, targets(shares, self.smoothing, self.weights)

    def _pictures(self, chosen: np.ndarray, rngs: list[np.random.Generator]) -> np.ndarray:
        """uint8 [B, C, S, S], each by its own chance, not yet mirrored."""
        if not self.augment.of_pictures():
            return self.train.x[chosen]
        fill, size = filling(self.spec), self.spec.image_size
        colour = fill if self.spec.channels == 3 else fill[0]
        least = self.augment.least(size) if self.augment.crop_scale else None
        images = (picture(self.train.x, int(i), least) for i in chosen)
        changed = [
            augmenting.augmented(one, size, self.augment, colour, rng) for one, rng in zip(images, rngs, strict=True)
        ]
        return np.stack(changed)

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.names) or int(self.train.y.max()) + 1

    def fingerprint(self) -> dict[str, object]:
        """data.json: sizes, class counts, and of each part the sha256 of its labels and of its pictures' very bytes;
        of a part that stays files, of their names and sizes instead (`sha256_of` says which)."""
        parts = {}
        for name in ("train", "val", "test"):
            x, y = getattr(self, name)
            files = isinstance(x, Files)
            pictures = x.fingerprint().encode() if isinstance(x, Files) else np.ascontiguousarray(x).tobytes()
            digest = hashlib.sha256(pictures + y.tobytes()).hexdigest()
            counts = np.bincount(y).tolist() if len(y) else []
            of = {"sha256_of": "names and sizes of the files"} if files else {}
            parts[name] = {"n": len(y), "class_counts": counts, "sha256": digest, **of}
        classes = dict(enumerate(self.names))
        return {"name": self.spec.name, "shape": list(self.train.x.shape[1:]), "classes": classes, **parts}


PICTURE, BATCH = 1, 2
"""What chance is for, in the seed of each generator."""


def _rng(*words: int) -> np.random.Generator:
    return np.random.default_rng(words)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch; nobody writes into it."""
    return np.random.default_rng([seed, epoch]).permutation(count)


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


def load(
    spec: DataSpec, seed: int, augment: AugmentSpec | None = None, smoothing: float = 0.0, weights: ClassWeights = None
) -> Dataset:
    """The run's pictures: test and val fixed by split_seed, train drawn by `seed`; all with each class's share.

    Args:
        spec: which.
        seed: draws the training pictures.
        augment, smoothing, weights: what training makes of them; see Dataset.
    """
    augment = augment or AugmentSpec()
    spec, pool, count = sized(spec), load_pool(spec), train_count(spec)
    names = pool.names or tuple(map(str, range(int(pool.y.max()) + 1)))
    free, val, test = split(pool.y, pool.parts, spec)
    train = free[share(pool.y[free], count, seed)]
    missing = sorted(set(pool.y.tolist()) - set(pool.y[train].tolist()))
    if missing:
        raise UserError(_untrained(spec, plain(names[missing[0]]), int((pool.y[free] == missing[0]).sum())))
    pixels = _pixels(pool, spec, augment, (train, val, test))
    train_part, val_part, test_part = (Split(x, pool.y[i]) for i, x in zip((train, val, test), pixels, strict=True))
    weighted = class_weights(weights, np.bincount(pool.y[train], minlength=len(names)))
    return Dataset(train_part, val_part, test_part, spec, names, pool.notes, augment, smoothing, weighted)


def _untrained(spec: DataSpec, name: str, left: int) -> str:
    """A class that has no training picture, and why: `left` are those that val and test leave."""
    if left:
        return (
            f"data.train_size={spec.train_size} leaves no picture of class {name}, which has {left} that val and test "
            "leave; take at least one a class"
        )
    return (
        f"no picture of class {name} is left to train on: all are in the validation or the test part; move some of them "
        "to train, lower data.val_size and data.test_size, or leave the class out"
    )


def asked(spec: DataSpec) -> tuple[str, Split, tuple[str, ...]]:
    """("test", its pictures, names of the classes) of a set that brings a test part; of another "all" of them."""
    pool = load_pool(spec)
    names = pool.names or tuple(map(str, range(int(pool.y.max()) + 1)))
    own = np.flatnonzero(pool.parts == TEST) if pool.parts is not None else np.array([], int)
    chosen = own if len(own) else np.arange(len(pool.y))
    x = Files([pool.files[i] for i in chosen], spec) if pool.x is None else pool.x[chosen]
    return ("test" if len(own) else "all"), Split(x, pool.y[chosen]), names


def _pixels(pool: Pool, spec: DataSpec, augment: AugmentSpec, parts: tuple[np.ndarray, ...]) -> list[Pixels]:
    """The pictures of train, val and test. Of files, the parts that fit into data.memory are decoded, val and test
    first; a training part of random crops is not, since they are cut from the whole picture."""
    if pool.x is not None:
        return [pool.x[part] for part in parts]
    room, workers = int(spec.memory * 2**30), workers_of(spec)
    made: dict[int, Pixels] = {}
    for number in (1, 2, 0):
        files = Files([pool.files[i] for i in parts[number]], spec)
        needs = int(np.prod(files.shape))
        if needs <= room and not (number == 0 and augment.crop_scale):
            made[number], room = held(files, workers), room - needs
        else:
            files.room = room if number == 0 else 0
            made[number] = files
    return [made[number] for number in range(3)]
