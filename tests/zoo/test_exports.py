"""A run, exported, in the real packages with strict=True and in the real onnxruntime: the logits are predict's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from finished_runs import pictures, said, trained
from layerwise_lr.plugins.torch_plugin import zoo
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, load_model

from layerwise_lr.run import asking, exporting, open_run

SMALL_VIT = {"name": "vit_tiny", "depth": 2, "patch_size": 8, "embed_dim": 48, "layer_scale": 1e-5}
TIMM = {"source": "timm", "name": "vit_tiny_patch16_224", "options": {"depth": 2, "embed_dim": 48}}
SWIN = {"depths": [1, 1, 1, 1], "embed_dim": 24}
HF = {"patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
RUNS = {
    "resnet18": {"name": "resnet18"},
    "mobilenet_v2": {"name": "mobilenet_v2", "dropout": 0.1},
    "vit": SMALL_VIT,
    "vit_avg": {**SMALL_VIT, "pool": "avg"},
    "clip": {**SMALL_VIT, "pre_norm": True},
    "dropping": {**SMALL_VIT, "drop_path": 0.2, "dropout": 0.1},
    "timm": TIMM,
    "swin": {"source": "timm", "name": "swin_tiny_patch4_window7_224", "options": SWIN},
    "torchvision": {"source": "torchvision", "name": "squeezenet1_1"},
    "transformers": {"source": "transformers", "name": "vit", "options": HF},
    "narrow": {"name": "resnet18", "width": 8},
    "grey": {"name": "resnet18"},
    "mlp": {"name": "mlp", "width": 8, "depth": 1},
}
WEIGHTS = [
    ("resnet18", "torchvision"),
    ("resnet18", "timm"),
    ("mobilenet_v2", "torchvision"),
    ("vit", "timm"),
    ("vit_avg", "timm"),
    ("clip", "timm"),
    ("dropping", "timm"),
    ("timm", "timm"),
    ("swin", "timm"),
    ("torchvision", "torchvision"),
    ("transformers", "transformers"),
]
NAMES = ["cats", "dogs", "eels"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """name -> the folder of a run of RUNS, trained when it is asked for."""
    home, found = tmp_path_factory.mktemp("exports"), {}
    pictures(home / "pictures", 20, noise=120)

    def get(name):
        if name not in found:
            size = {"image_size": 32, "train_size": 24}
            size |= {"channels": 1, "mean": [0.5], "std": [0.5]} if name == "grey" else {}
            more = {"framework": {"name": "torch"}, "model": RUNS[name], "optimizer": {"lr": 1e-2}}
            found[name] = trained(home / name / "run", home / "pictures", size=size, verify=OFF, **more)
        return found[name]

    return get


OFF = {"start": False, "training": False}


def predicted(folder, files):
    """predict's probabilities [N, classes] by the order of NAMES."""
    out, _ = said(["predict", str(folder), *files, "--top", "9", "--json"])
    told = [{c["class"]: c["probability"] for c in p["classes"]} for p in json.loads(out)["pictures"]]
    return np.array([[one[name] for name in NAMES] for one in told])


def ready(folder, size=32):
    """Five files of 30 x 20, and the pixels of their middles by hand: uint8 [5, 3, S, S]."""
    files = [str(folder.parent.parent / "pictures" / f"{NAMES[i % 3]}/{i}.png") for i in range(5)]
    images, middle = [Image.open(file).convert("RGB") for file in files], (5, 0, 25, 20)
    read = [image.resize((size, size), Image.Resampling.BILINEAR, box=middle) for image in images]
    return files, np.stack([np.asarray(one).transpose(2, 0, 1) for one in read])


