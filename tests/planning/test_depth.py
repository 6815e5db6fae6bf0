import re

import pytest

from layerwise_lr.models.layers import param_table
from layerwise_lr.models.trees import MODELS, make_tree
from layerwise_lr.planning.assigning import group_table
from layerwise_lr.planning.depth import CONVENTIONS, assign
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import GroupingSpec
from layerwise_lr.planning.names import bare_name
from layerwise_lr.planning.params import ParamInfo, ParamTable

LENET = param_table(make_tree("lenet", 10, 1, 28))


def table_of(name, **options):
    return param_table(make_tree(name, 10, 3, 32, **options))


def named(*names):
    return ParamTable(tuple(ParamInfo(n, (2, 2), "linear", "weight", 0) for n in names), "head")


def depths(table, **spec):
    return {row.name: row.depth for row in assign(table, GroupingSpec(**spec))}


def test_mae_and_timm_differ_on_the_final_norm_alone():
    table = param_table(make_tree("vit_base", 1000, 3, 224))
    mae, timm = depths(table, convention="mae"), depths(table, convention="timm")
    assert {n: (mae[n], timm[n]) for n in mae if mae[n] != timm[n]} == {"norm.weight": (13, 12), "norm.bias": (13, 12)}


def test_mae_and_timm_agree_under_average_pooling():
    table = param_table(make_tree("vit_base", 1000, 3, 224, pool="avg"))
    assert assign(table, GroupingSpec(convention="mae")) == assign(table, GroupingSpec(convention="timm"))


def test_the_mask_token_is_the_stem_in_beit_and_the_head_in_mae():
    table = named("mask_token", "cls_token", "blocks.0.w", "head.weight")
    assert depths(table, convention="beit")["mask_token"] == 0
    assert depths(table, convention="mae")["mask_token"] == 2


def test_a_shared_relative_position_bias_is_beit_s_head_and_timm_s_stem():
    table = named("cls_token", "rel_pos_bias.relative_position_bias_table", "blocks.0.w", "head.weight")
    assert depths(table, convention="beit")["rel_pos_bias.relative_position_bias_table"] == 2
    assert depths(table, convention="timm")["rel_pos_bias.relative_position_bias_table"] == 0


def test_order_gives_each_layer_its_own_depth():
    layers = ["conv1", "conv2", "fc1", "fc2", "classifier"]
    expected = {f"{layer}.{role}": i for i, layer in enumerate(layers) for role in ("weight", "bias")}
    assert depths(table_of("lenet"), convention="order") == expected


@pytest.mark.parametrize("model", sorted(MODELS))
def test_order_counts_the_layers_with_parameters_without_gaps(model):
    table = assign(table_of(model), GroupingSpec(convention="order"))
    layers = {re.sub(r"\.[^.]+$", "", r.name) if "." in r.name else "" for r in table}
    assert {r.depth for r in table} == set(range(len(layers)))
    assert table.num_layers == len(layers) - 1
    assert [r.depth for r in table] == sorted(r.depth for r in table)
    assert all(r.depth == table.num_layers for r in table if table.is_head(r.name))


@pytest.mark.parametrize("model", sorted(MODELS))
def test_tree_is_what_the_model_declares(model):
    assert assign(table_of(model), GroupingSpec()) == table_of(model)


def test_an_unknown_convention_is_named_with_what_there_is():
    with pytest.raises(
        UserError, match=r"grouping\.convention='mea' is unknown.*tree, order, timm.*did you mean 'mae'"
    ):
        depths(LENET, convention="mea")


# --- wrappers and adapters


@pytest.mark.parametrize(
    ("wrapped", "bare"),
    [
        ("module.blocks.0.w", "blocks.0.w"),
        ("_orig_mod.module.blocks.0.w", "blocks.0.w"),
        ("blocks.0._orig_mod.w", "blocks.0.w"),
        ("_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.w", "blocks.0.w"),
        ("base_model.model.bert.encoder.w", "bert.encoder.w"),
        ("base_model.model.model.layers.0.q_proj.base_layer.weight", "model.layers.0.q_proj.weight"),
        ("base_model.model.model.layers.0.q_proj.lora_A.default.weight", "model.layers.0.q_proj.weight"),
        ("blocks.0.attn.qkv.lora_B", "blocks.0.attn.qkv.weight"),
        ("embed_tokens.lora_embedding_A.default", "embed_tokens.weight"),
        ("q_proj.lora_magnitude_vector.default.weight", "q_proj.weight"),
        ("base_model.model.classifier.modules_to_save.default.weight", "classifier.weight"),
        ("classifier.original_module.bias", "classifier.bias"),
        ("base_layer.0.weight", "base_layer.0.weight"),  # DLA's own
        ("module.backbone.base_layer.0.weight", "backbone.base_layer.0.weight"),
        ("submodule.w", "submodule.w"),
        ("module_list.0.w", "module_list.0.w"),
        ("lora.0.w", "lora.0.w"),
    ],
)
def test_the_name_under_wrappers_and_adapters(wrapped, bare):
    assert bare_name(wrapped) == bare


