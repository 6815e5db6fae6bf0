import numpy as np
import pytest
from PIL import Image

from layerwise_lr.data import batches, pictures, read_resized, splitting
from layerwise_lr.data.pictures import DataSpec
from layerwise_lr.planning.errors import UserError

DIGITS_BY_CLASS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # UCI optdigits' test part, as published


def digits(**options):
    return DataSpec(**{"train_size": 100, "val_size": 200, "test_size": 300, **options})


def write_npz(path, n=60, classes=3, shape=(9, 9), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    np.savez(path, x=x, y=np.arange(n) % classes)
    return x


def npz_spec(path, **options):
    return DataSpec(
        **{
            "name": "npz",
            "path": str(path),
            "image_size": 9,
            "train_size": 30,
            "val_size": 12,
            "test_size": 18,
            **options,
        }
    )


def rows(split):
    return {x.tobytes() for x in split.x}


# --- splits


def test_digits_has_its_published_class_counts():
    pool = pictures.load_pool(digits())
    assert np.bincount(pool.y).tolist() == DIGITS_BY_CLASS
    assert pool.x.shape == (1797, 1, 28, 28)
    assert pool.x.dtype == np.uint8
    assert pool.y.dtype == np.int64
    assert pictures.facts(digits()).pictures == sum(DIGITS_BY_CLASS)


def test_digits_are_padded_as_mnist_is():
    pool = pictures.load_pool(digits())
    border = np.ones((28, 28), bool)
    border[4:24, 4:24] = False
    assert not pool.x[:, 0, border].any()
    assert pool.x.max() == 255


def test_other_seeds_draw_other_training_pictures_and_keep_val_and_test():
    one, two = batches.load(digits(), 1), batches.load(digits(), 2)
    for part in ("val", "test"):
        assert np.array_equal(getattr(one, part).x, getattr(two, part).x)
        assert np.array_equal(getattr(one, part).y, getattr(two, part).y)
    assert not np.array_equal(one.train.x, two.train.x)
    assert np.array_equal(one.train.x, batches.load(digits(), 1).train.x)


def test_another_split_seed_moves_val_and_test():
    one, two = batches.load(digits(), 1), batches.load(digits(split_seed=1), 1)
    assert not np.array_equal(one.test.x, two.test.x)
    assert not np.array_equal(one.val.x, two.val.x)


def test_a_larger_training_set_leaves_val_and_test_as_they_are():
    one, two = batches.load(digits(), 1), batches.load(digits(train_size=None), 1)
    assert np.array_equal(one.test.x, two.test.x)
    assert np.array_equal(one.val.x, two.val.x)
    assert len(two.train.y) == 1797 - 500


def test_the_parts_are_disjoint_and_make_up_the_whole(tmp_path):
    x = write_npz(tmp_path / "a.npz")
    held = batches.load(npz_spec(tmp_path / "a.npz"), 3)
    parts = [rows(held.train), rows(held.val), rows(held.test)]
    assert [len(p) for p in parts] == [30, 12, 18]
    assert set.union(*parts) == {p.tobytes() for p in x}  # 60 in all: no picture twice


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_may_lie_last_and_labels_in_a_column(tmp_path, channels):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, channels, 9, 8), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "first.npz", x=x, y=y)
    np.savez(tmp_path / "last.npz", x=x.transpose(0, 2, 3, 1), y=y[:, None])
    first, last = (
        batches.load(npz_spec(tmp_path / f"{name}.npz", channels=channels), 0).fingerprint()
        for name in ("first", "last")
    )
    assert first == last


@pytest.mark.parametrize("seed", range(5))
def test_every_part_holds_each_class_s_share(seed):
    held = batches.load(digits(), seed)
    for split in (held.train, held.val, held.test):
        exact = np.array(DIGITS_BY_CLASS) * len(split.y) / 1797
        assert np.abs(np.bincount(split.y, minlength=10) - exact).max() < 1.5


