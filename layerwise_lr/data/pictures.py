"""Where the pictures come from: what each data set is called, where its files are, how they are read.

A Pool is every picture of a set at the size asked for (uint8 [N, C, S, S]); data.py draws a run's parts from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..plan import Absent, UserError, did_you_mean
from . import archives
from .files import cache_folder, read_npz

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclass
class DataSpec:
    """The data as data.

    Args:
        name: digits | elpv | mnist | cifar10 | idx | npz | image_folder.
        path: of the .npz file (arrays x, y), or of the folder: a sub-folder of pictures per class (image_folder),
            the IDX files, CIFAR-10's archive (null: the cache's).
        image_size: pixels a side; pictures are resized to it.
        channels: 1 (grey) or 3.
        train_size: pictures drawn by the seed, in proportion; null: all left.
        val_size: pictures that choices are made on.
        test_size: pictures that are only reported.
        split_seed: decides which pictures are val and test.
        mean: of pixels in 0 to 1, per channel or one for all.
        std: likewise.
        flip: mirror training pictures with probability 1/2.
        checksum: refuse a CIFAR-10 that is not the published one.
        stand_in: digits | null: what to take where the data are absent; null: that is an error.
        stands_for: filled in: the data that were absent.
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


class Facts(NamedTuple):
    """What a plan needs to know of a data set without reading it."""

    pictures: int
    classes: int
    test: int  # of which the set's own test part


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
    with np.load(str(files("layerwise_lr.data.assets") / "digits.npz")) as held:
        x, y = held["x"], held["y"]
    inner = round(spec.image_size * 20 / 28)
    before = (spec.image_size - inner) // 2
    after = spec.image_size - inner - before
    size = (inner, inner)
    grey = [
        np.asarray(Image.fromarray((p * 15.9375).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)) for p in x
    ]
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


def _npz(spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    path = _existing(spec)
    try:
        held = read_npz(path)
        x, y = held["x"], held["y"]
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"data.path={path}: not an .npz with arrays x and y ({error})") from None
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[1] not in (1, 3)):
        raise UserError(
            f"data.path={path}: x must be uint8 [N, H, W] or [N, 1 or 3, H, W], it is {x.dtype} {list(x.shape)}"
        )
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
        raise UserError(
            f"data.path={path}: needs at least two classes, numbered 0, 1, 2, ... without a gap; "
            f"the highest label is {y.max()}{gap}"
        )


def _folder_files(spec: DataSpec) -> list[tuple[Path, int]]:
    path = _existing(spec)
    classes = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    found = [(p, label) for label, c in enumerate(classes) for p in sorted(c.iterdir()) if p.suffix.lower() in PICTURES]
    empty = [c.name for label, c in enumerate(classes) if label not in {n for _, n in found}]
    if len(classes) < 2 or empty:
        raise UserError(
            f"data.path={path}: needs a sub-folder with pictures per class, at least two; found "
            f"{len(classes)}{', without pictures: ' + ', '.join(empty) if empty else ''}"
        )
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
    "elpv": Reader(
        lambda spec: _cache_of("elpv"),
        lambda spec: Facts(2624, 2, 0),
        lambda spec: _from_arrays(*_cached("elpv"), spec),
    ),
    "mnist": Reader(
        lambda spec: _cache_of("mnist"),
        lambda spec: Facts(70000, 10, 10000),
        lambda spec: _from_arrays(*_cached("mnist"), spec, 10000),
    ),
    "cifar10": Reader(
        lambda spec: archives.find_cifar10(_cifar10_at(spec)),
        _cifar10_facts,
        lambda spec: _resized(archives.read_cifar10(_cifar10_at(spec), spec.checksum), spec),
    ),
    "idx": Reader(
        lambda spec: archives.find_idx(_path(spec)),
        _idx_facts,
        lambda spec: _resized(archives.read_idx(_path(spec)), spec),
    ),
    "npz": Reader(_existing, _npz_facts, lambda spec: _from_arrays(*_npz(spec), spec)),
    "image_folder": Reader(_existing, _folder_facts, _image_folder),
}


def reader(name: str) -> Reader:
    """How the set of that name is read.

    Raises:
        UserError: there is none.
    """
    if name not in READERS:
        raise UserError(
            f"data.name={name!r} is unknown; there are: {', '.join(READERS)}" + did_you_mean(name, list(READERS))
        )
    return READERS[name]


def facts(spec: DataSpec) -> Facts:
    """Number of pictures and classes; enough for a plan."""
    return reader(spec.name).facts(spec)


def load_pool(spec: DataSpec) -> Pool:
    """Every picture at the size asked for; a second call in one process (or its forks) costs nothing."""
    facts(spec)
    return _pool(spec)


def _pool(spec: DataSpec) -> Pool:
    return _read(spec.name, spec.path, spec.image_size, spec.channels, spec.checksum)


@lru_cache(maxsize=4)
def _read(name: str, path: str | None, image_size: int, channels: int, checksum: bool) -> Pool:
    spec = DataSpec(name=name, path=path, image_size=image_size, channels=channels, checksum=checksum)
    return reader(name).pool(spec)
