"""Deterministic NumPy batches from real pictures.

A Pool is every picture at the size asked for (uint8 [N, C, S, S]); a Dataset is its fixed test and validation
parts and a training part drawn by the run's seed; batch `step` is a function of the seed and the step alone.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, Optional
from zipfile import BadZipFile

import numpy as np
from PIL import Image, UnidentifiedImageError

from . import archives
from .errors import Absent, UserError, did_you_mean

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclass
class DataSpec:
    """The data as data.

    Args:
        name: digits | elpv | mnist | cifar10 | idx | npz | image_folder.
        path: of the .npz file (arrays x, y), of the folder with one sub-folder per class, with the IDX files, or with
            CIFAR-10's archive (null: the cache folder's cifar10).
        image_size: pixels a side; pictures are resized to it.
        channels: 1 (grey) or 3.
        train_size: training pictures, drawn by the run's seed, the same share of each class; null: all.
        val_size, test_size: fixed by split_seed. Choices are made on val; test is only reported.
        split_seed: of the fixed parts.
        mean, std: per channel (or one for all), of pixels in [0, 1].
        flip: mirror each training picture left to right with probability 1/2.
        checksum: refuse a CIFAR-10 that is not the published one.
        stand_in: "digits" where the data are not on this machine; null: that is an error.
        stands_for: of a stand-in, the data that were not there; filled in by `available`.
    """

    name: str = "digits"
    path: Optional[str] = None  # noqa: UP045 (OmegaConf 2.3 reads Optional)
    image_size: int = 28
    channels: int = 1
    train_size: Optional[int] = 50  # noqa: UP045
    val_size: int = 400
    test_size: int = 1000
    split_seed: int = 0
    mean: list[float] = field(default_factory=lambda: [0.5])
    std: list[float] = field(default_factory=lambda: [0.5])
    flip: bool = False
    checksum: bool = True
    stand_in: Optional[str] = None  # noqa: UP045
    stands_for: Optional[str] = None  # noqa: UP045


@dataclass(frozen=True, eq=False)
class Pool:
    """All pictures: x uint8 [N, C, S, S], y int64 [N]; the last `test` of them are the set's own test part."""

    x: np.ndarray
    y: np.ndarray
    test: int = 0


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
        return {"name": self.spec.name, "shape": list(self.train.x.shape[1:]), **parts}


class Facts(NamedTuple):
    """What a plan needs to know of a data set without reading it."""

    pictures: int
    classes: int
    test: int  # of which the set's own test part


