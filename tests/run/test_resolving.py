"""A final config: sizes, absent data, and that final is final."""

from dataclasses import replace

import pytest

from layerwise_lr.planning import UserError
from layerwise_lr.run import Config, resolve
from layerwise_lr.run.reading import from_data, read


def test_steps_win_over_epochs():
    assert resolve(replace(Config(), batch_size=10, epochs=7, steps=3)).steps == 3
    assert resolve(replace(Config(), batch_size=10, epochs=7)).steps == 7 * (50 // 10)


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(UserError, match="batch_size=51 is more than the 50 training pictures; lower batch_size"):
        resolve(replace(Config(), batch_size=51))


def test_resolve_is_idempotent(rich):
    for config in (Config(), rich):
        once = resolve(config)
        assert resolve(once) == once
        assert resolve(once).sha256() == once.sha256()


def absent(tmp_path, **options):
    """A config on CIFAR-10 that is not here."""
    sizes = {"image_size": 32, "channels": 3, "train_size": 200, "val_size": 5000, "test_size": 10000}
    look = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "flip": True}
    data = {"name": "cifar10", "path": str(tmp_path), "stand_in": "digits", **sizes, **look, **options}
    return from_data({"model": {"name": "resnet18"}, "data": data, "batch_size": 20})


def test_where_data_are_absent_the_digits_stand_in(tmp_path):
    final = resolve(absent(tmp_path)).data
    assert (final.name, final.stands_for, final.stand_in) == ("digits", "cifar10", None)
    assert (final.train_size, final.val_size, final.test_size) == (200, 300, 500)
    assert (final.image_size, final.channels, final.flip) == (32, 3, True)
    assert (final.mean, final.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert resolve(absent(tmp_path)).steps == 4 * (200 // 20)


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ({"train_size": 997}, (997, 300, 500)),  # 1797 - 300 - 500: the most that fits
        ({"train_size": 998}, (None, 300, 500)),
        ({"train_size": None, "val_size": 299, "test_size": 20}, (None, 299, 20)),
    ],
)
def test_a_stand_in_s_sizes_are_cut_to_what_it_has(sizes, cut, tmp_path):
    final = resolve(absent(tmp_path, **sizes)).data
    assert (final.train_size, final.val_size, final.test_size) == cut


def test_a_stand_in_is_final(tmp_path):
    once = resolve(absent(tmp_path))
    assert resolve(once) == once
    (tmp_path / "c.yaml").write_text(once.to_yaml())
    assert read(tmp_path / "c.yaml") == once
    assert once.sha256() != resolve(replace(absent(tmp_path), data=replace(once.data, stands_for=None))).sha256()


def test_nothing_stands_in_for_data_that_are_here(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"")  # here, if not whole: that is another error
    final = resolve(absent(tmp_path)).data
    assert (final.name, final.stands_for, final.stand_in, final.val_size) == ("cifar10", None, None, 5000)
    assert resolve(from_data({"data": {"stand_in": "digits"}})) == resolve(Config())


@pytest.mark.parametrize(
    "data",
    [
        {"name": "idx", "path": "nowhere"},
        {"name": "npz", "path": "nowhere.npz"},
        {"name": "image_folder", "path": "nowhere"},
        {"name": "mnist"},
        {"name": "elpv"},
        {"name": "cifar10"},
    ],
    ids=lambda data: data["name"],
)
def test_every_data_set_can_have_a_stand_in(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAYERWISE_LR_CACHE", str(tmp_path))
    final = resolve(from_data({"data": {**data, "stand_in": "digits"}})).data
    assert (final.name, final.stands_for) == ("digits", data["name"])


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"name": "cifar10", "stand_in": "mnist"}, r"data\.stand_in=mnist must be digits or null"),
        ({"stands_for": "cifar01"}, r"data\.stands_for=cifar01 must be null"),
        ({"name": "mnist", "stands_for": "cifar10"}, r"data\.stands_for=cifar10 must be null"),
        ({"name": "npz", "stand_in": "digits"}, r"data\.path is missing"),
        ({"name": "cifar01", "stand_in": "digits"}, "'cifar01' is unknown.*did you mean 'cifar10'"),
    ],
)
def test_what_can_stand_in_and_for_what(data, word):
    with pytest.raises(UserError, match=word):
        resolve(from_data({"data": data}))
