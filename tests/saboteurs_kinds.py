"""Faults of single layers, planted in the reference: at least one for every option of every kind. Each bears the kind,
the option it concerns ("" for none) and the check that must catch it.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from layerwise_lr.plugins.reference_plugin import layers
from layerwise_lr.plugins.reference_plugin.layers import Chain, Model, Sum
from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework

from layerwise_lr.framework import LOSS_SCALE, Layer, Step, StepResult, TrainState, Tree, Weights, fold

Array = np.ndarray


class Fault(NamedTuple):
    """A plugin with one fault. `crashes`: the shapes it makes fit no head, so that the reference itself may raise."""

    check: str
    kind: str
    option: str
    name: str
    plugin: type[ReferenceFramework]
    crashes: bool = False


FAULTS: list[Fault] = []


class _Faulty(Model):
    def __init__(self, tree: Tree, kind: str, op: Any) -> None:
        self._kind, self._op = kind, op
        if kind == "residual":
            self.ops = []
            self.chain = fold(tree, self._layer, Chain, op)
            self.where = {f"{name}.{local}": (op, local) for name, op in self.ops for local in op.params}
        else:
            super().__init__(tree)

    def _layer(self, name: str, layer: Layer) -> Any:
        self.ops.append((name, (self._op if layer.kind == self._kind else layers.KINDS[layer.kind])(layer)))
        return self.ops[-1][1]


def plant(kind: str, option: str, name: str, op: Any, crashes: bool = False) -> None:
    """`op` for every layer of `kind`."""
    check = "residual_shortcut" if kind == "residual" else f"kind_{kind}"
    own = {"make_model": lambda self, tree: _Faulty(tree, kind, op)}
    FAULTS.append(Fault(check, kind, option, name, type("Faulty", (ReferenceFramework,), own), crashes))


def options(kind: str, option: str, name: str, change: Callable[[Any], Any], crashes: bool = False) -> None:
    """The layer takes another value for the option."""

    def make(layer: Layer) -> Any:
        op = layers.KINDS[kind](layer)
        op.options = {**layer.options, option: change(layer.options.get(option))}
        return op

    plant(kind, option, name, make, crashes)


def _based(kind: str, **methods: Any) -> Any:
    return type("Op", (layers.KINDS[kind],), methods)  # type: ignore[arg-type]


def output(kind: str, option: str, name: str, change: Callable[[Any, Array, Array], Array]) -> None:
    """change(layer, x, y) instead of y; what it learns from is as it was."""

    def forward(self: Any, x: Array, train: bool, rng: Any) -> Array:
        return change(self, x, base.forward(self, x, train, rng))

    base: Any = layers.KINDS[kind]
    plant(kind, option, name, _based(kind, forward=forward))


def gradient(kind: str, option: str, name: str, change: Callable[[Any, Array, Array], Array]) -> None:
    """change(layer, dy, dx) instead of dx, and what it does to `grads`."""

    def backward(self: Any, dy: Array) -> Array:
        return change(self, dy, base.backward(self, dy))

    base: Any = layers.KINDS[kind]
    plant(kind, option, name, _based(kind, backward=backward))


def weight(kind: str, option: str, name: str, change: Callable[[Any, str, Array], Array]) -> None:
    """Computes with change(layer, local name, array) instead of the array."""

    def p(self: Any, local: str) -> Array:
        return change(self, local, layers.Base.p(self, local))

    plant(kind, option, name, _based(kind, p=p))


def without_last(array: Array, axis: int) -> Array:
    """The last of an axis zero."""
    return array * (np.arange(array.shape[axis]) < array.shape[axis] - 1).reshape(
        [-1 if i == axis % array.ndim else 1 for i in range(array.ndim)]
    )


def _grads(op: Any, **changes: Callable[[Array], Array]) -> None:
    for local, change in changes.items():
        op.grads[local] = change(op.grads[local])


def _lost(local: str) -> Callable[[Any, str, Array], Array]:
    return lambda op, name, a: 0 * a if name == local else a


# --- conv


def _padded(op: Any, x: Array, kept: Any, mode: str, sides: Callable[[int], tuple[int, int]]) -> Array:
    o = op.options
    wide = sides(o["padding"])
    padded = np.pad(x, ((0, 0), (0, 0), wide, wide), mode=mode)  # type: ignore[call-overload]
    return layers.Conv(Layer("conv", "", o)).forward.__func__(_Holder(op, 0), padded, True, None)


class _Holder:
    """A convolution without padding of its own, on another's weights."""

    def __init__(self, op: Any, padding: int) -> None:
        self.options, self.params, self.p = {**op.options, "padding": padding}, op.params, op.p


