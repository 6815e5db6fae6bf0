"""Models of the zoos, fine-tuned from the command line: proved, kept under their own names, started from files."""

import inspect
import json

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from runs_of_zoos import SHORT, call, kept, package, scales, told, trained
from safetensors.torch import save_file

from layerwise_lr.run import options

TIMM_VIT = (
    "model=timm",
    "model.name=vit_tiny_patch16_224",
    "+model.options.depth=2",
    "data.image_size=32",
    "data.channels=3",
)


@pytest.mark.parametrize(
    ("words", "stem", "head"),
    [
        (TIMM_VIT, "patch_embed.proj.weight", "head.weight"),
        (("model=torchvision", "model.name=resnet18", "data.image_size=32", "data.channels=3"), "conv1.weight", "fc.weight"),
        (
            ("model=transformers", "model.name=vit", "data.image_size=32", "data.channels=3", "+model.options.patch_size=8",
             "+model.options.hidden_size=32", "+model.options.num_hidden_layers=2", "+model.options.num_attention_heads=2",
             "+model.options.intermediate_size=64"),
            "vit.embeddings.patch_embeddings.projection.weight", "classifier.weight",
        ),
    ],
    ids=["timm", "torchvision", "transformers"],
)  # fmt: skip
def test_a_model_is_fine_tuned_and_proved(tmp_path, words, stem, head):
    folder, said = trained(tmp_path, *words, "weights=none", "grouping.layer_decay=0.5")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["proof"]["start"]
    assert (summary["proof"]["training"], summary["proof"]["mismatches"]) == (2, 0)
    assert "confidence 1.00" in said
    found = scales(folder)
    depth = {"patch_embed.proj.weight": 3, "conv1.weight": 9, "vit.embeddings.patch_embeddings.projection.weight": 3}
    assert (found[stem], found[head]) == (0.5 ** depth[stem], 1.0)
    held = kept(folder)
    assert set(found) <= set(held)
    assert all(np.isfinite(array).all() for array in held.values())


def test_what_is_kept_loads_strictly_into_the_real_model(tmp_path):
    folder, _ = trained(
        tmp_path, "model=torchvision", "model.name=resnet18", "data.image_size=32", "data.channels=3", "weights=none"
    )
    held = {n: torch.from_numpy(a) for n, a in kept(folder).items()}
    missing, unexpected = torchvision.models.resnet18(num_classes=10).load_state_dict(held, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)


def test_equal_seeds_start_equal_and_others_do_not(tmp_path):
    def start(seed):
        return kept(trained(tmp_path, *TIMM_VIT, "weights=none", f"seed={seed}", "optimizer.lr=1e-12")[0])[
            "head.weight"
        ]

    first, again, other = start(1), start(1), start(2)
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, rtol=0, atol=1e-6)


def test_a_package_s_own_weights(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8, num_labels=7
    )  # fmt: skip
    net = transformers.ViTForImageClassification(config)
    net.save_pretrained(tmp_path / "vit")
    words = (
        "model=transformers",
        f"model.name={tmp_path / 'vit'}",
        "weights=pretrained",
        "data.image_size=32",
        "data.channels=3",
    )
    folder, said = trained(tmp_path, *words, "optimizer.lr=1e-12", "optimizer.weight_decay=0")
    held = kept(folder)
    name = "vit.layers.1.mlp.fc1.weight"
    assert np.allclose(held[name], net.state_dict()[name].numpy(), rtol=0, atol=1e-9)
    assert held["classifier.weight"].shape == (10, 32)
    assert "own pretrained weights" in said


def test_a_file_of_weights_with_another_head(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=3)
    save_file({f"backbone.{n}": t for n, t in net.state_dict().items()}, tmp_path / "w.safetensors")
    folder, said = trained(
        tmp_path, *TIMM_VIT, "weights.path=w.safetensors", "optimizer.lr=1e-12", "optimizer.weight_decay=0"
    )
    held = kept(folder)
    assert np.allclose(
        held["blocks.1.mlp.fc1.weight"], net.blocks[1].mlp.fc1.weight.detach().numpy(), rtol=0, atol=1e-9
    )
    assert held["head.weight"].shape[0] == 10
    assert "prefix backbone. taken off" in said
    assert "head head starts from initial values" in said


def test_batchnorms_of_a_frozen_backbone_rest(tmp_path):
    words = ("model=torchvision", "model.name=resnet18", "data.image_size=32", "data.channels=3", "weights=none")
    folder, _ = trained(tmp_path, *words, "freeze=only", "freeze.match=[fc]")
    held = kept(folder)
    means = [array for name, array in held.items() if name.endswith("running_mean")]
    assert len(means) == 20
    assert not any(array.any() for array in means)


def test_a_sweep_and_its_report(tmp_path):
    words = (*TIMM_VIT, "weights=none", "grouping.layer_decay=0.5,1.0", "seed=0,1", "hydra.sweep.dir=sweep")
    done = call(tmp_path, "train", "-m", *SHORT, *words)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 4
    assert call(tmp_path, "report", "sweep").returncode == 0


OWN = """
import torch
def net(num_classes, in_channels, image_size, pretrained, width=8):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_channels * image_size**2, width), torch.nn.ReLU(),
                               torch.nn.Linear(width, num_classes))
"""


def test_a_model_of_ones_own_by_entry_point(tmp_path):
    more = {"PYTHONPATH": package(tmp_path, OWN, tiny="net")}
    words = ("model=own", "weights=none", "data.image_size=8")
    folder, _ = trained(tmp_path, *words, "model.name=tiny", "+model.options.width=5", **more)
    assert kept(folder)["1.weight"].shape == (5, 64)
    assert "did you mean 'tiny'" in told(tmp_path, *words, "model.name=tinny", **more)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("model=timm", "weights=none"), "model.name is missing"),
        (("model=timm", "model.name=resnet1", "weights=none"), "timm has no model 'resnet1'; it has"),
        (
            ("model=timm", "model.name=resnet18", "weights=none", "+model.options.foo=1"),
            "unexpected keyword argument 'foo'",
        ),
        (("model=timm", "model.name=resnet18", "weights=none", "model.depth=3"), "+model.options.depth"),
        (
            ("model=timm", "model.name=resnet18", "weights=none", "model.drop_path=0.1"),
            "+model.options.drop_path_rate=...",
        ),
        (("model=timm", "model.name=resnet18", "weights=none", "framework=reference"), "framework=torch has"),
        (("model=torchvision", "model.name=resnet18", "weights=none"), "data.channels=3"),
        (("model=torchvision", "model.name=resnet19", "weights=none", "data.channels=3"), "resnet18"),
        (("model=transformers", "model.name=bert", "weights=none"), "transformers cannot make model.name=bert"),
        (("model=resnet18", "weights=pretrained"), "a declared model has weights=file"),
        (("model=resnet18", "weights=none", "+model.options.a=1"), "a declared model has keys of its own"),
        (("model=timm", "model.name=resnet18", "weights=none", "grouping.convention=mae"), "mae"),
    ],
    ids=lambda x: x if isinstance(x, str) else " ".join(x)[:40],
)
def test_what_cannot_be_is_one_line(tmp_path, words, says):
    assert says in told(tmp_path, *words)


def test_timm_s_word_for_a_key_is_timm_s():
    taken = inspect.signature(timm.models.vision_transformer.VisionTransformer).parameters
    assert set(options.TIMM_S.values()) <= set(taken)
    assert not set(options.TIMM_S) & set(taken), "else there is nothing to translate"
