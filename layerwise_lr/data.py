"""Deterministic NumPy batches from real pictures.

A Pool is every picture at the size asked for (uint8 [N, C, S, S]); a Dataset is its fixed test and validation
parts and a training part drawn by the run's seed; batch `step` is a function of the seed and the step alone.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, Optional
from zipfile import BadZipFile

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import UserError, did_you_mean

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclass
class DataSpec:
    """The data as data.

    Args:
        name: digits | elpv | mnist | npz | image_folder.
        path: of the .npz file (arrays x, y) or of the folder with one sub-folder per class.
        image_size: pixels a side; pictures are resized to it.
        channels: 1 (grey) or 3.
        train_size: training pictures, drawn by the run's seed, the same share of each class; null: all.
        val_size, test_size: fixed by split_seed. Choices are made on val; test is only reported.
        split_seed: of the fixed parts.
        mean, std: per channel (or one for all), of pixels in [0, 1].
        flip: mirror each training picture left to right with probability 1/2.
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
    pictures = [Image.fromarray(p if p.ndim == 2 else np.moveaxis(p, 0, -1).squeeze()) for p in x]
    return Pool(np.stack([_resize(p, spec) for p in pictures]), y.astype(np.int64), test)


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


def _cached(name: str) -> tuple[np.ndarray, np.ndarray]:
    folder = cache_folder() / name
    if not (folder / "labels.npy").exists():
        raise UserError(f"data {name!r} is not on this machine (looked in {folder}): layerwise-lr fetch {name}")
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
    if len(y) == 0:
        raise UserError(f"data.path={path}: holds no pictures")
    without = sorted(set(range(int(y.max()) + 1)) - set(y.tolist())) if y.max() < len(y) else ["..."]
    if y.max() < 1 or without:
        gap = f", no picture is of class {without[0]}" if without else ""
        raise UserError(f"data.path={path}: needs at least two classes, numbered 0, 1, 2, ... without a gap; "
                        f"the highest label is {y.max()}{gap}")  # fmt: skip
    return x, y


def _folder_files(spec: DataSpec) -> list[tuple[Path, int]]:
    path = _existing(spec)
    classes = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    found = [(p, label) for label, c in enumerate(classes) for p in sorted(c.iterdir()) if p.suffix.lower() in PICTURES]
    empty = [c.name for label, c in enumerate(classes) if label not in {n for _, n in found}]
    if len(classes) < 2 or empty:
        raise UserError(f"data.path={path}: needs a sub-folder with pictures per class, at least two; found "
                        f"{len(classes)}{', without pictures: ' + ', '.join(empty) if empty else ''}")  # fmt: skip
    return found


def _existing(spec: DataSpec) -> Path:
    if not spec.path:
        raise UserError(f"data.path is missing: data={spec.name} needs data.path=...")
    if not Path(spec.path).exists():
        raise UserError(f"data.path={spec.path}: no such file or folder")
    return Path(spec.path)


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


READERS: Mapping[str, tuple[Callable[[DataSpec], Facts], Callable[[DataSpec], Pool]]] = {
    "digits": (lambda spec: Facts(1797, 10, 0), _digits),
    "elpv": (lambda spec: Facts(2624, 2, 0), lambda spec: _from_arrays(*_cached("elpv"), spec)),
    "mnist": (lambda spec: Facts(70000, 10, 10000), lambda spec: _from_arrays(*_cached("mnist"), spec, 10000)),
    "npz": (_npz_facts, lambda spec: _from_arrays(*_npz(spec), spec)),
    "image_folder": (_folder_facts, _image_folder),
}
"""name -> (what is known of it without reading the pictures, the pictures)."""


def facts(spec: DataSpec) -> Facts:
    """Number of pictures and classes; enough for a plan."""
    if spec.name not in READERS:
        raise UserError(f"data.name={spec.name!r} is unknown; there are: {', '.join(READERS)}"
                        + did_you_mean(spec.name, list(READERS)))  # fmt: skip
    return READERS[spec.name][0](spec)


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
    return _read(spec.name, spec.path, spec.image_size, spec.channels)


@lru_cache(maxsize=4)
def _read(name: str, path: str | None, image_size: int, channels: int) -> Pool:
    return READERS[name][1](DataSpec(name=name, path=path, image_size=image_size, channels=channels))


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
