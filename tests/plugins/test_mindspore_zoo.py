"""mindcv's models, and one's own, in MindSpore: planned, trained from the command line and proved in both modes."""

import json
import os
import shlex

os.environ.setdefault("GLOG_v", "3")  # errors only; read once, at import

import mindspore as ms
import numpy as np
import pytest
from layerwise_lr.plugins.mindspore_plugin.plugin import MindSporeFramework
from runs_of_zoos import call, failed, kept, package, scales, told, trained
from test_documented_commands import COMMANDS, as_plan

from layerwise_lr.framework import UserError, ZooModel

RESNET = ("model=mindcv", "model.name=resnet18", "data.image_size=32", "data.channels=3", "weights=none")
MODES = ("mindspore", "mindspore_graph")


def asked(name, image_size=32, in_channels=3, **more):
    return ZooModel("mindcv", name, 10, in_channels, image_size, **more)


def test_a_model_is_trained_and_proved_in_both_modes_under_its_own_names(tmp_path):
    runs = [trained(tmp_path, *RESNET, f"framework={mode}", "grouping.layer_decay=0.5") for mode in MODES]
    for folder, said in runs:
        proof = json.loads((folder / "summary.json").read_text())["proof"]
        assert proof["start"]
        assert (proof["training"], proof["mismatches"]) == (2, 0)
        assert "confidence 1.00" in said
        found = scales(folder)
        assert (found["conv1.weight"], found["layer1.0.bn1.gamma"], found["classifier.bias"]) == (0.5**9, 0.5**8, 1.0)
    eager, compiled = (kept(folder) for folder, _ in runs)
    net = MindSporeFramework.build(asked("resnet18"), 0)
    assert set(eager) == set(compiled) == {p.name for p in net.get_parameters()}
    assert ms.load_param_into_net(net, {n: ms.Parameter(a, name=n) for n, a in eager.items()}, True) == ([], [])
    for name, array in eager.items():
        np.testing.assert_allclose(compiled[name], array, rtol=0.02, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "model=mindcv" in c])
def test_what_is_documented_can_be_planned(tmp_path, command):
    done = call(tmp_path, *as_plan(shlex.split(command)))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("params.csv"))


def test_batchnorms_of_a_frozen_backbone_rest_and_the_others_do_not(tmp_path):
    folder, _ = trained(tmp_path, *RESNET, "framework=mindspore", "freeze=only", "freeze.match=[classifier,layer4]")
    means = {name: array for name, array in kept(folder).items() if name.endswith("moving_mean")}
    assert len(means) == 20
    assert {name for name, array in means.items() if array.any()} == {n for n in means if n.startswith("layer4")}


OWN = """
from layerwise_lr.plugins.mindspore_plugin import plugin
from mindspore import nn

class Net(nn.Cell):
    def __init__(self, classes, channels, size):
        super().__init__()
        self.stem = nn.SequentialCell(nn.Conv2d(channels, 4, 3, pad_mode="valid"), nn.BatchNorm2d(4), nn.Dropout(p=0.5))
        self.flat, self.drop = nn.Flatten(), nn.Dropout(keep_prob=0.5)
        self.head, self.aux = nn.Dense(4 * (size - 2) ** 2, classes), nn.Dense(4 * (size - 2) ** 2, classes)

    def construct(self, x):
        x = self.drop(self.flat(self.stem(x)))
        return self.head(x), self.aux(x)

class Uncompiled(Net):
    def construct(self, x):
        return self.head(y) if (y := self.flat(self.stem(x))) is not None else x

def net(num_classes, in_channels, image_size, pretrained):
    return Net(num_classes, in_channels, image_size)

def uncompiled(num_classes, in_channels, image_size, pretrained):
    return Uncompiled(num_classes, in_channels, image_size)
"""


@pytest.fixture
def own(tmp_path):
    """A package with models of its own, and the words that train them."""
    path = package(tmp_path, OWN, tiny="net", uncompiled="uncompiled")
    return ("model=own", "weights=none", "data.image_size=8", "optimizer=momentum"), {"PYTHONPATH": path}


def test_dropouts_of_ones_own_model_follow_the_seed_in_both_modes(tmp_path, own):
    words, more = own

    def weights(framework):
        return kept(trained(tmp_path, *words, "model.name=tiny", f"framework={framework}", **more)[0])["head.weight"]

    first = weights("mindspore")
    assert np.array_equal(weights("mindspore"), first)
    np.testing.assert_allclose(weights("mindspore_graph"), first, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_compiled_is_said_with_the_way_out(tmp_path, own):
    words, more = own
    trained(tmp_path, *words, "model.name=uncompiled", "framework=mindspore", **more)
    said = failed(tmp_path, *words, "model.name=uncompiled", "framework=mindspore_graph", **more)
    assert "MindSpore cannot compile Uncompiled" in said
    assert "take framework=mindspore" in said


def test_equal_seeds_start_equal_and_others_do_not():
    def start(seed):
        return MindSporeFramework.build(asked("resnet18"), seed).conv1.weight.asnumpy().copy()

    first = start(1)
    assert np.array_equal(start(1), first)
    assert not np.allclose(start(2), first, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (asked("resnet1"), "mindcv has no model 'resnet1'; it has resnet18, "),
        (asked("resnet18", options={"bogus": 1}), "mindcv cannot make model.name=resnet18: "),
        (asked("resnet18", options={"features_only": True}), "no logits"),
        (asked("vit_b_32_224"), "takes no picture of 3x32x32"),
    ],
)
def test_what_mindcv_cannot_do_is_one_line(model, says):
    with pytest.raises(UserError) as refused:
        MindSporeFramework.build(model, None)
    assert says in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_half_precision_is_refused_before_a_step(tmp_path):
    said = told(tmp_path, *RESNET, "framework=mindspore", "framework.precision=fp16")
    assert "framework.precision=fp32" in said
