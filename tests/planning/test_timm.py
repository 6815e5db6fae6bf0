"""Against depths that timm 1.0.31 computed itself (timm_layer_maps.json, ground_truth.json); timm is not needed here."""

import json
import re
from pathlib import Path

import pytest

from layerwise_lr.models.layers import param_table
from layerwise_lr.models.trees import make_tree
from layerwise_lr.planning.depth import assign
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import GroupingSpec
from layerwise_lr.planning.timm_families import FAMILIES
from layerwise_lr.planning.timm_groups import timm_depths
from layerwise_lr.planning.timm_names import family_depths

MAPS = {
    name: {param: depth for depth, params in enumerate(by_depth) for param in params}
    for name, by_depth in json.loads((Path(__file__).parent / "timm_layer_maps.json").read_text()).items()
    if name != "provenance"
}
VIT = {"stem": r"^cls_token|pos_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}


@pytest.mark.parametrize("name", MAPS)
def test_every_family_by_its_names(name):
    assert family_depths(list(MAPS[name])) == MAPS[name]


@pytest.mark.parametrize("name", MAPS)
def test_the_order_of_the_names_and_a_missing_head_do_not_matter(name):
    top = max(MAPS[name].values())
    trunk = {param: depth for param, depth in MAPS[name].items() if depth < top}
    assert family_depths(list(reversed(trunk))) == trunk


def test_every_layer_map_of_the_older_file(golden):
    for name, expected in golden["timm_layer_maps"].items():
        assert family_depths(list(expected)) == expected, name


@pytest.mark.parametrize(
    ("name", "groups", "stem"),
    [("swin_tiny_patch4_window7_224", 14, 0.0237573), ("resnet50", 18, 0.0075169), ("convnext_tiny", 20, 0.0042283)],
)
def test_numbers_that_were_published(golden, name, groups, stem):
    names = list(MAPS.get(name) or golden["timm_layer_maps"][name])
    depths = family_depths(names)
    assert max(depths.values()) + 1 == groups
    assert 0.75 ** max(depths.values()) == pytest.approx(stem, abs=1e-7)


def test_conv_head_and_bn2_of_mobilenetv2_are_the_last_block_s_and_conv_head_of_v3_the_head_s():
    v2, v3 = (family_depths(list(MAPS[n])) for n in ("mobilenetv2_100", "mobilenetv3_small_050"))
    assert v2["conv_head.weight"] == v2["bn2.bias"] == v2["classifier.weight"] - 1
    assert v3["conv_head.weight"] == v3["classifier.weight"]


def test_a_declared_vit_by_names(golden):
    table = assign(param_table(make_tree("vit_base", 1000, 3, 224)), GroupingSpec(convention="timm"))
    assert {row.name: row.depth for row in table} == golden["timm_layer_maps"]["vit_base_patch16_224"]


# --- a live model's matcher


def test_a_matcher_as_a_live_model_returns_it():
    names = ["cls_token", "blocks.0.a", "blocks.10.a", "blocks.2.a", "norm.weight", "head.weight"]
    assert timm_depths(names, VIT) == dict(zip(names, (0, 1, 3, 2, 3, 4), strict=True))


def test_a_matcher_of_compiled_regexes_tuples_and_none():
    matcher = {
        "stem": re.compile("^stem"),
        "nothing": None,
        "blocks": ((re.compile(r"^s(\d)\.(\d)"), None), ("^s", (7,))),
    }
    names = ["stem", "s1.0", "s0.1", "s0.0", "sx", "fc"]
    # the third part's keys: (2, 0, 0), (2, 0, 1), (2, 1, 0); "sx" is (2, 7), after them
    assert timm_depths(names, matcher) == {"stem": 0, "s0.0": 1, "s0.1": 2, "s1.0": 3, "sx": 4, "fc": 5}


def test_a_matcher_that_is_a_function_of_the_name():
    def key(name):
        return {"a": 0, "b": (1, 2), "c": (1, 99999), "d": float("inf")}.get(name)

    assert timm_depths("abcde", key) == {"a": 0, "b": 1, "c": 1, "d": 2, "e": 2}  # of "e" it says None


def test_what_shares_the_depth_before_it_never_is_the_depth_before_the_first():
    assert timm_depths(["norm.w", "head.w"], VIT) == {"norm.w": 0, "head.w": 1}


def test_wrappers_do_not_hide_a_name_from_the_matcher():
    names = ["cls_token", "blocks.0.qkv.weight", "norm.weight", "head.weight"]
    wrapped = [f"module._orig_mod.{name}" for name in names] + ["module.blocks.0.qkv.lora_A.default.weight"]
    assert list(timm_depths(wrapped, VIT).values()) == [0, 1, 1, 2, 1]


# --- refusals


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["blocks.0.w", "patch_embed.w", "decoder.0.w", "head.w"],
            r"names of timm's vit, eva, and not decoder\.0 beside",
        ),
        (["features.0.weight", "features.1.weight", "classifier.1.weight"], r"vgg.*and not classifier\.1"),
        (["conv1.weight", "fc1.weight", "classifier.weight"], r"recognises none, from conv1\.weight, fc1\.weight"),
        (["stem.conv.weight", "stages.0.blocks.0.res_scale1.scale", "head.fc.weight"], "not metaformer"),
        # names that fit a mixer (norm with the last block) and a convnet of stem and blocks alone fit nobody's norm1
        (["stem.proj.weight", "blocks.0.w", "norm1x", "neck.w", "head.w"], r"not neck\.w"),
    ],
)
def test_unknown_parts_are_named_instead_of_guessed(names, says):
    with pytest.raises(UserError, match=says) as refused:
        family_depths(names)
    assert "grouping.depths" in str(refused.value)


def test_two_families_that_number_the_names_otherwise_are_an_error(monkeypatch):
    other = FAMILIES["resnet"]._replace(matcher={"stem": "^conv1|bn1", "blocks": r"^layer(\d+)"})
    monkeypatch.setitem(FAMILIES, "other", other)
    names = ["conv1.weight", "layer1.0.w", "layer1.1.w", "fc.weight"]
    with pytest.raises(
        UserError, match="fit timm's resnet and its other, which number them otherwise; use it on a model"
    ):
        family_depths(names)
    assert family_depths(["conv1.weight", "layer1.0.w", "fc.weight"])["fc.weight"] == 2  # both number these alike
