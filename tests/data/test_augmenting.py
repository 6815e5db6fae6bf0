"""Each change does what its key says, by NumPy's own arithmetic; timm's operations are compared in tests/zoo."""

import numpy as np
import pytest
from PIL import Image

from layerwise_lr.data import AugmentSpec, DataSpec, augmenting, batches
from layerwise_lr.data.augmenting import OPERATIONS, augmented, crop_box, erased, mixed

SIZE = 24


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(channels=3, size=SIZE, seed=0):
    """uint8 [C, size, size] and the same for Pillow."""
    x = rng(seed).integers(0, 256, (channels, size, size), np.uint8)
    return x, Image.fromarray(x[0] if channels == 1 else x.transpose(1, 2, 0))


def changed(spec, seed=0, channels=3):
    x, image = noise(channels)
    return x, augmented(image, SIZE, spec, 9 if channels == 1 else (9, 9, 9), rng(seed))


def values(image):
    """[C, H, W] of a picture."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


# --- of a picture


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_asked_for_changes_nothing(channels):
    x, found = changed(AugmentSpec(), channels=channels)
    assert np.array_equal(x, found)


def test_vflip():
    x, found = changed(AugmentSpec(vflip=1.0))
    assert np.array_equal(x[:, ::-1], found)
    flipped = [not np.array_equal(*changed(AugmentSpec(vflip=0.3), seed)) for seed in range(400)]
    assert 0.22 < np.mean(flipped) < 0.38


@pytest.mark.parametrize("key", ["hflip", "vflip", "random_erasing"])
def test_a_probability_of_pictures_of_a_batch(key):
    spec = DataSpec(train_size=400, val_size=10, test_size=10)
    plain, _ = batches.load(spec, 0).batch(0, 400, 0)
    data = batches.load(spec, 0, AugmentSpec(**{key: 0.25}))
    x, _ = data.batch(0, 400, 0)
    data.close()
    touched = (x != plain).any(axis=(1, 2, 3))
    assert 0.18 < touched.mean() < 0.32
    if key != "random_erasing":
        mirrored = plain[..., ::-1] if key == "hflip" else plain[:, :, ::-1]
        assert np.array_equal(x[touched], mirrored[touched])


@pytest.mark.parametrize("size", [(100, 80), (31, 400)])
def test_a_crop_has_the_area_and_the_shape_that_are_asked_for(size):
    boxes = np.array([crop_box(size, [0.1, 0.3], [0.5, 2.0], rng(seed)) for seed in range(1000)])
    left, upper, right, lower = boxes.T
    assert (left >= 0).all() and (upper >= 0).all() and (right <= size[0]).all() and (lower <= size[1]).all()
    wide, high = right - left, lower - upper
    area, whole = wide * high / (size[0] * size[1]), size[0] * size[1]
    slack = (wide + high) / whole  # half a pixel on either side
    assert ((area > 0.1 - slack) & (area < 0.3 + slack)).all()
    assert ((wide + 0.5) / (high - 0.5) > 0.5).all() and ((wide - 0.5) / (high + 0.5) < 2.0).all()
    if size == (100, 80):
        assert abs(np.log(wide / high).mean()) < 0.03 and 0.19 < area.mean() < 0.21
        assert len({tuple(box) for box in boxes}) > 900


def test_a_crop_that_cannot_have_its_shape_is_the_largest_middle():
    assert crop_box((10, 1000), [1.0, 1.0], [0.75, 4 / 3], rng()) == (0, 493, 10, 506)
    assert crop_box((1000, 10), [1.0, 1.0], [0.75, 4 / 3], rng()) == (493, 0, 506, 10)


def test_a_random_crop_is_that_part_of_the_picture_at_the_size():
    _, image = noise(size=SIZE * 2)
    spec = AugmentSpec(crop_scale=[0.25, 0.25], crop_ratio=[1.0, 1.0])
    found = augmented(image, SIZE, spec, (0, 0, 0), rng(3))
    whole = values(image)
    places = [
        (i, j)
        for i in range(SIZE + 1)
        for j in range(SIZE + 1)
        if np.array_equal(whole[:, i : i + SIZE, j : j + SIZE], found)
    ]
    assert len(places) == 1


def test_color_jitter_is_brightness_contrast_and_saturation():
    """On a flat grey only brightness can be seen; on a flat colour saturation keeps the grey it has."""
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    seen = [values(augmenting.jittered(grey, 0.4, rng(seed)))[0, 0, 0] for seed in range(300)]
    assert min(seen) < 65 and max(seen) > 135 and min(seen) >= 60 and max(seen) <= 140
    red = Image.new("RGB", (4, 4), (160, 40, 40))
    ratios = [np.ptp(values(augmenting.jittered(red, 0.4, rng(seed)))[:, 0, 0].astype(int)) for seed in range(300)]
    assert min(ratios) < 120 * 0.6 and max(ratios) > 120 * 1.3
    spread = [values(augmenting.jittered(noise()[1], 0.4, rng(seed))).std() for seed in range(100)]
    assert max(spread) / min(spread) > 1.5


# --- RandAugment's operations: (strength as a share, sign) -> what NumPy makes of the pixels

EXPECTED = {
    "invert": lambda x, share, sign: 255 - x,
    "posterize": lambda x, share, sign: x & (256 - 2 ** (8 - max(1, 4 - int(4 * share)))),
    "solarize": lambda x, share, sign: np.where(x < 256 - int(256 * share), x, 255 - x),
    "solarize_add": lambda x, share, sign: np.where(x < 128, np.minimum(x + int(110 * share), 255), x),
    "brightness": lambda x, share, sign: np.clip(x * max(0.1, 1 + sign * 0.9 * share), 0, 255).astype(int),
}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_on_values(name, sign, share, channels):
    x, image = noise(channels)
    found = values(OPERATIONS[name](image, share, sign, 0)).astype(int)
    assert np.abs(found - EXPECTED[name](x.astype(int), share, sign)).max() <= (name == "brightness")


def test_autocontrast_and_equalize_use_the_whole_range():
    narrow = Image.fromarray((values(noise()[1]) // 8 + 100).transpose(1, 2, 0))
    for name in ("autocontrast", "equalize"):
        found = values(OPERATIONS[name](narrow, 0.5, 1, 0))
        assert (found.min(), found.max()) == (0, 255)


def test_color_contrast_and_sharpness_go_either_way():
    x, image = noise()
    means = x.mean(axis=0)
    spread = lambda y: np.abs(y - y.mean(axis=0)).mean()  # noqa: E731
    up, down = (values(OPERATIONS["color"](image, 0.5, sign, 0)).astype(float) for sign in (1, -1))
    assert spread(up) > spread(x.astype(float)) > spread(down) and means.shape == (SIZE, SIZE)
    up, down = (values(OPERATIONS["contrast"](image, 0.5, sign, 0)).astype(float) for sign in (1, -1))
    assert up.std() > x.std() > down.std()
    up, down = (values(OPERATIONS["sharpness"](image, 0.5, sign, 0)).astype(float) for sign in (1, -1))
    rough = lambda y: np.abs(np.diff(y[:, 2:-2, 2:-2], axis=2)).mean()  # noqa: E731
    assert rough(up) > rough(x.astype(float)) > rough(down)


@pytest.mark.parametrize("sign", [-1, 1])
def test_translations_move_by_whole_pixels_where_they_can(sign):
    """0.45 of 24 pixels times 10/10.8 is 10."""
    x, image = noise()
    for name, axis in (("translate_x", 2), ("translate_y", 1)):
        found = values(OPERATIONS[name](image, 10 / 10.8, sign, (9, 9, 9)))
        moved = np.roll(x, -10 * sign, axis)
        inside, outside = (slice(0, 14), slice(14, 24)) if sign == 1 else (slice(10, 24), slice(0, 10))
        pick = lambda a, part: a[:, :, part] if axis == 2 else a[:, part]  # noqa: B023, E731
        assert np.array_equal(pick(found, inside), pick(moved, inside))
        assert (pick(found, outside) == 9).all()


@pytest.mark.parametrize("sign", [-1, 1])
def test_shear_and_rotation_move_a_line_as_geometry_says(sign):
    """A vertical line in the middle: 0.3 of its height to the side, or turned by 30 degrees."""
    picture = np.zeros((60, 60), np.uint8)
    picture[:, 29:31] = 255
    image = Image.fromarray(picture)
    sheared = np.asarray(OPERATIONS["shear_x"](image, 1.0, sign, 0)).astype(float)
    at = (sheared * np.arange(60)).sum(axis=1) / sheared.sum(axis=1)
    assert np.polyfit(np.arange(60), at, 1)[0] == pytest.approx(-0.3 * sign, abs=0.01)
    turned = np.asarray(OPERATIONS["rotate"](image, 1.0, sign, 0)).astype(float)[12:48]
    at = (turned * np.arange(60)).sum(axis=1) / turned.sum(axis=1)
    assert np.polyfit(np.arange(12, 48), at, 1)[0] == pytest.approx(np.tan(np.radians(30)) * sign, abs=0.01)
    standing = np.asarray(OPERATIONS["shear_y"](Image.fromarray(picture.T), 1.0, sign, 0)).astype(float)
    assert np.array_equal(standing.T, np.asarray(OPERATIONS["shear_x"](image, 1.0, sign, 0)).astype(float))


@pytest.mark.parametrize(
    "name", [n for n in OPERATIONS if n not in ("autocontrast", "equalize", "invert", "posterize")]
)
def test_no_strength_is_no_change(name):
    x, image = noise()
    assert np.array_equal(values(OPERATIONS[name](image, 0.0, 1, (0, 0, 0))), x)


def test_randaugment_draws_all_operations_alike_and_so_often(monkeypatch):
    drawn = []
    for name in OPERATIONS:
        record = lambda image, share, sign, fill, name=name: drawn.append((name, share, sign)) or image  # noqa: E731
        monkeypatch.setitem(OPERATIONS, name, record)
    spec = AugmentSpec(randaugment_ops=3, randaugment_magnitude=6.0, randaugment_std=0.5, randaugment_prob=0.4)
    for seed in range(2500):
        augmented(noise()[1], SIZE, spec, 0, rng(seed))
    assert len(drawn) / 7500 == pytest.approx(0.4, abs=0.02)
    counts = np.array([sum(name == other for other, _, _ in drawn) for name in OPERATIONS])
    assert np.abs(counts / counts.mean() - 1).max() < 0.3
    shares = np.array([share for _, share, _ in drawn])
    assert shares.mean() == pytest.approx(0.6, abs=0.005) and shares.std() == pytest.approx(0.05, abs=0.005)
    assert abs(np.mean([sign for *_, sign in drawn])) < 0.06


# --- of a batch


def test_an_erased_rectangle_is_noise_of_a_fitting_size():
    areas = []
    for seed in range(300):
        x = np.full((2, 50, 50), 7, np.float32)
        erased(x, rng(seed))
        rows, columns = (np.flatnonzero((x[0] != 7).any(axis=axis)) for axis in (1, 0))
        block = x[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (block != 7).all() and (x != 7).sum() == block.size
        areas.append(block[0].size / 2500)
        if block.size > 800:
            assert abs(block.mean()) < 0.2 and 0.85 < block.std() < 1.15
    assert 0.015 < min(areas) < 0.05 and 0.28 < max(areas) < 0.35


def test_mixup_is_a_blend_with_the_batch_in_reverse():
    x, shares = rng().standard_normal((6, 3, 8, 8)).astype(np.float32), np.eye(4)[[0, 1, 2, 3, 0, 1]]
    kept = []
    for seed in range(400):
        found, soft = mixed(x, shares, AugmentSpec(mixup=0.8), rng(seed))
        part = (found[0, 0, 0, 0] - x[5, 0, 0, 0]) / (x[0, 0, 0, 0] - x[5, 0, 0, 0])
        kept.append(part)
        for i in range(6):
            assert found[i] == pytest.approx(part * x[i] + (1 - part) * x[5 - i], abs=1e-5)
            assert soft[i] == pytest.approx(part * shares[i] + (1 - part) * shares[5 - i], abs=1e-5)
    assert found.dtype == np.float32
    assert np.mean(kept) == pytest.approx(0.5, abs=0.05)
    assert np.var(kept) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.15)  # of Beta(a, a)


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels():
    x = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones((6, 3, 20, 20), np.float32)
    areas = []
    for seed in range(400):
        found, soft = mixed(x.copy(), np.eye(6), AugmentSpec(cutmix=1.0), rng(seed))
        for i in range(6):
            foreign = found[i] == 5 - i
            assert (foreign | (found[i] == i)).all()
            assert soft[i, 5 - i] == pytest.approx(foreign.mean(), abs=1e-12)
            assert soft[i, i] == pytest.approx(1 - foreign.mean(), abs=1e-12)
        rows, columns = (np.flatnonzero((found[0, 0] == 5).any(axis=axis)) for axis in (1, 0))
        areas.append((found[0] == 5).mean())
        assert (
            (found[0, 0] == 5).sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            if len(rows)
            else True
        )
    assert max(areas) > 0.6 and min(areas) < 0.02
    assert (x == np.arange(6)[:, None, None, None]).all(), "what is given stays as it is"


def test_how_often_and_which_of_the_two():
    x, shares = rng().standard_normal((4, 1, 16, 16)).astype(np.float32), np.eye(4)
    spec = AugmentSpec(mixup=5.0, cutmix=5.0, mix_prob=0.6, mix_switch=0.25)
    kinds = []
    for seed in range(1000):
        found, _ = mixed(x, shares, spec, rng(seed))
        own = (found == x).mean()
        kinds.append("none" if own == 1 else "mixup" if own == 0 else "cutmix")
    assert kinds.count("none") / 1000 == pytest.approx(0.4, abs=0.05)
    assert kinds.count("cutmix") / 600 == pytest.approx(0.25, abs=0.05)


def test_validation_and_test_are_never_changed():
    spec = DataSpec(train_size=100, val_size=50, test_size=50)
    every = AugmentSpec(1.0, 1.0, [0.1, 0.2], color_jitter=1.0, randaugment_ops=3, mixup=1.0, random_erasing=1.0)
    plain, data = batches.load(spec, 0), batches.load(spec, 0, every, 0.1, "balanced")
    for part in ("val", "test"):
        one, two = (np.concatenate(list(d.batches(getattr(d, part), 7))) for d in (plain, data))
        assert np.array_equal(one, two)
    assert plain.fingerprint() == data.fingerprint()


@pytest.mark.parametrize("channels", [1, 3])
def test_all_at_once_gives_batches_as_promised(channels):
    spec = DataSpec(train_size=40, val_size=10, test_size=10, channels=channels)
    every = AugmentSpec(
        0.5, 0.5, [0.1, 1.0], color_jitter=0.4, randaugment_ops=2, mixup=0.8, cutmix=1.0, random_erasing=0.5
    )
    data = batches.load(spec, 0, every, 0.1, "balanced")
    for step in range(6):
        x, y = data.batch(step, 20, 0)
        assert (x.dtype, x.shape, y.dtype, y.shape) == (np.float32, (20, channels, 28, 28), np.float32, (20, 10))
        assert np.isfinite(x).all() and x.flags.c_contiguous and (y > 0).all()
    data.close()
