"""One file, one picture: upright, 8 bits, in the channels that are asked for."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..planning import UserError

if TYPE_CHECKING:
    from PIL import Image


def open_picture(path: Path, channels: int, least: int | None = None) -> "Image.Image":
    """The picture in mode "L" (1 channel) or "RGB" (3), at its own size.

    Args:
        path: of the file.
        channels: 1 or 3.
        least: a JPEG may be read at 1/2, 1/4 or 1/8 of its size, as long as its short side keeps this many pixels:
            its decoder then skips most of the work. null: at its own size.

    Raises:
        UserError: it is none, or gone.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(path) as image:
            if least is not None:
                width, height = image.size
                short = max(min(width, height), 1)
                image.draft(image.mode, (-(-width * least // short), -(-height * least // short)))
            return ImageOps.exif_transpose(image).convert(mode)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path}: not a readable picture ({error}); mend or remove it") from None
