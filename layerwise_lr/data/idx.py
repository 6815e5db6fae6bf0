"""IDX, the format of MNIST and Fashion-MNIST: four files, plain or .gz.

Pictures are uint8 [N, H, W], labels int64 [N]; the set's own test part is last.
"""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..planning import Absent, UserError
from .files import TORN
from .spec import Pictures

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def find(folder: Path) -> list[Path]:
    """The four files, plain or .gz, in the order of IDX.

    Raises:
        Absent: none is there. UserError: not all are.
    """
    pairs = [[p for p in (folder / name, folder / f"{name}.gz") if p.is_file()] for name in IDX]
    if not any(pairs):
        raise Absent(
            f"data.path={folder}: no IDX files are here ({IDX[0]}[.gz] and its three companions); Debian's "
            "Fashion-MNIST: apt install dataset-fashion-mnist, then data=fashion_mnist"
        )
    for name, pair in zip(IDX, pairs, strict=True):
        if not pair:
            raise UserError(f"data.path={folder}: lacks {name}[.gz]; the four IDX files belong together")
    return [pair[0] for pair in pairs]


def read_labels(folder: Path) -> tuple[np.ndarray, int]:
    """(all labels int64 [N], how many are the test part's); of the pictures only the headers are read.

    Raises:
        UserError: what the headers say does not fit together.
    """
    pictures, labels, test_pictures, test_labels = find(folder)
    shapes = [_array(path, 3, header=True) for path in (pictures, test_pictures)]
    if shapes[0][1:] != shapes[1][1:]:
        raise UserError(
            f"{test_pictures}: pictures are {list(shapes[1][1:])}, in {pictures.name} {list(shapes[0][1:])}"
        )
    parts = [_array(path, 1) for path in (labels, test_labels)]
    for path, shape, part in zip((labels, test_labels), shapes, parts, strict=True):
        if len(part) != shape[0]:
            raise UserError(f"{path}: {len(part)} labels for {shape[0]} pictures; the four IDX files belong together")
    return np.concatenate(parts).astype(np.int64), len(parts[1])


def read(folder: Path) -> Pictures:
    """All four files."""
    y, test = read_labels(folder)
    files = find(folder)
    return Pictures(np.concatenate([_array(files[0], 3), _array(files[2], 3)]), y, test)


def _array(path: Path, axes: int, header: bool = False) -> Any:
    """One file's array uint8 with `axes` axes, or with `header` only its shape.

    The format: two zero bytes, 8 for uint8, the number of axes, each axis as 4 bytes big-endian, the bytes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(4 + 4 * axes)
            magic = bytes([0, 0, 8, axes])
            if start[:4] != magic or len(start) < 4 + 4 * axes:
                raise UserError(
                    f"{path}: begins with {start[:4].hex() or 'nothing'}, an IDX file of "
                    f"{_kind(axes)} with {magic.hex()}"
                )
            shape = tuple(np.frombuffer(start, ">u4", offset=4).tolist())
            if header:
                return shape
            return _whole(path, shape, file.read(math.prod(shape) + 1))
    except TORN as error:
        raise UserError(f"{path}: cut short, or no .gz ({error}); get it again") from None


def _whole(path: Path, shape: Sequence[int], packed: bytes) -> np.ndarray:
    if len(packed) != math.prod(shape) or not packed:
        more = "more" if len(packed) > math.prod(shape) else len(packed)
        raise UserError(
            f"{path}: its header says {list(shape)}, {math.prod(shape)} bytes, but it holds {more}; get it again"
        )
    return np.frombuffer(packed, np.uint8).reshape(shape)


def _kind(axes: int) -> str:
    return "pictures" if axes == 3 else "labels"
