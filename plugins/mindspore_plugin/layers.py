"""Each kind of declared layer as a MindSpore cell; every Parameter bears its canonical name, so no renaming is left.

MindSpore calls a norm's arrays gamma, beta, mean, variance and an embedding's embedding_table.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from layerwise_lr.framework import Layer, Node, Residual, Tree, join

from .dropout import Dropout

_NORM = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
RENAMED: Mapping[str, Mapping[str, str]] = {
    "batchnorm": _NORM,
    "layernorm": _NORM,
    "embedding": {"embedding_table": "weight"},
}


class Conv(nn.Conv2d):
    """conv: MindSpore's own default would pad "same" and have no bias."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int, groups: int, bias: bool
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            stride,
            pad_mode="pad",
            padding=padding,
            dilation=1,
            group=groups,
            has_bias=bias,
            weight_init="zeros",
            bias_init="zeros",
        )


class Linear(nn.Dense):
    """linear; the declared `std` concerns the initial values only."""

    def __init__(self, in_features: int, out_features: int, std: float | None = None) -> None:
        super().__init__(in_features, out_features, weight_init="zeros", bias_init="zeros", has_bias=True)


class BatchNorm(nn.BatchNorm2d):
    """batchnorm: MindSpore's momentum is what the running statistics keep, torch's is what they take."""

    def __init__(self, features: int, eps: float, momentum: float) -> None:
        super().__init__(features, eps=eps, momentum=1 - momentum, affine=True, use_batch_statistics=None)


class LayerNorm(nn.LayerNorm):
    """layernorm over the last axis."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__((features,), begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)


class Embedding(nn.Embedding):
    """embedding: int [B, T] -> float32 [B, T, D]."""

    def __init__(self, num_embeddings: int, dim: int) -> None:
        super().__init__(num_embeddings, dim, embedding_table="zeros")


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
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
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


class GlobalPool(nn.Cell):
    """globalpool."""

    def construct(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C]."""
        return ops.mean(x, (2, 3))


class ToTokens(nn.Cell):
    """to_tokens."""

    def construct(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, H * W, D]."""
        b, d, h, w = x.shape
        return x.reshape(b, d, h * w).transpose(0, 2, 1)


class FirstToken(nn.Cell):
    """first_token."""

    def construct(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, D]."""
        return x[:, 0]


class MeanTokens(nn.Cell):
    """mean_tokens."""

    def construct(self, x: Tensor) -> Tensor:
        """[B, 1 + T, D] -> [B, D]."""
        return ops.mean(x[:, 1:], 1)


def _maxpool(kernel: int, stride: int, padding: int) -> nn.Cell:
    """The pool pads by itself: behind an `ops.pad`, a compiled step has wrong gradients from its second call on
    (measured on 2.9, relative error 2)."""
    return nn.MaxPool2d(kernel, stride, pad_mode="pad", padding=padding)


KINDS: Mapping[str, Callable[..., nn.Cell]] = {
    "conv": Conv,
    "linear": Linear,
    "batchnorm": BatchNorm,
    "layernorm": LayerNorm,
    "embedding": Embedding,
    "attention": Attention,
    "tokens": Tokens,
    "layerscale": LayerScale,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": partial(nn.GELU, approximate=False),  # MindSpore's default is the tanh one
    "maxpool": _maxpool,
    "avgpool": lambda kernel, stride: nn.AvgPool2d(kernel, stride, pad_mode="valid"),
    "globalpool": GlobalPool,
    "flatten": nn.Flatten,
    "dropout": Dropout,
    "to_tokens": ToTokens,
    "first_token": FirstToken,
    "mean_tokens": MeanTokens,
}


class Lowered(nn.Cell):
    """A cell in 16 bits between float32 neighbours, as MindSpore's amp level O1 has it: `to_float` casts what goes in,
    Parameters too, and here its result is cast back."""

    def __init__(self, cell: nn.Cell, dtype: mstype.Type) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell.to_float(dtype)

    def construct(self, *inputs: Tensor) -> Tensor:
        """float32 in and out."""
        return ops.cast(self.cell(*inputs), mstype.float32)


def lower(cell: nn.Cell, dtype: mstype.Type) -> nn.Cell:
    """The cell of a layer, its convolutions and matrix products in `dtype`."""
    if isinstance(cell, Attention):
        cell.qkv, cell.proj, cell.product = (Lowered(c, dtype) for c in (cell.qkv, cell.proj, cell.product))
    return Lowered(cell, dtype) if isinstance(cell, Conv | Linear) else cell


class Sequential(nn.Cell):
    """Cells in order."""

    def __init__(self, cells: Sequence[nn.Cell]) -> None:
        super().__init__()
        self.steps = nn.CellList(cells)

    def construct(self, x: Tensor) -> Tensor:
        """One after the other."""
        for cell in self.steps:
            x = cell(x)
        return x


class Sum(nn.Cell):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Cell, shortcut: nn.Cell | None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def construct(self, x: Tensor) -> Tensor:
        """The residual sum."""
        return self.body(x) + (x if self.shortcut is None else self.shortcut(x))


class Loss(nn.Cell):
    """Mean cross-entropy of a model; labels are int32 [B], the one type its kernel takes."""

    def __init__(self, model: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.loss = model, nn.CrossEntropyLoss()

    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        """Float32 scalar."""
        return self.loss(self.model(x), y)


class Builder:
    """Turns a declared tree into cells; collects the Parameters under their canonical names.

    Args:
        seed: of the dropouts.
        dtype: of convolutions and matrix products.
    """

    def __init__(self, seed: Parameter, dtype: mstype.Type) -> None:
        self.seed, self.dtype, self.dropouts = seed, dtype, 0
        self.named: dict[str, Parameter] = {}

    def tree(self, tree: Tree) -> nn.Cell:
        """The cell of a whole model, in training mode."""
        model = self.node(tree.root, "")
        for name, parameter in self.named.items():  # last: every enclosing cell has put its own prefix before it
            parameter.name = name
        model.named, model.dropouts = self.named, self.dropouts
        return model.set_train(True)

    def node(self, node: Node, prefix: str) -> nn.Cell:
        """The cell of a node below `prefix`."""
        name = join(prefix, node.name)
        if isinstance(node, Layer):
            return self.layer(node, name)
        if isinstance(node, Residual):
            body, shortcut = self.nodes(node.body, name), self.nodes(node.shortcut, name) if node.shortcut else None
            return Sum(body, shortcut)
        return self.nodes(node.children, name)

    def nodes(self, nodes: Sequence[Node], prefix: str) -> Sequential:
        """Several in order."""
        return Sequential([self.node(node, prefix) for node in nodes])

    def layer(self, node: Layer, name: str) -> nn.Cell:
        """One layer; its Parameters are noted."""
        options: dict[str, Any] = dict(node.options)
        if node.kind == "dropout":
            self.dropouts += 1
            options |= {"seed": self.seed, "layer": self.dropouts}
        cell = KINDS[node.kind](**options)
        renamed = RENAMED.get(node.kind, {})
        if node.kind != "dropout":
            self.named |= {join(name, renamed.get(p.name, p.name)): p for p in cell.get_parameters()}
        return cell if self.dtype == mstype.float32 else lower(cell, self.dtype)


def _parameter(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)