@pytest.mark.parametrize("convention", ["mae", "beit", "dinov2", "oneflow_vit", "mmpretrain", "timm", "order"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._fsdp_wrapped_module.", "base_model.model."])
def test_no_prefix_changes_a_depth(convention, prefix):
    table = table_of("vit_tiny", depth=3)
    plain = depths(table, convention=convention)
    wrapped = depths(named(*(prefix + row.name for row in table)), convention=convention)
    assert wrapped == {prefix + name: depth for name, depth in plain.items()}


def test_an_adapter_has_its_host_s_depth():
    host = "base_model.model.blocks.1.attn.qkv"
    adapters = [f"{host}.base_layer.weight", f"{host}.lora_A.default.weight", f"{host}.lora_magnitude_vector.default"]
    table = named("cls_token", "base_model.model.blocks.0.w", *adapters, "blocks.2.w", "head.weight")
    for convention in ("mae", "timm", "dinov2"):
        assert [depths(table, convention=convention)[name] for name in adapters] == [2, 2, 2]


def test_a_wrapped_head_is_the_head():
    assert named("module.head.weight").is_head("module.head.weight")
    assert not named("module.header.weight").is_head("module.header.weight")


# --- rules


def test_the_first_rule_that_matches_wins():
    rules = {r"^conv1\.": 0, "conv": 3, "fc": 5, ".*": 7}
    found = depths(LENET, depths=rules)
    assert {name.partition(".")[0]: depth for name, depth in found.items()} == {
        "conv1": 0,
        "conv2": 3,
        "fc1": 5,
        "fc2": 5,
        "classifier": 7,
    }


def test_rules_go_before_a_convention_and_see_through_wrappers():
    table = named("module.a.weight", "module.b.lora_A.default.weight")
    rules = {r"^a\.weight$": 0, r"^b\.weight$": 1}
    assert list(depths(table, depths=rules, convention="mae").values()) == [0, 1]


def test_a_buffer_goes_with_its_layer():
    table = table_of("resnet18")
    found = depths(table, depths={r"layer1\.0\.bn1\.(weight|bias)": 4, "weight|bias": 9})
    assert found["layer1.0.bn1.running_mean"] == 4
    assert found["bn1.running_var"] == 9


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (
            {"conv": 0, "fc": 1},
            r"2 parameters match no rule: classifier\.weight, classifier\.bias; add one, such as {'\.\*': 1}",
        ),
        ({"covn1": 0, ".*": 1}, r"'covn1' matches no parameter of the model; did you mean 'conv1'"),
        ({".*": 0, "conv1": 1}, r"'conv1' an earlier rule takes all"),
        ({"conv(": 0, ".*": 1}, r"'conv\(' is no regex"),
    ],
)
def test_a_faulty_rule_is_named(rules, says):
    with pytest.raises(UserError, match=rf"^grouping\.depths: {says}"):
        depths(LENET, depths=rules)


# --- stages


@pytest.mark.parametrize(
    ("stages", "expected"), [(1, [0, 0, 0, 0, 1]), (2, [0, 0, 1, 1, 2]), (3, [0, 0, 1, 2, 3]), (4, [0, 1, 2, 3, 4])]
)
def test_stages_are_of_equal_count_and_the_head_has_its_own(stages, expected):
    found = depths(LENET, stages=stages)
    assert [found[f"{layer}.weight"] for layer in ("conv1", "conv2", "fc1", "fc2", "classifier")] == expected


def test_four_stages_of_a_12_block_vit():
    table = assign(param_table(make_tree("vit_base", 10, 3, 224)), GroupingSpec(convention="mae", stages=4))
    blocks = [table.by_name[f"blocks.{i}.attn.qkv.weight"].depth for i in range(12)]
    assert (table.by_name["cls_token"].depth, blocks) == (0, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    assert table.by_name["head.weight"].depth == table.num_layers == 4


def test_stages_count_the_missing_head():
    """Without a head the exponents stay: the last block is not the head."""
    trunk = named("cls_token", "blocks.0.w", "blocks.1.w")
    found = group_table(trunk, GroupingSpec(convention="mae", layer_decay=0.5, stages=3), 1.0, 0.0)[1]
    assert [a.lr_scale for a in found.values()] == [0.125, 0.25, 0.5]


def test_more_stages_than_depths_are_refused():
    with pytest.raises(UserError, match=r"grouping\.stages=5 is more than the 4 depths below the head"):
        depths(LENET, stages=5)


def test_the_schema_s_docstring_names_every_convention():
    text = " ".join((GroupingSpec.__doc__ or "").split())
    assert all(re.search(rf"\b{name}\b", text) for name in CONVENTIONS)
