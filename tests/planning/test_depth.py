import re

import pytest

from layerwise_lr.models.layers import param_table
from layerwise_lr.models.trees import MODELS, make_tree
from layerwise_lr.planning import depth
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.params import ParamInfo, ParamTable

FAMILIES = [
    "vit_base_patch16_224",
    "vit_base_patch16_clip_224",
    "vit_base_patch14_reg4_dinov2",
    "beit_base_patch16_224",
    "convnext_tiny",
    "resnet18",
    "resnet50",
    "mobilenetv3_large_100",
]


def table_of(name, **options):
    return param_table(make_tree(name, 10, 3, 32, **options))


def named(*names):
    return ParamTable(tuple(ParamInfo(n, (2, 2), "linear", "weight", 0) for n in names), "head")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_map_of_timm(golden, family):
    expected = golden["timm_layer_maps"][family]
    assert depth.family_depths(expected) == expected


def test_the_golden_file_holds_no_family_that_is_not_tested(golden):
    assert sorted(golden["timm_layer_maps"]) == sorted(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_the_names_does_not_matter_to_timm(golden, family):
    expected = golden["timm_layer_maps"][family]
    assert depth.family_depths(reversed(list(expected))) == expected


def mae_get_layer_id_for_vit(name, num_layers):
    """As facebookresearch/mae util/lr_decay.py spells it (not copied from the product)."""
    if name in ["cls_token", "pos_embed"]:
        return 0
    if name.startswith("patch_embed"):
        return 0
    if name.startswith("blocks"):
        return int(name.split(".")[1]) + 1
    return num_layers


@pytest.mark.parametrize("convention", ["mae", "beit"])
@pytest.mark.parametrize("blocks", [1, 3, 12])
def test_mae_and_beit_by_mae_s_own_function(convention, blocks):
    table = depth.assign(table_of("vit_tiny", depth=blocks), convention)
    assert {r.name: r.depth for r in table} == {r.name: mae_get_layer_id_for_vit(r.name, blocks + 1) for r in table}


def test_mae_and_timm_differ_on_the_final_norm_alone(golden):
    table = param_table(make_tree("vit_base", 1000, 3, 224))
    mae, timm = depth.assign(table, "mae").by_name, depth.assign(table, "timm").by_name
    assert {n: (mae[n].depth, timm[n].depth) for n in mae if mae[n].depth != timm[n].depth} == {
        "norm.weight": (13, 12),
        "norm.bias": (13, 12),
    }


def test_mae_and_timm_agree_under_average_pooling():
    table = param_table(make_tree("vit_base", 1000, 3, 224, pool="avg"))
    assert depth.assign(table, "mae") == depth.assign(table, "timm")


def test_the_mask_token_is_the_stem_in_beit_and_the_head_in_mae():
    table = named("mask_token", "cls_token", "blocks.0.w", "head.weight")
    assert depth.CONVENTIONS["beit"](table)["mask_token"] == 0
    assert depth.CONVENTIONS["mae"](table)["mask_token"] == 2


def test_a_shared_relative_position_bias_is_beit_s_head_and_timm_s_stem():
    table = named("cls_token", "rel_pos_bias.table", "blocks.0.w", "head.weight")
    assert depth.CONVENTIONS["beit"](table)["rel_pos_bias.table"] == 2
    assert depth.CONVENTIONS["timm"](table)["rel_pos_bias.table"] == 0


def test_order_gives_each_layer_its_own_depth():
    table = depth.assign(table_of("lenet"), "order")
    assert {r.name: r.depth for r in table} == {
        "conv1.weight": 0,
        "conv1.bias": 0,
        "conv2.weight": 1,
        "conv2.bias": 1,
        "fc1.weight": 2,
        "fc1.bias": 2,
        "fc2.weight": 3,
        "fc2.bias": 3,
        "classifier.weight": 4,
        "classifier.bias": 4,
    }


@pytest.mark.parametrize("model", sorted(MODELS))
def test_order_counts_the_layers_with_parameters_without_gaps(model):
    table = depth.assign(table_of(model), "order")
    layers = {re.sub(r"\.[^.]+$", "", r.name) if "." in r.name else "" for r in table}
    assert {r.depth for r in table} == set(range(len(layers)))
    assert table.num_layers == len(layers) - 1
    depths = [r.depth for r in table]
    assert depths == sorted(depths)
    assert all(r.depth == table.num_layers for r in table if table.is_head(r.name))


@pytest.mark.parametrize("model", sorted(MODELS))
def test_tree_is_what_the_model_declares(model):
    table = table_of(model)
    assert depth.assign(table, "tree") == table


def test_an_unknown_convention_is_named_with_what_there_is():
    with pytest.raises(UserError, match=r"grouping\.depth='mea' is unknown.*tree, order, mae.*did you mean 'mae'"):
        depth.assign(table_of("lenet"), "mea")


@pytest.mark.parametrize("convention", ["mae", "beit", "timm"])
def test_a_model_of_no_family_is_refused_instead_of_falling_to_one_depth(convention):
    with pytest.raises(UserError, match=r"grouping\.depth=tree"):
        depth.assign(table_of("lenet"), convention)
