"""Each kind of declared layer, forward and backward, in float64; parameters are float32 arrays.

A layer's `forward` keeps what its `backward` needs; `backward(dy)` fills `grads` and returns the gradient of the
input. Gradients are sums over the batch of what the loss hands down.
"""

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any, Protocol

import numpy as np
from scipy.special import erf

from layerwise_lr.framework import KINDS as DECLARED
from layerwise_lr.framework import Layer, Tree, fold, join

Array = np.ndarray


class Op(Protocol):
    """One layer."""

    params: dict[str, Array]
    grads: dict[str, Array]

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        """Output of the layer."""

    def backward(self, dy: Array) -> Array:
        """Gradient of the input; fills `grads`."""


class Base:
    """Arrays by local name, in the declared shapes."""

    def __init__(self, layer: Layer) -> None:
        listed = DECLARED[layer.kind](**layer.options) if layer.kind in DECLARED else []
        self.params: dict[str, Array] = {spec.name: np.zeros(spec.shape, np.float32) for spec in listed}
        self.grads: dict[str, Array] = {}
        self.options: Mapping[str, Any] = layer.options
        self.kept: Any = None

    def p(self, name: str) -> Array:
        """A parameter in float64."""
        return self.params[name].astype(np.float64)


class Linear(Base):
    """y = x W' + b over the last axis."""

    prefix = ""

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        self.kept = x
        return x @ self.p(self.prefix + "weight").T + self.p(self.prefix + "bias")

    def backward(self, dy: Array) -> Array:
        flat_x, flat_dy = self.kept.reshape(-1, self.kept.shape[-1]), dy.reshape(-1, dy.shape[-1])
        self.grads[self.prefix + "weight"] = flat_dy.T @ flat_x
        self.grads[self.prefix + "bias"] = flat_dy.sum(axis=0)
        return dy @ self.p(self.prefix + "weight")


def windows(x: Array, kernel: int, stride: int) -> Array:
    """[B, C, H, W] -> [B, C, H', W', kernel, kernel], a view."""
    found = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))
    return found[:, :, ::stride, ::stride]


def scatter(dw: Array, shape: tuple[int, ...], stride: int) -> Array:
    """The reverse of `windows`: overlapping windows add up."""
    out = np.zeros(shape)
    high, wide = dw.shape[2:4]
    for i in range(dw.shape[4]):
        for j in range(dw.shape[5]):
            out[:, :, i : i + stride * high : stride, j : j + stride * wide : stride] += dw[..., i, j]
    return out


def pad(x: Array, width: int, value: float = 0.0) -> Array:
    """All four sides of the picture."""
    return np.pad(x, ((0, 0), (0, 0), (width, width), (width, width)), constant_values=value)


class Conv(Base):
    """Grouped convolution as one einsum over windows."""

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        o, groups = self.options, self.options["groups"]
        padded = pad(x, o["padding"])
        seen = windows(padded, o["kernel"], o["stride"])
        seen = seen.reshape(len(x), groups, -1, *seen.shape[2:])
        weight = self.p("weight").reshape(groups, -1, *self.params["weight"].shape[1:])
        y = np.einsum("bgchwij,gocij->bgohw", seen, weight, optimize=True)
        self.kept = (padded.shape, seen, weight)
        y = y.reshape(len(x), -1, *y.shape[3:])
        return y + self.p("bias")[:, None, None] if o["bias"] else y

    def backward(self, dy: Array) -> Array:
        shape, seen, weight = self.kept
        o = self.options
        grouped = dy.reshape(len(dy), o["groups"], -1, *dy.shape[2:])
        dw = np.einsum("bgohw,bgchwij->gocij", grouped, seen, optimize=True)
        self.grads["weight"] = dw.reshape(self.params["weight"].shape)
        if o["bias"]:
            self.grads["bias"] = dy.sum(axis=(0, 2, 3))
        back = np.einsum("bgohw,gocij->bgchwij", grouped, weight, optimize=True)
        dx = scatter(back.reshape(len(dy), -1, *back.shape[3:]), shape, o["stride"])
        width = o["padding"]
        return dx[:, :, width : shape[2] - width, width : shape[3] - width]


