"""One picture out of one file: upright, 8 bits, grey or RGB, at its own size.

FORMATS holds pixels and nothing else. PostScript, PDF and the like are programs, which Pillow hands to another program
to run: no file is read as one, whatever it is called. What has more than 8 bits or is transparent follows the rules of
`_eight_bits`; what has no rule is refused.
"""

import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ..planning import UserError, plain

if TYPE_CHECKING:
    from PIL import Image

FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "QOI": (".qoi",),
    "ICO": (".ico",),
    "ICNS": (".icns",),
    "PCX": (".pcx",),
    "PSD": (".psd",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "DDS": (".dds",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
"""Pillow's name of every format that is read, and what its files are called; what a file is, its content says."""
CAMERAS = (".heic", ".heif", ".hif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".dcm")
DRAWINGS = (".svg", ".eps", ".ps", ".ai", ".pdf", ".wmf", ".emf")
OTHER_PICTURES = frozenset((*CAMERAS, *DRAWINGS))
"""What pictures that are not read here are called: they are refused by name, not left out as other files are."""
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes) | OTHER_PICTURES
WHITE = (255, 255, 255, 255)
"""What a transparent picture is laid on."""
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""EXIF's orientation -> Pillow's name of what sets the picture upright."""
ORIENTATION, BITS, PHOTOMETRIC = 274, 258, 262  # tags of EXIF and TIFF
FRAMED = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")
"""Formats whose further pictures are frames or pages; those of an MPO or a PSD are versions and layers of the first."""


def open_picture(path: Path, channels: int, least: int | None = None) -> "Image.Image":
    """The picture, upright, of mode "L" (1 channel) or "RGB" (3), at its own size; of several frames the first.

    Args:
        path: of the file.
        channels: 1 or 3.
        least: a JPEG may be read at 1/2, 1/4 or 1/8 of its size, as long as its short side keeps this many pixels:
            its decoder then skips most of the work. None: at its own size.

    Raises:
        UserError: it cannot be read; names the file in one line.
    """
    try:
        with path.open("rb") as file:
            return read_picture(file, channels, path.suffix, least)
    except Exception as error:  # Pillow promises no list of what a faulty file raises
        raise UserError(
            f"{plain(path, 400)}: not a readable picture ({why(error, path.suffix)}); mend or remove it, or leave out "
            "all such: data.skip_broken=true"
        ) from None


def read_picture(file: BinaryIO, channels: int, suffix: str = "", least: int | None = None) -> "Image.Image":
    """As open_picture, of an open file; raises what Pillow raises."""
    with _opened(file, suffix) as image:
        if least is not None:
            (width, height), short = image.size, max(min(image.size), 1)
            image.draft(image.mode, (-(-width * least // short), -(-height * least // short)))
        image.load()
        turn = UPRIGHT.get(_orientation(image))  # after load, which turns a TIFF itself
        flat = _eight_bits(image).convert("L" if channels == 1 else "RGB")
    return flat.transpose(pillow().Transpose[turn]) if turn else flat


def look(path: Path) -> tuple[str, bool]:
    """(why the file cannot be read, else nothing; whether it holds more frames than the first).

    A JPEG is looked at where it begins and ends, a PNG by its checksums; others, and where in doubt, are decoded.
    """
    try:
        with path.open("rb") as file:
            with _opened(file, path.suffix) as image:
                frames = image.format in FRAMED and bool(getattr(image, "is_animated", False))
                sound = image.format == "JPEG" and _ends(file)
                if image.format == "PNG":
                    image.verify()
                    sound = True
            if not sound:
                file.seek(0)
                read_picture(file, 3, path.suffix)
    except Exception as error:  # as above
        return why(error, path.suffix), False
    return "", frames


def why(error: Exception, suffix: str = "") -> str:
    """What is wrong with a picture, in a few words."""
    known = pillow()
    if isinstance(error, known.DecompressionBombError):
        return f"more than {2 * known.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, known.UnidentifiedImageError):
        return f"{suffix.lower()} is not read" if suffix.lower() in OTHER_PICTURES else "of no format that is read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return plain(error, 120) or type(error).__name__


@lru_cache
def pillow() -> ModuleType:
    """Pillow, with all that it can read known to it."""
    from PIL import Image

    Image.init()
    # it warns of half the size that it refuses, of a camera's faulty notes, ...: what it refuses is told, in one line
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image


def _opened(file: BinaryIO, suffix: str) -> "Image.Image":
    """The header, by the listed formats that this Pillow was built with; TGA, which has no mark of its own, by name."""
    if not file.read(1):
        raise ValueError("an empty file")
    file.seek(0)
    known = pillow()
    tga = suffix.lower() in FORMATS["TGA"]
    return known.open(file, formats=[name for name in FORMATS if name in known.OPEN and (tga or name != "TGA")])


def _ends(file: BinaryIO) -> bool:
    """Whether a JPEG ends with its end marker, zeros and line ends aside."""
    file.seek(max(file.seek(0, 2) - 64, 0))
    return file.read().rstrip(b"\0\r\n ").endswith(b"\xff\xd9")


def _orientation(image: "Image.Image") -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a faulty note of the camera's does not make the picture unreadable
        return 1


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """Of 8 bits a channel, and opaque.

    16 bits are divided by 257, the 12 of a TIFF brought from 4095 to 255; floats are 0 to 1; transparency is laid on
    white.

    Raises:
        ValueError: there is no rule.
    """
    mode, tags = image.mode, getattr(image, "tag_v2", {})
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image) / (4095 if tags.get(BITS) == (12,) else 65535)
    elif mode == "F":
        grey = np.asarray(image)
        if not (grey.min() >= 0 and grey.max() <= 1):
            raise ValueError(f"floats from {grey.min():g} to {grey.max():g}: read are those from 0 to 1")
    elif mode == "I":
        raise ValueError("integers of 32 bits, whose range nobody knows: save it with 8 or 16")
    elif mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        return pillow().alpha_composite(pillow().new("RGBA", over.size, WHITE), over).convert("RGB")
    else:
        return image if mode == "L" else image.convert("RGB")
    grey = 1 - grey if tags.get(PHOTOMETRIC) == 0 else grey  # white is zero
    return pillow().fromarray(np.rint(grey * 255).astype(np.uint8))
