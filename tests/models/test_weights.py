import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from layerwise_lr.data import batches, fetch
from layerwise_lr.data.batches import Dataset, Split
from layerwise_lr.data.pictures import DataSpec
from layerwise_lr.framework import begin
from layerwise_lr.models import weights
from layerwise_lr.models.layers import initial_weights, param_table
from layerwise_lr.models.reading import read
from layerwise_lr.models.trees import make_tree
from layerwise_lr.models.weights import WeightsSpec, start_weights
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import GroupingSpec
from layerwise_lr.planning.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.planning.schedules import ScheduleSpec

LENET = make_tree("lenet", 10, 1, 28)
ARRAYS = {
    n: np.random.default_rng(0).normal(size=a.shape).astype(np.float32) for n, a in initial_weights(LENET, 0).items()
}


def write(path, arrays):
    if path.suffix == ".safetensors":
        save_file(arrays, str(path))
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        import torch

        torch.save({n: torch.from_numpy(a) for n, a in arrays.items()}, path)
    return path


def start(path, tree=LENET, seed=0):
    return start_weights(tree, WeightsSpec("file", str(path)), seed)


TORCH_S = (pytest.param(suffix, marks=pytest.mark.torch) for suffix in (".pth", ".pt", ".bin", ".ckpt"))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", *TORCH_S])
def test_every_file_kind_gives_the_same_bits(tmp_path, suffix):
    found, notes = start(write(tmp_path / f"w{suffix}", ARRAYS))
    assert set(found) == set(ARRAYS)
    assert all(found[n].tobytes() == ARRAYS[n].tobytes() for n in ARRAYS)
    assert notes == [f"10 arrays loaded from w{suffix}"]


@pytest.mark.torch
@pytest.mark.parametrize("wrap", ["state_dict", "model"])
def test_a_torch_file_may_hold_them_one_level_down(tmp_path, wrap):
    import torch

    torch.save({wrap: {n: torch.from_numpy(a) for n, a in ARRAYS.items()}, "epoch": 3}, tmp_path / "w.pth")
    assert all(np.array_equal(a, ARRAYS[n]) for n, a in start(tmp_path / "w.pth")[0].items())


def test_num_batches_tracked_is_left_aside(tmp_path):
    tree = make_tree("resnet18", 10, 3, 32)
    arrays = initial_weights(tree, 0) | {"bn1.num_batches_tracked": np.array([7], np.int64)}
    assert set(start(write(tmp_path / "w.safetensors", arrays), tree)[0]) == set(arrays) - {"bn1.num_batches_tracked"}