def _normalise(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array]:
    mean = x.mean(axis=axes, keepdims=True)
    scale = 1 / np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + eps)
    return (x - mean) * scale, scale


def _normalise_back(dy: Array, normed: Array, scale: Array, axes: tuple[int, ...]) -> Array:
    mean = dy.mean(axis=axes, keepdims=True)
    return scale * (dy - mean - normed * (dy * normed).mean(axis=axes, keepdims=True))


class BatchNorm(Base):
    """Per channel over batch and pixels; running variance is the unbiased one, as in torch. A frozen one runs on its
    running statistics, in training too, and keeps them."""

    frozen = False

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        weight, bias = self.p("weight")[:, None, None], self.p("bias")[:, None, None]
        eps, momentum = self.options["eps"], self.options["momentum"]
        self.resting = self.frozen or not train
        if self.resting:
            mean, var = self.p("running_mean")[:, None, None], self.p("running_var")[:, None, None]
            self.kept = ((x - mean) / np.sqrt(var + eps), 1 / np.sqrt(var + eps))
            return self.kept[0] * weight + bias
        normed, scale = _normalise(x, (0, 2, 3), eps)
        self.kept = (normed, scale)
        count = x.size / x.shape[1]
        new = {"running_mean": x.mean(axis=(0, 2, 3)), "running_var": x.var(axis=(0, 2, 3)) * count / (count - 1)}
        for name, value in new.items():
            self.params[name] = ((1 - momentum) * self.p(name) + momentum * value).astype(np.float32)
        return normed * weight + bias

    def backward(self, dy: Array) -> Array:
        normed, scale = self.kept
        self.grads["weight"] = (dy * normed).sum(axis=(0, 2, 3))
        self.grads["bias"] = dy.sum(axis=(0, 2, 3))
        wide = dy * self.p("weight")[:, None, None]
        return wide * scale if self.resting else _normalise_back(wide, normed, scale, (0, 2, 3))


class LayerNorm(Base):
    """Over the last axis."""

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        self.kept = _normalise(x, (-1,), self.options["eps"])
        return self.kept[0] * self.p("weight") + self.p("bias")

    def backward(self, dy: Array) -> Array:
        normed, scale = self.kept
        axes = tuple(range(dy.ndim - 1))
        self.grads["weight"], self.grads["bias"] = (dy * normed).sum(axis=axes), dy.sum(axis=axes)
        return _normalise_back(dy * self.p("weight"), normed, scale, (-1,))


