"""The declared models: trees with torchvision's names (ResNet, MobileNetV2) or timm's (ViT).

Depth counts blocks: the stem is 0, every residual block (or, in small nets, every layer) is one more, the head
is the last. `functools.partial` gives each published size its numbers.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..planning import UserError, did_you_mean
from .layers import Layer, Node, Residual, Seq, Tree

BN = {"eps": 1e-5, "momentum": 0.1}
LN_EPS = 1e-6  # timm's ViT


def conv(
    name: str,
    i: int,
    o: int,
    kernel: int,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    bias: bool = False,
    depth: int | None = None,
) -> Layer:
    """A convolution; `padding` keeps the size at stride 1 unless given."""
    padding = kernel // 2 if padding is None else padding
    options = {
        "in_channels": i,
        "out_channels": o,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "groups": groups,
        "bias": bias,
    }
    return Layer("conv", name, options, depth)


def linear(name: str, i: int, o: int, std: float | None = None, depth: int | None = None) -> Layer:
    """A fully connected layer with bias."""
    return Layer("linear", name, {"in_features": i, "out_features": o, "std": std}, depth)


def batchnorm(name: str, features: int) -> Layer:
    """BatchNorm with torch's momentum and eps."""
    return Layer("batchnorm", name, {"features": features, **BN})


def lenet(num_classes: int, in_channels: int, image_size: int) -> Tree:
    """LeNet-5 as in seed document 004 (MegEngine): conv1 conv2 fc1 fc2 classifier; ReLU, max pooling."""
    side = image_size // 2 // 2 - 2
    if side < 1:
        raise UserError(f"model lenet: image_size={image_size} is too small, use at least 12")
    pool = Layer("maxpool", "", {"kernel": 2, "stride": 2, "padding": 0})
    relu = Layer("relu")
    nodes = (
        conv("conv1", in_channels, 6, 5, padding=2, bias=True, depth=0),
        relu,
        pool,
        conv("conv2", 6, 16, 5, padding=0, bias=True, depth=1),
        relu,
        pool,
        Layer("flatten"),
        linear("fc1", 16 * side * side, 120, depth=2),
        relu,
        linear("fc2", 120, 84, depth=3),
        relu,
        linear("classifier", 84, num_classes, depth=4),
    )
    return Tree("lenet", Seq("", nodes), "classifier", (in_channels, image_size, image_size), num_classes)


def mlp(num_classes: int, in_channels: int, image_size: int, width: int = 256, depth: int = 2) -> Tree:
    """`depth` hidden layers fc1, fc2, ... of `width` units with ReLU, then the classifier."""
    sizes = [in_channels * image_size * image_size] + [width] * depth
    hidden: list[Node] = []
    for i in range(depth):
        hidden += [linear(f"fc{i + 1}", sizes[i], sizes[i + 1], depth=i), Layer("relu")]
    head = linear("classifier", sizes[-1], num_classes, depth=depth)
    root = Seq("", (Layer("flatten"), *hidden, head))
    return Tree("mlp", root, "classifier", (in_channels, image_size, image_size), num_classes)


def _dropped(rate: float, index: int, blocks: int) -> tuple[Node, ...]:
    """Stochastic depth at the end of a branch of block `index`: linear from 0 in the first block to `rate` in the last
    (Huang et al. 2016)."""
    p = rate * index / max(blocks - 1, 1)
    return (Layer("drop_path", "", {"p": p}),) if p else ()


def _basic_block(i: int, o: int, stride: int) -> tuple[Node, ...]:
    return (
        conv("conv1", i, o, 3, stride),
        batchnorm("bn1", o),
        Layer("relu"),
        conv("conv2", o, o, 3),
        batchnorm("bn2", o),
    )