def test_half_and_double_become_float32(tmp_path):
    path = write(
        tmp_path / "w.npz", {n: a.astype(np.float64 if "conv" in n else np.float16) for n, a in ARRAYS.items()}
    )
    found, _ = start(path)
    assert {a.dtype for a in found.values()} == {np.dtype(np.float32)}
    assert np.array_equal(found["conv1.weight"], ARRAYS["conv1.weight"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_numbers_that_float32_does_not_hold_are_counted_and_named(tmp_path, suffix, bad):
    arrays = {n: a.astype(np.float64) for n, a in ARRAYS.items()}
    arrays["conv2.weight"].flat[[3, 5]] = bad
    with pytest.raises(UserError, match=f"w{suffix}: 2 of 2400 numbers of conv2.weight are NaN, infinite"):
        start(write(tmp_path / f"w{suffix}", arrays))


@pytest.mark.parametrize("kind", [str, complex])
def test_what_is_no_number_is_refused(tmp_path, kind):
    with pytest.raises(UserError, match=r"w\.npz: conv1\.bias is of .*, not of floating-point numbers"):
        start(write(tmp_path / "w.npz", ARRAYS | {"conv1.bias": ARRAYS["conv1.bias"].astype(kind)}))


def test_a_head_that_is_left_out_may_hold_anything(tmp_path):
    """Of another size, so not taken."""
    broken = ARRAYS | {"classifier.weight": np.full((7, 84), np.nan, np.float32)}
    found, notes = start(write(tmp_path / "w.npz", broken))
    assert np.isfinite(found["classifier.weight"]).all() and "another size" in notes[-1]


def test_no_weights_are_the_initial_ones_and_said():
    found, notes = start_weights(LENET, WeightsSpec(), 3)
    expected = initial_weights(LENET, 3)
    assert all(np.array_equal(found[n], expected[n]) for n in expected)
    assert "no pretrained weights" in notes[0]


def test_a_head_of_another_size_starts_anew_and_is_said(tmp_path):
    tree = make_tree("lenet", 3, 1, 28)
    found, notes = start(write(tmp_path / "w.npz", ARRAYS), tree, seed=4)
    expected = initial_weights(tree, 4)
    for name in found:
        source = expected if name.startswith("classifier") else ARRAYS
        assert np.array_equal(found[name], source[name]), name
    assert notes == [
        "8 arrays loaded from w.npz",
        "head classifier starts from initial values: the file's is of another size",
    ]


def test_a_head_is_taken_whole_or_not_at_all(tmp_path):
    """A bias that happens to fit must not be kept when its weight does not."""
    arrays = ARRAYS | {
        "classifier.weight": np.zeros((10, 80), np.float32),
        "classifier.bias": np.full(10, 9, np.float32),
    }
    found, _ = start(write(tmp_path / "w.npz", arrays))
    assert not (found["classifier.bias"] == 9).any()


def without(*names):
    return {n: a for n, a in ARRAYS.items() if n not in names}


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        (without("fc1.bias"), r"1 missing from the file: fc1\.bias; give weights"),
        (without("classifier.bias"), r"1 missing from the file: classifier\.bias; weights\.renew_head=true"),
        (ARRAYS | {"fc3.weight": np.zeros(2, np.float32)}, r"1 not in the model: fc3\.weight; give weights"),
        (ARRAYS | {"fc1.bias": np.zeros(7, np.float32)}, r"1 of another shape: fc1\.bias \[7\] instead of \[120\]"),
        (
            {"a": np.zeros(1, np.float32)},
            r"8 missing from the file: conv1\.weight, .*, \.\.\.; it holds 1 of other names: a; give weights",
        ),
    ],
)
def test_what_does_not_fit_is_listed(tmp_path, arrays, word):
    with pytest.raises(UserError, match=word) as caught:
        start(write(tmp_path / "w.npz", arrays))
    assert "w.npz does not fit model lenet" in str(caught.value)


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("how", [pytest.param("torch", marks=pytest.mark.torch), "pickle", "npz"])
def test_a_file_with_code_is_refused_and_the_code_does_not_run(tmp_path, how):
    ran, path = tmp_path / "ran", tmp_path / ("w.npz" if how == "npz" else "w.pth")
    if how == "torch":
        import torch

        torch.save({"conv1.weight": Malicious(ran)}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps({"conv1.weight": Malicious(ran)}))
    else:
        np.savez(path, **{"conv1.weight": np.array([Malicious(ran)], object)})
    with pytest.raises(UserError, match=path.name):
        start(path)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junkjunkjunk", b"\x80\x02}q\x00."])
def test_junk_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        start(tmp_path / name)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (WeightsSpec("lenet"), "'lenet' is unknown.*lenet_mnist"),
        (WeightsSpec("file"), "weights.path is missing"),
        (WeightsSpec("file", "/nowhere.npz"), "no such file"),
    ],
)
def test_unknown_weights(spec, word):
    with pytest.raises(UserError, match=word):
        weights.locate(spec)


def test_an_unknown_suffix_is_said(tmp_path):
    (tmp_path / "w.onnx").touch()
    with pytest.raises(UserError, match=r"read from \.safetensors, \.npz"):
        read(tmp_path / "w.onnx")


def test_weights_not_fetched_say_how(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERWISE_LR_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="layerwise-lr fetch mobilenet_v2_imagenet"):
        weights.locate(WeightsSpec("mobilenet_v2_imagenet"))


def predict(tree, found, x):
    from layerwise_lr.plugins.torch_plugin.plugin import TorchFramework

    framework = TorchFramework("cpu")
    model = framework.make_model(tree)
    framework.set_weights(model, found)
    plan = make_plan(
        param_table(tree), GroupingSpec(), {"default": OptimizerSpec()}, {"default": ScheduleSpec()}, FreezeSpec(), 1
    )[1]
    return framework.predict(begin(framework, model, plan), x)


@pytest.mark.torch
def test_the_shipped_lenet_reads_digits_that_it_has_never_seen():

    found, _ = start_weights(LENET, WeightsSpec("lenet_mnist"), 0)
    held = batches.load(DataSpec(train_size=10, val_size=0, test_size=500, mean=[0.5], std=[0.5]), 0)
    logits = predict(LENET, found, held.normalise(held.test.x))
    assert (logits.argmax(1) == held.test.y).mean() > 0.35  # MNIST's weights, UCI's digits; chance is 0.1


@pytest.mark.torch
@pytest.mark.network
def test_the_real_mobilenet_v2_knows_imagenet_pictures(mobilenet_checkpoint):
    folder = fetch.fetch("imagenet_samples")
    x, y = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    tree = make_tree("mobilenet_v2", 1000, 3, 224)
    found, notes = start(mobilenet_checkpoint, tree)
    assert "head" not in " ".join(notes)
    split = Split(x, y)
    spec = DataSpec(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    logits = predict(tree, found, Dataset(split, split, split, spec).normalise(x))
    assert (logits.argmax(1) == y).sum() >= 16
