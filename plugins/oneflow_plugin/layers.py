"""Each kind of declared layer as a OneFlow module, every number explicit, and the model made of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import oneflow as flow
from oneflow import Tensor, nn
from oneflow.nn import functional

from layerwise_lr.framework import Layer, Tree, central_axes, fold, join

M = TypeVar("M", bound=nn.Module)


class Product(nn.Module):
    """Matrix product over the last two axes, as a module: see `lower`."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[..., M, K], [..., K, N] -> [..., M, N]."""
        return flow.matmul(a, b)


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


class DropPath(Dropout):
    """Likewise one number for each whole sample. Flat, in three axes: a product that repeats its factor over more axes
    takes OneFlow 0.9 300 times as long on a CPU (32 ms for 32 x 64 x 16 x 16 numbers), over fewer 9 times."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that begins with B."""
        self.shape = (x.shape[0], 1, 1)
        if self.mask is None and not self.training:
            return x
        kept = self.draw(self.shape, x.device) if self.mask is None else self.mask
        return (x.reshape(x.shape[0], 1, -1) * kept).reshape(*x.shape)


class Plain(nn.Module):
    """A function of the input and of a few parameters of its own, mostly none.

    Args:
        function: (x, parameters) -> y.
        shapes: of the parameters by name, in this order.
    """

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.names = function, list(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(flow.zeros(*shape)))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x, *(getattr(self, name) for name in self.names))


def _with_tokens(x: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
    """[B, T, D] -> [B, T + 1, D]: prepend the class token, add the position embedding."""
    return flow.cat([cls_token.expand(x.shape[0], -1, -1), x], dim=1) + pos_embed


def _conv(**numbers: int) -> nn.Module:
    channels = numbers.pop("in_channels"), numbers.pop("out_channels")
    return nn.Conv2d(*channels, numbers.pop("kernel"), dilation=1, **numbers)


def _batchnorm(features: int, eps: float, momentum: float) -> nn.Module:
    norm = nn.BatchNorm2d(features, eps=eps, momentum=momentum, affine=True, track_running_stats=True)
    norm.num_batches_tracked = None  # a buffer that no other framework has
    return norm


def _maxpool(kernel: int, stride: int, padding: int) -> nn.Module:
    return nn.MaxPool2d(kernel, stride, padding, dilation=1, return_indices=False, ceil_mode=False)


def _avgpool(kernel: int, stride: int) -> nn.Module:
    return nn.AvgPool2d(kernel, stride, padding=0, ceil_mode=False, count_include_pad=True)


KINDS: Mapping[str, Callable[..., nn.Module]] = {
    "conv": _conv,
    "linear": lambda in_features, out_features, std=None: nn.Linear(in_features, out_features),  # std: initial values
    "batchnorm": _batchnorm,
    "layernorm": LayerNorm,
    "embedding": lambda num_embeddings, dim: nn.Embedding(num_embeddings, dim),
    "attention": Attention,
    "tokens": lambda num_patches, dim: Plain(_with_tokens, cls_token=(1, 1, dim), pos_embed=(1, num_patches + 1, dim)),
    "layerscale": lambda dim, init: Plain(lambda x, gamma: x * gamma, gamma=(dim,)),  # init: initial values only
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": lambda: nn.GELU(),  # by erf; OneFlow's tanh form is another class
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    "globalpool": lambda: Plain(lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1)),  # 3 times as fast as mean
    "flatten": lambda: Plain(lambda x: x.flatten(1)),
    "dropout": Dropout,
    "drop_path": DropPath,
    "to_tokens": lambda: Plain(lambda x: x.flatten(2).transpose(1, 2)),
    "first_token": lambda: Plain(lambda x: x[:, 0]),
    "mean_tokens": lambda: Plain(lambda x: x[:, 1:].mean(1)),
}