output("conv", "padding", "pads by its edges", lambda op, x, y: _padded(op, x, y, "edge", lambda w: (w, w)))
output("conv", "padding", "pads one side", lambda op, x, y: _padded(op, x, y, "constant", lambda w: (2 * w, 0)))
options("conv", "padding", "padding ignored", lambda v: 0, crashes=True)
options("conv", "padding", "always keeps the size", lambda v: 1, crashes=True)
options("conv", "stride", "stride ignored", lambda v: 1, crashes=True)
options("conv", "stride", "stride of two for all", lambda v: 2 if v > 1 else 1, crashes=True)
output("conv", "stride", "starts a pixel late", lambda op, x, y: np.roll(y, 1, 3) if op.options["stride"] > 1 else y)
weight("conv", "kernel", "last row lost", lambda op, n, a: without_last(a, 2) if a.ndim == 4 and a.shape[2] > 1 else a)
weight("conv", "kernel", "turned over", lambda op, n, a: a[:, :, ::-1, ::-1] if a.ndim == 4 else a)
weight("conv", "kernel", "transposed", lambda op, n, a: a.swapaxes(2, 3) if a.ndim == 4 else a)
weight(
    "conv",
    "in_channels",
    "last input lost",
    lambda op, n, a: without_last(a, 1) if a.ndim == 4 and a.shape[1] > 1 else a,
)
output("conv", "out_channels", "last output zero", lambda op, x, y: without_last(y, 1))
weight(
    "conv", "groups", "groups in reverse", lambda op, n, a: a[::-1] if a.ndim == 4 and op.options["groups"] > 1 else a
)
output(
    "conv",
    "groups",
    "groups interleaved",
    lambda op, x, y: y.reshape(len(y), op.options["groups"], -1, *y.shape[2:]).swapaxes(1, 2).reshape(y.shape),
)
weight("conv", "bias", "bias lost", _lost("bias"))
weight(
    "conv", "bias", "bias lost where grouped", lambda op, n, a: 0 * a if n == "bias" and op.options["groups"] > 1 else a
)
weight(
    "conv",
    "bias",
    "bias lost in depthwise",
    lambda op, n, a: 0 * a if n == "bias" and op.options["groups"] == op.options["in_channels"] else a,
)
gradient(
    "conv",
    "bias",
    "bias by the mean",
    lambda op, dy, dx: (op.options["bias"] and _grads(op, bias=lambda g: g / 8), dx)[1],
)
gradient("conv", "", "input without gradient", lambda op, dy, dx: 0 * dx)

# --- linear

weight("linear", "std", "scaled by std", lambda op, n, a: a * (op.options["std"] or 1) if n == "weight" else a)
weight("linear", "in_features", "last input lost", lambda op, n, a: without_last(a, 1) if a.ndim == 2 else a)
output("linear", "out_features", "last output zero", lambda op, x, y: without_last(y, -1))
output("linear", "", "bias lost in sequences", lambda op, x, y: y - op.p("bias") if x.ndim == 3 else y)
gradient(
    "linear",
    "",
    "bias of the last token",
    lambda op, dy, dx: (_grads(op, bias=lambda g: dy.reshape(8, -1, g.size)[:, -1].sum(0)), dx)[1],
)
gradient("linear", "", "gradient back through the transpose", lambda op, dy, dx: dx[..., ::-1])

# --- batchnorm

options("batchnorm", "eps", "eps of its own", lambda v: 1e-5)
options("batchnorm", "eps", "eps of another framework", lambda v: 1e-3)
options("batchnorm", "eps", "eps squared", lambda v: v * v)
options("batchnorm", "momentum", "momentum ignored", lambda v: 0.1)
options("batchnorm", "momentum", "momentum the other way round", lambda v: 1 - v)
output(
    "batchnorm", "features", "last channel as it is", lambda op, x, y: np.concatenate([y[:, :-1], x[:, -1:]], axis=1)
)
weight("batchnorm", "", "scale lost", lambda op, n, a: a / a if n == "weight" else a)
weight("batchnorm", "", "shift lost", _lost("bias"))