def scaled(x):
    mean, std = (np.reshape(each, (3, 1, 1)) for each in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    return ((x / 255 - mean) / std).astype(np.float32)


def softmax(logits):
    return torch.from_numpy(np.asarray(logits)).double().softmax(1).numpy()


@pytest.mark.parametrize(("name", "target"), WEIGHTS, ids="-".join)
def test_the_real_package_takes_it_strictly_and_answers_alike(run, name, target, monkeypatch):
    """By the very lines that the export printed."""
    folder = run(name)
    monkeypatch.chdir(folder.parent)
    out, _ = said(["export", "run", "--to", target])
    lines = [line.strip() for line in out.splitlines() if line.startswith("  ")]
    assert "strict=True" in lines[-1] and "of the run's test pictures" in out
    held = {}
    exec("\n".join(lines), held)
    model = held["model"].eval()
    assert type(model).__module__.partition(".")[0] == target
    files, x = ready(folder)
    with torch.no_grad():
        out = model(torch.from_numpy(scaled(x)))
    assert np.allclose(softmax(getattr(out, "logits", out)), predicted(folder, files), atol=1e-5)


def test_safetensors_own_loader_takes_it(run, tmp_path):
    file = tmp_path / "w.safetensors"
    said(["export", str(run("resnet18")), "--to", "torchvision", "--out", str(file)])
    model = torchvision.models.resnet18(num_classes=3)
    missing, unexpected = load_model(model, file, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    with safe_open(file, "pt") as held:
        facts = json.loads(held.metadata()["layerwise_lr"])
    assert facts["classes"] == NAMES and facts["pictures"]["mean"] == [0.4, 0.5, 0.6]
    assert facts["model"] == {"source": "torchvision", "name": "resnet18", "arguments": {"num_classes": 3}}


def test_a_vit_says_which_arguments_it_needs(run):
    said(["export", str(run("vit")), "--to", "timm"])
    told = json.loads((run("vit") / "export/timm.safetensors.json").read_text())["model"]
    given = {"num_classes": 3, "in_chans": 3, "embed_dim": 48, "depth": 2, "patch_size": 8, "init_values": 1e-5}
    assert told["arguments"] == {**given, "img_size": 32}
    bare = timm.create_model(told["name"], num_classes=3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        bare.load_state_dict(load_file(run("vit") / "export/timm.safetensors"), strict=True)


ONNX = [(name, False) for name in RUNS if name not in ("narrow", "grey")]
ONNX += [("resnet18", True), ("vit", True), ("narrow", True)]


@pytest.mark.parametrize(("name", "within"), ONNX)
def test_onnxruntime_answers_as_predict(run, tmp_path, name, within):
    folder, file = run(name), tmp_path / "m.onnx"
    out, _ = said(["export", str(folder), "--to", "onnx", *["--with-normalisation"] * within, "--out", str(file)])
    assert "onnxruntime" in out and "of the run's test pictures" in out
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert taken.name == "pictures" and taken.shape[1:] == [3, 32, 32] and isinstance(taken.shape[0], str)
    files, x = ready(folder)
    for count in (5, 1):
        (logits,) = session.run(["logits"], {"pictures": x[:count] if within else scaled(x[:count])})
        assert np.allclose(softmax(logits), predicted(folder, files[:count]), atol=1e-5)
    facts = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert json.loads(facts["classes"]) == NAMES
    assert ("uint8" in json.loads(facts["layerwise_lr"])["input"]) == within


def test_an_export_that_answers_otherwise_is_not_written(run, monkeypatch, tmp_path):
    """A saboteur: the model that is exported is not the model that is asked."""
    made = open_run(run("resnet18"))
    own = asking.Model.logits
    monkeypatch.setattr(asking.Model, "logits", lambda model, x: own(model, x) + 1e-3 * np.abs(own(model, x)).max())
    for target in ("onnx", "timm", "torchvision"):
        out = tmp_path / f"{target}.{'onnx' if target == 'onnx' else 'safetensors'}"
        with pytest.raises(exporting.UserError, match="does not answer as the run's model"):
            exporting.export(made, target, out, False)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_what_onnx_needs_is_told(run, tmp_path, package):
    """As if it were not installed, in a process that has not imported it."""
    words = ["export", str(run("mlp")), "--to", "onnx", "--out", str(tmp_path / "m.onnx")]
    code = f"import sys; sys.modules[{package!r}] = None; from layerwise_lr.cli import main; main({words})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and f"--to onnx needs {package}" in done.stderr
    assert "pip install onnx onnxscript onnxruntime" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_are_gone_are_replaced_and_said(run, tmp_path):
    gone = Path(shutil.copytree(run("resnet18"), tmp_path / "run"))
    config = gone / "config.resolved.yaml"
    held = open_run(gone).config.data.path
    config.write_text(config.read_text().replace(held, f"{held}-gone"))
    facts = exporting.export(open_run(gone), "onnx", tmp_path / "m.onnx", False).facts
    assert "64 pictures of noise (the run's own are not here)" in facts["checked"]


@pytest.mark.parametrize(
    ("name", "target", "says"),
    [
        ("narrow", "torchvision", "no resnet18 of width 8 (no argument changes its 64)"),
        ("grey", "torchvision", "no resnet18 of 1 channels under these names; --to timm has"),
        ("vit", "torchvision", "no vit_tiny of 3 channels under these names; --to timm has"),
        ("mobilenet_v2", "timm", "--to torchvision has"),
        ("timm", "torchvision", "vit_tiny_patch16_224 of timm; --to timm has its names"),
        ("mlp", "timm", "--to safetensors keeps them, --to onnx runs"),
    ],
)
def test_what_a_package_lacks_is_said_with_what_has_it(run, name, target, says):
    _, err = said(["export", str(run(name)), "--to", target], code=2)
    assert says in err and len(err.splitlines()) == 1
    assert not (run(name) / f"export/{target}.safetensors").exists()


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_torchvision_builds_otherwise_where_it_brings_weights(monkeypatch, name):
    """So that a run from pretrained weights is opened as it was trained; weights out of its own random model."""
    maker = getattr(torchvision.models, name)
    state = maker(weights=None, init_weights=False).state_dict()
    enum = torchvision.models.get_model_weights(name)
    monkeypatch.setattr(enum, "get_state_dict", lambda *args, **kwargs: state)
    brought = zoo.build(zoo.core.ZooModel("torchvision", name, 1000, 3, 299, True, {}), None)
    options = {**asking.AS_PRETRAINED["torchvision", name], "init_weights": False}
    opened = zoo.build(zoo.core.ZooModel("torchvision", name, 1000, 3, 299, False, options), None)
    assert opened.transform_input == brought.transform_input is True
    assert opened.state_dict().keys() == brought.state_dict().keys()


def test_a_zoo_run_is_evaluated_as_it_measured_itself(run):
    out, _ = said(["evaluate", str(run("swin")), "--json"])
    summary = json.loads((run("swin") / "summary.json").read_text())
    for part, told in json.loads(out)["parts"].items():
        assert told["loss"] == pytest.approx(summary[part]["loss"], rel=1e-4)
        assert told["accuracy"] == summary[part]["accuracy"]
