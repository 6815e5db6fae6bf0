"""Each kind of declared layer as a MegEngine module, and the arrays of a model under canonical names.

MegEngine lists parameters and modules alphabetically; here children are kept in a list, and names come from the
declaration. Its own shapes (conv bias and BatchNorm (1, C, 1, 1), grouped conv weights in five axes) stay inside:
`Model.shapes` has PyTorch's.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import megengine
import megengine.functional as F
import megengine.module as M
import numpy as np
from megengine import Parameter, Tensor

from layerwise_lr.framework import Layer, Node, Residual, Tree, join, specs

from .convolution import conv2d


class Masks:
    """What dropout keeps, drawn in NumPy: MegEngine's own operator repeats its first mask in a trace."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def seed(self, seed: int) -> None:
        """All masks from here on follow from `seed`."""
        self._rng = np.random.default_rng(seed)

    def draw(self, shape: tuple[int, ...], p: float) -> Tensor:
        """0 with probability p, else 1 / (1 - p)."""
        kept = self._rng.random(shape, dtype=np.float32) >= p
        return megengine.tensor(kept.astype(np.float32) / np.float32(1 - p))


MASKS = Masks()


def on_gpu() -> bool:
    """Whether the process computes on one."""
    return megengine.get_default_device().startswith("gpu")


def narrow(x: Tensor, half: bool) -> Tensor:
    """What float16 keeps of the numbers, if `half`. MegEngine's CPU kernels for float16 take twenty times as long as
    those for float32: on a CPU the type is float32 again, which multiplies and adds such numbers as a GPU does."""
    if not half:
        return x
    kept = x.astype("float16")
    return kept if on_gpu() else kept.astype("float32")


def widen(x: Tensor, half: bool) -> Tensor:
    """float32, rounded to float16 if `half`."""
    return x.astype("float16").astype("float32") if half else x


def sums(x: Tensor) -> str:
    """compute_mode: the sums of float16 products are float32; what is float32 already takes no other than its own."""
    return "float32" if x.dtype == np.float16 else "default"


class Conv(M.Conv2d):
    """conv: every number explicit; on the CPU with our own backward (convolution.py says how much faster)."""

    half = False

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int, groups: int, bias: bool
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
            dilation=1,
            groups=groups,
            bias=bias,
            conv_mode="cross_correlation",
            compute_mode="default",
            padding_mode="zeros",
        )
        plain = groups == 1 or groups == in_channels == out_channels
        self._own = plain and padding < kernel and not on_gpu()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, H', W']."""
        x, w = narrow(x, self.half), narrow(self.weight, self.half)
        if self._own:
            y = conv2d(x, w, self.stride[0], self.padding[0])
        else:
            y = F.conv2d(x, w, None, self.stride, self.padding, 1, self.groups, "cross_correlation", sums(x))
        y = widen(y, self.half)
        return y if self.bias is None else y + self.bias


class Linear(M.Linear):
    """linear; the declared `std` concerns the initial values only."""

    half = False

    def __init__(self, in_features: int, out_features: int, std: float | None = None) -> None:
        super().__init__(in_features, out_features, bias=True, compute_mode="default")

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., O]."""
        x, w = narrow(x, self.half), narrow(self.weight, self.half)
        return widen(F.linear(x, w, None, sums(x)), self.half) + self.bias


class BatchNorm(M.BatchNorm2d):
    """batchnorm; MegEngine's momentum is the share of the old value, torch's that of the batch."""

    def __init__(self, features: int, eps: float, momentum: float) -> None:
        super().__init__(features, eps=eps, momentum=1 - momentum, affine=True, track_running_stats=True, freeze=False)