class _RestsWithItsOwnEps(layers.BatchNorm):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        held = self.options
        if self.frozen and train:
            self.options = {**held, "eps": 1e-5}
        y = super().forward(x, train, rng)
        self.options = held
        return y


class _NeverRests(layers.BatchNorm):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        self.frozen = False
        return super().forward(x, train, rng)


class _Biased(layers.BatchNorm):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        before = self.params["running_var"]
        y = super().forward(x, train, rng)
        if train:
            momentum = self.options["momentum"]
            biased = (1 - momentum) * before + momentum * x.var(axis=(0, 2, 3))
            self.params["running_var"] = biased.astype(np.float32)
        return y


class _StillMean(layers.BatchNorm):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        before = self.params["running_mean"]
        y = super().forward(x, train, rng)
        self.params["running_mean"] = before
        return y


class _AlwaysBatch(layers.BatchNorm):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        held = dict(self.params)
        y = super().forward(x, True, rng)
        if not train:
            self.params.update(held)
        return y


class _NeverBatch(layers.BatchNorm):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        return super().forward(x, False, rng)


plant("batchnorm", "eps", "rests with an eps of its own", _RestsWithItsOwnEps)
plant("batchnorm", "", "never rests", _NeverRests)
plant("batchnorm", "", "biased running variance", _Biased)
plant("batchnorm", "", "running mean stands still", _StillMean)
plant("batchnorm", "", "batch statistics in evaluation", _AlwaysBatch)
plant("batchnorm", "", "running statistics in training", _NeverBatch)
gradient(
    "batchnorm",
    "",
    "mean and variance as constants",
    lambda op, dy, dx: dy * op.p("weight")[:, None, None] * op.kept[1],
)

# --- layernorm

options("layernorm", "eps", "eps of its own", lambda v: 1e-5)
options("layernorm", "eps", "eps of another's", lambda v: 1e-3)
output(
    "layernorm",
    "features",
    "last feature as it is",
    lambda op, x, y: np.concatenate([y[..., :-1], x[..., -1:]], axis=-1),
)


class _EpsOutside(layers.LayerNorm):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        super().forward(x, train, rng)
        self.kept = ((x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + self.options["eps"]), self.kept[1])
        return self.kept[0] * self.p("weight") + self.p("bias")


class _Unbiased(layers.LayerNorm):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        scale = 1 / np.sqrt(x.var(-1, ddof=1, keepdims=True) + self.options["eps"])
        self.kept = ((x - x.mean(-1, keepdims=True)) * scale, scale)
        return self.kept[0] * self.p("weight") + self.p("bias")


class _WholeSample(layers.LayerNorm):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        self.kept = layers._normalise(x, tuple(range(1, x.ndim)), self.options["eps"])
        return self.kept[0] * self.p("weight") + self.p("bias")


plant("layernorm", "eps", "eps outside the root", _EpsOutside)
plant("layernorm", "", "unbiased variance", _Unbiased)
plant("layernorm", "features", "over all of a sample", _WholeSample)
weight("layernorm", "", "shift lost", _lost("bias"))
gradient("layernorm", "", "mean and variance as constants", lambda op, dy, dx: dy * op.p("weight") * op.kept[1])

# --- attention


