"""Each kind of declared layer as a MindSpore cell, and the network made of them; every Parameter bears its canonical
name.

MindSpore calls a norm's arrays gamma, beta, mean, variance and an embedding's embedding_table.
"""

from collections.abc import Callable, Mapping

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from layerwise_lr.framework import Layer, Tree, fold, join

from .dropout import Draw, Dropout, DropPath
from .lending import Shelf
from .natives import Natives

_NORM = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
RENAMED: Mapping[str, Mapping[str, str]] = {
    "batchnorm": _NORM,
    "layernorm": _NORM,
    "embedding": {"embedding_table": "weight"},
}


class Product(nn.Cell):
    """Matrix product over the last two axes, as a cell: what has a precision is a cell."""

    def construct(self, a: Tensor, b: Tensor) -> Tensor:
        """[..., M, K], [..., K, N] -> [..., M, N]."""
        return ops.matmul(a, b)


class Attention(nn.Cell):
    """Multi-head self-attention, one qkv projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.heads, self.width = num_heads, dim // num_heads
        self.qkv = _linear(dim, 3 * dim)
        self.proj = _linear(dim, dim)
        self.product = Product()

    def construct(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, self.width).transpose(2, 0, 3, 1, 4)
        weights = ops.softmax(self.product(q * self.width**-0.5, k.transpose(0, 1, 3, 2)), -1)
        return self.proj(self.product(weights, v).transpose(0, 2, 1, 3).reshape(b, t, d))


class Tokens(nn.Cell):
    """Prepend the class token, add the position embedding."""

    def __init__(self, num_patches: int, dim: int) -> None:
        super().__init__()
        self.cls_token = _parameter("cls_token", (1, 1, dim))
        self.pos_embed = _parameter("pos_embed", (1, num_patches + 1, dim))

    def construct(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T + 1, D]."""
        b, _, d = x.shape
        return ops.cat((ops.broadcast_to(self.cls_token, (b, 1, d)), x), 1) + self.pos_embed


class LayerScale(nn.Cell):
    """x * gamma; the declared `init` concerns the initial value only."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = _parameter("gamma", (dim,))

    def construct(self, x: Tensor) -> Tensor:
        """Any shape ending in D."""
        return x * self.gamma


class Plain(nn.Cell):
    """A layer without arrays: a function of the input alone, named, because the compiler reads its source."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def construct(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


def global_pool(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C]."""
    return ops.mean(x, (2, 3))


def to_tokens(x: Tensor) -> Tensor:
    """[B, D, H, W] -> [B, H * W, D]."""
    b, d, h, w = x.shape
    return x.reshape(b, d, h * w).transpose(0, 2, 1)


def relu6(x: Tensor) -> Tensor:
    """Slope 0 at exactly 6, as in torch: MindSpore's own ReLU6 has 1 there."""
    return ops.select(x < 6, ops.relu(x), ops.full_like(x, 6.0))


def first_token(x: Tensor) -> Tensor:
    """[B, T, D] -> [B, D]."""
    return x[:, 0]


def mean_tokens(x: Tensor) -> Tensor:
    """[B, 1 + T, D] -> [B, D]."""
    return ops.mean(x[:, 1:], 1)


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int, padding: int, groups: int, bias: bool
) -> nn.Cell:
    """MindSpore's own default would pad "same" and have no bias."""
    zeros = {"weight_init": "zeros", "bias_init": "zeros"}
    window = {"pad_mode": "pad", "padding": padding, "dilation": 1}
    return nn.Conv2d(in_channels, out_channels, kernel, stride, group=groups, has_bias=bias, **window, **zeros)


def _linear(in_features: int, out_features: int, std: float | None = None) -> nn.Cell:
    """The declared `std` concerns the initial values only."""
    return nn.Dense(in_features, out_features, weight_init="zeros", bias_init="zeros", has_bias=True)


def _batchnorm(features: int, eps: float, momentum: float) -> nn.Cell:
    """MindSpore's momentum is what the running statistics keep, torch's is what they take."""
    return nn.BatchNorm2d(features, eps=eps, momentum=1 - momentum, affine=True, use_batch_statistics=None)


def _maxpool(kernel: int, stride: int, padding: int) -> nn.Cell:
    """The pool pads by itself: behind an `ops.pad`, a compiled step has wrong gradients from its second call on
    (measured on 2.9, relative error 2)."""
    return nn.MaxPool2d(kernel, stride, pad_mode="pad", padding=padding)