def test_shares_add_up_to_the_count_for_any_class_sizes():
    rng = np.random.default_rng(0)
    for _ in range(200):
        y = rng.integers(0, rng.integers(1, 6), rng.integers(5, 80))
        count = int(rng.integers(0, len(y) + 1))
        chosen = splitting.share(y, count, 0)
        assert len(chosen) == len(set(chosen.tolist())) == count
        sizes = np.bincount(y)
        exact = sizes * count / len(y)
        if (exact[sizes > 0] >= 1).all():  # else a rare class has more than its share: test_splitting.py
            assert (np.abs(np.bincount(y[chosen], minlength=len(exact)) - exact) < 1).all()


def test_mnist_s_own_test_part_is_kept_apart(tmp_path, monkeypatch):
    """Pool.test: the last pictures are the set's own test part (written here in the cache's format)."""
    (tmp_path / "mnist").mkdir()
    y = np.tile(np.arange(10), 7000)
    np.save(
        tmp_path / "mnist" / "images.npy",
        np.broadcast_to((np.arange(70000) >= 60000)[:, None, None] * np.uint8(9), (70000, 4, 4)).astype(np.uint8),
    )
    np.save(tmp_path / "mnist" / "labels.npy", y)
    monkeypatch.setenv("LAYERWISE_LR_CACHE", str(tmp_path))
    held = batches.load(DataSpec(name="mnist", image_size=4, train_size=40, val_size=20, test_size=30), 0)
    assert (held.test.x == 9).all()
    assert not held.train.x.any()
    assert not held.val.x.any()
    assert [len(s.y) for s in (held.train, held.val, held.test)] == [40, 20, 30]
    pictures._read.cache_clear()


@pytest.mark.parametrize("sizes", [(1298, 200, 300), (0, 200, 300), (None, 1000, 797), (1, 1797, 0)])
def test_sizes_that_do_not_fit_are_refused(sizes):
    train, val, test = sizes
    with pytest.raises(UserError, match="do not fit into 1797"):
        splitting.train_count(DataSpec(train_size=train, val_size=val, test_size=test))


def test_the_largest_sizes_that_fit():
    assert splitting.train_count(DataSpec(train_size=1297, val_size=200, test_size=300)) == 1297
    assert splitting.train_count(DataSpec(train_size=None, val_size=0, test_size=1796)) == 1


def test_a_class_left_without_training_pictures_is_said(tmp_path):
    write_npz(tmp_path / "a.npz")
    with pytest.raises(UserError, match="no picture of class"):
        batches.load(npz_spec(tmp_path / "a.npz", train_size=2), 0)


def test_a_class_of_which_val_and_test_have_all_is_said(tmp_path):
    x, y = np.zeros((8, 6, 6), np.uint8), np.array([0, 1, 0, 1])
    arrays = {"x_train": x, "y_train": np.tile(y, 2), "x_val": x[:2], "y_val": np.array([2, 0])}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=r"no picture of class 2 is left to train on: .* move some of them to train"):
        batches.load(DataSpec(name="npz", path=str(tmp_path / "a.npz"), image_size=6, train_size=None, test_size=2), 0)


# --- batches


def test_a_batch_is_a_function_of_seed_and_step():
    held = batches.load(digits(flip=True), 0)
    x, y = held.batch(17, 16, 5)
    held.batch(3, 16, 5)
    again = batches.load(digits(flip=True), 0).batch(17, 16, 5)
    assert np.array_equal(x, again[0])
    assert np.array_equal(y, again[1])
    assert not np.array_equal(x, held.batch(17, 16, 6)[0])
    assert not np.array_equal(x, held.batch(18, 16, 5)[0])


