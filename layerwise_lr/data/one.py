"""One picture file, as the array that a run was trained on; and which files of a folder are pictures."""

from pathlib import Path

import numpy as np

from ..planning import UserError, plain
from .own import PICTURES
from .spec import DataSpec, resize

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
"""All that Pillow is let read, whatever a file is called: none of them starts a program."""
NOT_MINE = ("__MACOSX", "Thumbs.db")


def read_picture(path: Path, spec: DataSpec) -> np.ndarray:
    """uint8 [C, S, S], as the data set's own pictures are read.

    Raises:
        UserError: it is no picture, or a broken one.
    """
    from PIL import Image

    if not path.is_file():
        raise UserError(f"{path}: not a readable picture (no file)")
    try:
        with Image.open(path, formats=FORMATS) as image:
            return resize(image, spec)
    except Exception as error:  # Pillow promises no list of what a broken one raises
        raise UserError(f"{path}: not a readable picture ({plain(error)})") from None


def picture_files(folder: Path) -> tuple[list[Path], int]:
    """(the pictures in and below `folder`, by their names; how many other files there are). What systems leave behind
    and names that begin with a dot are neither."""
    own = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") or part in NOT_MINE for part in path.relative_to(folder).parts)
    ]
    found = [path for path in own if path.suffix.lower() in PICTURES]
    return found, len(own) - len(found)
