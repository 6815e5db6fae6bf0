"""A few small pictures side by side in one PNG: written for a page, and read back as what anybody may have written."""

import io

import numpy as np

from .decoding import pillow


def strip(x: np.ndarray, side: int) -> bytes:
    """x uint8 [N, C, S, S], N at least 1, as a PNG `side` high and N * `side` wide; smaller pictures grow in whole pixels."""
    image = pillow()
    colours = np.repeat(x, 3, axis=1) if x.shape[1] == 1 else x[:, :3]
    how = image.Resampling.NEAREST if x.shape[-1] < side else image.Resampling.LANCZOS
    made = image.new("RGB", (side * len(x), side))
    for index, one in enumerate(colours):
        made.paste(image.fromarray(one.transpose(1, 2, 0).copy()).resize((side, side), how), (side * index, 0))
    held = io.BytesIO()
    made.save(held, "PNG", optimize=True)
    return held.getvalue()


def read_strip(held: bytes, count: int, side: int) -> np.ndarray | None:
    """uint8 [count, side, side, 3] of what `strip` made; None: it is no such picture."""
    try:
        with pillow().open(io.BytesIO(held), formats=["PNG"]) as image:
            if image.size != (side * count, side):
                return None
            made = np.asarray(image.convert("RGB"))
    except Exception:  # Pillow promises no list of what a faulty file raises
        return None
    return made.reshape(side, count, side, 3).swapaxes(0, 1)
