"""What is asked of a data set (DataSpec), what is known of it (Facts), its pictures as read and as asked for (Pool)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Size = Any
"""How many pictures: 60, a share ("20%" or 0.2), or null. OmegaConf has no such type; splitting.py reads it."""
TRAIN, VAL, TEST = 0, 1, 2
"""Where a set comes split: the parts by their number."""


@dataclass
class DataSpec:
    """The data as data.

    Args:
        name: digits | elpv | emoji | mnist | cifar10 | idx | npz | image_folder | csv | hf_dataset.
        path: of a folder with a sub-folder of pictures per class, or with train, val and test folders of these
            (image_folder); of a table with columns path and label (csv); of a Hugging Face set's folder, or its name
            (hf_dataset); of an .npz with arrays x, y; of IDX files; of CIFAR-10's archive (null: the cache's).
        image_size: pixels a side; pictures are resized to it.
        resize: crop (short side to the size, then the middle) | squash | pad (long side to the size, the mean colour
            around it): what is done with pictures that are no squares.
        channels: 1 (grey) or 3.
        train_size: pictures drawn by the seed, in proportion, or a share of what is left (10%); null: all left.
        val_size: pictures that choices are made on, or a share (20%); null: the set's own, else 15%.
        test_size: pictures that are only reported; likewise.
        split_seed: decides which pictures are val and test.
        label: the column of the labels (csv, hf_dataset); null: label, class and the like.
        skip_broken: leave out pictures that cannot be read, and say so; else they are an error.
        mean: of pixels in 0 to 1, per channel or one for all.
        std: likewise.
        flip: mirror training pictures with probability 1/2: augment.hflip=0.5, by its first name.
        workers: threads that read, augment and batch pictures ahead of the step; the result does not hang on it.
            0: none; null: one for each core but one, 1 to 8.
        memory: GiB of pictures of files that are held decoded; the parts that do not fit are read anew every epoch.
        checksum: refuse a CIFAR-10 that is not the published one.
        stand_in: digits | null: what to take where the data are absent; null: that is an error.
        stands_for: filled in: the data that were absent.
    """

    name: str = "digits"
    path: Optional[str] = None  # noqa: UP045 (OmegaConf 2.3 reads Optional)
    image_size: int = 28
    resize: str = "crop"
    channels: int = 1
    train_size: Size = 50
    val_size: Size = 400
    test_size: Size = 1000
    split_seed: int = 0
    label: Optional[str] = None  # noqa: UP045
    skip_broken: bool = False
    mean: list[float] = field(default_factory=lambda: [0.5])
    std: list[float] = field(default_factory=lambda: [0.5])
    flip: bool = False
    workers: Optional[int] = None  # noqa: UP045
    memory: float = 2.0
    checksum: bool = True
    stand_in: Optional[str] = None  # noqa: UP045
    stands_for: Optional[str] = None  # noqa: UP045


@dataclass(frozen=True, eq=False)
class Pool:
    """All pictures of a set.

    Args:
        x: uint8 [N, C, S, S]; None: they are in `files`.
        y: int64 [N].
        parts: int8 [N] of TRAIN, VAL, TEST, where the set comes split; None: it does not.
        names: the classes', by their number; empty: the numbers are all there is.
        files: one of each picture, where x is None.
        notes: what was met on the way, to be told.
    """

    x: np.ndarray | None
    y: np.ndarray
    parts: np.ndarray | None = None
    names: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


class Pictures(NamedTuple):
    """A set as it was read: x uint8 [N, H, W] or [N, 3, H, W], y int64 [N], the last `test` its own test part."""

    x: np.ndarray
    y: np.ndarray
    test: int


class Facts(NamedTuple):
    """What a plan needs to know of a data set without reading its pictures."""

    pictures: int
    classes: int
    test: int = 0  # of which the set's own test part
    val: int = 0  # of which the set's own validation part
    notes: tuple[str, ...] = ()


def facts_of(pool: Pool) -> Facts:
    """Of a pool whose classes are without a gap."""
    own = [0, 0, 0] if pool.parts is None else np.bincount(pool.parts, minlength=3).tolist()
    return Facts(len(pool.y), len(pool.names) or int(pool.y.max()) + 1, own[TEST], own[VAL], pool.notes)


def test_last(pictures: int, test: int) -> np.ndarray | None:
    """`Pool.parts` of a set whose last `test` pictures are its own test part."""
    return np.repeat(np.array([TRAIN, TEST], np.int8), [pictures - test, test]) if test else None


def filling(spec: DataSpec) -> tuple[int, ...]:
    """The colour of what is not in a picture: the mean, which is zero once normalised; per channel, 0 to 255."""
    mean = spec.mean if len(spec.mean) == spec.channels else spec.mean[:1] * spec.channels
    return tuple(min(255, max(0, round(255 * one))) for one in mean)


def resize(image: "Image.Image", spec: DataSpec) -> np.ndarray:
    """uint8 [C, S, S]; a picture that is no square is cropped, squashed or padded as spec.resize says."""
    from PIL import Image, ImageOps

    image = image.convert("L" if spec.channels == 1 else "RGB")
    size, bilinear = (spec.image_size, spec.image_size), Image.Resampling.BILINEAR
    if spec.resize == "pad":
        fill = filling(spec)
        image = ImageOps.pad(image, size, bilinear, color=fill if spec.channels == 3 else fill[0])
    else:
        width, height = image.size
        side = min(width, height)
        left, upper = (width - side) / 2, (height - side) / 2
        box = (left, upper, left + side, upper + side) if spec.resize == "crop" else None
        image = image.resize(size, bilinear, box=box)
    array = np.asarray(image)
    return array[None] if spec.channels == 1 else array.transpose(2, 0, 1)


def normalise(x: np.ndarray, spec: DataSpec) -> np.ndarray:
    """uint8 [B, C, S, S] -> float32, (x / 255 - mean) / std."""
    mean, std = (np.array(each, np.float32).reshape(1, -1, 1, 1) for each in (spec.mean, spec.std))
    return np.ascontiguousarray((x.astype(np.float32) / np.float32(255) - mean) / std)


def from_arrays(
    x: np.ndarray, y: np.ndarray, spec: DataSpec, parts: np.ndarray | None = None, names: tuple[str, ...] = ()
) -> Pool:
    """The pool of x uint8 [N, H, W] or [N, C, H, W] and labels y [N]; parts and names as in Pool."""
    planes = x[:, None] if x.ndim == 3 else x
    if planes.shape[1:] == (spec.channels, spec.image_size, spec.image_size):  # nothing to resize: 5 s less for 60000
        return Pool(np.ascontiguousarray(planes), y.astype(np.int64), parts, names)
    from PIL import Image

    pictures = [Image.fromarray(p if p.ndim == 2 else np.moveaxis(p, 0, -1).squeeze()) for p in x]
    return Pool(np.stack([resize(p, spec) for p in pictures]), y.astype(np.int64), parts, names)
