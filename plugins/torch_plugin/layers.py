"""Each kind of declared layer as a torch module, under the same canonical names."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from layerwise_lr.framework import Layer, Node, Residual, Tree


class Conv(nn.Conv2d):
    """conv: every number explicit."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int, groups: int, bias: bool
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)


class Linear(nn.Linear):
    """linear; the declared `std` concerns the initial values only."""

    def __init__(self, in_features: int, out_features: int, std: float | None = None) -> None:
        super().__init__(in_features, out_features)


class BatchNorm(nn.BatchNorm2d):
    """batchnorm without num_batches_tracked."""

    def __init__(self, features: int, eps: float, momentum: float) -> None:
        super().__init__(features, eps=eps, momentum=momentum)
        self.num_batches_tracked = None


class LayerNorm(nn.LayerNorm):
    """layernorm over the last axis."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__(features, eps=eps)


class Embedding(nn.Embedding):
    """embedding: int64 [B, T] -> float32 [B, T, D]."""

    def __init__(self, num_embeddings: int, dim: int) -> None:
        super().__init__(num_embeddings, dim)


class Attention(nn.Module):
    """Multi-head self-attention, written out: the fused CPU kernel is slower for short sequences."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = ((q * (d // self.num_heads) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, t, d))


class Tokens(nn.Module):
    """Prepend the class token, add the position embedding."""

    def __init__(self, num_patches: int, dim: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches + 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T + 1, D]."""
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed


class LayerScale(nn.Module):
    """x * gamma; the declared `init` concerns the initial value only."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape ending in D."""
        return x * self.gamma


class Plain(nn.Module):
    """A layer without arrays: a function of the input alone."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


KINDS: Mapping[str, Callable[..., nn.Module]] = {
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
    "gelu": lambda: nn.GELU(approximate="none"),
    "maxpool": lambda kernel, stride, padding: nn.MaxPool2d(kernel, stride, padding),
    "avgpool": lambda kernel, stride: nn.AvgPool2d(kernel, stride),
    "globalpool": lambda: Plain(lambda x: x.mean((2, 3))),
    "flatten": nn.Flatten,
    "dropout": lambda p: nn.Dropout(p),
    "to_tokens": lambda: Plain(lambda x: x.flatten(2).transpose(1, 2)),
    "first_token": lambda: Plain(lambda x: x[:, 0]),
    "mean_tokens": lambda: Plain(lambda x: x[:, 1:].mean(1)),
}


class Sequential(nn.Module):
    """Children in order; nameless ones are kept under keys that `canonical` removes again."""

    def __init__(self, children: tuple[Node, ...]) -> None:
        super().__init__()
        for index, child in enumerate(children):
            self.add_module(_key(index, child.name), build(child))

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        for child in self.children():
            x = child(x)
        return x


class Sum(nn.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, node: Residual) -> None:
        super().__init__()
        self.add_module(_key(0, ""), Sequential(node.body))
        self.add_module(_key(1, ""), Sequential(node.shortcut))

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        body, shortcut = self.children()
        return body(x) + shortcut(x)


def _key(index: int, name: str) -> str:
    """torch forbids dots and empty names; a nameless node's key begins with "~"."""
    return f"~{index}:{name.replace('.', '/')}"


def canonical(native: str) -> str:
    """The canonical name of a native one: "~3:blocks.~0:0.~1:.~0:norm1.weight" -> "blocks.0.norm1.weight"."""
    parts = (part.partition(":")[2] if part.startswith("~") else part for part in native.split("."))
    return ".".join(part.replace("/", ".") for part in parts if part)


def build(node: Node) -> nn.Module:
    """The module of a node."""
    if isinstance(node, Layer):
        return KINDS[node.kind](**node.options)
    return Sum(node) if isinstance(node, Residual) else Sequential(node.children)


def build_tree(tree: Tree) -> nn.Module:
    """The module of a whole model."""
    return build(tree.root)


def loss(logits: Tensor, y: Tensor) -> Any:
    """Mean cross-entropy."""
    return functional.cross_entropy(logits, y)
