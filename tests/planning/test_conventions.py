"""Each convention against its source: the function as the code base spells it (not copied from the product), and the
numbers that running it gave."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from layerwise_lr.models.layers import param_table
from layerwise_lr.models.trees import make_tree
from layerwise_lr.planning.assigning import group_table
from layerwise_lr.planning.conventions import PUBLISHED
from layerwise_lr.planning.depth import CONVENTIONS, assign
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import GroupingSpec
from layerwise_lr.planning.params import ParamInfo, ParamTable

VIT = [row.name for row in param_table(make_tree("vit_tiny", 10, 3, 32, depth=3))]
RESNET = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def named(names, shape=(2, 2), layer_type="linear"):
    return ParamTable(tuple(ParamInfo(n, shape, layer_type, "weight", 0) for n in names), "head")


def scales(names, convention, layer_decay):
    given = group_table(named(names), GroupingSpec(convention=convention, layer_decay=layer_decay), 1e-3, 0.05)[1]
    return {name: a.lr_scale for name, a in given.items()}


def assert_scales(names, convention, layer_decay, theirs):
    assert scales(names, convention, layer_decay) == {name: theirs(name) for name in names}  # to the last bit


def test_every_convention_names_its_source():
    assert set(PUBLISHED) == set(CONVENTIONS) - {"tree", "order", "timm"}
    for name, convention in PUBLISHED.items():
        assert "@" in convention.source and ".py" in convention.source, name


# --- MAE, OneFlow, BEiT


def mae(name, num_layers):
    if name in ["cls_token", "pos_embed"]:
        return 0
    if name.startswith("patch_embed"):
        return 0
    if name.startswith("blocks"):
        return int(name.split(".")[1]) + 1
    return num_layers


def beit(var_name, num_max_layer):
    if var_name in ("cls_token", "mask_token", "pos_embed"):
        return 0
    if var_name.startswith("patch_embed"):
        return 0
    if var_name.startswith("rel_pos_bias"):
        return num_max_layer - 1
    if var_name.startswith("blocks"):
        return int(var_name.split(".")[1]) + 1
    return num_max_layer - 1


@pytest.mark.parametrize("convention", ["mae", "oneflow_vit"])
@pytest.mark.parametrize("headless", [False, True])
def test_mae_and_oneflow(convention, headless):
    names = ["mask_token", *(n for n in VIT if not (headless and n.startswith(("head", "norm"))))]
    assert_scales(names, convention, 0.75, lambda name: 0.75 ** (4 - mae(name, 4)))


def test_the_seed_document_s_scales():
    """layer_scales of oneflow's tutorial: 0.9 ** (num_layers - i), num_layers = len(blocks) + 1."""
    found = scales(VIT, "oneflow_vit", 0.9)
    layer_scales = [0.9 ** (4 - i) for i in range(5)]
    assert found["cls_token"] == layer_scales[0]
    assert found["blocks.1.mlp.fc1.weight"] == layer_scales[2]
    assert found["head.weight"] == layer_scales[4]


def test_beit():
    names = ["mask_token", "rel_pos_bias.relative_position_bias_table", *VIT]
    assert_scales(names, "beit", 0.65, lambda name: 0.65 ** (4 - beit(name, 5)))


# --- ConvNeXt, Swin, mmpretrain


def convnext_names(depths):
    for stage, blocks in enumerate(depths):
        yield f"downsample_layers.{stage}.0.weight"
        yield from (f"stages.{stage}.{block}.dwconv.weight" for block in range(blocks))
    yield from ("norm.weight", "head.weight")


def convnext(var_name, num_max_layer=12):
    if var_name.startswith("downsample_layers"):
        stage_id = int(var_name.split(".")[1])
        return 0 if stage_id == 0 else stage_id + 1 if stage_id in (1, 2) else num_max_layer
    if var_name.startswith("stages"):
        stage_id, block_id = int(var_name.split(".")[1]), int(var_name.split(".")[2])
        if stage_id in (0, 1):
            return stage_id + 1
        return 3 + block_id // 3 if stage_id == 2 else num_max_layer
    return num_max_layer + 1


@pytest.mark.parametrize(("depths", "used"), [((3, 3, 9, 3), 8), ((3, 3, 27, 3), 14)])
def test_convnext(depths, used):
    names = list(convnext_names(depths))
    assert_scales(names, "convnext", 0.7, lambda name: 0.7 ** (13 - convnext(name)))
    assert len({row.depth for row in assign(named(names), GroupingSpec(convention="convnext"))}) == used


