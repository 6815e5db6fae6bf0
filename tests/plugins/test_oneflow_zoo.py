"""flowvision's models, and one's own, in OneFlow: planned, trained from the command line and proved in every mode."""

import json

import numpy as np
import pytest
from layerwise_lr.plugins import oneflow_plugin  # noqa: F401  (first: it makes `import oneflow` possible)

from layerwise_lr.framework import UserError, ZooModel

# isort: split
import oneflow as flow
from layerwise_lr.plugins.oneflow_plugin.plugin import OneflowFramework
from runs_of_zoos import call, kept, package, scales, told, trained

RESNET = ("model=flowvision", "model.name=resnet18", "data.image_size=32", "data.channels=3", "weights=none")


def asked(name, image_size=32, in_channels=3, **more):
    return ZooModel("flowvision", name, 10, in_channels, image_size, **more)


@pytest.mark.parametrize("framework", ["oneflow", "oneflow_graph", "oneflow_graph_native"])
def test_a_model_is_trained_and_proved_and_what_is_kept_loads_strictly_into_the_real_one(tmp_path, framework):
    folder, said = trained(tmp_path, *RESNET, f"framework={framework}", "grouping.layer_decay=0.5")
    proof = json.loads((folder / "summary.json").read_text())["proof"]
    assert proof["start"]
    assert (proof["training"], proof["mismatches"]) == (2, 0)
    assert "confidence 1.00" in said
    found = scales(folder)
    assert (found["conv1.weight"], found["layer1.0.conv1.weight"], found["fc.weight"]) == (0.5**9, 0.5**8, 1.0)
    net = OneflowFramework.build(asked("resnet18"), 0)
    net.load_state_dict({name: flow.tensor(array) for name, array in kept(folder).items()}, strict=False)
    own = {name for name, _ in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert set(kept(folder)) == own
    assert len(found) == len(list(net.parameters())) == 62


def test_batchnorms_of_a_frozen_backbone_rest_and_the_others_do_not(tmp_path):
    folder, _ = trained(tmp_path, *RESNET, "framework=oneflow", "freeze=only", "freeze.match=[fc,layer4]")
    means = {name: array for name, array in kept(folder).items() if name.endswith("running_mean")}
    assert len(means) == 20
    assert {name for name, array in means.items() if array.any()} == {n for n in means if n.startswith("layer4")}


def test_a_vit_is_planned_by_its_order(tmp_path):
    words = ("model=flowvision", "model.name=vit_tiny_patch16_224", "weights=none", "data.channels=3")
    words = (*words, "data.image_size=224", "framework=oneflow", "grouping.layer_decay=0.5", "hydra.run.dir=plan")
    done = call(tmp_path, "plan", *words)
    assert done.returncode == 0, done.stderr
    found = scales(next(tmp_path.rglob("params.csv")).parent)
    assert {found[f"blocks.{i}.attn.qkv.weight"] * 2.0 ** (12 - i) for i in range(12)} == {1.0}
    assert found["cls_token"] == found["pos_embed"] == found["patch_embed.proj.weight"] == 0.5**13
    assert found["head.weight"] == 1.0


OWN = """
from layerwise_lr.plugins import oneflow_plugin
from oneflow import nn
def net(num_classes, in_channels, image_size, pretrained):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
                         nn.Linear(4 * (image_size - 2) ** 2, num_classes))
"""


def test_dropouts_of_ones_own_model_follow_the_seed_in_every_mode(tmp_path):
    path = package(tmp_path, OWN, tiny="net")

    def weights(framework):
        words = ("model=own", "model.name=tiny", "weights=none", "data.image_size=8", "optimizer=momentum")
        return kept(trained(tmp_path, *words, f"framework={framework}", PYTHONPATH=path)[0])["5.weight"]

    first = weights("oneflow")
    assert np.array_equal(weights("oneflow"), first)
    for mode in ("oneflow_graph", "oneflow_graph_native"):
        np.testing.assert_allclose(weights(mode), first, rtol=1e-4, atol=1e-6)


def test_equal_seeds_start_equal_and_others_do_not():
    def start(seed):
        return OneflowFramework.build(asked("resnet18"), seed).conv1.weight.numpy().copy()

    first = start(1)
    assert np.array_equal(start(1), first)
    assert not np.allclose(start(2), first, rtol=0, atol=1e-3)


def test_flowvisions_own_weights_and_another_head(tmp_path, monkeypatch):
    net = OneflowFramework.build(ZooModel("flowvision", "resnet18", 1000, 3, 32), 1)
    flow.save(net.state_dict(), str(tmp_path / "resnet18"))  # as flowvision caches what it has fetched
    monkeypatch.setenv("FLOWVISION_CACHE", str(tmp_path))
    made = OneflowFramework.build(asked("resnet18", pretrained=True), 0)
    assert np.array_equal(made.layer4[1].conv2.weight.numpy(), net.layer4[1].conv2.weight.numpy())
    assert tuple(made.fc.weight.shape) == (10, 512)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (asked("resnet1"), "flowvision has no model 'resnet1'; it has resnet18, "),
        (asked("resnet18", options={"foo": 1}), "unexpected keyword argument 'foo'"),
        (asked("resnet18", in_channels=1), "takes no picture of 1x32x32 .*data.channels=3"),
        (asked("vit_tiny_patch16_224"), r"takes no picture of 3x32x32 .*\(224\).*data.image_size=224"),
    ],
    ids=lambda x: x.name if isinstance(x, ZooModel) else "",
)
def test_what_cannot_be_is_one_line(model, says):
    with pytest.raises(UserError, match=says) as caught:
        OneflowFramework.build(model, None)
    assert "\n" not in str(caught.value)


def test_what_a_graph_would_draw_by_itself_is_refused_there():
    net = OneflowFramework.build(asked("swin_tiny_patch4_window7_224", 224), 0)
    with pytest.raises(UserError, match=r"framework\.mode=graph: layers.*DropPath.*framework=oneflow"):
        OneflowFramework("cpu", "graph").adopt(net)
    OneflowFramework("cpu", "eager").adopt(net)
    OneflowFramework("cpu", "graph").adopt(OneflowFramework.build(asked("vit_tiny_patch16_224", 224), 0))


def test_and_so_before_the_run_s_folder_is_claimed(tmp_path):
    words = ("model=flowvision", "model.name=swin_tiny_patch4_window7_224", "weights=none", "data.channels=3")
    said = told(tmp_path, *words, "data.image_size=224", "framework=oneflow_graph", "batch_size=2")
    assert "DropPath" in said
