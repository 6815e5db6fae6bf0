"""A run, exported, in the real packages with strict=True and in the real onnxruntime: the logits are predict's."""

import json
import shlex

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
import transformers
from finished_runs import pictures
from PIL import Image
from runs_of_zoos import call, trained
from safetensors import safe_open
from safetensors.torch import load_file, load_model

from layerwise_lr.plugins.torch_plugin import zoo
from layerwise_lr.run import asking, exporting, open_run

SMALL = ("data=image_folder", "data.path=../pictures", "data.image_size=32", "data.mean=[0.4,0.5,0.6]",
         "data.std=[0.2,0.25,0.3]", "data.train_size=24", "optimizer.lr=1e-2", "verify=off")  # fmt: skip
VIT = ("model=vit_tiny", "model.depth=2", "model.patch_size=8", "model.embed_dim=48", "model.layer_scale=1e-5")
TIMM = ("model=timm", "model.name=vit_tiny_patch16_224", "+model.options.depth=2", "+model.options.embed_dim=48")
SWIN = ("model=timm", "model.name=swin_tiny_patch4_window7_224", "+model.options.depths=[1,1,1,1]",
        "+model.options.embed_dim=24")  # fmt: skip
HF = ("model=transformers", "model.name=vit", "+model.options.patch_size=8", "+model.options.hidden_size=32",
      "+model.options.num_hidden_layers=2", "+model.options.num_attention_heads=2",
      "+model.options.intermediate_size=64")  # fmt: skip