def test_convnext_by_timm_s_names(golden):
    def official(name):
        first, second, *rest = name.split(".")
        if first == "stem":
            return f"downsample_layers.0.{second}"
        if rest[:1] == ["downsample"]:
            return f"downsample_layers.{second}"
        return f"stages.{second}.{rest[1]}" if first == "stages" else name

    names = list(golden["timm_layer_maps"]["convnext_tiny"])
    table = assign(named(names), GroupingSpec(convention="convnext"))
    assert {row.name: row.depth for row in table} == {name: convnext(official(name)) for name in names}


@pytest.mark.parametrize(("depths", "last"), [((3, 3, 9, 3), 6), ((3, 3, 27, 3), 12)])
def test_mmpretrain_s_convnext(depths, last):
    names = [n if n.startswith("head") else f"backbone.{n}" for n in convnext_names(depths)]
    inner = {n: n.removeprefix("backbone.") for n in names}
    assert_scales(names, "mmpretrain", 0.8, lambda name: 0.8 ** (last + 1 - convnext(inner[name], last)))


def swin_names(depths):
    yield "backbone.patch_embed.projection.weight"
    for stage, blocks in enumerate(depths):
        yield from (f"backbone.stages.{stage}.blocks.{block}.attn.w_msa.qkv.weight" for block in range(blocks))
        if stage < len(depths) - 1:
            yield from (f"backbone.stages.{stage}.downsample.{part}.weight" for part in ("norm", "reduction"))
    yield from ("backbone.norm3.weight", "head.fc.weight")


def swin(param_name, depths):
    num_layers = sum(depths) + 2
    if not param_name.startswith("backbone."):
        return num_layers - 1
    param_name = param_name[len("backbone.") :]
    if param_name.startswith("patch_embed"):
        return 0
    if param_name.startswith("stages"):
        stage_id, block_id = int(param_name.split(".")[1]), param_name.split(".")[3]
        if block_id in ("reduction", "norm"):
            return sum(depths[: stage_id + 1])
        return sum(depths[:stage_id]) + int(block_id) + 1
    return num_layers - 1


@pytest.mark.parametrize("convention", ["swin_mm", "mmpretrain"])
@pytest.mark.parametrize("depths", [(2, 2, 6, 2), (2, 2, 18, 2), (1, 1)])
def test_mmpretrain_s_swin(convention, depths):
    names = list(swin_names(depths))
    assert_scales(names, convention, 0.9, lambda name: 0.9 ** (sum(depths) + 1 - swin(name, depths)))


def test_swin_by_timm_s_names():
    by_depth = json.loads((Path(__file__).parent / "timm_layer_maps.json").read_text())["swin_tiny_patch4_window7_224"]
    timm = {name: depth for depth, names in enumerate(by_depth) for name in names}
    table = assign(named(list(timm)), GroupingSpec(convention="swin_mm")).by_name
    assert {name: (table[name].depth, timm[name]) for name in timm if table[name].depth != timm[name]} == {
        **{f"layers.1.downsample.{part}": (2, 3) for part in ("norm.weight", "norm.bias", "reduction.weight")},
        **{f"layers.2.downsample.{part}": (4, 5) for part in ("norm.weight", "norm.bias", "reduction.weight")},
        **{f"layers.3.downsample.{part}": (10, 11) for part in ("norm.weight", "norm.bias", "reduction.weight")},
        "norm.weight": (13, 12),
        "norm.bias": (13, 12),
    }


