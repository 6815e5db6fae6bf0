import json
import struct

import pytest

from layerwise_lr.models.layers import param_table
from layerwise_lr.models.trees import MODELS, make_tree
from layerwise_lr.planning.errors import UserError

# trainable parameters at 1000 classes and 224 pixels, as torchvision's and timm's own pages state
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
    "vit_tiny": 5_717_416,
    "vit_small": 22_050_664,
    "vit_base": 86_567_656,
}


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_published_parameter_counts(model):
    table = param_table(make_tree(model, 1000, 3, 224))
    assert sum(r.numel for r in table.trainable) == PUBLISHED[model]


def test_lenet_counts_by_hand():
    """28x28 grey, 10 classes: LeNet-5 with 5x5 feature maps before fc1."""
    by_hand = (25 * 1 + 1) * 6 + (25 * 6 + 1) * 16 + (400 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10
    assert sum(r.numel for r in param_table(make_tree("lenet", 10, 1, 28))) == by_hand == 61_706


@pytest.mark.parametrize("size", range(12, 33))
def test_lenet_s_first_linear_layer_fits_what_the_convolutions_leave(size):
    side = (size - 0) // 2  # padding 2 keeps the size, pooling halves it
    side = (side - 4) // 2  # no padding: minus 4, pooling halves it
    table = param_table(make_tree("lenet", 10, 3, size)).by_name
    assert table["fc1.weight"].shape == (120, 16 * side * side)


def test_vit_base_has_timm_s_names_shapes_and_order(golden):
    expected = {n: tuple(s) for n, s in golden["vit_base_patch16_224"]["param_shapes"].items()}
    found = {r.name: r.shape for r in param_table(make_tree("vit_base", 1000, 3, 224))}
    assert found == expected
    assert len(found) == 152


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_resnet_has_torchvision_s_names_which_timm_shares(golden, model):
    table = param_table(make_tree(model, 1000, 3, 224))
    assert {r.name for r in table.trainable} == set(golden["timm_layer_maps"][model])


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_resnet_s_declared_depths_are_timm_s(golden, model):
    table = param_table(make_tree(model, 1000, 3, 224))
    assert {r.name: r.depth for r in table.trainable} == golden["timm_layer_maps"][model]


@pytest.mark.network
def test_mobilenet_v2_has_the_names_and_shapes_of_torchvision_s_checkpoint(mobilenet_checkpoint):
    with mobilenet_checkpoint.open("rb") as file:  # the header of a safetensors file is plain JSON
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    expected = {
        n: tuple(v["shape"]) for n, v in header.items() if n != "__metadata__" and not n.endswith("num_batches_tracked")
    }
    assert {r.name: r.shape for r in param_table(make_tree("mobilenet_v2", 1000, 3, 224))} == expected


SIZES = {"lenet": 28, "mlp": 8}


@pytest.mark.parametrize("model", sorted(MODELS))
def test_depths_are_0_to_l_without_gaps_and_the_head_is_last(model):
    table = param_table(make_tree(model, 5, 3, SIZES.get(model, 32)))
    depths = {r.depth for r in table.trainable}
    assert depths == set(range(max(depths) + 1))
    head = [r for r in table if table.is_head(r.name)]
    assert {r.depth for r in head} == {max(depths)}
    assert {r.role for r in head} == {"weight", "bias"}
    assert next(r for r in head if r.role == "weight").shape[0] == 5


@pytest.mark.parametrize("model", sorted(MODELS))
def test_the_last_layers_come_last_in_the_table(model):
    table = param_table(make_tree(model, 5, 3, SIZES.get(model, 32)))
    assert [table.is_head(r.name) for r in table] == [False] * (len(table) - 2) + [True, True]


@pytest.mark.torch
@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_tree_uses_only_kinds_that_the_torch_plugin_has_and_computes_logits(model):
    import torch
    from layerwise_lr.plugins.torch_plugin.plugin import TorchFramework

    tree = make_tree(model, 5, 3, SIZES.get(model, 32))
    framework = TorchFramework("cpu")
    native = framework.make_model(tree).eval()
    assert tuple(native(torch.zeros(2, *tree.input_shape)).shape) == (2, 5)


@pytest.mark.parametrize("depth", [1, 4])
def test_vit_depth_is_an_option(depth):
    table = param_table(make_tree("vit_tiny", 2, 1, 32, depth=depth, patch_size=8))
    assert table.num_layers == depth + 1
    assert table.by_name["pos_embed"].shape == (1, 17, 192)
    assert table.by_name["patch_embed.proj.weight"].shape == (192, 1, 8, 8)


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_a_quarter_of_a_resnet_s_width_leaves_names_and_divides_every_count_of_channels(model):
    whole, quarter = (param_table(make_tree(model, 10, 3, 32, width=width)).by_name for width in (64, 16))
    assert list(whole) == list(quarter)
    kept = {"conv1.weight": (16, 3, 7, 7), "fc.weight": (10, whole["fc.weight"].shape[1] // 4), "fc.bias": (10,)}
    for name, row in whole.items():
        assert quarter[name].shape == kept.get(name, tuple(n // 4 for n in row.shape[:2]) + row.shape[2:]), name


def test_layer_scale_and_average_pooling_add_timm_s_names():
    plain = {r.name for r in param_table(make_tree("vit_tiny", 2, 3, 32, depth=1))}
    scaled = {r.name for r in param_table(make_tree("vit_tiny", 2, 3, 32, depth=1, layer_scale=1e-5))}
    pooled = {r.name for r in param_table(make_tree("vit_tiny", 2, 3, 32, depth=1, pool="avg"))}
    assert scaled - plain == {"blocks.0.ls1.gamma", "blocks.0.ls2.gamma"}
    assert pooled ^ plain == {"norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias"}


@pytest.mark.parametrize(
    ("name", "size", "options", "word"),
    [
        ("resnet19", 32, {}, r"'resnet19' is unknown.*did you mean 'resnet1"),
        ("lenet", 28, {"width": 3}, "lenet takes no width; it takes: no options"),
        ("resnet18", 32, {"blocks": (1,)}, "takes no blocks"),
        ("resnet18", 32, {"depth": 1}, "takes no depth"),
        ("vit_tiny", 32, {"width": 9}, r"takes no width; it takes: depth, .*pool"),
        ("mobilenet_v2", 32, {"depth": 1, "width": 2}, "takes no depth, width; it takes: dropout"),
        ("lenet", 11, {}, "image_size=11 is too small"),
        ("vit_tiny", 30, {}, "image_size=30 is no multiple of patch_size=16"),
        ("vit_tiny", 32, {"num_heads": 5}, "embed_dim=192 is no multiple of num_heads=5"),
        ("vit_tiny", 32, {"pool": "max"}, "pool='max'"),
    ],
)
def test_what_a_model_does_not_take_is_refused_by_name(name, size, options, word):
    with pytest.raises(UserError, match=word):
        make_tree(name, 10, 3, size, **options)
