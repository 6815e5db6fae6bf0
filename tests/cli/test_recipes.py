"""The recipes with sources plan what their sources say; the numbers below are the sources' own arithmetic."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

VIT = 12  # blocks of ViT-B and ViT-S


@pytest.fixture
def planned(call, tmp_path):
    """The plan of an experiment on 400 pictures in two classes: {parameter: lr_scale}, and the whole plan."""
    for index in range(400):
        folder = tmp_path / "pictures" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / f"{index}.png")

    def plan(words):
        code, _, err = call(f"plan {words} hydra.run.dir=planned")
        assert code == 0, err
        held = json.loads(Path("planned/plan.json").read_text())
        return {name: group["lr_scale"] for group in held["groups"] for name in group["params"]}, held

    return plan


OWN = "data.path=pictures data.val_size=40 data.test_size=40 weights.path=w.pth"


@pytest.mark.parametrize(("name", "decay"), [("mae_finetune", 0.65), ("beit_finetune", 0.65)])
def test_vit_b_decays_from_head_to_stem(planned, call, name, decay):
    scales, plan = planned(f"experiment={name} {OWN}")
    assert scales["patch_embed.proj.weight"] == pytest.approx(decay ** (VIT + 1))
    assert scales["blocks.0.attn.qkv.weight"] == pytest.approx(decay**VIT)
    assert scales["blocks.11.mlp.fc2.weight"] == pytest.approx(decay)
    assert scales["head.weight"] == 1
    assert plan["total_steps"] == 100 * (320 // 64)
    assert ("fc_norm.weight" in scales) == (name == "mae_finetune")
    _, composed, _ = call(f"train experiment={name} {OWN} --cfg job")
    config = yaml.safe_load(composed)
    assert (config["model"]["drop_path"], config["label_smoothing"]) == (0.1, 0.1)
    augment = config["augment"]
    assert (augment["mixup"], augment["cutmix"], augment["random_erasing"]) == (0.8, 1.0, 0.25)
    assert (augment["randaugment_ops"], augment["randaugment_magnitude"]) == (2, 9.0)


def test_mae_s_lr_is_its_code_s_rule(planned):
    _, plan = planned(f"experiment=mae_finetune {OWN}")
    assert plan["optimizers"]["default"]["lr"] == pytest.approx(5e-4 * 64 / 256)
    assert plan["schedules"]["default"]["warmup"] == 5 * (320 // 64)


def test_dinov2_s_patch_embedding_has_a_fifth_of_its_layer_s(planned):
    scales, _ = planned("experiment=dinov2_finetune")
    assert scales["patch_embed.proj.weight"] == pytest.approx(0.2 * 0.9 ** (VIT + 1))
    assert scales["pos_embed"] == pytest.approx(0.9 ** (VIT + 1))
    assert scales["head.weight"] == 1


def test_the_tutorial_s_resnet(planned):
    scales, plan = planned(f"experiment=resnet_sgd {OWN}")
    lrs = {name: scale * plan["optimizers"]["default"]["lr"] for name, scale in scales.items()}
    assert {name: lr for name, lr in lrs.items() if lr == pytest.approx(1e-2)}.keys() == {"fc.weight", "fc.bias"}
    assert lrs["conv1.weight"] == pytest.approx(1e-3)
    assert plan["schedules"]["default"]["every"] == 7 * (320 // 4)


def test_the_probe_is_alone_for_half_of_the_steps(planned):
    _, plan = planned("experiment=probe_then_finetune")
    starts = {name: group["active"][0] for group in plan["groups"] for name in group["params"]}
    assert {name for name, start in starts.items() if start == 0} == {"head.weight", "head.bias"}
    assert set(starts.values()) == {0, plan["total_steps"] // 2}
