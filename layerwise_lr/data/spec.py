"""What is asked of a data set (DataSpec), what is known of it (Facts), its pictures as read and as asked for (Pool)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Optional

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


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
    """All pictures: x uint8 [N, C, S, S], y int64 [N]; the last `test` of them are the set's own test part; `names`
    are the classes', by their number (empty: the numbers are all there is)."""

    x: np.ndarray
    y: np.ndarray
    test: int = 0
    names: tuple[str, ...] = ()


class Pictures(NamedTuple):
    """A set as it was read: x uint8 [N, H, W] or [N, 3, H, W], y int64 [N], the last `test` its own test part."""

    x: np.ndarray
    y: np.ndarray
    test: int


class Facts(NamedTuple):
    """What a plan needs to know of a data set without reading it."""

    pictures: int
    classes: int
    test: int  # of which the set's own test part


def resize(image: "Image.Image", spec: DataSpec) -> np.ndarray:
    """uint8 [C, S, S]."""
    from PIL import Image

    mode = "L" if spec.channels == 1 else "RGB"
    size = (spec.image_size, spec.image_size)
    array = np.asarray(image.convert(mode).resize(size, Image.Resampling.BILINEAR))
    return array[None] if spec.channels == 1 else array.transpose(2, 0, 1)


def normalise(x: np.ndarray, spec: DataSpec) -> np.ndarray:
    """uint8 [B, C, S, S] -> float32, (x / 255 - mean) / std."""
    mean, std = (np.array(each, np.float32).reshape(1, -1, 1, 1) for each in (spec.mean, spec.std))
    return np.ascontiguousarray((x.astype(np.float32) / np.float32(255) - mean) / std)


def from_arrays(x: np.ndarray, y: np.ndarray, spec: DataSpec, test: int = 0) -> Pool:
    """The pool of x uint8 [N, H, W] or [N, C, H, W] and labels y [N], of which the last `test` are the test part."""
    planes = x[:, None] if x.ndim == 3 else x
    if planes.shape[1:] == (spec.channels, spec.image_size, spec.image_size):  # nothing to resize: 5 s less for 60000
        return Pool(np.ascontiguousarray(planes), y.astype(np.int64), test)
    from PIL import Image

    pictures = [Image.fromarray(p if p.ndim == 2 else np.moveaxis(p, 0, -1).squeeze()) for p in x]
    return Pool(np.stack([resize(p, spec) for p in pictures]), y.astype(np.int64), test)
