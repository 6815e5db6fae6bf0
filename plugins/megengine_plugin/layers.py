"""Each kind of declared layer as a function of its input and its arrays, every number explicit, and the model made of
them.

MegEngine's own modules would list arrays alphabetically; here names come from the declaration. Its own shapes (conv
bias and BatchNorm (1, C, 1, 1), grouped conv weights in five axes) stay inside: `Model.shapes` has PyTorch's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import megengine
import megengine.functional as F
import numpy as np
from megengine import Parameter, Tensor

from layerwise_lr.framework import KINDS as DECLARED
from layerwise_lr.framework import Layer, Step, Tree, fold, join

from .convolution import conv2d


@dataclass(frozen=True)
class Native:
    """A layer of a model; its arrays by local name, in MegEngine's shapes."""

    model: "Model"
    name: str
    options: Mapping[str, Any]
    arrays: Mapping[str, Tensor]


def on_gpu() -> bool:
    """Whether the process computes on one."""
    return megengine.get_default_device().startswith("gpu")


def multiply(product: Callable[..., Tensor], a: Tensor, b: Tensor, half: bool) -> Tensor:
    """product(a, b, compute_mode=...), float32; of what float16 keeps of the numbers, and rounded to it, if `half`.

    MegEngine's CPU kernels for float16 take twenty times as long as those for float32: on a CPU the type is float32
    again, which multiplies and adds such numbers as a GPU does. compute_mode: the sums of float16 products are
    float32; what is float32 already takes no other than its own.
    """
    if not half:
        return product(a, b, compute_mode="default")
    a, b = a.astype("float16"), b.astype("float16")
    if on_gpu():
        y = product(a, b, compute_mode="float32")
    else:
        y = product(a.astype("float32"), b.astype("float32"), compute_mode="default")
    return y.astype("float16").astype("float32")


def _conv(x: Tensor, layer: Native) -> Tensor:
    """On the CPU with our own backward, where it has one (convolution.py says how much faster)."""
    o, bias = layer.options, layer.arrays.get("bias")
    plain = o["groups"] == 1 or o["groups"] == o["in_channels"] == o["out_channels"]

    def product(x: Tensor, w: Tensor, compute_mode: str) -> Tensor:
        if plain and o["padding"] < o["kernel"] and not on_gpu():
            return conv2d(x, w, o["stride"], o["padding"])
        return F.conv2d(x, w, None, o["stride"], o["padding"], 1, o["groups"], "cross_correlation", compute_mode)

    y = multiply(product, x, layer.arrays["weight"], layer.model.half)
    return y if bias is None else y + bias


def _linear(x: Tensor, layer: Native, prefix: str = "") -> Tensor:
    """[..., D] -> [..., O]; the declared `std` concerns the initial values only."""
    weight, bias = (layer.arrays[prefix + local] for local in ("weight", "bias"))
    return multiply(F.linear, x, weight, layer.model.half) + bias


def _batchnorm(x: Tensor, layer: Native) -> Tensor:
    """MegEngine's momentum is the share of the old value, torch's that of the batch."""
    mean, var, weight, bias = (layer.arrays[local] for local in ("running_mean", "running_var", "weight", "bias"))
    step, momentum = layer.model.step, layer.options["momentum"]
    training = step is not None and layer.name not in step.frozen
    return F.nn.batch_norm(
        x, mean, var, weight, bias, training=training, momentum=1 - momentum, eps=layer.options["eps"]
    )


def _layernorm(x: Tensor, layer: Native) -> Tensor:
    shape, eps = (layer.options["features"],), layer.options["eps"]
    return F.nn.layer_norm(x, shape, True, layer.arrays["weight"], layer.arrays["bias"], eps)