class Attention(Base):
    """Multi-head self-attention: one projection to queries, keys and values, softmax, one projection back."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self.qkv, self.proj = Linear(layer), Linear(layer)
        self.qkv.prefix, self.proj.prefix = "qkv.", "proj."
        for part in (self.qkv, self.proj):
            part.params, part.grads = self.params, self.grads

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        b, t, d = x.shape
        heads = self.options["num_heads"]
        q, k, v = self.qkv.forward(x, train, rng).reshape(b, t, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / sqrt(d // heads)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        self.kept = (q, k, v, weights)
        return self.proj.forward((weights @ v).swapaxes(1, 2).reshape(b, t, d), train, rng)

    def backward(self, dy: Array) -> Array:
        q, k, v, weights = self.kept
        b, heads, t, size = q.shape
        dmix = self.proj.backward(dy).reshape(b, t, heads, size).swapaxes(1, 2)
        dweights, dv = dmix @ v.swapaxes(-1, -2), weights.swapaxes(-1, -2) @ dmix
        dscores = weights * (dweights - (dweights * weights).sum(axis=-1, keepdims=True)) / sqrt(size)
        dqkv = np.stack([dscores @ k, dscores.swapaxes(-1, -2) @ q, dv])
        return self.qkv.backward(dqkv.transpose(1, 3, 0, 2, 4).reshape(b, t, 3 * heads * size))


class Tokens(Base):
    """Prepend the class token, add the position embedding."""

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        first = np.broadcast_to(self.p("cls_token"), (len(x), 1, x.shape[2]))
        return np.concatenate([first, x], axis=1) + self.p("pos_embed")

    def backward(self, dy: Array) -> Array:
        self.grads["pos_embed"] = dy.sum(axis=0, keepdims=True)
        self.grads["cls_token"] = dy[:, :1].sum(axis=0, keepdims=True)
        return dy[:, 1:]


class Embedding(Base):
    """int64 [B, T] -> [B, T, D]."""

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        self.kept = x
        return self.p("weight")[x]

    def backward(self, dy: Array) -> Array:
        self.grads["weight"] = np.zeros(self.params["weight"].shape)
        np.add.at(self.grads["weight"], self.kept, dy)
        return np.zeros(self.kept.shape)


class LayerScale(Base):
    """x * gamma."""

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        self.kept = x
        return x * self.p("gamma")

    def backward(self, dy: Array) -> Array:
        self.grads["gamma"] = (dy * self.kept).sum(axis=tuple(range(dy.ndim - 1)))
        return dy * self.p("gamma")


class MaxPool(Base):
    """The largest of each window; the first of equals gets the gradient."""

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        o = self.options
        padded = pad(x, o["padding"], -np.inf)
        seen = windows(padded, o["kernel"], o["stride"])
        flat = seen.reshape(*seen.shape[:4], -1)
        self.kept = (padded.shape, flat.argmax(axis=-1))
        return flat.max(axis=-1)

    def backward(self, dy: Array) -> Array:
        shape, chosen = self.kept
        size, width = self.options["kernel"], self.options["padding"]
        spread = (np.arange(size * size) == chosen[..., None]) * dy[..., None]
        dx = scatter(spread.reshape(*dy.shape, size, size), shape, self.options["stride"])
        return dx[:, :, width : shape[2] - width, width : shape[3] - width]


class AvgPool(Base):
    """The mean of each window."""

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        self.kept = x.shape
        return windows(x, self.options["kernel"], self.options["stride"]).mean(axis=(-2, -1))

    def backward(self, dy: Array) -> Array:
        size = self.options["kernel"]
        spread = np.broadcast_to(dy[..., None, None] / size**2, (*dy.shape, size, size))
        return scatter(spread, self.kept, self.options["stride"])


class Dropout(Base):
    """Zero with probability p, the rest scaled up; nothing in evaluation."""

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        keep = 1 - self.options["p"]
        self.kept = (rng.random(self.shape(x)) < keep) / keep if train else np.ones(())
        return x * self.kept

    def backward(self, dy: Array) -> Array:
        return dy * self.kept

    def shape(self, x: Array) -> tuple[int, ...]:
        """Of the mask."""
        return x.shape


class DropPath(Dropout):
    """Likewise, whole samples."""

    def shape(self, x: Array) -> tuple[int, ...]:
        return (len(x), *(1,) * (x.ndim - 1))


class Pointwise(Base):
    """y = f(x), dx = dy * f'(x)."""

    f: Callable[[Array], Array]
    slope: Callable[[Array], Array]

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        self.kept = x
        return type(self).f(x)

    def backward(self, dy: Array) -> Array:
        return dy * type(self).slope(self.kept)


class Relu(Pointwise):
    """max(x, 0)."""

    f = staticmethod(lambda x: np.maximum(x, 0))
    slope = staticmethod(lambda x: x > 0)


class Relu6(Pointwise):
    """min(max(x, 0), 6)."""

    f = staticmethod(lambda x: np.clip(x, 0, 6))
    slope = staticmethod(lambda x: (x > 0) & (x < 6))


