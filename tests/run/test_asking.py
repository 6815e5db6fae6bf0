"""A finished run's model answers as its forward pass by hand, and is as right as the run itself measured."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from finished_runs import pictures, trained
from PIL import Image
from safetensors.numpy import load_file, save_file

from layerwise_lr.data import DataSpec, batches
from layerwise_lr.data import pictures as sets
from layerwise_lr.data.spec import TEST, TRAIN, Pool
from layerwise_lr.planning import UserError
from layerwise_lr.run import asking, open_run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("asking")
    trained(home / "run", pictures(home / "pictures"))
    return home


@pytest.fixture
def run(home):
    return open_run(home / "run")


def by_hand(run, x):
    """The mlp's logits in float64."""
    w = {name: array.astype(np.float64) for name, array in load_file(run.weights_file).items()}
    data = run.config.data
    z = (x[:] / 255 - np.reshape(data.mean, (3, 1, 1))) / np.reshape(data.std, (3, 1, 1))
    hidden = np.maximum(z.reshape(len(x), -1) @ w["fc1.weight"].T + w["fc1.bias"], 0)
    return hidden @ w["classifier.weight"].T + w["classifier.bias"]


@pytest.mark.parametrize("count", [1, 64, 65, 130])
def test_logits_are_the_forward_pass(run, count):
    x = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), np.uint8)
    assert np.allclose(asking.Model(run).logits(x), by_hand(run, x), atol=1e-4)


def test_its_own_parts_score_as_the_run_measured(run):
    scores = [asking.score(asking.Model(run), part) for part in asking.own_parts(run)]
    assert [score.part for score in scores] == ["val", "test"]
    for score in scores:
        assert score.metrics == pytest.approx(run.summary[score.part], abs=1e-5)
        assert np.trace(score.confusion) / score.pictures == pytest.approx(score.metrics["accuracy"])
    assert asking.unlike_the_run(run, scores) == []
    other = run._replace(summary={**run.summary, "test": {"accuracy": 0.01}})
    assert "itself measured an accuracy of 0.0100 on test" in asking.unlike_the_run(other, scores)[0]


def test_classes_are_matched_by_name(home, run, tmp_path):
    """A set with other classes in another order of folders: labels are the run's numbers."""
    pictures(tmp_path / "set", 4, ("eels", "dogs"))
    part = asking.other_part(run, DataSpec(name="image_folder", path=str(tmp_path / "set")))
    assert part.name == "all"
    assert part.y.tolist() == [1] * 4 + [2] * 4  # natural order of the folders: dogs, eels
    assert part.x.shape == (8, 3, 8, 8)
    score = asking.score(asking.Model(run), part)
    rows = {one.name: one for one in asking.by_class(run, score)}
    assert rows["cats"].pictures == 0 and rows["cats"].recall is None
    right = by_hand(run, part.x).argmax(1) == part.y
    assert rows["eels"].recall == right[4:].mean() and rows["dogs"].recall == right[:4].mean()


def test_a_class_that_the_run_does_not_know_is_refused(run, tmp_path):
    pictures(tmp_path / "set", 2)
    (tmp_path / "set" / "eels").rename(tmp_path / "set" / "frogs")
    with pytest.raises(UserError, match=r"1 classes that .* was not trained on \(frogs\); it knows cats, dogs, eels"):
        asking.other_part(run, DataSpec(name="image_folder", path=str(tmp_path / "set")))
    with pytest.raises(UserError, match=r"\(0, 1, 2, 3, 4, 5, ...\)"):
        asking.other_part(run, DataSpec(name="digits"))


def test_a_class_folder_that_came_later_is_refused(tmp_path):
    run = open_run(trained(tmp_path / "run", pictures(tmp_path / "pictures")))
    (tmp_path / "pictures" / "bats").mkdir()
    for index in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "bats" / f"{index}.png")
    for cache in (sets._read, sets._listed_at, sets._sound_at):
        cache.cache_clear()  # as in another process
    with pytest.raises(UserError, match="bats"):
        asking.own_parts(run)


def test_a_set_with_a_test_part_of_its_own_is_asked_that(run, monkeypatch):
    x = np.zeros((9, 3, 8, 8), np.uint8)
    x[5:] = 7
    parts = np.array([TRAIN] * 5 + [TEST] * 4, np.int8)
    pool = Pool(x, np.array([0, 1, 2] * 3), parts, ("dogs", "cats", "eels"))
    monkeypatch.setattr(batches, "load_pool", lambda spec: pool)
    part = asking.other_part(run, DataSpec(name="digits"))
    assert part.name == "test" and part.x.tolist() == x[5:].tolist()
    assert part.y.tolist() == [2, 1, 0, 2]  # eels dogs cats eels


def test_every_key_of_a_data_set_is_a_place_or_a_preparation_or_of_training():
    """A new key must be put where it belongs: one that changes a picture and is forgotten gives wrong answers."""
    training = {
        "train_size",
        "val_size",
        "test_size",
        "split_seed",
        "flip",
        "stand_in",
        "stands_for",
        "workers",
        "memory",
    }
    assert {*asking.PREPARATION, *asking.SOURCE, *training} == {field.name for field in fields(DataSpec)}
    assert not set(asking.PREPARATION) & set(asking.SOURCE)


def test_answers_that_are_no_numbers_are_told(home, tmp_path):
    run = open_run(trained(tmp_path / "run"))
    held = load_file(run.weights_file)
    held["classifier.bias"][:] = np.nan
    save_file(held, run.weights_file)
    x = np.zeros((1, 1, 8, 8), np.uint8)
    with pytest.raises(UserError, match="no numbers"):
        asking.Model(run).logits(x)


def test_a_model_is_opened_without_its_start_weights(run):
    """Those may be gone, or a download."""
    config = replace(run.config, weights=replace(run.config.weights, name="file", path="gone.pth"))
    assert asking.Model(run._replace(config=config)).logits(np.zeros((1, 3, 8, 8), np.uint8)).shape == (1, 3)
    pretrained = replace(
        run.config,
        model=replace(run.config.model, source="torchvision", name="inception_v3"),
        weights=replace(run.config.weights, name="pretrained"),
    )
    made = asking.bare(pretrained, run.config.framework)
    assert made.weights.name == "none" and made.model.options == {"transform_input": True}


def test_a_framework_that_is_not_there_is_told(run):
    with pytest.raises(UserError, match="unknown; there are: torch"):
        asking.Model(run, "tensorflow")


def test_the_summary_is_json_that_the_run_wrote(run):
    assert run.summary == json.loads((run.path / "summary.json").read_text())
