"""Where the pictures come from: what each data set is called, where its files are, how they are read."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..planning import Absent, UserError, did_you_mean, plain
from . import cifar10, folders, hub, idx, own, tables
from .broken import sound
from .files import cache_folder
from .sources import EMOJI, EMOJI_CLASSES
from .spec import DataSpec, Facts, Pictures, Pool, facts_of, from_arrays, test_last


def _resized(held: Pictures, spec: DataSpec) -> Pool:
    return from_arrays(held.x, held.y, spec, test_last(len(held.y), held.test))


def _digits(spec: DataSpec) -> Pool:
    """UCI optdigits, 8x8 in 17 greys, enlarged to 20/28 of the side and padded as MNIST is."""
    from PIL import Image

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


def _cifar10_at(spec: DataSpec) -> Path:
    return Path(spec.path) if spec.path else cache_folder() / "cifar10"


def _cifar10_facts(spec: DataSpec) -> Facts:
    """The published set's are known; any other (data.checksum=false) must be read."""
    if spec.checksum:
        return Facts(60000, 10, 10000)
    return facts_of(_pool(spec))._replace(classes=10)


def _idx_facts(spec: DataSpec) -> Facts:
    y, test = idx.read_labels(own.given_path(spec))
    own.check_classes(own.given_path(spec), y)
    return Facts(len(y), int(y.max()) + 1, test)


def _hub(spec: DataSpec) -> hub.HubSet:
    return _hub_at(str(own.given_path(spec)) if own.given_path(spec).exists() else str(spec.path), spec.label)


@lru_cache(maxsize=4)
def _hub_at(path: str, label: str | None) -> hub.HubSet:
    return hub.read(path, label)


def _listed(spec: DataSpec) -> Pool:
    """The files of a set, as their names or a table tell; no picture is opened."""
    return _listed_at(spec.name, own.find(spec), spec.label, Path.cwd())


@lru_cache(maxsize=4)
def _listed_at(name: str, path: Path, label: str | None, at: Path) -> Pool:
    return tables.read(path, label) if name == "csv" else folders.read(path)


def _sound(spec: DataSpec) -> Pool:
    """Of `_listed` the files that can be read."""
    return _sound_at(spec.name, own.find(spec), spec.label, spec.skip_broken, Path.cwd())


@lru_cache(maxsize=4)
def _sound_at(name: str, path: Path, label: str | None, skip: bool, at: Path) -> Pool:
    root = path.parent if name == "csv" else path
    return sound(_listed_at(name, path, label, at), root, f"data.path={plain(path, 400)}", skip)


class Reader(NamedTuple):
    """How a data set is read.

    Args:
        find: raises Absent where its files are not on this machine.
        facts: what is known of it without reading the pictures.
        pool: the pictures.
        files: whether they are files, of which no more than data.memory is held.
    """

    find: Callable[[DataSpec], object]
    facts: Callable[[DataSpec], Facts]
    pool: Callable[[DataSpec], Pool]
    files: bool = False


FILES = Reader(
    own.find,
    # where broken ones are left out, only looking at all of them tells how many are left
    lambda spec: facts_of(_sound(spec) if spec.skip_broken else _listed(spec)),
    _sound,
    files=True,
)


READERS: Mapping[str, Reader] = {
    "digits": Reader(lambda spec: None, lambda spec: Facts(1797, 10, 0), _digits),
    "elpv": Reader(
        lambda spec: _cache_of("elpv"), lambda spec: Facts(2624, 2, 0), lambda spec: from_arrays(*_cached("elpv"), spec)
    ),
    "emoji": Reader(
        lambda spec: _cache_of("emoji"),
        lambda spec: Facts(EMOJI, len(EMOJI_CLASSES), 0),
        lambda spec: replace(from_arrays(*_cached("emoji"), spec), names=EMOJI_CLASSES),
    ),
    "mnist": Reader(
        lambda spec: _cache_of("mnist"),
        lambda spec: Facts(70000, 10, 10000),
        lambda spec: from_arrays(*_cached("mnist"), spec, test_last(70000, 10000)),
    ),
    "cifar10": Reader(
        lambda spec: cifar10.find(_cifar10_at(spec)),
        _cifar10_facts,
        lambda spec: _resized(cifar10.read(_cifar10_at(spec), spec.checksum), spec),
    ),
    "idx": Reader(
        lambda spec: idx.find(own.given_path(spec)),
        _idx_facts,
        lambda spec: _resized(idx.read(own.given_path(spec)), spec),
    ),
    "npz": Reader(own.find, lambda spec: facts_of(own.npz_labels(spec)), own.npz_pool),
    "csv": FILES,
    "hf_dataset": Reader(
        lambda spec: hub.find(str(own.given_path(spec))),
        lambda spec: facts_of(_pool(spec) if spec.skip_broken else _hub(spec).labels),
        lambda spec: hub.pool(_hub(spec), spec),
    ),
    "image_folder": FILES,
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
    """Kept by what decides it."""
    drawn = ("train_size", "val_size", "test_size", "split_seed", "std", "flip", "workers", "memory", "stand_in")
    other = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name not in (*drawn, "stands_for")}
    return _read(Path.cwd(), **{**other, "mean": tuple(spec.mean)})


@lru_cache(maxsize=4)
def _read(at: Path, **spec: Any) -> Pool:
    return reader(spec["name"]).pool(DataSpec(**{**spec, "mean": list(spec["mean"])}))