def _bottleneck(i: int, o: int, stride: int) -> tuple[Node, ...]:
    return (
        conv("conv1", i, o // 4, 1),
        batchnorm("bn1", o // 4),
        Layer("relu"),
        conv("conv2", o // 4, o // 4, 3, stride),
        batchnorm("bn2", o // 4),
        Layer("relu"),
        conv("conv3", o // 4, o, 1),
        batchnorm("bn3", o),
    )


def resnet(
    num_classes: int,
    in_channels: int,
    image_size: int,
    *,
    name: str,
    blocks: tuple[int, ...],
    block: Callable[[int, int, int], tuple[Node, ...]] = _basic_block,
    expansion: int = 1,
    width: int = 64,
    drop_path: float = 0.0,
) -> Tree:
    """ResNet (He et al. 2016) with torchvision's names: conv1 bn1 layer1..4 fc; one depth per block. The published ones
    are 64 channels wide at the stem. `drop_path` as in timm: before the sum, from 0 in the first block on."""
    nodes: list[Node] = [
        Seq("", (conv("conv1", in_channels, width, 7, 2), batchnorm("bn1", width)), depth=0),
        Layer("relu"),
        Layer("maxpool", "", {"kernel": 3, "stride": 2, "padding": 1}),
    ]
    channels, depth = width, 0
    for stage, count in enumerate(blocks):
        children = []
        for index in range(count):
            out, stride = width * 2**stage * expansion, 2 if stage > 0 and index == 0 else 1
            down: tuple[Node, ...] = ()
            if stride != 1 or channels != out:
                down = (Seq("downsample", (conv("0", channels, out, 1, stride), batchnorm("1", out))),)
            depth += 1
            body = Residual("", (*block(channels, out, stride), *_dropped(drop_path, depth - 1, sum(blocks))), down)
            children.append(Seq(str(index), (body, Layer("relu")), depth=depth))
            channels = out
        nodes.append(Seq(f"layer{stage + 1}", tuple(children)))
    nodes += [Layer("globalpool"), linear("fc", channels, num_classes, depth=depth + 1)]
    return Tree(name, Seq("", tuple(nodes)), "fc", (in_channels, image_size, image_size), num_classes)


def mobilenet_v2(num_classes: int, in_channels: int, image_size: int, dropout: float = 0.2) -> Tree:
    """MobileNetV2 (Sandler et al. 2018) with torchvision's names: features.0..18, classifier.1."""

    def conv_bn_relu6(name: str, i: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> Seq:
        layers = (conv("0", i, o, kernel, stride, groups=groups), batchnorm("1", o), Layer("relu6"))
        return Seq(name, layers)

    features: list[Node] = [Seq("", (conv_bn_relu6("0", in_channels, 32, 3, 2),), depth=0)]
    channels = 32
    settings = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
                (6, 320, 1, 1)]  # fmt: skip  # expand ratio, channels, repeats, first stride: the paper's table 2
    for expand, out, repeats, first_stride in settings:
        for index in range(repeats):
            stride, hidden = first_stride if index == 0 else 1, channels * expand
            steps = [(channels, hidden, 1, 1, 1)] if expand != 1 else []
            steps.append((hidden, hidden, 3, stride, hidden))
            layers: list[Node] = [conv_bn_relu6(str(k), *step) for k, step in enumerate(steps)]
            layers += [conv(str(len(steps)), hidden, out, 1), batchnorm(str(len(steps) + 1), out)]
            body = Seq("conv", tuple(layers))
            block: Node = Residual("", (body,)) if stride == 1 and channels == out else body
            features.append(Seq(str(len(features)), (block,), depth=len(features)))
            channels = out
    features.append(Seq("", (conv_bn_relu6(str(len(features)), channels, 1280, 1),), depth=len(features)))
    head = Seq(
        "classifier", (Layer("dropout", "0", {"p": dropout}), linear("1", 1280, num_classes)), depth=len(features)
    )
    root = Seq("", (Seq("features", tuple(features)), Layer("globalpool"), head))
    return Tree("mobilenet_v2", root, "classifier.1", (in_channels, image_size, image_size), num_classes)


def vit(
    num_classes: int,
    in_channels: int,
    image_size: int,
    *,
    name: str,
    embed_dim: int,
    num_heads: int,
    patch_size: int = 16,
    depth: int = 12,
    layer_scale: float | None = None,
    pool: str = "token",
    pre_norm: bool = False,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Tree:
    """ViT (Dosovitskiy et al. 2021) with timm's names; `layer_scale` is its initial value (DINOv2: 1e-5).

    Depth as in MAE, BEiT and seed document 001: tokens and patch embedding 0, block i at i + 1, the final norm
    with the head at depth + 1. `pool="avg"` averages the patch tokens and norms after that (timm's fc_norm).
    `pre_norm` norms the tokens before the first block and leaves the patches' bias out (CLIP's towers, eps 1e-5).
    `dropout` is before the head (timm's drop_rate), `drop_path` in both branches of a block (its drop_path_rate).
    """
    if image_size % patch_size:
        fits = -(-image_size // patch_size) * patch_size
        raise UserError(
            f"model {name}: image_size={image_size} is no multiple of patch_size={patch_size}; "
            f"data.image_size={fits} is the next that is"
        )
    if embed_dim % num_heads:
        raise UserError(f"model {name}: embed_dim={embed_dim} is no multiple of num_heads={num_heads}")
    if pool not in ("token", "avg"):
        raise UserError(f"model {name}: pool={pool!r} is neither 'token' nor 'avg'")

    def norm(key: str, at: int | None = None) -> Layer:
        return Layer("layernorm", key, {"features": embed_dim, "eps": 1e-5 if pre_norm else LN_EPS}, at)

    def scale(key: str) -> tuple[Node, ...]:
        options = {"dim": embed_dim, "init": layer_scale}
        return () if layer_scale is None else (Layer("layerscale", key, options),)

    def block(index: int) -> Seq:
        attention = Layer("attention", "attn", {"dim": embed_dim, "num_heads": num_heads})
        mlp_layers = (
            linear("fc1", embed_dim, 4 * embed_dim, 0.02),
            Layer("gelu"),
            linear("fc2", 4 * embed_dim, embed_dim, 0.02),
        )
        return Seq(
            str(index),
            (
                Residual("", (norm("norm1"), attention, *scale("ls1"), *_dropped(drop_path, index, depth))),
                Residual(
                    "", (norm("norm2"), Seq("mlp", mlp_layers), *scale("ls2"), *_dropped(drop_path, index, depth))
                ),
            ),
            depth=index + 1,
        )

    embed = conv("proj", in_channels, embed_dim, patch_size, patch_size, padding=0, bias=not pre_norm)
    patches = (image_size // patch_size) ** 2
    tokens = Layer("tokens", "", {"num_patches": patches, "dim": embed_dim}, depth=0)
    last = depth + 1
    tail: tuple[Node, ...] = (norm("norm", last), Layer("first_token"))
    if pool == "avg":
        tail = (Layer("mean_tokens"), norm("fc_norm", last))
    nodes = (
        Seq("patch_embed", (embed, Layer("to_tokens")), depth=0),
        tokens,
        *((norm("norm_pre", 0),) if pre_norm else ()),
        Seq("blocks", tuple(block(i) for i in range(depth))),
        *tail,
        *((Layer("dropout", "", {"p": dropout}),) if dropout else ()),
        linear("head", embed_dim, num_classes, 0.02, depth=last),
    )
    return Tree(name, Seq("", nodes), "head", (in_channels, image_size, image_size), num_classes)


MODELS: Mapping[str, Callable[..., Tree]] = {
    "lenet": lenet,
    "mlp": mlp,
    "resnet18": partial(resnet, name="resnet18", blocks=(2, 2, 2, 2)),
    "resnet34": partial(resnet, name="resnet34", blocks=(3, 4, 6, 3)),
    "resnet50": partial(resnet, name="resnet50", blocks=(3, 4, 6, 3), block=_bottleneck, expansion=4),
    "mobilenet_v2": mobilenet_v2,
    "vit_tiny": partial(vit, name="vit_tiny", embed_dim=192, num_heads=3),
    "vit_small": partial(vit, name="vit_small", embed_dim=384, num_heads=6),
    "vit_base": partial(vit, name="vit_base", embed_dim=768, num_heads=12),
}

USUAL_SHAPES: Mapping[str, tuple[int, int, int]] = {
    name: (1, 28, 28) if name in ("lenet", "mlp") else (3, 224, 224) for name in MODELS
}
"""[C, H, W] of the pictures that each model is usually given: a dry run has no pictures to look at."""


def make_tree(name: str, num_classes: int, in_channels: int, image_size: int, **options: Any) -> Tree:
    """The declared tree of model `name` with the options that it takes; others are refused by name."""
    if name not in MODELS:
        raise UserError(
            f"model.name={name!r} is unknown; there are: {', '.join(MODELS)}" + did_you_mean(name, list(MODELS))
        )
    function = MODELS[name]
    fixed = function.keywords if isinstance(function, partial) else {}
    takes = set(inspect.signature(function).parameters) - {"name", "blocks", "block", "expansion"}
    takes -= {"num_classes", "in_channels", "image_size"}
    if options.get("dropout") == 0 and "dropout" not in takes:  # none is what such a model has
        del options["dropout"]
    unknown = sorted(set(options) - takes)
    if unknown:
        raise UserError(
            f"model {name} takes no {', '.join(unknown)}; it takes: {', '.join(sorted(takes)) or 'no options'}"
        )
    return function(num_classes, in_channels, image_size, **{**fixed, **options})
