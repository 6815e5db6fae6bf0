"""Training pictures changed at random: which changes (AugmentSpec), and each of them.

All chance is NumPy's, from (seed, epoch, position); the changes are Pillow's own operations. So a batch is the same
in every framework, and whatever the number of workers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Rng = np.random.Generator
Colour = int | tuple[int, ...]


@dataclass
class AugmentSpec:
    """What is changed at random in training pictures; validation and test never are.

    Args:
        hflip: probability to mirror left to right. 0.5: ImageNet recipes.
        vflip: probability to mirror top to bottom. 0.5: pictures without an up.
        crop_scale: least and most of the picture's area that a random crop keeps. [0.08,1]: torchvision, timm, MAE,
            BEiT. null: no random crop.
        crop_ratio: least and most width/height of that crop. [0.75,1.3333]: all of these.
        color_jitter: brightness, contrast and saturation times 1 - this to 1 + this. 0.4: timm, which
            leaves it off where RandAugment is on.
        randaugment_ops: operations of RandAugment a picture. 2: MAE, BEiT, DeiT (rand-m9-mstd0.5-inc1).
        randaugment_magnitude: of them, 0 to 10. 9: MAE, BEiT, DeiT; 7: timm's A1 ResNets.
        randaugment_std: of a magnitude drawn anew for each. 0.5: MAE, BEiT, DeiT.
        randaugment_prob: of each operation to take place. 0.5: timm.
        mixup: alpha of the Beta that two pictures are blended by. 0.8: MAE, BEiT, DeiT; 0.2: the paper on ImageNet.
        cutmix: alpha of the Beta that a piece of another picture is pasted by. 1: MAE, BEiT, DeiT.
        mix_prob: of a batch to be mixed. 1: timm.
        mix_switch: of a mixed batch to be CutMix, where both are on. 0.5: timm.
        random_erasing: probability that a rectangle becomes noise. 0.25: MAE, BEiT, DeiT (pixel, once).
    """

    hflip: float = 0.0
    vflip: float = 0.0
    crop_scale: Optional[list[float]] = None  # noqa: UP045 (OmegaConf 2.3 reads Optional)
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    color_jitter: float = 0.0
    randaugment_ops: int = 0
    randaugment_magnitude: float = 9.0
    randaugment_std: float = 0.5
    randaugment_prob: float = 0.5
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch: float = 0.5
    random_erasing: float = 0.0

    def of_pictures(self) -> bool:
        """Whether each picture goes through Pillow."""
        return bool(self.vflip or self.crop_scale or self.color_jitter or self.randaugment_ops)

    def mixes(self) -> bool:
        """Whether pictures of a batch are mixed, so that labels become shares."""
        return bool(self.mixup or self.cutmix)

    def any(self) -> bool:
        """Whether anything but mirroring is asked for, which costs nothing."""
        return self.of_pictures() or self.mixes() or bool(self.random_erasing)

    def least(self, size: int) -> int:
        """Pixels of the short side that a picture must have so that its smallest crop is not enlarged to `size`."""
        return size if self.crop_scale is None else int(np.ceil(size / np.sqrt(self.crop_scale[0])))


def augmented(image: "Image.Image", size: int, spec: AugmentSpec, fill: Colour, rng: Rng) -> np.ndarray:
    """One training picture.

    Args:
        image: mode L or RGB; of any size where there is a crop, else `size` x `size`.
        size: pixels a side.
        spec: what is done, in this order: crop, colour jitter, RandAugment, vflip.
        fill: the colour of what is not in the picture.
        rng: of this picture.

    Returns:
        uint8 [C, size, size].
    """
    from PIL import Image

    if spec.crop_scale is not None:
        box = crop_box(image.size, spec.crop_scale, spec.crop_ratio, rng)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if spec.color_jitter:
        image = jittered(image, spec.color_jitter, rng)
    for _ in range(spec.randaugment_ops):
        image = randomly_changed(image, spec, fill, rng)
    if spec.vflip and rng.random() < spec.vflip:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def crop_box(size: tuple[int, int], scale: list[float], ratio: list[float], rng: Rng) -> tuple[int, int, int, int]:
    """(left, upper, right, lower) of torchvision's RandomResizedCrop: ten tries, then the largest middle that fits."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(scale[0], scale[1])
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        w, h = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, upper, left + w, upper + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def jittered(image: "Image.Image", strength: float, rng: Rng) -> "Image.Image":
    """Brightness, contrast and saturation, in random order: torchvision's ColorJitter(strength, strength, strength)."""
    from PIL import ImageEnhance

    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, 3)
    for index in rng.permutation(3):
        image = kinds[index](image).enhance(float(factors[index]))
    return image


def randomly_changed(image: "Image.Image", spec: AugmentSpec, fill: Colour, rng: Rng) -> "Image.Image":
    """One operation of RandAugment, as timm's rand-mM-mstdS-inc1 draws it."""
    name = tuple(OPERATIONS)[rng.integers(len(OPERATIONS))]
    if rng.random() >= spec.randaugment_prob:
        return image
    level = spec.randaugment_magnitude + spec.randaugment_std * rng.standard_normal()
    share = float(np.clip(level, 0, 10)) / 10
    return OPERATIONS[name](image, share, -1 if rng.random() < 0.5 else 1, fill)