def cache_folder() -> Path:
    """Where fetched data and weights are kept: $LAYERWISE_LR_CACHE, else layerwise_lr in the user's cache."""
    if "LAYERWISE_LR_CACHE" in os.environ:
        return Path(os.environ["LAYERWISE_LR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerwise_lr"


def _resize(image: Image.Image, spec: DataSpec) -> np.ndarray:
    mode = "L" if spec.channels == 1 else "RGB"
    size = (spec.image_size, spec.image_size)
    array = np.asarray(image.convert(mode).resize(size, Image.Resampling.BILINEAR))
    return array[None] if spec.channels == 1 else array.transpose(2, 0, 1)


def _from_arrays(x: np.ndarray, y: np.ndarray, spec: DataSpec, test: int = 0) -> Pool:
    """x uint8 [N, H, W] or [N, C, H, W]."""
    planes = x[:, None] if x.ndim == 3 else x
    if planes.shape[1:] == (spec.channels, spec.image_size, spec.image_size):  # nothing to resize: 5 s less for 60000
        return Pool(np.ascontiguousarray(planes), y.astype(np.int64), test)
    pictures = [Image.fromarray(p if p.ndim == 2 else np.moveaxis(p, 0, -1).squeeze()) for p in x]
    return Pool(np.stack([_resize(p, spec) for p in pictures]), y.astype(np.int64), test)


def _resized(held: archives.Pictures, spec: DataSpec) -> Pool:
    return _from_arrays(held.x, held.y, spec, held.test)


def _digits(spec: DataSpec) -> Pool:
    """UCI optdigits, 8x8 in 17 greys, enlarged to 20/28 of the side and padded as MNIST is."""
    with np.load(str(files("layerwise_lr.assets") / "digits.npz")) as held:
        x, y = held["x"], held["y"]
    inner = round(spec.image_size * 20 / 28)
    before = (spec.image_size - inner) // 2
    after = spec.image_size - inner - before
    size = (inner, inner)
    grey = [np.asarray(Image.fromarray((p * 15.9375).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR))
            for p in x]  # fmt: skip
    padded = np.pad(np.stack(grey), ((0, 0), (before, after), (before, after)))[:, None]
    return Pool(np.repeat(padded, spec.channels, axis=1), y.astype(np.int64))


def _cache_of(name: str) -> Path:
    folder = cache_folder() / name
    if not (folder / "labels.npy").exists():
        raise Absent(f"data {name!r} is not on this machine (looked in {folder}): layerwise-lr fetch {name}")
    return folder


def _cached(name: str) -> tuple[np.ndarray, np.ndarray]:
    folder = _cache_of(name)
    return np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz; no code in it can run.

    Raises:
        ValueError, OSError: it is none.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            return dict(held)
    except (BadZipFile, EOFError, zlib.error, TypeError, AttributeError) as error:  # last two: .npy
        raise ValueError(str(error)) from None


def _npz(spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    path = _existing(spec)
    try:
        held = read_npz(path)
        x, y = held["x"], held["y"]
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"data.path={path}: not an .npz with arrays x and y ({error})") from None
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[1] not in (1, 3)):
        raise UserError(f"data.path={path}: x must be uint8 [N, H, W] or [N, 1 or 3, H, W], "
                        f"it is {x.dtype} {list(x.shape)}")  # fmt: skip
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
        raise UserError(f"data.path={path}: y must be {len(x)} labels from 0, it is {y.dtype} {list(y.shape)}")
    _check_classes(path, y)
    return x, y


def _check_classes(path: Path, y: np.ndarray) -> None:
    """At least two, without a gap."""
    if len(y) == 0:
        raise UserError(f"data.path={path}: holds no pictures")
    without = sorted(set(range(int(y.max()) + 1)) - set(y.tolist())) if y.max() < len(y) else ["..."]
    if y.max() < 1 or without:
        gap = f", no picture is of class {without[0]}" if without else ""
        raise UserError(f"data.path={path}: needs at least two classes, numbered 0, 1, 2, ... without a gap; "
                        f"the highest label is {y.max()}{gap}")  # fmt: skip


def _folder_files(spec: DataSpec) -> list[tuple[Path, int]]:
    path = _existing(spec)
    classes = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    found = [(p, label) for label, c in enumerate(classes) for p in sorted(c.iterdir()) if p.suffix.lower() in PICTURES]
    empty = [c.name for label, c in enumerate(classes) if label not in {n for _, n in found}]
    if len(classes) < 2 or empty:
        raise UserError(f"data.path={path}: needs a sub-folder with pictures per class, at least two; found "
                        f"{len(classes)}{', without pictures: ' + ', '.join(empty) if empty else ''}")  # fmt: skip
    return found


def _path(spec: DataSpec) -> Path:
    if not spec.path:
        raise UserError(f"data.path is missing: data={spec.name} needs data.path=...")
    return Path(spec.path)


def _existing(spec: DataSpec) -> Path:
    if not _path(spec).exists():
        raise Absent(f"data.path={spec.path}: no such file or folder")
    return _path(spec)


def _image_folder(spec: DataSpec) -> Pool:
    pictures, labels = [], []
    for path, label in _folder_files(spec):
        try:
            with Image.open(path) as image:
                pictures.append(_resize(image, spec))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(f"{path}: not a readable picture ({error}); mend or remove it") from None
        labels.append(label)
    return Pool(np.stack(pictures), np.array(labels, np.int64))


def _npz_facts(spec: DataSpec) -> Facts:
    y = _npz(spec)[1]
    return Facts(len(y), int(y.max()) + 1, 0)


def _folder_facts(spec: DataSpec) -> Facts:
    found = _folder_files(spec)
    return Facts(len(found), found[-1][1] + 1, 0)


def _cifar10_at(spec: DataSpec) -> Path:
    return Path(spec.path) if spec.path else cache_folder() / "cifar10"


def _cifar10_facts(spec: DataSpec) -> Facts:
    """The published set's are known; any other (data.checksum=false) must be read."""
    if spec.checksum:
        return Facts(60000, 10, 10000)
    pool = _pool(spec)
    return Facts(len(pool.y), 10, pool.test)


def _idx_facts(spec: DataSpec) -> Facts:
    y, test = archives.read_idx_labels(_path(spec))
    _check_classes(_path(spec), y)
    return Facts(len(y), int(y.max()) + 1, test)


class Reader(NamedTuple):
    """How a data set is read.

    Args:
        find: raises Absent where its files are not on this machine.
        facts: what is known of it without reading the pictures.
        pool: the pictures.
    """

    find: Callable[[DataSpec], object]
    facts: Callable[[DataSpec], Facts]
    pool: Callable[[DataSpec], Pool]


READERS: Mapping[str, Reader] = {
    "digits": Reader(lambda spec: None, lambda spec: Facts(1797, 10, 0), _digits),
    "elpv": Reader(lambda spec: _cache_of("elpv"), lambda spec: Facts(2624, 2, 0),
                   lambda spec: _from_arrays(*_cached("elpv"), spec)),
    "mnist": Reader(lambda spec: _cache_of("mnist"), lambda spec: Facts(70000, 10, 10000),
                    lambda spec: _from_arrays(*_cached("mnist"), spec, 10000)),
    "cifar10": Reader(lambda spec: archives.find_cifar10(_cifar10_at(spec)), _cifar10_facts,
                      lambda spec: _resized(archives.read_cifar10(_cifar10_at(spec), spec.checksum), spec)),
    "idx": Reader(lambda spec: archives.find_idx(_path(spec)), _idx_facts,
                  lambda spec: _resized(archives.read_idx(_path(spec)), spec)),
    "npz": Reader(_existing, _npz_facts, lambda spec: _from_arrays(*_npz(spec), spec)),
    "image_folder": Reader(_existing, _folder_facts, _image_folder),
}  # fmt: skip


def _reader(name: str) -> Reader:
    if name not in READERS:
        raise UserError(f"data.name={name!r} is unknown; there are: {', '.join(READERS)}"
                        + did_you_mean(name, list(READERS)))  # fmt: skip
    return READERS[name]


def facts(spec: DataSpec) -> Facts:
    """Number of pictures and classes; enough for a plan."""
    return _reader(spec.name).facts(spec)


def available(spec: DataSpec) -> DataSpec:
    """`spec`, or the stand-in it allows where its files are absent; what comes out allows none.

    The stand-in keeps the shape of the pictures and their normalisation; sizes are cut to what the digits have.
    """
    if spec.stand_in is None or _absence(spec) is None:
        return replace(spec, stand_in=None)
    cut = replace(spec, name=spec.stand_in, stand_in=None, stands_for=spec.name,
                  val_size=min(spec.val_size, 300), test_size=min(spec.test_size, 500))  # fmt: skip
    fits = spec.train_size is not None and spec.train_size <= train_count(replace(cut, train_size=None))
    return replace(cut, train_size=spec.train_size if fits else None)


def _absence(spec: DataSpec) -> str | None:
    """Where the files were looked for and how to get them; None: they are here."""
    try:
        _reader(spec.name).find(spec)
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
        raise UserError(f"data {spec.name}: train_size={spec.train_size}, val_size={spec.val_size} and "
                        f"test_size={spec.test_size} do not fit into {known.pictures} pictures")  # fmt: skip
    return count


def load_pool(spec: DataSpec) -> Pool:
    """Every picture at the size asked for; a second call in one process (or its forks) costs nothing."""
    facts(spec)
    return _pool(spec)


def _pool(spec: DataSpec) -> Pool:
    return _read(spec.name, spec.path, spec.image_size, spec.channels, spec.checksum)


@lru_cache(maxsize=4)
def _read(name: str, path: str | None, image_size: int, channels: int, checksum: bool) -> Pool:
    spec = DataSpec(name=name, path=path, image_size=image_size, channels=channels, checksum=checksum)
    return _reader(name).pool(spec)


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
    return Dataset(train_part, val_part, test_part, spec)


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
