"""A run folder opened to be asked: what it keeps, and what is refused of folders that others made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from finished_runs import pictures, trained
from safetensors.numpy import load_file, save_file

from layerwise_lr.planning import UserError
from layerwise_lr.run import CONFIG, RunFolder, kept_checkpoint, open_run, page


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("finished")
    return trained(home / "run", pictures(home / "pictures"))


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def refused(folder, *says):
    with pytest.raises(UserError) as caught:
        run = open_run(folder)
        run.weights(page.plan_of(run.config)[1])
    for word in says:
        assert word in str(caught.value)
    assert str(caught.value).isprintable(), "one line"


def edit(folder, **parts):
    path = folder / CONFIG
    held = yaml.safe_load(path.read_text())
    for name, values in parts.items():
        held[name] |= values
    path.write_text(yaml.safe_dump(held))


def test_what_a_run_keeps_is_found(folder):
    run = open_run(folder)
    assert run.classes == ("cats", "dogs", "eels")
    assert run.step == run.config.steps == json.loads((folder / "summary.json").read_text())["steps"]
    held = load_file(folder / f"checkpoints/step_{run.step}/model.safetensors")
    found = run.weights(page.plan_of(run.config)[1])
    assert found.keys() == held.keys()
    assert all(np.array_equal(found[name], held[name]) for name in held)


def test_the_best_checkpoint_goes_before_the_latest(folder):
    step = (folder / "checkpoints/latest").read_text().strip()
    shutil.copytree(folder / f"checkpoints/{step}", folder / "checkpoints/step_1")
    assert kept_checkpoint(folder).parent.name == step
    (folder / "checkpoints/best").write_text("step_1\n")
    assert kept_checkpoint(folder).parent.name == "step_1"
    assert open_run(folder).step == 1


def test_a_run_that_kept_no_names_has_numbers(folder):
    data = json.loads((folder / "data.json").read_text())
    del data["classes"]
    (folder / "data.json").write_text(json.dumps(data))
    assert open_run(folder).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"state": "failed", "error": {"type": "UserError", "message": "lr\nis \x1b[31mred"}}, "(failed: lr is red)"),
        ({"state": "interrupted"}, "(interrupted)"),
        ({"state": "running", "pid": 2**22 + 1}, "(crashed)"),
        ({"state": "claimed", "pid": "x"}, "does not tell how the run ended"),
        ({"pid": 1}, "does not tell how the run ended"),
        ([], "holds no facts by name"),
    ],
)
def test_an_unfinished_run_is_told_with_the_way_on(folder, state, says):
    (folder / "summary.json").unlink()
    if isinstance(state, dict):
        state = {**json.loads((folder / "status.json").read_text()), **state} if "state" in state else state
    (folder / "status.json").write_text(json.dumps(state))
    refused(folder, says, "run")


def test_a_run_in_progress_is_waited_for(folder):
    (folder / "summary.json").unlink()
    with RunFolder(folder).running():
        refused(folder, "not finished yet; wait")


def test_what_is_no_run_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "a run folder holds config.resolved.yaml")


@pytest.mark.parametrize("name", ["checkpoints/best", "checkpoints", "data.json", "summary.json", CONFIG])
def test_no_link_leads_out(folder, tmp_path, name):
    outside = tmp_path / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    refused(folder, "leads out of the run's folder")


def test_weights_that_are_a_link_are_not_followed_out(folder, tmp_path):
    weights = kept_checkpoint(folder)
    shutil.move(weights, tmp_path / "w")
    weights.symlink_to(tmp_path / "w")
    refused(folder, "leads out of the run's folder")
    weights.unlink()
    weights.symlink_to(weights)
    refused(folder)


@pytest.mark.parametrize(
    "word", ["../../elsewhere", "step_1/../../x", "/etc", "", "step_", "step_٣", "step_1\x00", "step_99"]
)
def test_a_mark_names_a_checkpoint_beside_it_or_nothing(folder, word):
    (folder / "checkpoints/best").write_text(word)
    refused(folder, "best")


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ({"0": "a", "1": "b"}, "3 classes"),
        ({"0": "a", "1": "b", "2": 3}, "3 classes"),
        ({"0": "a", "1": "b", "2": "a"}, "two classes alike"),
        (["a", "b", "c"], "3 classes"),
    ],
)
def test_names_that_are_not_the_models_are_refused(folder, classes, says):
    (folder / "data.json").write_text(json.dumps({"classes": classes}))
    refused(folder, "data.json", says)


def test_files_that_are_no_json_are_one_line(folder):
    (folder / "data.json").write_text("[" * 100_000)
    refused(folder, "data.json", "not JSON")
    (folder / "summary.json").write_bytes(b"\xff\x00")
    refused(folder, "summary.json", "not JSON")


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"model": {"num_classes": 4}}, "4 classes"),
        ({"model": {"num_classes": 10**9}}, "sizes"),
        ({"model": {"num_classes": None}}, "sizes"),
        ({"model": {"image_size": 16}}, "sizes"),
        ({"model": {"width": 9}}, "of another shape: fc1.weight"),
        ({"model": {"depth": 2}}, "missing: fc2.weight"),
        ({"model": {"source": "transformers", "name": "x", "options": {"trust_remote_code": True}}}, "would run code"),
        ({"model": {"source": "timm", "name": "x", "options": {"checkpoint_path": "evil.pth"}}}, "would run code"),
        ({"model": {"options": {"a=1)#": 1}}}, "is no option"),
        ({"data": {"std": [0.0]}}, "data.std"),
        ({"model": {"nmae": "mlp"}}, "unknown key model.nmae"),
    ],
)
def test_a_config_that_is_not_the_runs_is_refused(folder, parts, says):
    edit(folder, **parts)
    refused(folder, says)


def test_weights_of_another_model_and_broken_ones_are_refused(folder):
    path = kept_checkpoint(folder)
    held = load_file(path)
    save_file({**held, "more.weight": np.zeros(3, np.float32)}, path)
    refused(folder, "1 not the model's: more.weight")
    path.write_bytes(path.read_bytes()[:100])
    refused(folder, "not readable weights")
    path.unlink()
    refused(folder, "is not there")
    shutil.rmtree(folder / "checkpoints")
    refused(folder, "keeps no checkpoint")
