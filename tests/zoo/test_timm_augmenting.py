"""What is born in NumPy here against timm's own code: RandAugment's operations, mixed targets, the boxes of CutMix."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, mixup
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.functional import adjust_brightness, adjust_contrast, adjust_saturation

from layerwise_lr.data import AugmentSpec, augmenting
from layerwise_lr.data.targets import one_hot, targets

THEIRS = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


def picture(seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8))
    return coarse.resize((40, 40), Image.Resampling.BICUBIC)


def test_the_set_is_timm_s_increasing_set():
    assert list(THEIRS.values()) == auto_augment._RAND_INCREASING_TRANSFORMS
    assert list(THEIRS) == list(augmenting.OPERATIONS)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("level", [1.0, 4.5, 9.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_an_operation_is_timm_s_to_the_bit(name, level, sign, monkeypatch):
    monkeypatch.setattr(random, "random", lambda: 0.9 if sign == -1 else 0.1)  # its coin for the sign
    hparams = {"img_mean": (1, 2, 3), "interpolation": Image.Resampling.BILINEAR}
    theirs = auto_augment.AugmentOp(THEIRS[name], prob=1.0, magnitude=level, hparams=hparams)(picture())
    ours = augmenting.OPERATIONS[name](picture(), level / 10, sign, (1, 2, 3))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("which", ["mixup", "cutmix"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixed_batch_is_timm_s(which, smoothing, monkeypatch):
    """The same share, the same centre: the pictures and the targets agree."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((6, 3, 20, 20)).astype(np.float32), rng.integers(0, 5, 6)
    ours, shares = augmenting.mixed(x, one_hot(y, 5), AugmentSpec(**{which: 0.8}), np.random.default_rng(7))

    drawn = np.random.default_rng(7)
    drawn.random()
    monkeypatch.setattr(np.random, "beta", drawn.beta)
    monkeypatch.setattr(np.random, "rand", lambda: 0.0)
    monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: drawn.integers(low, high))
    alphas = {"mixup_alpha": 0.8 * (which == "mixup"), "cutmix_alpha": 0.8 * (which == "cutmix")}
    theirs = mixup.Mixup(**alphas, label_smoothing=smoothing, num_classes=5)
    mixed_x, mixed_y = theirs(torch.from_numpy(x.copy()), torch.from_numpy(y))
    assert mixed_x.numpy() == pytest.approx(ours, abs=1e-6)
    assert mixed_y.numpy() == pytest.approx(targets(shares, smoothing, None), abs=1e-6)


def test_a_random_crop_is_distributed_as_torchvision_s():
    """Mean and spread of left, upper, width and height over 4000 draws each."""
    torch.manual_seed(0)
    blank = Image.new("L", (120, 90))
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    theirs = theirs[:, [1, 0, 3, 2]]
    boxes = [augmenting.crop_box((120, 90), [0.08, 1.0], [3 / 4, 4 / 3], np.random.default_rng(s)) for s in range(4000)]
    ours = np.array([(left, upper, right - left, lower - upper) for left, upper, right, lower in boxes])
    error = 5 * theirs.std(axis=0) / 4000**0.5
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 1.5 * error).all()
    assert ours.std(axis=0) == pytest.approx(theirs.std(axis=0), rel=0.06)


def test_color_jitter_is_torchvision_s_for_the_same_factors():
    rng = np.random.default_rng(3)
    factors, order = rng.uniform(0.6, 1.4, 3), rng.permutation(3)
    expected, steps = picture(), (adjust_brightness, adjust_contrast, adjust_saturation)
    for index in order:
        expected = steps[index](expected, float(factors[index]))
    ours = augmenting.jittered(picture(), 0.4, np.random.default_rng(3))
    assert np.array_equal(np.asarray(ours), np.asarray(expected))
    assert ColorJitter(0.4, 0.4, 0.4).brightness == (0.6, 1.4)