def _attention(x: Tensor, layer: Native) -> Tensor:
    """From two linear layers: MegEngine's own packs all weights in one parameter."""
    (b, t, d), heads = x.shape, layer.options["num_heads"]

    def matmul(a: Tensor, b: Tensor, transpose_b: bool) -> Tensor:
        return multiply(partial(F.matmul, transpose_b=transpose_b), a, b, layer.model.half)

    q, k, v = _linear(x, layer, "qkv.").reshape(b, t, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
    weights = F.softmax(matmul(q * (d // heads) ** -0.5, k, True), axis=-1)
    return _linear(matmul(weights, v, False).transpose(0, 2, 1, 3).reshape(b, t, d), layer, "proj.")


def _tokens(x: Tensor, layer: Native) -> Tensor:
    first = F.broadcast_to(layer.arrays["cls_token"], (x.shape[0], 1, x.shape[2]))
    return F.concat([first, x], axis=1) + layer.arrays["pos_embed"]


def _maxpool(x: Tensor, layer: Native) -> Tensor:
    """Of equal maxima the first takes the gradient, as in torch. MegEngine's own gives it to all of them: on pictures
    with an even background (digits) the gradient of the convolution before it is then up to 70 % off."""
    kernel, stride, padding = (layer.options[key] for key in ("kernel", "stride", "padding"))
    if padding:
        x = F.nn.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_value=float("-inf"))
    pairs = ((n, n) for n in (kernel, 0, stride, 1))
    windows = F.flatten(F.nn.sliding_window(x, *pairs), 4)  # [B, C, H', W', K * K]
    return F.indexing_one_hot(windows, F.argmax(windows, axis=4), axis=4)


def _dropout(x: Tensor, layer: Native) -> Tensor:
    p, rng = layer.options["p"], layer.model.rng
    return x if rng is None or not p else x * mask(rng, x.shape, p)


def mask(rng: np.random.Generator, shape: tuple[int, ...], p: float) -> Tensor:
    """0 with probability p, else 1 / (1 - p); drawn in NumPy: MegEngine's operator repeats its first mask in a trace."""
    kept = rng.random(shape, dtype=np.float32) >= p
    return megengine.tensor(kept.astype(np.float32) / np.float32(1 - p))


def _drop_path(x: Tensor, layer: Native) -> Tensor:
    p, rng = layer.options["p"], layer.model.rng
    return x if rng is None or not p else x * mask(rng, (x.shape[0], *(1,) * (x.ndim - 1)), p)


KINDS: Mapping[str, Callable[[Tensor, Native], Tensor]] = {
    "conv": _conv,
    "linear": _linear,
    "batchnorm": _batchnorm,
    "layernorm": _layernorm,
    "embedding": lambda x, layer: F.nn.embedding(x, layer.arrays["weight"]),
    "attention": _attention,
    "tokens": _tokens,
    "layerscale": lambda x, layer: x * layer.arrays["gamma"],
    "relu": lambda x, layer: F.relu(x),
    "relu6": lambda x, layer: F.relu6(x),
    "gelu": lambda x, layer: F.gelu(x),  # the exact one
    "maxpool": _maxpool,
    "avgpool": lambda x, layer: F.avg_pool2d(x, layer.options["kernel"], layer.options["stride"], 0, "average"),
    "globalpool": lambda x, layer: x.mean((2, 3)),
    "flatten": lambda x, layer: F.flatten(x, 1),
    "dropout": _dropout,
    "drop_path": _drop_path,
    "to_tokens": lambda x, layer: F.flatten(x, 2).transpose(0, 2, 1),
    "first_token": lambda x, layer: x[:, 0],
    "mean_tokens": lambda x, layer: x[:, 1:].mean(1),
}


class Model:
    """A whole declared tree: `arrays` by canonical name, `shapes` as PyTorch has them.

    Args:
        half: convolutions and matrix products in float16.
    """

    def __init__(self, tree: Tree, half: bool) -> None:
        self.half = half
        self.step: Step | None = None
        """That the next forward pass is for; None is evaluation."""
        self.rng: np.random.Generator | None = None
        """That draws what is drawn at random in this step, part by part."""
        self.arrays: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.function = fold(tree, self._layer)

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [B, C, H, W] or int32 [B, T] -> logits [B, classes]."""
        return self.function(x)

    def _layer(self, name: str, layer: Layer) -> Callable[[Tensor], Tensor]:
        own: dict[str, Tensor] = {}
        for spec in DECLARED[layer.kind](**layer.options) if layer.kind in DECLARED else ():
            made = Tensor if spec.role == "buffer" else Parameter
            own[spec.name] = made(np.zeros(_native_shape(layer, spec.shape), np.float32))
            self.shapes[join(name, spec.name)] = spec.shape
        self.arrays |= {join(name, local): array for local, array in own.items()}
        function, native = KINDS[layer.kind], Native(self, name, layer.options, own)
        return lambda x: function(x, native)


def _native_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    if layer.kind not in ("conv", "batchnorm"):
        return shape
    if len(shape) == 1:
        return (1, *shape, 1, 1)
    groups = layer.options["groups"]
    return shape if groups == 1 else (groups, shape[0] // groups, *shape[1:])