RUNS = {
    "resnet18": ("model=resnet18",),
    "mobilenet_v2": ("model=mobilenet_v2", "model.dropout=0.1"),
    "vit": VIT,
    "vit_avg": (*VIT, "model.pool=avg"),
    "clip": (*VIT, "model.pre_norm=true"),
    "timm": TIMM,
    "swin": SWIN,
    "torchvision": ("model=torchvision", "model.name=squeezenet1_1"),
    "transformers": HF,
}
WEIGHTS = [
    ("resnet18", "torchvision"),
    ("resnet18", "timm"),
    ("mobilenet_v2", "torchvision"),
    ("vit", "timm"),
    ("vit_avg", "timm"),
    ("clip", "timm"),
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
            (home / name).mkdir()
            found[name], _ = trained(home / name, *SMALL, "weights=none", *RUNS[name])
        return found[name]

    return get


def predicted(folder, files):
    """predict's probabilities [N, classes] by the order of NAMES."""
    done = call(folder.parent, "predict", folder.name, *files, "--top", "9", "--json")
    assert done.returncode == 0, done.stderr
    told = [{c["class"]: c["probability"] for c in p["classes"]} for p in json.loads(done.stdout)["pictures"]]
    return np.array([[one[name] for name in NAMES] for one in told])


def ready(folder, size=32):
    """Five files and their pixels by hand: uint8 [5, 3, S, S]."""
    files = [str(folder.parent.parent / "pictures" / f"{NAMES[i % 3]}/{i}.png") for i in range(5)]
    read = [Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for file in files]
    return files, np.stack([np.asarray(one).transpose(2, 0, 1) for one in read])


def scaled(x):
    mean, std = (np.reshape(each, (3, 1, 1)) for each in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    return ((x / 255 - mean) / std).astype(np.float32)


def softmax(logits):
    return torch.from_numpy(np.asarray(logits)).double().softmax(1).numpy()


def exported(folder, *words):
    done = call(folder.parent, "export", folder.name, *words)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.parametrize(("name", "target"), WEIGHTS, ids="-".join)
def test_the_real_package_takes_it_strictly_and_answers_alike(run, name, target, monkeypatch):
    """By the very lines that the export printed."""
    folder = run(name)
    said = exported(folder, "--to", target)
    lines = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    assert "strict=True" in lines[-1] and "equal" in said or "within" in said
    monkeypatch.chdir(folder.parent)
    held = {}
    exec("\n".join(lines), held)
    model = held["model"].eval()
    assert type(model).__module__.partition(".")[0] == target
    files, x = ready(folder)
    with torch.no_grad():
        out = model(torch.from_numpy(scaled(x)))
    assert np.allclose(softmax(getattr(out, "logits", out)), predicted(folder, files), atol=1e-5)


def test_safetensors_own_loader_takes_it(run):
    exported(run("resnet18"), "--to", "torchvision", "--out", "w.safetensors")
    model = torchvision.models.resnet18(num_classes=3)
    missing, unexpected = load_model(model, run("resnet18").parent / "w.safetensors", strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    with safe_open(run("resnet18").parent / "w.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["layerwise_lr"])
    assert facts["classes"] == NAMES and facts["pictures"]["mean"] == [0.4, 0.5, 0.6]
    assert facts["model"] == {"source": "torchvision", "name": "resnet18", "arguments": {"num_classes": 3}}


def test_a_vit_says_which_arguments_it_needs(run):
    exported(run("vit"), "--to", "timm")
    told = json.loads((run("vit") / "export/timm.safetensors.json").read_text())["model"]
    given = {"num_classes": 3, "in_chans": 3, "embed_dim": 48, "depth": 2, "patch_size": 8, "init_values": 1e-5}
    assert told["arguments"] == {**given, "img_size": 32}
    bare = timm.create_model(told["name"], num_classes=3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        bare.load_state_dict(load_file(run("vit") / "export/timm.safetensors"), strict=True)


@pytest.mark.parametrize("within", [False, True], ids=["normalised", "raw"])
@pytest.mark.parametrize("name", RUNS)
def test_onnxruntime_answers_as_predict(run, name, within):
    if within and name not in ("resnet18", "vit", "swin"):
        name = "resnet18"  # what is folded in is the same for all
    folder = run(name)
    said = exported(folder, "--to", "onnx", *(["--with-normalisation"] if within else []), "--out", "m.onnx")
    assert "onnxruntime" in said and "of the run's test pictures" in said
    session = onnxruntime.InferenceSession(str(folder.parent / "m.onnx"), providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert taken.name == "pictures" and taken.shape[1:] == [3, 32, 32] and isinstance(taken.shape[0], str)
    files, x = ready(folder)
    for count in (5, 1):
        (logits,) = session.run(["logits"], {"pictures": x[:count] if within else scaled(x[:count])})
        assert np.allclose(softmax(logits), predicted(folder, files[:count]), atol=1e-5)
    facts = {p.key: p.value for p in onnx.load(folder.parent / "m.onnx").metadata_props}
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


def test_pictures_that_are_gone_are_replaced_and_said(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    where = shlex.quote(str(run("resnet18")))
    done = call(tmp_path / "elsewhere", "export", shlex.split(where)[0], "--to", "onnx", "--out", "m.onnx")
    assert done.returncode == 0, done.stderr
    assert "64 pictures of noise (the run's own are not here)" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "target", "says"),
    [
        (("model=resnet18", "model.width=8"), "torchvision", "no resnet18 of width 8 (no argument changes its 64)"),
        (("model=resnet18", "data.channels=1", "data.mean=[0.5]", "data.std=[0.5]"), "torchvision", "--to timm has"),
        (VIT, "torchvision", "no vit_tiny of 3 channels under these names; --to timm has"),
        (("model=mobilenet_v2",), "timm", "--to torchvision has"),
        (TIMM, "torchvision", "vit_tiny_patch16_224 of timm; --to timm has its names"),
        (("model=mlp",), "timm", "--to safetensors keeps them, --to onnx runs"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_a_package_lacks_is_said_with_what_has_it(run, tmp_path, words, target, says):
    run("resnet18")  # the pictures
    (tmp_path / "pictures").symlink_to(run("resnet18").parent.parent / "pictures")
    (tmp_path / "here").mkdir()
    folder, _ = trained(tmp_path / "here", *SMALL, "weights=none", *words)
    done = call(folder.parent, "export", folder.name, "--to", target)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (folder / "export").exists()


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


def test_a_zoo_run_of_a_sweep_is_predicted_as_trained(run):
    """Its validation accuracy again, from predict's own answers on the same files: here all of the set's."""
    folder = run("swin")
    done = call(folder.parent, "evaluate", folder.name, "--json")
    told = json.loads(done.stdout)["parts"]
    summary = json.loads((folder / "summary.json").read_text())
    for part in ("val", "test"):
        assert told[part]["loss"] == pytest.approx(summary[part]["loss"], rel=1e-4)
        assert told[part]["accuracy"] == summary[part]["accuracy"]
    assert transformers.__version__