class Sum(nn.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        return self.body(x) + self.shortcut(x)


class Whole(nn.Module, ABC):
    """A model as the verbs need it.

    Args:
        dropouts: in which a Graph puts masks, in execution order.
        norms: batchnorm layers by canonical name.
        draws: whether anything is drawn at random in a training step.
    """

    dropouts: Sequence[Dropout]
    norms: Mapping[str, nn.Module]
    draws: bool

    def __init__(self) -> None:
        super().__init__()
        self._central: dict[str, bool] = {}

    @abstractmethod
    def arrays(self) -> dict[str, Tensor]:
        """Parameters and buffers by canonical name; the tensors themselves."""

    def paths(self) -> dict[str, str]:
        """Canonical name of a parameter -> OneFlow's, under which a Graph keeps its state."""
        native = {id(param): path for path, param in self.named_parameters()}
        return {name: native[id(tensor)] for name, tensor in self.arrays().items() if id(tensor) in native}

    def rest(self, frozen: frozenset[str]) -> None:
        """Train, but these batchnorm layers on their running statistics."""
        self.train()
        for name, norm in self.norms.items():
            norm.train(name not in frozen)

    def centralize(self, names: Collection[str]) -> None:
        """Whose gradients a Graph that is built from now on shall centralize. A native one takes them from backward to
        update by itself; a hook, which OneFlow compiles with it, is the way in. OneFlow gives no handle to take a hook
        away, so it asks."""
        for name, tensor in self.arrays().items():
            if name in names and name not in self._central:
                tensor.register_hook(partial(self._hook, name))
            if name in names or name in self._central:
                self._central[name] = name in names

    def _hook(self, name: str, gradient: Tensor) -> Tensor:
        return centralize(gradient) if self._central[name] else gradient

    @flow.no_grad()
    def evaluate(self, x: Tensor) -> Tensor:
        """Logits in evaluation mode; after it the model is in training mode again."""
        self.eval()
        logits = self(x)
        self.train()
        return logits


class Model(Whole):
    """A whole declared tree. Its Seqs and Residuals are modules too: a Graph puts proxies in the place of the modules
    below the one that it is given, and warns of every layer that a Python function calls past them. They are numbered:
    in native names OneFlow forbids dots and empty ones, and its Graph aborts on "/" and fails on ":".
    """

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.named: list[tuple[str, nn.Module]] = []  # in execution order
        self.function = fold(tree, self._layer, lambda parts: nn.Sequential(*parts), Sum)
        self.dropouts = [layer for _, layer in self.named if isinstance(layer, Dropout)]
        self.norms = {name: layer for name, layer in self.named if isinstance(layer, nn.BatchNorm2d)}
        self.draws = bool(self.dropouts)

    def _layer(self, name: str, layer: Layer) -> nn.Module:
        self.named.append((name, KINDS[layer.kind](**layer.options)))
        return self.named[-1][1]

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, C, H, W] or int64 [B, T] -> logits [B, classes]."""
        return self.function(x)

    def arrays(self) -> dict[str, Tensor]:
        """Parameters and buffers by canonical name; the tensors themselves."""
        held = ((name, layer.state_dict(keep_vars=True)) for name, layer in self.named)
        return {join(name, local): tensor for name, own in held for local, tensor in own.items()}


def lower(model: M) -> M:
    """Convolutions and matrix products in float16 by flow.autocast, each with a float32 result. Not the whole model
    in one: the pools, norms and sums between them are not in its lists of what float16 suits."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | Product):
            module.forward = _half(module.forward)  # type: ignore[method-assign]
    return model


def _half(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(*inputs: Tensor) -> Tensor:
        with flow.autocast("cuda", flow.float16):
            y = function(*inputs)
        return y.float()

    return forward


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy; y: int64 [B], or soft targets float32 [B, classes]."""
    if y.ndim == 1:
        return functional.cross_entropy(logits, y)
    return -(y * functional.log_softmax(logits, dim=1)).sum() / y.shape[0]


def centralize(gradient: Tensor) -> Tensor:
    """Gradient centralization: each output's gradient loses its mean."""
    axes = central_axes(gradient.shape)
    return gradient - gradient.mean(dim=axes, keepdim=True) if axes else gradient


def copy(tensor: Tensor) -> np.ndarray:
    """Its numbers now: what OneFlow's own `numpy` gives may be the tensor's memory."""
    return tensor.detach().cpu().numpy().copy()
