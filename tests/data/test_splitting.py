"""Sizes as numbers, as shares and by default; each class in each part."""

import numpy as np
import pytest

from layerwise_lr.data import DataSpec, batches, is_size, sized, splitting, train_count
from layerwise_lr.planning import UserError
from layerwise_lr.run import Config, resolve
from layerwise_lr.run.reading import from_data


@pytest.mark.parametrize("size", [1, 60, "20%", "0.5%", "12.5 %", 0.2, 0.999])
def test_what_is_a_size(size):
    assert is_size(size)


@pytest.mark.parametrize("size", [0, -1, 0.0, 1.0, 1.5, -0.2, "0%", "100%", "120%", "60", "%", "", True, [3], "1e3%"])
def test_what_is_no_size(size):
    assert not is_size(size)


def npz(tmp_path, counts, **more):
    """`counts` of each class, in one part or, where it is a mapping, in several; a picture's value is its number."""
    arrays = dict(more)
    for word, sizes in (counts if isinstance(counts, dict) else {"": counts}).items():
        y = np.repeat(np.arange(len(sizes)), sizes)
        arrays |= {f"x{word}": np.arange(len(y) * 16, dtype=np.int64).reshape(-1, 4, 4).astype(np.uint8), f"y{word}": y}
    np.savez(tmp_path / "d.npz", **arrays)
    return tmp_path / "d.npz"


def spec(path, **sizes):
    return DataSpec(
        **{"name": "npz", "path": str(path), "image_size": 4, "train_size": None, "val_size": None, "test_size": None}
        | sizes
    )


def counts(dataset):
    return [
        np.bincount(part.y, minlength=len(dataset.names)).tolist()
        for part in (dataset.train, dataset.val, dataset.test)
    ]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, (None, 30, 30)),
        ({"val_size": "20%", "test_size": 0.1}, (None, 40, 20)),
        ({"val_size": 25}, (None, 25, 30)),
        ({"val_size": "20%", "test_size": "20%", "train_size": "50%"}, (60, 40, 40)),
        ({"train_size": 0.1}, (14, 30, 30)),
        ({"val_size": "0.1%", "test_size": "0.1%"}, (None, 2, 2)),
    ],
)
def test_shares_are_of_all_pictures(sizes, expected, tmp_path):
    found = sized(spec(npz(tmp_path, [100, 100]), **sizes))
    assert (found.train_size, found.val_size, found.test_size) == expected
    assert sized(found) == found
    assert train_count(found) == (expected[0] or 200 - expected[1] - expected[2])


def test_a_final_config_holds_numbers(tmp_path):
    data = {"name": "npz", "path": str(npz(tmp_path, [60, 60])), "image_size": 4, "val_size": "20%", "test_size": None}
    data |= {"train_size": None}
    final = resolve(from_data({"data": data, "model": {"name": "mlp"}, "weights": {"name": "none"}, "batch_size": 5}))
    assert (final.data.train_size, final.data.val_size, final.data.test_size) == (None, 24, 18)
    assert resolve(final) == final
    assert resolve(Config()).data.val_size == 400


@pytest.mark.parametrize("sizes", [{"val_size": "90%", "test_size": "20%"}, {"val_size": 199}, {"train_size": 141}])
def test_shares_that_do_not_fit_are_refused(sizes, tmp_path):
    with pytest.raises(UserError, match="do not fit into 200 pictures"):
        train_count(spec(npz(tmp_path, [100, 100]), **sizes))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [[60, 60, 3], [3, 3, 3], [200, 3, 4, 5], [3] * 40, [1000, 10], [5, 5, 90, 90, 3]])
