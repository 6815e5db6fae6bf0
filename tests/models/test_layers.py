import math
from dataclasses import replace

import numpy as np
import pytest

from layerwise_lr.models.layers import (
    KINDS,
    PLAIN_KINDS,
    Layer,
    Residual,
    Seq,
    Tree,
    initial_weights,
    join,
    param_table,
    walk,
)
from layerwise_lr.models.trees import MODELS, make_tree
from layerwise_lr.planning.errors import UserError


def tree_of(*layers, head="head"):
    return Tree("t", Seq("", tuple(layers), depth=0), head, (3, 8, 8), 2)


def arrays(kind, **options):
    return {
        r.name: (r.shape, r.role, r.layer_type, r.trainable) for r in param_table(tree_of(Layer(kind, "", options)))
    }


CONV = {"in_channels": 6, "out_channels": 8, "kernel": 3, "stride": 2, "padding": 1}
EXPECTED = {
    ("conv", "plain"): (CONV, {"weight": ((8, 6, 3, 3), "weight", "conv", True)}),
    ("conv", "groups"): (
        {**CONV, "groups": 2, "bias": True},
        {"weight": ((8, 3, 3, 3), "weight", "conv", True), "bias": ((8,), "bias", "conv", True)},
    ),
    ("linear", ""): (
        {"in_features": 5, "out_features": 7},
        {"weight": ((7, 5), "weight", "linear", True), "bias": ((7,), "bias", "linear", True)},
    ),
    ("batchnorm", ""): (
        {"features": 4, "eps": 1e-5, "momentum": 0.1},
        {
            "weight": ((4,), "scale", "batchnorm", True),
            "bias": ((4,), "shift", "batchnorm", True),
            "running_mean": ((4,), "buffer", "batchnorm", False),
            "running_var": ((4,), "buffer", "batchnorm", False),
        },
    ),
    ("layernorm", ""): (
        {"features": 4, "eps": 1e-6},
        {"weight": ((4,), "scale", "layernorm", True), "bias": ((4,), "shift", "layernorm", True)},
    ),
    ("attention", ""): (
        {"dim": 6, "num_heads": 2},
        {
            "qkv.weight": ((18, 6), "weight", "attention", True),
            "qkv.bias": ((18,), "bias", "attention", True),
            "proj.weight": ((6, 6), "weight", "attention", True),
            "proj.bias": ((6,), "bias", "attention", True),
        },
    ),
    ("tokens", ""): (
        {"num_patches": 9, "dim": 6},
        {"cls_token": ((1, 1, 6), "weight", "token", True), "pos_embed": ((1, 10, 6), "weight", "token", True)},
    ),
    ("embedding", ""): ({"num_embeddings": 11, "dim": 6}, {"weight": ((11, 6), "weight", "embedding", True)}),
    ("layerscale", ""): ({"dim": 6, "init": 1e-5}, {"gamma": ((6,), "scale", "layerscale", True)}),
}


@pytest.mark.parametrize("case", sorted(EXPECTED))
def test_shapes_and_roles_of_each_kind(case):
    options, expected = EXPECTED[case]
    assert arrays(case[0], **options) == expected


def test_no_kind_is_left_untested():
    assert {kind for kind, _ in EXPECTED} == set(KINDS)
    assert not set(KINDS) & set(PLAIN_KINDS)


def test_plain_kinds_hold_no_arrays():
    layers = [Layer(kind, "", dict.fromkeys(options, 1)) for kind, options in PLAIN_KINDS.items()]
    assert len(param_table(tree_of(Layer("linear", "a", {"in_features": 1, "out_features": 1}), *layers))) == 2


def big(kind, seed=0, **options):
    return initial_weights(tree_of(Layer(kind, "", options)), seed)


def is_trunc_normal(x, std):
    """Cut at two std; the variance of such a normal is 1 - 4 phi(2) / (2 Phi(2) - 1)."""
    phi = math.exp(-2) / math.sqrt(2 * math.pi)
    shrunk = std * math.sqrt(1 - 4 * phi / math.erf(2 / math.sqrt(2)))
    assert np.abs(x).max() <= 2 * std * (1 + 1e-6)
    assert np.abs(x).max() > 1.95 * std
    assert x.std() == pytest.approx(shrunk, rel=0.03)
    assert abs(x.mean()) < 4 * shrunk / math.sqrt(x.size)


def is_uniform(x, bound):
    assert np.abs(x).max() <= bound
    assert np.abs(x).max() > 0.97 * bound
    assert x.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert abs(x.mean()) < 4 * bound / math.sqrt(3 * x.size)


def test_conv_is_he_by_fan_out_with_torch_s_bias():
    held = big("conv", in_channels=32, out_channels=512, kernel=3, stride=1, padding=1, bias=True)
    is_trunc_normal(held["weight"], math.sqrt(2 / (9 * 512)))
    is_uniform(held["bias"], 1 / math.sqrt(9 * 32))


def test_depthwise_conv_counts_its_own_fan():
    held = big("conv", in_channels=2048, out_channels=2048, kernel=3, stride=1, padding=1, groups=2048, bias=True)
    is_trunc_normal(held["weight"], math.sqrt(2 / 9))
    is_uniform(held["bias"], 1 / 3)