class LayerNorm(M.LayerNorm):
    """layernorm over the last axis."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__(features, eps=eps, affine=True)


class Embedding(M.Embedding):
    """embedding: int32 [B, T] -> float32 [B, T, D]."""

    def __init__(self, num_embeddings: int, dim: int) -> None:
        super().__init__(num_embeddings, dim)


class Attention(M.Module):
    """Multi-head self-attention from two linear layers: MegEngine's own packs all weights in one parameter."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.half = num_heads, False
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        b, t, d = x.shape
        heads = self.qkv(x).reshape(b, t, 3, self.num_heads, d // self.num_heads).transpose(2, 0, 3, 1, 4)
        q, k, v = heads[0], heads[1], heads[2]
        weights = F.softmax(self._product(q * (d // self.num_heads) ** -0.5, k, True), axis=-1)
        return self.proj(self._product(weights, v, False).transpose(0, 2, 1, 3).reshape(b, t, d))

    def _product(self, a: Tensor, b: Tensor, transpose_b: bool) -> Tensor:
        a, b = narrow(a, self.half), narrow(b, self.half)
        return widen(F.matmul(a, b, transpose_b=transpose_b, compute_mode=sums(a)), self.half)


class Tokens(M.Module):
    """Prepend the class token, add the position embedding."""

    def __init__(self, num_patches: int, dim: int) -> None:
        super().__init__()
        self.cls_token = Parameter(np.zeros((1, 1, dim), np.float32))
        self.pos_embed = Parameter(np.zeros((1, num_patches + 1, dim), np.float32))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T + 1, D]."""
        b, _, d = x.shape
        return F.concat([F.broadcast_to(self.cls_token, (b, 1, d)), x], axis=1) + self.pos_embed


class LayerScale(M.Module):
    """x * gamma; the declared `init` concerns the initial value only."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = Parameter(np.zeros(dim, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape ending in D."""
        return x * self.gamma


class MaxPool(M.Module):
    """maxpool; of equal maxima the first takes the gradient, as in torch.

    MegEngine's own gives it to all of them: on pictures with an even background (digits) the gradient of the
    convolution before it is then up to 70 % off.
    """

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W']."""
        if self.padding:
            edge = (self.padding, self.padding)
            x = F.nn.pad(x, ((0, 0), (0, 0), edge, edge), constant_value=float("-inf"))
        pairs = ((n, n) for n in (self.kernel, 0, self.stride, 1))
        windows = F.flatten(F.nn.sliding_window(x, *pairs), 4)  # [B, C, H', W', K * K]
        return F.indexing_one_hot(windows, F.argmax(windows, axis=4), axis=4)


class Dropout(M.Module):
    """Zero with probability p in training, the rest scaled up."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * MASKS.draw(x.shape, self.p) if self.training and self.p else x


class Plain(M.Module):
    """A layer without arrays: a function of the input alone."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


KINDS: Mapping[str, Callable[..., M.Module]] = {
    "conv": Conv,
    "linear": Linear,
    "batchnorm": BatchNorm,
    "layernorm": LayerNorm,
    "embedding": Embedding,
    "attention": Attention,
    "tokens": Tokens,
    "layerscale": LayerScale,
    "relu": lambda: Plain(F.relu),
    "relu6": lambda: Plain(F.relu6),
    "gelu": lambda: Plain(F.gelu),  # the exact one
    "maxpool": MaxPool,
    "avgpool": lambda kernel, stride: M.AvgPool2d(kernel, stride, padding=0, mode="average"),
    "globalpool": lambda: Plain(lambda x: x.mean((2, 3))),
    "flatten": lambda: Plain(lambda x: F.flatten(x, 1)),
    "dropout": Dropout,
    "to_tokens": lambda: Plain(lambda x: F.flatten(x, 2).transpose(0, 2, 1)),
    "first_token": lambda: Plain(lambda x: x[:, 0]),
    "mean_tokens": lambda: Plain(lambda x: x[:, 1:].mean(1)),
}


class Sequential(M.Module):
    """Children in declared order, with their declared names."""

    def __init__(self, children: tuple[Node, ...]) -> None:
        super().__init__()
        self.names = tuple(child.name for child in children)
        self.nodes = [build(child) for child in children]

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        for node in self.nodes:
            x = node(x)
        return x


class Sum(M.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, node: Residual) -> None:
        super().__init__()
        self.body, self.shortcut = Sequential(node.body), Sequential(node.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        return self.body(x) + self.shortcut(x)


class Model(Sequential):
    """A whole model: `shapes` are PyTorch's, by canonical name; `arrays` the native tensors in the same order.

    Args:
        half: convolutions and matrix products in float16.
    """

    def __init__(self, tree: Tree, half: bool) -> None:
        super().__init__(tree.root.children)
        for module in self.modules():
            if isinstance(module, Conv | Linear | Attention):
                module.half = half
        self.shapes = {name: spec.shape for name, spec, _, _ in specs(tree)}
        found = dict(arrays(self, tree.root.name))
        self.arrays = MappingProxyType({name: found[name] for name in self.shapes})  # a dict would be renamed


def arrays(module: M.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer below `module` under its canonical name."""
    if isinstance(module, Sequential):
        for name, node in zip(module.names, module.nodes, strict=True):
            yield from arrays(node, join(prefix, name))
    elif isinstance(module, Sum):
        yield from arrays(module.body, prefix)
        yield from arrays(module.shortcut, prefix)
    else:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            yield join(prefix, name), tensor


def build(node: Node) -> M.Module:
    """The module of a node."""
    if isinstance(node, Layer):
        return KINDS[node.kind](**node.options)
    return Sum(node) if isinstance(node, Residual) else Sequential(node.children)


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return F.loss.cross_entropy(logits, y, axis=1, with_logits=True, label_smooth=0, reduction="mean")