Operation = Callable[["Image.Image", float, int, Colour], "Image.Image"]


def _affine(matrix: Callable[["Image.Image", float], tuple[float, ...]]) -> Operation:
    """Pixels from elsewhere; `matrix` is that of the output's coordinates into the input's."""

    def change(image: "Image.Image", share: float, sign: int, fill: Colour) -> "Image.Image":
        from PIL import Image

        data, bilinear = matrix(image, sign * share), Image.Resampling.BILINEAR
        return image.transform(image.size, Image.Transform.AFFINE, data, resample=bilinear, fillcolor=fill)

    return change


def _enhanced(kind: str) -> Operation:
    """ImageEnhance's `kind` by a factor from 0.1 to 1.9: the further from 1, the stronger."""

    def change(image: "Image.Image", share: float, sign: int, fill: Colour) -> "Image.Image":
        from PIL import ImageEnhance

        enhancer = getattr(ImageEnhance, kind)(image)
        changed: Image.Image = enhancer.enhance(max(0.1, 1 + sign * 0.9 * share))
        return changed

    return change


def _of_values(kind: str, argument: Callable[[float], int] | None = None) -> Operation:
    """ImageOps' `kind`, with what the strength says."""

    def change(image: "Image.Image", share: float, sign: int, fill: Colour) -> "Image.Image":
        from PIL import ImageOps

        given = () if argument is None else (argument(share),)
        changed: Image.Image = getattr(ImageOps, kind)(image, *given)
        return changed

    return change


def _rotated(image: "Image.Image", share: float, sign: int, fill: Colour) -> "Image.Image":
    from PIL import Image

    return image.rotate(sign * 30 * share, resample=Image.Resampling.BILINEAR, fillcolor=fill)


def _brightened_darks(image: "Image.Image", share: float, sign: int, fill: Colour) -> "Image.Image":
    """SolarizeAdd: up to 110 added to the darker half."""
    table = [min(255, i + int(110 * share)) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


OPERATIONS: dict[str, Operation] = {
    "autocontrast": _of_values("autocontrast"),
    "equalize": _of_values("equalize"),
    "invert": _of_values("invert"),
    "rotate": _rotated,
    "posterize": _of_values("posterize", lambda share: max(1, 4 - int(4 * share))),
    "solarize": _of_values("solarize", lambda share: 256 - int(256 * share)),
    "solarize_add": _brightened_darks,
    "color": _enhanced("Color"),
    "contrast": _enhanced("Contrast"),
    "brightness": _enhanced("Brightness"),
    "sharpness": _enhanced("Sharpness"),
    "shear_x": _affine(lambda image, level: (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_y": _affine(lambda image, level: (1, 0, 0, 0.3 * level, 1, 0)),
    "translate_x": _affine(lambda image, level: (1, 0, 0.45 * level * image.width, 0, 1, 0)),
    "translate_y": _affine(lambda image, level: (1, 0, 0, 0, 1, 0.45 * level * image.height)),
}
"""timm's increasing set, with its ranges; posterize keeps at least one bit, where timm's strongest makes all black."""


def erased(x: np.ndarray, rng: Rng) -> None:
    """Noise, N(0, 1), in a rectangle of one normalised picture, in place: 2 % to a third of it, width/height from
    0.3 to 3.3, as timm's RandomErasing in mode pixel.

    Args:
        x: float32 [C, S, S].
        rng: of this picture.
    """
    channels, height, width = x.shape
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        aspect = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        h, w = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if h < height and w < width:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            x[:, top : top + h, left : left + w] = rng.standard_normal((channels, h, w), np.float32)
            return


def mixed(x: np.ndarray, shares: np.ndarray, spec: AugmentSpec, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """A batch mixed with itself in reverse order, all pictures alike: timm's Mixup in mode batch.

    Args:
        x: float32 [B, C, S, S], normalised.
        shares: float64 [B, K].
        spec: which of the two, how often, by which Beta.
        rng: of this batch.

    Returns:
        Both, mixed. A piece that was cut off at the edge counts by its pixels.
    """
    if rng.random() >= spec.mix_prob:
        return x, shares
    cut = bool(spec.cutmix) and (not spec.mixup or rng.random() < spec.mix_switch)
    kept = float(rng.beta(spec.cutmix, spec.cutmix) if cut else rng.beta(spec.mixup, spec.mixup))
    if cut:
        x, kept = _pasted(x, kept, rng)
    else:
        x = x * np.float32(kept) + x[::-1] * np.float32(1 - kept)
    return x, shares * kept + shares[::-1] * (1 - kept)


def _pasted(x: np.ndarray, kept: float, rng: Rng) -> tuple[np.ndarray, float]:
    """CutMix: the rectangle around a random centre comes from the other picture; what share of the own is left."""
    height, width = x.shape[-2:]
    h, w = int(height * np.sqrt(1 - kept)), int(width * np.sqrt(1 - kept))
    y, z = int(rng.integers(height)), int(rng.integers(width))
    rows = slice(max(y - h // 2, 0), min(y + (h + 1) // 2, height))
    columns = slice(max(z - w // 2, 0), min(z + (w + 1) // 2, width))
    pasted = x.copy()
    pasted[..., rows, columns] = x[::-1, ..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return pasted, 1 - area / (height * width)