class _OtherAttention(layers.Attention):
    """Forward with something else between the projections."""

    def split(self, qkv: Array) -> Array:
        b, t, d = qkv.shape
        heads = self.options["num_heads"]
        return qkv.reshape(b, t, 3, heads, d // 3 // heads).transpose(2, 0, 3, 1, 4)

    def scale(self, size: int) -> float:
        return 1 / sqrt(size)

    def scores(self, scores: Array) -> Array:
        return scores

    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        b, t, d = x.shape
        q, k, v = self.split(self.qkv.forward(x, train, rng))
        scores = self.scores(q @ k.swapaxes(-1, -2) * self.scale(q.shape[-1]))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        self.kept = (q, k, v, weights)
        return self.proj.forward((weights @ v).swapaxes(1, 2).reshape(b, t, d), train, rng)


def _attention(option: str, name: str, **methods: Any) -> None:
    plant("attention", option, name, type("Op", (_OtherAttention,), methods))


_attention("dim", "scaled by the whole width", scale=lambda self, size: 1 / sqrt(self.options["dim"]))
_attention("", "not scaled", scale=lambda self, size: 1.0)
_attention("", "causal", scores=lambda self, s: np.where(np.tril(np.ones(s.shape[-2:])) > 0, s, -1e9))
_attention("", "sees no other token", scores=lambda self, s: np.where(np.eye(s.shape[-1]) > 0, s, -1e9))
_attention("", "scores transposed", scores=lambda self, s: s.swapaxes(-1, -2))
options("attention", "num_heads", "one head", lambda v: 1)


def _heads_last(self: Any, qkv: Array) -> Array:
    b, t, d = qkv.shape
    heads = self.options["num_heads"]
    return qkv.reshape(b, t, 3, d // 3 // heads, heads).transpose(2, 0, 4, 1, 3)


def _heads_first(self: Any, qkv: Array) -> Array:
    b, t, d = qkv.shape
    heads = self.options["num_heads"]
    return qkv.reshape(b, t, heads, 3, d // 3 // heads).transpose(3, 0, 2, 1, 4)


_attention("num_heads", "heads along the last axis", split=_heads_last)
_attention("num_heads", "heads before q, k, v", split=_heads_first)
_attention("", "v before k", split=lambda self, qkv: _OtherAttention.split(self, qkv)[[0, 2, 1]])
output("attention", "", "no bias of proj", lambda op, x, y: y - op.p("proj.bias"))
gradient("attention", "", "input without gradient", lambda op, dy, dx: 0 * dx)

# --- tokens, embedding, layerscale

weight(
    "tokens",
    "num_patches",
    "class token without position",
    lambda op, n, a: a * (np.arange(a.shape[1]) > 0)[:, None] if n == "pos_embed" else a,
)
weight(
    "tokens",
    "num_patches",
    "last patch without position",
    lambda op, n, a: without_last(a, 1) if n == "pos_embed" else a,
)
weight("tokens", "dim", "last feature without position", lambda op, n, a: without_last(a, 2) if n == "pos_embed" else a)
output("tokens", "", "class token last", lambda op, x, y: np.roll(y - op.p("pos_embed"), -1, 1) + op.p("pos_embed"))
output(
    "tokens",
    "",
    "class token for the first sample only",
    lambda op, x, y: (
        y - np.concatenate([np.where(np.arange(len(y))[:, None, None] > 0, op.p("cls_token"), 0), 0 * x], axis=1)
    ),
)
gradient("tokens", "", "class token learns nothing", lambda op, dy, dx: (_grads(op, cls_token=lambda g: 0 * g), dx)[1])
gradient("tokens", "", "position by the mean", lambda op, dy, dx: (_grads(op, pos_embed=lambda g: g / len(dy)), dx)[1])

output("embedding", "", "zeros", lambda op, x, y: 0 * y)
output(
    "embedding",
    "num_embeddings",
    "last id as the one before",
    lambda op, x, y: op.p("weight")[np.minimum(x, op.options["num_embeddings"] - 2)],
)
output("embedding", "dim", "scaled by the root of dim", lambda op, x, y: y * sqrt(op.options["dim"]))
output("embedding", "dim", "last feature zero", lambda op, x, y: without_last(y, -1))
gradient(
    "embedding",
    "num_embeddings",
    "id 0 is padding",
    lambda op, dy, dx: (_grads(op, weight=lambda g: g * (np.arange(len(g)) > 0)[:, None]), dx)[1],
)


def _last_wins(op: Any, dy: Array, dx: Array) -> Array:
    op.grads["weight"] = 0 * op.grads["weight"]
    op.grads["weight"][op.kept] = dy
    return dx


def _by_count(op: Any, dy: Array, dx: Array) -> Array:
    counts = np.bincount(op.kept.ravel(), minlength=len(op.grads["weight"]))
    op.grads["weight"] = op.grads["weight"] / np.maximum(counts, 1)[:, None]
    return dx


gradient("embedding", "", "the last of equal ids alone", _last_wins)
gradient("embedding", "", "gradient by the number of equal ids", _by_count)

weight("layerscale", "init", "stays at init", lambda op, n, a: 0 * a + op.options["init"])
weight("layerscale", "init", "times init", lambda op, n, a: a * op.options["init"])
output(
    "layerscale", "dim", "last feature as it is", lambda op, x, y: np.concatenate([y[..., :-1], x[..., -1:]], axis=-1)
)
output("layerscale", "", "identity", lambda op, x, y: x)
gradient("layerscale", "", "passes the gradient as it is", lambda op, dy, dx: dy)

# --- without arrays

output("relu", "", "leaks", lambda op, x, y: np.where(x > 0, x, 0.01 * x))
output("relu", "", "absolute value", lambda op, x, y: np.abs(x))
gradient("relu", "", "slope 1 at 0", lambda op, dy, dx: dy * (op.kept >= 0))
gradient("relu", "", "slope of a half at 0", lambda op, dy, dx: dx + dy * (op.kept == 0) / 2)
output("relu6", "", "relu", lambda op, x, y: np.maximum(x, 0))
output("relu6", "", "from -6 to 6", lambda op, x, y: np.clip(x, -6, 6))
output("relu6", "", "at most 5.9", lambda op, x, y: np.clip(x, 0, 5.9))
gradient("relu6", "", "slope 1 at 6", lambda op, dy, dx: dx + dy * (op.kept == 6))
gradient("relu6", "", "slope 1 at 0", lambda op, dy, dx: dx + dy * (op.kept == 0))
gradient("relu6", "", "slope of relu", lambda op, dy, dx: dy * (op.kept > 0))
output("gelu", "", "by tanh", lambda op, x, y: x * 0.5 * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
output("gelu", "", "by a sigmoid", lambda op, x, y: x / (1 + np.exp(-1.702 * x)))
gradient("gelu", "", "slope of relu", lambda op, dy, dx: dy * (op.kept > 0))


def _pooled(change: Callable[[Any, Array], Array]) -> Any:
    """A max pool over change(layer, x), which is padded already."""

    class Op(layers.MaxPool):
        def forward(self, x: Array, train: bool, rng: Any) -> Array:
            padded = change(self, x)
            seen = layers.windows(padded, self.options["kernel"], self.options["stride"])
            flat = seen.reshape(*seen.shape[:4], -1)
            self.kept = (padded.shape, flat.argmax(axis=-1))
            return flat.max(axis=-1)

    return Op


class _SmallWindow(layers.MaxPool):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        super().forward(x, train, rng)
        seen = layers.windows(
            layers.pad(x, self.options["padding"], -np.inf), self.options["kernel"], self.options["stride"]
        )
        return seen[..., :2, :2].max(axis=(-2, -1))


class _LastOfEqual(layers.MaxPool):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        y = super().forward(x, train, rng)
        seen = layers.windows(
            layers.pad(x, self.options["padding"], -np.inf), self.options["kernel"], self.options["stride"]
        )
        flat = seen.reshape(*seen.shape[:4], -1)
        self.kept = (self.kept[0], flat.shape[-1] - 1 - flat[..., ::-1].argmax(axis=-1))
        return y


class _Shared(layers.MaxPool):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        y = super().forward(x, train, rng)
        seen = layers.windows(
            layers.pad(x, self.options["padding"], -np.inf), self.options["kernel"], self.options["stride"]
        )
        self.equal = (seen == y[..., None, None]) / (seen == y[..., None, None]).sum(axis=(-2, -1), keepdims=True)
        return y

    def backward(self, dy: Array) -> Array:
        shape, width = self.kept[0], self.options["padding"]
        dx = layers.scatter(self.equal * dy[..., None, None], shape, self.options["stride"])
        return dx[:, :, width : shape[2] - width, width : shape[3] - width]


plant("maxpool", "padding", "pads with 0", _pooled(lambda op, x: layers.pad(x, op.options["padding"], 0.0)))
plant("maxpool", "kernel", "two by two", _SmallWindow)
plant("maxpool", "", "the last of equals", _LastOfEqual)
plant("maxpool", "", "equals share", _Shared)
options("maxpool", "padding", "padding ignored", lambda v: 0, crashes=True)
options("maxpool", "padding", "always keeps the size", lambda v: 1, crashes=True)
options("maxpool", "stride", "stride ignored", lambda v: 1, crashes=True)
options("maxpool", "stride", "stride of two", lambda v: 2, crashes=True)
options("maxpool", "kernel", "kernel ignored", lambda v: 3, crashes=True)
output(
    "maxpool",
    "",
    "mean",
    lambda op, x, y: layers.windows(
        layers.pad(x, op.options["padding"]), op.options["kernel"], op.options["stride"]
    ).mean(axis=(-2, -1)),
)
output("maxpool", "padding", "pads one side", lambda op, x, y: np.roll(y, 1, 3) if op.options["padding"] else y)

output("avgpool", "", "zeros", lambda op, x, y: 0 * y)
output(
    "avgpool",
    "",
    "largest",
    lambda op, x, y: layers.windows(x, op.options["kernel"], op.options["stride"]).max(axis=(-2, -1)),
)
output("avgpool", "kernel", "sum", lambda op, x, y: y * op.options["kernel"] ** 2)
output(
    "avgpool",
    "kernel",
    "two by two",
    lambda op, x, y: layers.windows(x, op.options["kernel"], op.options["stride"])[..., :2, :2].mean(axis=(-2, -1)),
)
output(
    "avgpool",
    "stride",
    "starts a pixel late",
    lambda op, x, y: np.roll(y, 1, 2) if op.options["stride"] != op.options["kernel"] else y,
)
options("avgpool", "stride", "stride ignored", lambda v: 1, crashes=True)
options("avgpool", "stride", "stride of two", lambda v: 2, crashes=True)
gradient("avgpool", "kernel", "gradient of the sum", lambda op, dy, dx: dx * op.options["kernel"] ** 2)

output("globalpool", "", "largest", lambda op, x, y: x.max(axis=(2, 3)))
output("globalpool", "", "sum", lambda op, x, y: x.sum(axis=(2, 3)))
gradient(
    "globalpool", "", "gradient to the first pixel", lambda op, dy, dx: np.where(np.arange(dx.shape[3]) > 0, 0, dx)
)
output("flatten", "", "channels last", lambda op, x, y: np.moveaxis(x, 1, -1).reshape(y.shape))
output("flatten", "", "columns first", lambda op, x, y: x.swapaxes(2, 3).reshape(y.shape))
output("to_tokens", "", "columns first", lambda op, x, y: x.swapaxes(2, 3).reshape(*x.shape[:2], -1).swapaxes(1, 2))
output("to_tokens", "", "reshaped only", lambda op, x, y: x.reshape(y.shape))
output("first_token", "", "last", lambda op, x, y: x[:, -1])
output("first_token", "", "mean", lambda op, x, y: x.mean(axis=1))
gradient("first_token", "", "gradient to all", lambda op, dy, dx: dx + dx[:, :1])
output("mean_tokens", "", "zeros", lambda op, x, y: 0 * y)
output("mean_tokens", "", "class token too", lambda op, x, y: x.mean(axis=1))
output("mean_tokens", "", "sum", lambda op, x, y: x[:, 1:].sum(axis=1))

# --- dropout


def _dropout(name: str, mask: Callable[[Any, Array, float, Any], Array]) -> None:
    """mask(layer, x, share kept, rng), drawn in training."""

    def forward(self: Any, x: Array, train: bool, rng: Any) -> Array:
        self.kept = mask(self, x, 1 - self.options["p"], rng) if train else np.ones(())
        return x * self.kept

    plant("dropout", "p", name, _based("dropout", forward=forward))


_dropout("not scaled", lambda op, x, keep, rng: (rng.random(x.shape) < keep) * 1.0)
_dropout("scaled by p", lambda op, x, keep, rng: (rng.random(x.shape) < keep) / max(1 - keep, 1e-3))
_dropout("times the share kept", lambda op, x, keep, rng: (rng.random(x.shape) < keep) * keep)
_dropout("keeps p", lambda op, x, keep, rng: (rng.random(x.shape) < 1 - keep) / max(1 - keep, 1e-3))
_dropout("keeps p, scaled as if not", lambda op, x, keep, rng: (rng.random(x.shape) < 1 - keep) / keep)
_dropout("a half", lambda op, x, keep, rng: (rng.random(x.shape) < 0.5) * 2.0)
_dropout("none", lambda op, x, keep, rng: np.ones(x.shape))
_dropout("mean alone", lambda op, x, keep, rng: np.full(x.shape, 1.0))
_dropout("noise", lambda op, x, keep, rng: 1 + rng.standard_normal(x.shape) * sqrt((1 - keep) / keep))
_dropout("one mask for a batch", lambda op, x, keep, rng: (rng.random(x[:1].shape) < keep) / keep + 0 * x)
_dropout("one mask for two samples", lambda op, x, keep, rng: np.repeat(rng.random(x[::2].shape) < keep, 2, 0) / keep)
_dropout(
    "whole channels or tokens",
    lambda op, x, keep, rng: (rng.random((*x.shape[:2], *[1] * (x.ndim - 2))) < keep) / keep + 0 * x,
)
_dropout(
    "whole features",
    lambda op, x, keep, rng: (rng.random((len(x), *[1] * (x.ndim - 2), x.shape[-1])) < keep) / keep + 0 * x,
)
_dropout("whole samples", lambda op, x, keep, rng: (rng.random((len(x), *[1] * (x.ndim - 1))) < keep) / keep + 0 * x)
_dropout("the first share", lambda op, x, keep, rng: (np.arange(x.size).reshape(x.shape) < keep * x.size) / keep)
_dropout(
    "the same draw in every layer",
    lambda op, x, keep, rng: (
        (np.random.default_rng(int(rng.bit_generator.seed_seq.entropy)).random(x.size).reshape(x.shape) < keep) / keep
    ),
)
_dropout(
    "the same whatever the seed", lambda op, x, keep, rng: (np.random.default_rng(1).random(x.shape) < keep) / keep
)
_dropout("another at every step", lambda op, x, keep, rng: (np.random.default_rng().random(x.shape) < keep) / keep)
_dropout("a share less", lambda op, x, keep, rng: (rng.random(x.shape) < keep - 0.06) / keep)
gradient("dropout", "p", "gradient past the mask", lambda op, dy, dx: dy)
gradient("dropout", "p", "gradient not scaled", lambda op, dy, dx: dy * (op.kept > 0))
gradient(
    "dropout",
    "p",
    "gradient of another mask",
    lambda op, dy, dx: dy * np.roll(op.kept, 1, 0) if np.ndim(op.kept) else dx,
)


class _DropsInEvaluation(layers.Dropout):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        return super().forward(x, True, rng)


class _ScalesInEvaluation(layers.Dropout):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        y = super().forward(x, train, rng)
        return y if train else y * (1 - self.options["p"])


plant("dropout", "p", "drops in evaluation", _DropsInEvaluation)
plant("dropout", "p", "scales in evaluation", _ScalesInEvaluation)

# --- drop_path


def _drop_path(name: str, mask: Callable[[Any, Array, float, Any], Array]) -> None:
    """mask(layer, x, share kept, rng), drawn in training."""

    def forward(self: Any, x: Array, train: bool, rng: Any) -> Array:
        self.kept = mask(self, x, 1 - self.options["p"], rng) if train else np.ones(())
        return x * self.kept

    plant("drop_path", "p", name, _based("drop_path", forward=forward))


def _per_sample(x: Array) -> tuple[int, ...]:
    return (len(x), *(1,) * (x.ndim - 1))


_drop_path("single numbers", lambda op, x, keep, rng: (rng.random(x.shape) < keep) / keep)
_drop_path("the whole batch", lambda op, x, keep, rng: np.full(_per_sample(x), float(rng.random() < keep) / keep))
_drop_path("not scaled", lambda op, x, keep, rng: (rng.random(_per_sample(x)) < keep) * 1.0)
_drop_path("keeps p", lambda op, x, keep, rng: (rng.random(_per_sample(x)) < 1 - keep) / max(1 - keep, 1e-3))
_drop_path("none", lambda op, x, keep, rng: np.ones(_per_sample(x)))
_drop_path(
    "the same whatever the seed",
    lambda op, x, keep, rng: (np.random.default_rng(1).random(_per_sample(x)) < keep) / keep,
)
gradient("drop_path", "p", "gradient past the mask", lambda op, dy, dx: dy)


class _DropsPathsInEvaluation(layers.DropPath):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        return super().forward(x, True, rng)


plant("drop_path", "p", "drops in evaluation", _DropsPathsInEvaluation)

# --- Residual


class _BodyAlone(Sum):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        return self.body.forward(x, train, rng) + 0 * self.shortcut.forward(x, train, rng)


class _NoProjection(Sum):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        projected = self.shortcut.forward(x, train, rng)
        return self.body.forward(x, train, rng) + (x if projected.shape == x.shape else projected)


class _NoIdentity(Sum):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        own = self.shortcut.forward(x, train, rng)
        return self.body.forward(x, train, rng) + (0 if own is x else own)


class _Twice(Sum):
    def forward(self, x: Array, train: bool, rng: Any) -> Array:
        return super().forward(x, train, rng) + self.shortcut.forward(x, False, rng)


class _NoWayBack(Sum):
    def backward(self, dy: Array) -> Array:
        self.shortcut.backward(dy)
        return self.body.backward(dy)


class _NoWayBackByBody(Sum):
    def backward(self, dy: Array) -> Array:
        self.body.backward(dy)
        return self.shortcut.backward(dy)


for _sum in (_BodyAlone, _NoProjection, _NoIdentity, _Twice, _NoWayBack, _NoWayBackByBody):
    plant("residual", "", _sum.__name__.strip("_"), _sum)

# --- whole plugins: precisions, deterministic, classes of arrays

PLUGINS: list[tuple[str, type[ReferenceFramework]]] = []


def caught_by(*checks: str) -> Callable[[type[ReferenceFramework]], type[ReferenceFramework]]:
    def register(plugin: type[ReferenceFramework]) -> type[ReferenceFramework]:
        PLUGINS.extend((check, plugin) for check in checks)
        return plugin

    return register


class _Precise(ReferenceFramework):
    precisions = ("fp32", "fp64", "bf16", "fp16")

    def train_step(self, state: TrainState, x: Array, y: Array, step: Step) -> StepResult:
        result = super().train_step(state, x, y, step)
        return result if self.precision == "fp32" else self.change(state, result)

    def change(self, state: TrainState, result: StepResult) -> StepResult:
        return result


def _each(weights: Weights | None, change: Callable[[Array], Array]) -> Weights:
    return {name: change(array) for name, array in (weights or {}).items()}


@caught_by("precision_bf16", "precision_fp16")
class IgnoresPrecision(_Precise):
    """Takes any precision and computes in its own."""


@caught_by("precision_bf16", "precision_fp16", "precision_fp64")
class LeavesTheLossScale(_Precise):
    """Hands out gradients of the scaled loss."""

    def change(self, state: TrainState, result: StepResult) -> StepResult:
        return result._replace(gradients=_each(result.gradients, lambda g: g * LOSS_SCALE))


@caught_by("precision_bf16", "precision_fp16", "precision_fp64")
class FarOff(_Precise):
    """A twentieth of the loss is not there."""

    def change(self, state: TrainState, result: StepResult) -> StepResult:
        other = _each(result.gradients, lambda g: g.astype(np.float16).astype(np.float32))
        return result._replace(loss=0.95 * result.loss, gradients=other)


@caught_by("precision_bf16", "precision_fp16")
class HalfGradients(_Precise):
    """Gradients come in 16 bits, and the loss is rounded to them."""

    def change(self, state: TrainState, result: StepResult) -> StepResult:
        rounded = float(np.float16(result.loss))
        return result._replace(loss=rounded, gradients=_each(result.gradients, lambda g: g.astype(np.float16)))


@caught_by("precision_fp64")
class SingleForDouble(_Precise):
    """Says fp64 and rounds as fp32 does."""

    def change(self, state: TrainState, result: StepResult) -> StepResult:
        return result._replace(gradients=_each(result.gradients, lambda g: g * np.float32(1 + 2e-7)))


@caught_by("deterministic")
class AnyOrder(ReferenceFramework):
    """Takes deterministic=True, and sums in an order of its own each time."""

    def train_step(self, state: TrainState, x: Array, y: Array, step: Step) -> StepResult:
        result = super().train_step(state, x, y, step)
        if self.deterministic:
            for op, local in state.model.where.values():
                op.params[local] = op.params[local] * np.float32(1 + 1e-6 * np.random.default_rng().random())
        return result


class _Sub(np.ndarray):  # type: ignore[type-arg]
    pass


@caught_by("arrays_are_numpys")
class OwnArrays(ReferenceFramework):
    """Hands out a subclass of numpy.ndarray."""

    def get_weights(self, model: Model) -> Weights:
        return _each(super().get_weights(model), lambda a: a.view(_Sub))


@caught_by("arrays_are_numpys")
class OwnGradients(ReferenceFramework):
    """Hands out gradients as a subclass of numpy.ndarray."""

    def train_step(self, state: TrainState, x: Array, y: Array, step: Step) -> StepResult:
        result = super().train_step(state, x, y, step)
        return result._replace(gradients=_each(result.gradients, lambda a: a.view(_Sub)))


@caught_by("arrays_are_numpys")
class OwnState(ReferenceFramework):
    """Hands out scalars of the optimizer state as Python has them."""

    def get_optimizer_state(self, state: TrainState) -> Weights:
        return {n: a if a.ndim else a[()] for n, a in super().get_optimizer_state(state).items()}


@caught_by("arrays_are_numpys")
class WideState(ReferenceFramework):
    """Hands out the optimizer state in float64."""

    def get_optimizer_state(self, state: TrainState) -> Weights:
        return _each(super().get_optimizer_state(state), lambda a: a.astype(np.float64))