@pytest.mark.parametrize("batch_size", [1, 7, 25, 100])
def test_an_epoch_is_a_permutation_without_its_rest(tmp_path, batch_size):
    write_npz(tmp_path / "a.npz", n=160)
    held = batches.load(npz_spec(tmp_path / "a.npz", train_size=100), 0)
    known = rows(batches.Split(held.normalise(held.train.x), held.train.y))
    steps = 100 // batch_size
    epochs = []
    for epoch in range(3):
        seen = [x.tobytes() for s in range(steps) for x in held.batch(epoch * steps + s, batch_size, 1)[0]]
        assert len(set(seen)) == len(seen) == steps * batch_size
        assert set(seen) <= known
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_labels_stay_with_their_pictures(tmp_path):
    x = np.repeat(np.arange(60, dtype=np.uint8), 16).reshape(60, 4, 4)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(60) % 3)
    spec = npz_spec(tmp_path / "a.npz", image_size=4, mean=[0.0], std=[1.0], flip=True)
    for step in range(20):
        pictures, labels = batches.load(spec, 0).batch(step, 10, 0)
        assert (np.round(pictures[:, 0, 0, 0] * 255) % 3 == labels).all()


def test_flip_mirrors_left_to_right_about_half_and_only_in_training(tmp_path):
    x = np.zeros((90, 5, 6), np.uint8)
    x[:, 1, 0] = 255
    np.savez(tmp_path / "a.npz", x=np.pad(x, ((0, 0), (0, 1), (0, 0))), y=np.arange(90) % 3)
    spec = npz_spec(tmp_path / "a.npz", image_size=6, train_size=60, mean=[0.0], std=[1.0], flip=True)
    held = batches.load(spec, 0)
    seen = np.concatenate([held.batch(s, 60, 0)[0] for s in range(20)])
    left, right = seen[:, 0, 1, 0] == 1, seen[:, 0, 1, 5] == 1
    assert (left ^ right).all()
    assert 0.45 < right.mean() < 0.55
    assert (seen.reshape(len(seen), -1).sum(axis=1) == 1).all()
    assert (held.train.x[:, 0, 1, 0] == 255).all(), "the stored pictures must not be mirrored in place"
    assert (held.val.x[:, 0, 1, 0] == 255).all()


def test_normalisation_per_channel():
    held = batches.load(digits(channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 1.0, 2.0]), 0)
    raw = held.train.x[:4]
    assert raw.shape == (4, 3, 28, 28)
    found = held.normalise(raw)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    for c, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        assert found[:, c] == pytest.approx((raw[:, c] / 255.0 - mean) / std, abs=1e-6)


def test_batches_have_the_promised_types():
    x, y = batches.load(digits(), 0).batch(0, 8, 0)
    assert (x.dtype, y.dtype, x.shape) == (np.float32, np.int64, (8, 1, 28, 28))
    assert x.min() == -1.0
    assert x.max() <= 1.0


# --- fingerprints


def test_the_fingerprint_counts_and_follows_every_bit(tmp_path):
    x = write_npz(tmp_path / "a.npz")
    one = batches.load(npz_spec(tmp_path / "a.npz"), 0).fingerprint()
    assert one["train"]["class_counts"] == [10, 10, 10]
    assert one["test"]["n"] == 18
    assert one["shape"] == [1, 9, 9]
    assert batches.load(npz_spec(tmp_path / "a.npz"), 0).fingerprint() == one
    x[0, 0, 0] ^= 1
    np.savez(tmp_path / "b.npz", x=x, y=np.arange(60) % 3)
    other = batches.load(npz_spec(tmp_path / "b.npz"), 0).fingerprint()
    assert sum(one[p]["sha256"] != other[p]["sha256"] for p in ("train", "val", "test")) == 1


def test_the_fingerprint_follows_a_label(tmp_path):
    x = write_npz(tmp_path / "a.npz")
    one = batches.load(npz_spec(tmp_path / "a.npz"), 0).fingerprint()
    y = np.arange(60) % 3
    y[[0, 1]] = y[[1, 0]]
    np.savez(tmp_path / "b.npz", x=x, y=y)
    assert batches.load(npz_spec(tmp_path / "b.npz"), 0).fingerprint() != one