def test_a_rare_class_is_in_each_part(classes, seed, tmp_path):
    dataset = batches.load(spec(npz(tmp_path, classes), split_seed=seed), seed)
    found = np.array(counts(dataset))
    assert (found >= 1).all()
    assert found.sum(axis=0).tolist() == classes
    assert dataset.notes() == []
    total, size = sum(classes), sum(found[1])
    assert size == max(round(0.15 * total), min(len(classes), total // 3))
    for part in found[1:]:
        share = np.array(classes) * size / total
        assert (part[share >= 1.5] > 0.5 * share[share >= 1.5] - 1).all()


def test_too_rare_is_told_by_name(tmp_path):
    path = npz(tmp_path, [50, 50, 2, 1], names=np.array(["ant", "bee", "cow", "dodo"]))
    dataset = batches.load(spec(path), 0)
    assert [c[2:] for c in counts(dataset)] == [[1, 1], [1, 0], [0, 0]]
    assert ["validation part has no picture of 1 of 4 classes (dodo)" in n for n in dataset.notes()] == [True, False]
    assert "test part has no picture of 2 of 4 classes (cow, dodo)" in dataset.notes()[1]


def test_common_classes_are_shared_as_ever():
    """Largest remainders alone, where no class is rare: runs of before draw the same pictures."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        y = rng.integers(0, 4, 200)
        count = int(rng.integers(40, 100))
        sizes = np.bincount(y)
        exact = sizes * count / len(y)
        whole = np.floor(exact).astype(int)
        for c in sorted(range(4), key=lambda c: -(exact - whole)[c])[: count - whole.sum()]:
            whole[c] += 1
        for spare in (0, 1, 2):
            assert np.bincount(y[splitting.share(y, count, 0, spare)]).tolist() == whole.tolist()


@pytest.mark.parametrize(("count", "spare"), [(0, 2), (1, 2), (5, 0), (9, 2), (10, 2), (16, 0)])
def test_a_share_is_of_its_count_whatever_is_asked(count, spare):
    y = np.repeat([0, 1, 2], [10, 5, 1])
    chosen = splitting.share(y, count, 0, spare)
    assert len(set(chosen.tolist())) == count


# --- sets that come split


def test_parts_are_read_as_they_are(tmp_path):
    path = npz(tmp_path, {"_train": [10, 12], "_val": [3, 4], "_test": [5, 2]})
    dataset = batches.load(spec(path), 0)
    assert counts(dataset) == [[10, 12], [3, 4], [5, 2]]


def test_of_a_part_a_number_or_a_share_can_be_asked(tmp_path):
    path = npz(tmp_path, {"": [10, 12], "_valid": [10, 10], "_test": [10, 10]})
    assert counts(batches.load(spec(path, val_size=6, test_size="20%"), 0)) == [[10, 12], [3, 3], [2, 2]]
    dataset = batches.load(spec(path, val_size=30), 0)
    assert counts(dataset)[1] == [10, 10]
    assert dataset.notes() == ["the set's own validation part has 20 pictures, fewer than data.val_size asks for"]


def test_a_part_that_is_missing_is_drawn_from_train(tmp_path):
    path = npz(tmp_path, {"": [50, 50], "_val": [3, 3]})
    assert [sum(c) for c in counts(batches.load(spec(path), 0))] == [85, 6, 15]
    path = npz(tmp_path, {"": [50, 50], "_test": [3, 3]})
    spec_ = spec(path, skip_broken=True)  # another key: the file has changed
    assert [sum(c) for c in counts(batches.load(spec_, 0))] == [85, 15, 6]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x_train": 1, "y_train": 0, "x_test": 1}, "arrays x_test and y_test"),
        ({"x_val": 1, "y_val": 1}, "x_train and y_train; it holds x_val, y_val"),
        ({"x": 1, "y": 1, "x_test": 2, "y_test": 1}, "parts are of different shapes"),
        ({"x": 1, "y": 1, "names": np.array(["a"])}, "names must be 2 texts"),
        ({"x": 1, "y": 1, "names": np.array([1, 2])}, "names must be 2 texts, one a class; it is int64"),
        ({"x": 1, "y": 1, "names": np.array([{}, 2])}, "not an .npz"),
    ],
)
def test_a_faulty_npz_of_parts_is_refused(arrays, says, tmp_path):
    make = {"x": lambda n: np.zeros((4, 4, 4 * n), np.uint8), "y": lambda n: np.array([0, 1, 0, 1])}
    arrays = {k: v if k == "names" else make[k[0]](v) for k, v in arrays.items()}
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(UserError, match=says.replace(".", r"\.")):
        batches.load(spec(tmp_path / "d.npz"), 0)


def test_names_of_an_npz(tmp_path):
    path = npz(tmp_path, [9, 9], names=np.array(["ant", "bee"]))
    assert batches.load(spec(path), 0).fingerprint()["classes"] == {0: "ant", 1: "bee"}