class Gelu(Pointwise):
    """x times the normal distribution's integral up to x (exact, by erf)."""

    f = staticmethod(lambda x: x * 0.5 * (1 + erf(x / sqrt(2))))
    slope = staticmethod(lambda x: 0.5 * (1 + erf(x / sqrt(2))) + x * np.exp(-x * x / 2) / sqrt(2 * np.pi))


class Reshape(Base):
    """A new arrangement or a selection or mean of the input, linear: its backward is the transpose."""

    FORWARD: Mapping[str, Callable[[Array], Array]] = {
        "globalpool": lambda x: x.mean(axis=(2, 3)),
        "flatten": lambda x: x.reshape(len(x), -1),
        "to_tokens": lambda x: x.reshape(*x.shape[:2], -1).swapaxes(1, 2),
        "first_token": lambda x: x[:, 0],
        "mean_tokens": lambda x: x[:, 1:].mean(axis=1),
    }

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self.kind = layer.kind

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        self.kept = x.shape
        return self.FORWARD[self.kind](x)

    def backward(self, dy: Array) -> Array:
        shape = self.kept
        if self.kind == "globalpool":
            return np.broadcast_to(dy[:, :, None, None] / (shape[2] * shape[3]), shape)
        if self.kind == "to_tokens":
            return dy.swapaxes(1, 2).reshape(shape)
        if self.kind == "flatten":
            return dy.reshape(shape)
        dx = np.zeros(shape)
        if self.kind == "first_token":
            dx[:, 0] = dy
        else:
            dx[:, 1:] = dy[:, None] / (shape[1] - 1)
        return dx


KINDS: Mapping[str, Callable[[Layer], Op]] = {
    "conv": Conv,
    "linear": Linear,
    "batchnorm": BatchNorm,
    "layernorm": LayerNorm,
    "attention": Attention,
    "tokens": Tokens,
    "embedding": Embedding,
    "layerscale": LayerScale,
    "relu": Relu,
    "relu6": Relu6,
    "gelu": Gelu,
    "maxpool": MaxPool,
    "avgpool": AvgPool,
    "dropout": Dropout,
    "drop_path": DropPath,
    **dict.fromkeys(Reshape.FORWARD, Reshape),
}


class Chain:
    """Parts one after the other; nested chains and sums included."""

    def __init__(self, parts: Sequence["Part"]) -> None:
        self.parts = parts

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        """In order."""
        for part in self.parts:
            x = part.forward(x, train, rng)
        return x

    def backward(self, dy: Array) -> Array:
        """In reverse order."""
        for part in reversed(self.parts):
            dy = part.backward(dy)
        return dy


class Sum:
    """body(x) + shortcut(x)."""

    def __init__(self, body: "Part", shortcut: "Part") -> None:
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Array, train: bool, rng: np.random.Generator) -> Array:
        """The sum."""
        return self.body.forward(x, train, rng) + self.shortcut.forward(x, train, rng)

    def backward(self, dy: Array) -> Array:
        """Both ways."""
        return self.body.backward(dy) + self.shortcut.backward(dy)


Part = Op | Chain | Sum


class Model:
    """A whole declared tree: `ops` are its layers in execution order, `where` every array: name -> (layer, local name)."""

    def __init__(self, tree: Tree) -> None:
        self.ops: list[tuple[str, Op]] = []
        self.chain: Part = fold(tree, self._layer, Chain, Sum)
        self.where = {join(name, local): (op, local) for name, op in self.ops for local in op.params}

    def _layer(self, name: str, layer: Layer) -> Part:
        self.ops.append((name, KINDS[layer.kind](layer)))
        return self.ops[-1][1]


def loss(logits: Array, y: Array) -> tuple[float, Array]:
    """(mean cross-entropy, its gradient by the logits); y: int64 [B], or soft targets [B, classes]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    soft = np.eye(logits.shape[1])[y] if y.ndim == 1 else y.astype(np.float64)
    gradient = np.exp(log_p) * soft.sum(axis=1, keepdims=True) - soft
    return float(-(soft * log_p).sum() / len(y)), gradient / len(y)