KINDS: Mapping[str, Callable[..., nn.Cell]] = {
    "conv": _conv,
    "linear": _linear,
    "batchnorm": _batchnorm,
    "layernorm": lambda features, eps: nn.LayerNorm((features,), begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps),
    "embedding": lambda num_embeddings, dim: nn.Embedding(num_embeddings, dim, embedding_table="zeros"),
    "attention": Attention,
    "tokens": Tokens,
    "layerscale": LayerScale,
    "relu": nn.ReLU,
    "relu6": lambda: Plain(relu6),
    "gelu": lambda: nn.GELU(approximate=False),  # MindSpore's default is the tanh one
    "maxpool": _maxpool,
    "avgpool": lambda kernel, stride: nn.AvgPool2d(kernel, stride, pad_mode="valid"),
    "globalpool": lambda: Plain(global_pool),
    "flatten": nn.Flatten,
    "to_tokens": lambda: Plain(to_tokens),
    "first_token": lambda: Plain(first_token),
    "mean_tokens": lambda: Plain(mean_tokens),
}

DRAWN: Mapping[str, type[Dropout]] = {"dropout": Dropout, "drop_path": DropPath}


class Lowered(nn.Cell):
    """A cell in 16 bits between float32 neighbours, as MindSpore's amp level O1 has it: `to_float` casts what goes in,
    Parameters too, and here its result is cast back."""

    def __init__(self, cell: nn.Cell, dtype: mstype.Type) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell.to_float(dtype)

    def construct(self, *inputs: Tensor) -> Tensor:
        """float32 in and out."""
        return ops.cast(self.cell(*inputs), mstype.float32)


class Sum(nn.Cell):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Cell, shortcut: nn.Cell) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def construct(self, x: Tensor) -> Tensor:
        """The residual sum."""
        return self.body(x) + self.shortcut(x)


def lower(cell: nn.Cell, dtype: mstype.Type) -> nn.Cell:
    """The cell of a layer, its convolutions and matrix products in `dtype`."""
    if isinstance(cell, Attention):
        cell.qkv, cell.proj, cell.product = (Lowered(c, dtype) for c in (cell.qkv, cell.proj, cell.product))
    return Lowered(cell, dtype) if isinstance(cell, nn.Conv2d | nn.Dense) else cell


class Whole(nn.Cell):
    """A network with what the plugin keeps of it, in training mode.

    Args:
        draw: of the dropouts.
    """

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw, self.dropouts = draw, 0
        self.named: dict[str, Parameter] = {}
        self.norms: dict[str, nn.Cell] = {}
        self.natives: Shelf[Natives] = Shelf()

    def rest(self, frozen: frozenset[str]) -> None:
        """These batchnorm layers run on their running statistics in the next training step, the others train."""
        for name, norm in self.norms.items():
            norm.set_train(name not in frozen)

    def _made(self) -> None:
        """All cells are in place, and each has put its own prefix before the names: now they are the canonical ones."""
        for name, parameter in self.named.items():
            parameter.name = name
        self.set_train(True)


class Network(Whole):
    """A whole declared tree. Parts are joined by cells, not by Python's functions: graph mode transforms source, and in
    a closure it finds none of the cells.

    Args:
        tree: declared.
        draw: of the dropouts.
        dtype: of convolutions and matrix products.
    """

    def __init__(self, tree: Tree, draw: Draw, dtype: mstype.Type) -> None:
        super().__init__(draw)
        self.dtype = dtype
        self.whole = fold(tree, self._layer, nn.SequentialCell, Sum)
        self._made()

    def construct(self, x: Tensor) -> Tensor:
        """float32 [B, C, H, W] or int32 [B, T] -> logits [B, classes]."""
        return self.whole(x)

    def _layer(self, name: str, layer: Layer) -> nn.Cell:
        """One layer; its Parameters are noted."""
        if layer.kind in DRAWN:
            self.dropouts += 1
            return DRAWN[layer.kind](draw=self.draw, layer=self.dropouts, **layer.options)
        cell, renamed = KINDS[layer.kind](**layer.options), RENAMED.get(layer.kind, {})
        self.named |= {join(name, renamed.get(p.name, p.name)): p for p in cell.get_parameters()}
        if layer.kind == "batchnorm":
            self.norms[name] = cell
        return cell if self.dtype == mstype.float32 else lower(cell, self.dtype)


def _parameter(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)