def test_linear_is_torch_s_uniform_unless_a_std_is_given():
    held = big("linear", in_features=64, out_features=512)
    is_uniform(held["weight"], 1 / 8)
    is_uniform(held["bias"], 1 / 8)
    given = big("linear", in_features=64, out_features=512, std=0.02)
    is_trunc_normal(given["weight"], 0.02)
    assert not given["bias"].any()


def test_attention_tokens_and_embedding_are_small_normals():
    held = big("attention", dim=96, num_heads=3)
    is_trunc_normal(held["qkv.weight"], 0.02)
    is_trunc_normal(held["proj.weight"], 0.02)
    assert not held["qkv.bias"].any()
    assert not held["proj.bias"].any()
    tokens = big("tokens", num_patches=99, dim=300)
    is_trunc_normal(tokens["pos_embed"], 0.02)
    assert tokens["cls_token"].any()
    is_trunc_normal(big("embedding", num_embeddings=300, dim=50)["weight"], 0.02)


@pytest.mark.parametrize("kind", ["batchnorm", "layernorm"])
def test_norms_begin_as_the_identity(kind):
    more = {"momentum": 0.1} if kind == "batchnorm" else {}
    held = big(kind, features=5, eps=1e-5, **more)
    assert held["weight"].tolist() == [1] * 5
    assert held["bias"].tolist() == [0] * 5
    if kind == "batchnorm":
        assert held["running_mean"].tolist() == [0] * 5
        assert held["running_var"].tolist() == [1] * 5


def test_layerscale_begins_at_init():
    assert (big("layerscale", dim=3, init=1e-5)["gamma"] == np.float32(1e-5)).all()


def test_everything_is_float32_and_c_contiguous():
    for name, array in initial_weights(make_tree("resnet18", 10, 3, 32), 0).items():
        assert array.dtype == np.float32, name
        assert array.flags.c_contiguous, name


@pytest.mark.parametrize("model", ["lenet", "resnet18", "mobilenet_v2", "vit_tiny"])
def test_another_head_leaves_all_other_arrays_bitwise_equal(model):
    few, many = (initial_weights(make_tree(model, n, 3, 32), 5) for n in (2, 7))
    table = param_table(make_tree(model, 2, 3, 32))
    assert list(few) == list(many)
    for name in few:
        if table.is_head(name):
            assert few[name].shape != many[name].shape
        else:
            assert few[name].tobytes() == many[name].tobytes(), name


def test_another_depth_leaves_the_shared_blocks_bitwise_equal():
    short, long = (initial_weights(make_tree("vit_tiny", 2, 3, 32, depth=d), 5) for d in (2, 4))
    assert set(short) < set(long)
    assert all(np.array_equal(short[n], long[n]) for n in short)


def test_same_seed_same_bits_other_seed_other_bits_equal_shapes_other_draws():
    tree = make_tree("mlp", 10, 1, 28, width=64, depth=3)
    one, two, other = initial_weights(tree, 1), initial_weights(tree, 1), initial_weights(tree, 2)
    for name in one:
        assert one[name].tobytes() == two[name].tobytes()
        assert not np.array_equal(one[name], other[name])
    assert not np.array_equal(one["fc2.weight"], one["fc3.weight"])


def test_depth_is_inherited_and_overridden_on_the_way_down():
    linear = Layer("linear", "a", {"in_features": 1, "out_features": 1})
    tree = Seq(
        "",
        (
            Seq("x", (linear, replace(linear, name="b", depth=5)), depth=2),
            Residual("r", (linear,), (Seq("s", (linear,), depth=4),), depth=3),
        ),
    )
    assert [(name, depth) for name, _, depth in walk(tree)] == [("x.a", 2), ("x.b", 5), ("r.a", 3), ("r.s.a", 4)]


def test_the_same_name_twice_in_a_tree_is_refused():
    linear = Layer("linear", "a", {"in_features": 1, "out_features": 1})
    with pytest.raises(UserError, match=r"not unique: a\.weight"):
        param_table(tree_of(linear, linear))


def test_join_skips_empty_parts():
    assert join("", "a", "", "b") == "a.b"
    assert join("", "") == ""


# --- hashing


@pytest.mark.parametrize("name", MODELS)
def test_equal_trees_have_equal_hashes(name):
    tree, again, other = (make_tree(name, classes, 3, 32) for classes in (10, 10, 11))
    assert tree is not again and tree == again
    assert {tree: "found"}[again] == "found"
    assert {tree.root: "found"}[again.root] == "found"
    assert other != tree and hash(other) != hash(tree)


def test_any_other_layer_has_another_hash():
    conv = Layer("conv", "c", {"kernel": 3, "stride": 1}, depth=0)
    assert {conv: "found"}[replace(conv, options={"stride": 1, "kernel": 3})] == "found"
    others = [
        replace(conv, kind="linear"),
        replace(conv, name="d"),
        replace(conv, options={"kernel": 3, "stride": 2}),
        replace(conv, options={"kernel": 1, "stride": 3}),
        replace(conv, options={"kernel": 3}),
        replace(conv, depth=None),
    ]
    nodes = [conv, *others, *(Seq("", (c,)) for c in (conv, *others)), *(Residual("", (c,)) for c in (conv, *others))]
    assert len({hash(node) for node in nodes}) == len(nodes) == 21
    assert hash(Residual("", (conv,))) != hash(Residual("", (), (conv,)))