def resnet(param_name, depths):
    blk2, blk3 = {(4, 6): (2, 3), (4, 23): (2, 3), (8, 36): (4, 4)}[depths[1], depths[2]]
    n2, n3 = math.ceil(depths[1] / blk2 - 1e-5), math.ceil(depths[2] / blk3 - 1e-5)
    n = 2 + n2 + n3
    if not param_name.startswith("backbone."):
        return n + 1
    if param_name.startswith("backbone.layer"):
        stage_id, block_id = int(param_name.split(".")[1][5:]), int(param_name.split(".")[2])
        return {1: 1, 2: 2 + block_id // blk2, 3: 2 + n2 + block_id // blk3, 4: n}[stage_id]
    return 0


@pytest.mark.parametrize(("net", "top"), [(50, 7), (101, 13), (152, 14)])
def test_mmpretrain_s_resnet(net, top):
    depths = RESNET[net]
    layers = (f"backbone.layer{s + 1}.{b}.conv1.weight" for s in range(4) for b in range(depths[s]))
    names = ["backbone.conv1.weight", "backbone.bn1.weight", *layers, "head.fc.weight"]
    assert_scales(names, "mmpretrain", 0.75, lambda name: 0.75 ** (top - resnet(name, depths)))


def test_mmpretrain_s_resnet_by_torchvision_s_names_and_without_a_head():
    names = [row.name for row in param_table(make_tree("resnet50", 10, 3, 32))]
    found = scales(names, "mmpretrain", 0.75)
    assert found["conv1.weight"] == pytest.approx(0.1334838867, rel=1e-9)
    trunk = [name for name in names if not name.startswith("fc")]
    assert scales(trunk, "mmpretrain", 0.75) == {name: found[name] for name in trunk}


def test_mmpretrain_s_own_unit_test():
    """test_layer_decay_optim_wrapper_constructor.py: a ViT of 2 blocks, rate 2."""
    names = ["backbone.cls_token", "backbone.layers.0.ln1.weight", "backbone.layers.1.ln1.weight", "head.fc.weight"]
    spec = GroupingSpec(convention="mmpretrain", layer_decay=2.0, allow_above_one=True)
    given = group_table(named(names), spec, 1e-3, 0.0)[1]
    assert [given[name].lr_scale for name in names] == [8, 4, 2, 1]


def test_mmpretrain_has_no_resnet18():
    with pytest.raises(UserError, match=r"mmpretrain knows ViT, BEiT, Swin, ConvNeXt and ResNet-50.* finds no such"):
        assign(param_table(make_tree("resnet18", 10, 3, 32)), GroupingSpec(convention="mmpretrain"))


# --- detectron2, DINOv2


def detectron2(name, lr_decay_rate, num_layers):
    layer_id = num_layers + 1
    if name.startswith("backbone"):
        if ".pos_embed" in name or ".patch_embed" in name:
            layer_id = 0
        elif ".blocks." in name and ".residual." not in name:
            layer_id = int(name[name.find(".blocks.") :].split(".")[2]) + 1
    return lr_decay_rate ** (num_layers + 1 - layer_id)


def test_detectron2():
    names = [
        "backbone.net.pos_embed",
        "backbone.net.cls_token",
        "backbone.net.patch_embed.proj.weight",
        *(f"backbone.net.blocks.{i}.attn.{part}" for i in range(12) for part in ("qkv.weight", "rel_pos_h")),
        "backbone.net.blocks.2.residual.conv1.weight",
        "backbone.simfp_2.0.weight",
        "proposal_generator.rpn_head.conv.weight",
        "roi_heads.box_head.fc1.weight",
    ]
    assert_scales(names, "detectron2", 0.7, lambda name: detectron2(name, 0.7, 12))
    found = scales(names, "detectron2", 0.7)
    assert found["backbone.net.pos_embed"] == pytest.approx(0.0096889010, rel=1e-8)
    assert found["backbone.net.blocks.0.attn.qkv.weight"] == pytest.approx(0.0138412872, rel=1e-8)
    assert found["backbone.net.cls_token"] == found["backbone.net.blocks.2.residual.conv1.weight"] == 1


def test_detectron2_refuses_a_backbone_of_another_name():
    with pytest.raises(UserError, match="ViTDet only and finds no such blocks here"):
        assign(named(["img_backbone.blocks.0.w", "img_backbone.patch_embed.w"]), GroupingSpec(convention="detectron2"))


def dinov2(name, lr_decay_rate, num_layers, patch_embed_lr_mult):
    layer_id = num_layers + 1
    if any(part in name for part in ("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens")):
        layer_id = 0
    elif "blocks." in name and "residual." not in name:
        layer_id = int(name[name.find("blocks.") :].split(".")[1]) + 1
    return lr_decay_rate ** (num_layers + 1 - layer_id) * (patch_embed_lr_mult if "patch_embed" in name else 1.0)


def test_dinov2():
    names = ["mask_token", "register_tokens", *(n for n in VIT if not n.startswith("head"))]
    assert_scales(names, "dinov2", 0.9, lambda name: dinov2(name, 0.9, 3, 0.2))


def test_dinov2_s_numbers_and_weight_decay():
    """ViT-B without a head, layerwise_decay .9, patch_embed_lr_mult .2: 150 tensors, (lr_multiplier, wd_multiplier)."""
    rows = [r for r in param_table(make_tree("vit_base", 10, 3, 224)) if not r.name.startswith("head")]
    spec = GroupingSpec(convention="dinov2", layer_decay=0.9)
    given = group_table(ParamTable(tuple(rows), "head"), spec, 1e-3, 0.04)[1]
    assert len(given) == 150
    for name, scale, wd in (
        ("cls_token", 0.2541865828, 1),
        ("pos_embed", 0.2541865828, 1),
        ("patch_embed.proj.weight", 0.0508373166, 1),
        ("patch_embed.proj.bias", 0.0508373166, 0),
        ("blocks.0.attn.qkv.weight", 0.2824295365, 1),
        ("blocks.11.mlp.fc2.bias", 0.9, 0),
        ("norm.weight", 1, 0),
    ):
        assert given[name].lr_scale == pytest.approx(scale, rel=1e-9), name
        assert given[name].weight_decay == 0.04 * wd, name
    assert len({(a.lr_scale, a.weight_decay) for a in given.values()}) == 28


def test_dinov2_in_chunks_counts_the_inner_index():
    """FSDP's BlockChunk: blocks.CHUNK.INDEX, the index counted over all chunks."""
    names = ["pos_embed", "blocks.0.0.w", "blocks.0.1.w", "blocks.1.2.w", "blocks.1.3.w", "norm.weight"]
    assert [r.depth for r in assign(named(names), GroupingSpec(convention="dinov2"))] == [0, 1, 2, 3, 4, 5]


# --- ELECTRA, XLNet


def electra(var_name, layer_decay, n_layers):
    key_to_depths = {"/embeddings/": 0, "/embeddings_project/": 0, "task_specific/": n_layers + 2}
    for layer in range(n_layers):
        key_to_depths["encoder/layer_" + str(layer) + "/"] = layer + 1
    (depth,) = {depth for key, depth in key_to_depths.items() if key in var_name}
    return layer_decay ** (n_layers + 2 - depth)


ELECTRA = [
    "electra/embeddings/word_embeddings",
    "electra/embeddings_project/kernel",
    *(f"electra/encoder/layer_{i}/attention/self/query/kernel" for i in range(12)),
    "task_specific/mnli/logits/kernel",
]


def test_electra():
    assert_scales(ELECTRA, "electra", 0.8, lambda name: electra(name, 0.8, 12))
    found = list(scales(ELECTRA, "electra", 0.8).values())
    assert found[0] == pytest.approx(0.0439804651, rel=1e-9)
    assert found[2] == pytest.approx(0.0549755814, rel=1e-9)
    assert found[13] == pytest.approx(0.64)
    assert found[14] == 1.0


def test_electra_by_transformers_names():
    ported = [
        n.replace("/", ".").replace("layer_", "layer.").replace("task_specific.mnli", "classifier") for n in ELECTRA
    ]
    assert list(scales(ported, "electra", 0.8).values()) == list(scales(ELECTRA, "electra", 0.8).values())


def test_electra_refuses_what_it_has_no_rate_for():
    """The source raises "No learning rate specified for variable"."""
    names = ["bert.embeddings.w", "bert.encoder.layer.0.w", "bert.pooler.dense.weight", "classifier.weight"]
    with pytest.raises(UserError, match=r"electra knows ELECTRA only, and not bert\.pooler; use"):
        assign(named(names), GroupingSpec(convention="electra"))


def xlnet(name, rate, n_layer):
    for layer in range(n_layer):
        if f"model/transformer/layer_{layer}/" in name:
            return rate ** (n_layer - 1 - layer)
    return 1.0


XLNET = [
    "model/transformer/word_embedding/lookup_table",
    "model/transformer/r_w_bias",
    *(f"model/transformer/layer_{i}/rel_attn/q/kernel" for i in range(24)),
    "model/classification_mnli/logit/kernel",
]


def test_xlnet():
    assert_scales(XLNET, "xlnet", 0.75, lambda name: xlnet(name, 0.75, 24))
    found = list(scales(XLNET, "xlnet", 0.75).values())
    assert (found[0], found[1], found[25], found[26]) == (1, 1, 1, 1)
    assert found[2] == pytest.approx(0.0013378550, rel=1e-6)


def test_xlnet_by_transformers_names():
    names = [
        "transformer.mask_emb",
        "transformer.word_embedding.weight",
        "transformer.layer.0.rel_attn.q",
        "transformer.layer.1.ff.layer_1.weight",
        "sequence_summary.summary.weight",
        "logits_proj.weight",
    ]
    assert list(scales(names, "xlnet", 0.5).values()) == [1, 1, 0.5, 1, 1, 1]


# --- weight decay


@pytest.mark.parametrize(
    ("convention", "undecayed"),
    [
        ("mae", {"cls_token", "blocks.0.ls1.gamma", "norm.weight", "head.bias"}),
        ("beit", {"cls_token", "blocks.0.ls1.gamma", "norm.weight", "head.bias"}),
        ("dinov2", {"blocks.0.ls1.gamma", "norm.weight", "head.bias"}),
    ],
)
def test_weight_decay_is_the_source_s(convention, undecayed):
    shapes = {"cls_token": (1, 1, 4), "blocks.0.w": (4, 4)}
    rows = [
        (n, shapes.get(n, (4,))) for n in ("cls_token", "blocks.0.w", "blocks.0.ls1.gamma", "norm.weight", "head.bias")
    ]
    table = ParamTable(tuple(ParamInfo(n, shape, "other", "weight", 0) for n, shape in rows), "head")
    given = group_table(table, GroupingSpec(convention=convention), 1e-3, 0.05)[1]
    assert {n for n, a in given.items() if not a.weight_decay} == undecayed
    given = group_table(table, GroupingSpec(convention=convention, no_weight_decay=False), 1e-3, 0.05)[1]
    assert all(a.weight_decay for a in given.values())


def test_weight_decay_of_detectron2_electra_and_xlnet():
    def undecayed(convention, rows):
        table = ParamTable(tuple(ParamInfo(n, (4,), kind, "weight", 0) for n, kind in rows), "head")
        given = group_table(table, GroupingSpec(convention=convention), 1e-3, 0.05)[1]
        return [n for n, a in given.items() if not a.weight_decay]

    block = "backbone.net.blocks.0"
    rows = (("backbone.net.pos_embed", "token"), (f"{block}.norm1.bias", "layernorm"), (f"{block}.mlp.bias", "linear"))
    assert undecayed("detectron2", rows) == ["backbone.net.pos_embed", f"{block}.norm1.bias"]
    layer = "electra.encoder.layer.0.output"
    rows = ((f"{layer}.LayerNorm.weight", "layernorm"), (f"{layer}.dense.bias", "linear"), (f"{layer}.x", "linear"))
    assert undecayed("electra", rows) == [f"{layer}.LayerNorm.weight", f"{layer}.dense.bias"]
    layer = "transformer.layer.0"
    rows = ((f"{layer}.rel_attn.r_r_bias", "linear"), (f"{layer}.rel_attn.layer_norm.weight", "layernorm"))
    assert undecayed("xlnet", rows) == [f"{layer}.rel_attn.layer_norm.weight"]


# --- refusals


@pytest.mark.parametrize("convention", [*PUBLISHED, "timm"])
def test_a_model_of_no_family_is_refused_instead_of_falling_to_one_depth(convention):
    with pytest.raises(
        UserError, match=rf"grouping\.convention={convention} knows .*grouping\.convention=tree.*depths"
    ):
        assign(param_table(make_tree("lenet", 10, 3, 32)), GroupingSpec(convention=convention))


@pytest.mark.parametrize("convention", ["mae", "oneflow_vit", "beit", "mmpretrain", "timm"])
def test_unknown_parts_are_named(convention):
    with pytest.raises(UserError, match=r"and not decoder_blocks\.0, decoder_norm\.weight"):
        assign(named([*VIT, "decoder_blocks.0.w", "decoder_norm.weight"]), GroupingSpec(convention=convention))


def test_mae_does_not_know_register_tokens_which_its_source_would_put_with_the_head():
    with pytest.raises(UserError, match="mae knows ViT only, and not reg_token"):
        assign(named([*VIT, "reg_token"]), GroupingSpec(convention="mae"))


@pytest.mark.parametrize("convention", ["mae", "timm"])
def test_what_is_not_trained_need_not_be_known_but_counts(convention):
    """A buffer of unknown name goes with the head; frozen blocks keep their depth."""
    rows = named(["cls_token", "blocks.0.w", "blocks.1.w", "rope_table", "head.weight"]).rows
    frozen = tuple(replace(row, trainable=row.name in ("blocks.1.w", "head.weight")) for row in rows)
    table = assign(ParamTable(frozen, "head"), GroupingSpec(convention=convention))
    assert [row.depth for row in table] == [0, 1, 2, 3, 3]