# --- npz


def test_npz_pictures_come_as_written(tmp_path):
    x = write_npz(tmp_path / "a.npz", shape=(3, 9, 9))
    pool = pictures.load_pool(npz_spec(tmp_path / "a.npz", channels=3))
    assert np.array_equal(pool.x, x)


def test_npz_is_resized_as_pillow_does(tmp_path):
    x = write_npz(tmp_path / "a.npz", n=3)
    pool = pictures.load_pool(npz_spec(tmp_path / "a.npz", image_size=14))
    expected = np.asarray(Image.fromarray(x[1]).resize((14, 14), Image.Resampling.BILINEAR))
    assert np.array_equal(pool.x[1, 0], expected)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"x": np.zeros((4, 8, 8), np.float32), "y": np.zeros(4, int)}, "x must be uint8.*float32"),
        ({"x": np.zeros((4, 8, 8, 5), np.uint8), "y": np.zeros(4, int)}, r"1 or 3, H, W.*\[4, 8, 8, 5\]"),
        ({"x": np.zeros((4, 64), np.uint8), "y": np.zeros(4, int)}, "x must be"),
        ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.zeros(3, int)}, "y must be 4 labels"),
        ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.zeros(4)}, "y must be 4 labels.*float64"),
        ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.array([0, 1, -1, 0])}, "labels from 0"),
        ({"x": np.zeros((4, 8, 8), np.uint8)}, "arrays x and y"),
        ({"x": np.array([{}] * 4), "y": np.zeros(4, int)}, "arrays x and y"),
        ({"x": np.zeros((0, 8, 8), np.uint8), "y": np.zeros(0, int)}, "holds no pictures"),
    ],
)
def test_a_faulty_npz_is_refused(tmp_path, arrays, word):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=word):
        pictures.facts(npz_spec(tmp_path / "a.npz"))


@pytest.mark.parametrize("junk", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 40, "torn"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, junk):
    path = tmp_path / "a.npz"
    if junk == "torn":
        write_npz(path)
        junk = path.read_bytes()[:700]
    path.write_bytes(junk)
    with pytest.raises(UserError, match=r"not an \.npz"):
        pictures.facts(npz_spec(path))


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (DataSpec(name="digts"), "'digts' is unknown.*did you mean 'digits'"),
        (DataSpec(name="npz"), "data.path is missing"),
        (DataSpec(name="image_folder", path="/nowhere/at/all"), "no such file or folder"),
    ],
)
def test_unknown_data_and_missing_paths(spec, word):
    with pytest.raises(UserError, match=word):
        pictures.facts(spec)


def test_data_not_fetched_says_how(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERWISE_LR_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="layerwise-lr fetch elpv"):
        pictures.load_pool(DataSpec(name="elpv", image_size=13))


# --- image folder


def write_folder(root, classes=("ant", "bee"), n=8):
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            array = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
            array[..., 2] = 20 * label if len(classes) > 3 else 100 * label
            Image.fromarray(array).save(root / name / f"{i}.png")
        (root / name / "notes.txt").write_text("not a picture")
    return root


def folder_spec(root, **options):
    return DataSpec(
        **{
            "name": "image_folder",
            "path": str(root),
            "image_size": 6,
            "resize": "squash",
            "channels": 3,
            "train_size": 8,
            "val_size": 4,
            "test_size": 4,
            **options,
        }
    )


def pixels(spec):
    """The pictures of a pool of files, each as it is read."""
    return np.stack([read_resized(path, spec) for path in pictures.load_pool(spec).files])


def test_an_image_folder_s_classes_are_its_folders_in_order(tmp_path):
    root = write_folder(tmp_path / "pictures", ("bee", "ant", "cow"))
    pool = pictures.load_pool(folder_spec(root))
    assert pictures.facts(folder_spec(root))[:3] == (24, 3, 0)
    blue = {0: 100, 1: 0, 2: 200}  # sorted: ant bee cow; write_folder numbers bee ant cow
    x = pixels(folder_spec(root))
    assert (x[:, 2, 3, 3] == [blue[label] for label in pool.y.tolist()]).all()
    image = Image.open(root / "bee" / "3.png").resize((6, 6), Image.Resampling.BILINEAR)
    assert np.array_equal(x[8 + 3], np.asarray(image).transpose(2, 0, 1))


