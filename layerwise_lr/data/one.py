"""One picture file, as the array that a run was trained on; and which files of a folder are pictures."""

from pathlib import Path

import numpy as np

from ..planning import UserError, plain
from . import decoding
from .folders import Walk
from .spec import DataSpec, resize


def read_picture(path: Path, spec: DataSpec) -> np.ndarray:
    """uint8 [C, S, S], as the data set's own pictures are read.

    Raises:
        UserError: it is no picture, or a broken one.
    """
    if not path.is_file():
        raise UserError(f"{plain(path, 400)}: not a readable picture (no file)")
    try:
        with path.open("rb") as file:
            image = decoding.read_picture(file, spec.channels, path.suffix, least=2 * spec.image_size)
            return resize(image, spec)
    except Exception as error:  # Pillow promises no list of what a broken one raises
        why = decoding.why(error, path.suffix)
        raise UserError(f"{plain(path, 400)}: not a readable picture ({why})") from None


def picture_files(folder: Path) -> tuple[list[Path], int]:
    """(the pictures in and below `folder`, by their names; how many other entries were left out)."""
    walk = Walk(folder)
    found = [
        path
        for entry in walk.entries(folder)
        for path in (walk.pictures(entry) if entry.is_dir() else walk.beside(entry))
    ]
    return sorted(found), sum(map(len, walk.left.values()))
