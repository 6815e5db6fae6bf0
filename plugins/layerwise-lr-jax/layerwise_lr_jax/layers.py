"""Each kind of declared layer as a function of its arrays and its input; the model is their composition."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from layerwise_lr.framework import Layer, Tree, fold, join

Arrays = dict[str, jax.Array]
WIDTHS = {"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}
HIGHEST = lax.Precision.HIGHEST
"""Of float32 products: on a GPU they would be TF32."""


@dataclass
class Pass:
    """One way through the model while it is traced; each layer sees it with its own name, options and place.

    Args:
        arrays: parameters and buffers by canonical name, float32; batchnorm layers write their statistics here.
        width: the numbers of convolutions and matrix products; what they give goes on in float32.
        key: of the random draws; None in evaluation.
        frozen: the batchnorm layers that rest.
    """

    arrays: Arrays
    width: Any
    key: Any = None
    frozen: frozenset[str] = frozenset()
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    place: int = 0

    def __getitem__(self, local: str) -> jax.Array:
        return self.arrays[join(self.name, local)]

    def product(self, equation: str, *factors: jax.Array) -> jax.Array:
        """einsum."""
        narrow = (factor.astype(self.width) for factor in factors)
        return jnp.einsum(equation, *narrow, precision=HIGHEST).astype(jnp.float32)


def conv(own: Pass, x: jax.Array) -> jax.Array:
    """[B, C, H, W]; JAX's default order of axes is PyTorch's."""
    o, x, weight = own.options, x.astype(own.width), own["weight"].astype(own.width)
    stride, sides = (o["stride"],) * 2, ((o["padding"],) * 2,) * 2
    y = lax.conv_general_dilated(x, weight, stride, sides, feature_group_count=o["groups"], precision=HIGHEST)
    return y.astype(jnp.float32) + (own["bias"][:, None, None] if o["bias"] else 0.0)


def linear(own: Pass, x: jax.Array, prefix: str = "") -> jax.Array:
    """Over the last axis."""
    return own.product("...i,oi->...o", x, own[prefix + "weight"]) + own[prefix + "bias"]


def batchnorm(own: Pass, x: jax.Array) -> jax.Array:
    """By the batch's biased variance; the running one takes the unbiased."""
    mean, var, seen, momentum = own["running_mean"], own["running_var"], x.size // x.shape[1], own.options["momentum"]
    if own.key is not None and own.name not in own.frozen:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        for local, value in {"running_mean": mean, "running_var": var * (seen / (seen - 1))}.items():
            own.arrays[join(own.name, local)] = (1 - momentum) * own[local] + momentum * lax.stop_gradient(value)
    x = (x - mean[:, None, None]) * lax.rsqrt(var + own.options["eps"])[:, None, None]
    return x * own["weight"][:, None, None] + own["bias"][:, None, None]


def layernorm(own: Pass, x: jax.Array) -> jax.Array:
    """Over the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + own.options["eps"]) * own["weight"] + own["bias"]


def attention(own: Pass, x: jax.Array) -> jax.Array:
    """The softmax in float32."""
    heads, size = own.options["num_heads"], x.shape[-1] // own.options["num_heads"]
    q, k, v = jnp.moveaxis(linear(own, x, "qkv.").reshape(*x.shape[:2], 3, heads, size), 2, 0)
    weights = jax.nn.softmax(own.product("bqhd,bkhd->bhqk", q / sqrt(size), k), axis=-1)
    return linear(own, own.product("bhqk,bkhd->bqhd", weights, v).reshape(x.shape), "proj.")


def tokens(own: Pass, x: jax.Array) -> jax.Array:
    """The class token first, then the position embedding on all."""
    first = jnp.broadcast_to(own["cls_token"], (len(x), 1, x.shape[2]))
    return jnp.concatenate([first, x], axis=1) + own["pos_embed"]


def pooled(own: Pass, x: jax.Array, start: float, over: Callable[..., Any], padding: int) -> jax.Array:
    """`over` each window; of equal maxima the first takes the gradient."""
    kernel, stride = ((1, 1, own.options[key], own.options[key]) for key in ("kernel", "stride"))
    return lax.reduce_window(x, start, over, kernel, stride, ((0, 0), (0, 0), *((padding, padding),) * 2))


def dropped(own: Pass, x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """By a mask of this shape; what it draws follows from the step's key and the layer's place."""
    kept, off = 1 - own.options["p"], own.key is None
    return x if off else x * jax.random.bernoulli(jax.random.fold_in(own.key, own.place), kept, shape) / kept


KINDS: Mapping[str, Callable[[Pass, jax.Array], jax.Array]] = {
    **{layer.__name__: layer for layer in (conv, linear, batchnorm, layernorm, attention, tokens)},
    "embedding": lambda own, x: own["weight"][x],
    "layerscale": lambda own, x: x * own["gamma"],
    "relu": lambda own, x: jax.nn.relu(x),
    "relu6": lambda own, x: jnp.where(x <= 0, 0.0, jnp.where(x >= 6, 6.0, x)),  # slope 0 at both ends, as torch's
    "gelu": lambda own, x: jax.nn.gelu(x, approximate=False),
    "maxpool": lambda own, x: pooled(own, x, -jnp.inf, lax.max, own.options["padding"]),
    "avgpool": lambda own, x: pooled(own, x, 0.0, lax.add, 0) / own.options["kernel"] ** 2,
    "dropout": lambda own, x: dropped(own, x, x.shape),
    "drop_path": lambda own, x: dropped(own, x, (len(x), *(1,) * (x.ndim - 1))),
    "globalpool": lambda own, x: x.mean((2, 3)),
    "flatten": lambda own, x: x.reshape(len(x), -1),
    "to_tokens": lambda own, x: x.reshape(*x.shape[:2], -1).swapaxes(1, 2),
    "first_token": lambda own, x: x[:, 0],
    "mean_tokens": lambda own, x: x[:, 1:].mean(1),
}


def forward(run: Pass, tree: Tree, x: jax.Array) -> jax.Array:
    """Through the whole model, folded anew each time: while a function is traced, and not again."""
    places = count()

    def layer(name: str, declared: Layer) -> Callable[[jax.Array], jax.Array]:
        return partial(KINDS[declared.kind], replace(run, name=name, options=declared.options, place=next(places)))

    return fold(tree, layer)(x)