def test_grey_and_palette_pictures_and_transparency_become_what_is_asked(tmp_path):
    root = write_folder(tmp_path / "pictures")
    Image.new("L", (9, 9), 7).save(root / "ant" / "grey.png")
    Image.new("P", (9, 9), 0).save(root / "ant" / "palette.gif")
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(root / "ant" / "alpha.PNG")
    assert pixels(folder_spec(root)).shape == (19, 3, 6, 6)
    assert pixels(folder_spec(root, channels=1)).shape == (19, 1, 6, 6)


@pytest.mark.parametrize("how", ["text", "torn", "empty"])
def test_a_corrupt_picture_is_named(tmp_path, how):
    root = write_folder(tmp_path / "pictures")
    bad = root / "bee" / "3.png"
    whole = bad.read_bytes()
    bad.write_bytes({"text": b"hello", "torn": whole[: len(whole) // 2], "empty": b""}[how])
    with pytest.raises(UserError, match=r"1 of 16 pictures cannot be read: bee/3\.png .*data.skip_broken=true"):
        pictures.load_pool(folder_spec(root))


def test_a_folder_without_classes_or_with_an_empty_one_is_refused(tmp_path):
    root = write_folder(tmp_path / "one", ("ant",))
    with pytest.raises(UserError, match="at least two; found 1"):
        pictures.facts(folder_spec(root))
    (root / "bee").mkdir()
    with pytest.raises(UserError, match="without pictures: bee"):
        pictures.facts(folder_spec(root))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([str(n) for n in range(12, 0, -1)], [str(n) for n in range(1, 13)]),
        (["a10", "a2", "a1"], ["a1", "a2", "a10"]),
        (["b", "a", "10", "9"], ["9", "10", "a", "b"]),
        (["x2y10", "x10y1", "x2y9"], ["x2y9", "x2y10", "x10y1"]),
        (["007", "8", "9a", "9"], ["007", "8", "9", "9a"]),
        (["m³", "m²", "m"], ["m", "m²", "m³"]),
    ],
)
def test_class_folders_count_as_people_do(tmp_path, names, order):
    """And data.json says which class has which number."""
    root = write_folder(tmp_path / "pictures", names, n=4)
    sizes = {"train_size": len(names), "val_size": len(names), "test_size": len(names)}
    dataset = batches.load(folder_spec(root, **sizes), 0)
    assert dataset.fingerprint()["classes"] == dict(enumerate(order))
    pool = pictures.load_pool(folder_spec(root))
    assert pool.names == tuple(order)
    first = np.asarray(Image.open(root / order[-1] / "0.png").resize((6, 6), Image.Resampling.BILINEAR))
    assert np.array_equal(pixels(folder_spec(root))[pool.y == len(order) - 1][0], first.transpose(2, 0, 1))


def test_pictures_without_names_have_their_numbers():
    assert batches.load(digits(), 0).fingerprint()["classes"] == {n: str(n) for n in range(10)}


def test_a_class_that_a_part_lacks_is_told(tmp_path):
    """Two pictures of bee: one trains, one is for the validation part."""
    root = write_folder(tmp_path / "pictures", ("ant", "bee"), n=20)
    for path in sorted((root / "bee").glob("*.png"))[2:]:
        path.unlink()
    dataset = batches.load(folder_spec(root, train_size=10, val_size=4, test_size=8), 0)
    assert not (dataset.test.y == 1).any() and (dataset.val.y == 1).any()
    *_, note = dataset.notes()
    assert "the test part has no picture of 1 of 2 classes (bee)" in note and "data.test_size" in note
