"""Each kind of declared layer as a OneFlow module, under the same canonical names."""

from collections.abc import Callable, Mapping

import oneflow as flow
from oneflow import Tensor, nn
from oneflow.nn import functional

from layerwise_lr.framework import Layer, Node, Residual, Tree


class Conv(nn.Conv2d):
    """conv: every number explicit."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int, groups: int, bias: bool
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding, dilation=1, groups=groups, bias=bias)


class Linear(nn.Linear):
    """linear; the declared `std` concerns the initial values only."""

    def __init__(self, in_features: int, out_features: int, std: float | None = None) -> None:
        super().__init__(in_features, out_features, bias=True)


class BatchNorm(nn.BatchNorm2d):
    """batchnorm without num_batches_tracked."""

    def __init__(self, features: int, eps: float, momentum: float) -> None:
        super().__init__(features, eps=eps, momentum=momentum, affine=True, track_running_stats=True)
        self.num_batches_tracked = None


class LayerNorm(nn.Module):
    """layernorm over the last axis.

    On a CPU the means are products with a constant matrix: the native kernel, forward and backward, takes 95 ms for
    64 x 65 x 64 numbers and 222 ms for 32 x 50 x 384, this 11 and 72; they agree to 1e-6.
    """

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.features, self.eps = features, eps
        self.weight = nn.Parameter(flow.ones(features))
        self.bias = nn.Parameter(flow.zeros(features))
        self.register_buffer("mean", flow.full((features, features), 1 / features), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape ending in `features`."""
        if x.is_cuda:
            return functional.layer_norm(x, (self.features,), self.weight, self.bias, self.eps)
        centred = x - flow.matmul(x, self.mean)
        variance = flow.matmul(centred * centred, self.mean)
        return centred * flow.rsqrt(variance + self.eps) * self.weight + self.bias


class Embedding(nn.Embedding):
    """embedding: int64 [B, T] -> float32 [B, T, D]."""

    def __init__(self, num_embeddings: int, dim: int) -> None:
        super().__init__(num_embeddings, dim)


class Product(nn.Module):
    """Matrix product over the last two axes, as a module: see `lower`."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[..., M, K], [..., K, N] -> [..., M, N]."""
        return flow.matmul(a, b)


class Attention(nn.Module):
    """Multi-head self-attention, written out: OneFlow has no nn.MultiheadAttention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.product = Product()

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        b, t, d = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = flow.softmax(self.product(q * (d // self.num_heads) ** -0.5, k.transpose(-2, -1)), dim=-1)
        return self.proj(self.product(weights, v).transpose(1, 2).reshape(b, t, d))


class Tokens(nn.Module):
    """Prepend the class token, add the position embedding."""

    def __init__(self, num_patches: int, dim: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(flow.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(flow.zeros(1, num_patches + 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T + 1, D]."""
        return flow.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed


class LayerScale(nn.Module):
    """x * gamma; the declared `init` concerns the initial value only."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(flow.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape ending in D."""
        return x * self.gamma


class Dropout(nn.Module):
    """dropout from OneFlow's default generator. nn.Dropout keeps a generator of its own, which flow.manual_seed does
    not reach, and a compiled Graph keeps a copy of whatever it was built with: in a Graph the mask is an input."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.shape: tuple[int, ...] = ()
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; it is kept for whoever wants to draw masks."""
        self.shape = tuple(x.shape)
        if self.mask is not None:
            return x * self.mask
        return functional.dropout(x, self.p, training=self.training)

    def draw(self, shape: tuple[int, ...], device: flow.device) -> Tensor:
        """The next mask, 0 or 1 / (1 - p): what an eager `forward` of that shape would draw."""
        return functional.dropout(flow.ones(*shape, device=device), self.p, training=True)


class Plain(nn.Module):
    """A layer without arrays: a function of the input alone."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


def _max_pool(kernel: int, stride: int, padding: int) -> nn.Module:
    return nn.MaxPool2d(kernel, stride, padding, dilation=1, return_indices=False, ceil_mode=False)


def _average_pool(kernel: int, stride: int) -> nn.Module:
    return nn.AvgPool2d(kernel, stride, padding=0, ceil_mode=False, count_include_pad=True)


KINDS: Mapping[str, Callable[..., nn.Module]] = {
    "conv": Conv,
    "linear": Linear,
    "batchnorm": BatchNorm,
    "layernorm": LayerNorm,
    "embedding": Embedding,
    "attention": Attention,
    "tokens": Tokens,
    "layerscale": LayerScale,
    "relu": lambda: nn.ReLU(),
    "relu6": lambda: nn.ReLU6(),
    "gelu": lambda: nn.GELU(),  # by erf; OneFlow's tanh form is another class
    "maxpool": _max_pool,
    "avgpool": _average_pool,
    "globalpool": lambda: Plain(lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1)),  # 3 times as fast as mean
    "flatten": lambda: Plain(lambda x: x.flatten(1)),
    "dropout": Dropout,
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
    """OneFlow forbids dots and empty names, and its Graph aborts on "/" and fails on ":" in them."""
    return f"~{index}~{name.replace('.', '-')}"


def canonical(native: str) -> str:
    """The canonical name of a native one: "~3~blocks.~0~0.~1~.~0~norm1.weight" -> "blocks.0.norm1.weight"."""
    parts = (part.split("~")[2] if part.startswith("~") else part for part in native.split("."))
    return ".".join(part.replace("-", ".") for part in parts if part)


def build(node: Node) -> nn.Module:
    """The module of a node."""
    if isinstance(node, Layer):
        return KINDS[node.kind](**node.options)
    return Sum(node) if isinstance(node, Residual) else Sequential(node.children)


def build_tree(tree: Tree) -> nn.Module:
    """The module of a whole model."""
    return build(tree.root)


def lower(model: nn.Module) -> nn.Module:
    """Convolutions and matrix products in float16 by flow.autocast, each with a float32 result. Not the whole model
    in one: the pools, norms and sums between them are not in its lists of what float16 suits."""
    for module in model.modules():
        if isinstance(module, Conv | nn.Linear | Product):
            module.forward = _half(module.forward)  # type: ignore[method-assign]
    return model


def _half(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(*inputs: Tensor) -> Tensor:
        with flow.autocast("cuda", flow.float16):
            y = function(*inputs)
        return y.float()

    return forward


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return functional.cross_entropy(logits, y)
