"""The declared model: a small tree of layers, and what each kind of layer holds.

A plugin turns nodes into native modules; shapes, roles and initial values are decided here, in NumPy, so that
every framework starts from the same bits. Activations: float32 [B, C, H, W] or [B, T, D]; labels int64 [B].
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from ..planning import ParamInfo, ParamTable

Array = np.ndarray
Init = Callable[[np.random.Generator, tuple[int, ...]], Array]


@dataclass(frozen=True)
class Layer:
    """One layer: its kind (see KINDS), its name below its parent, its options. `depth` is inherited if None."""

    kind: str
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    depth: int | None = None

    def __hash__(self) -> int:
        """By its values, as equality is; so equal trees have equal hashes."""
        return hash((self.kind, self.name, frozenset(self.options.items()), self.depth))


@dataclass(frozen=True)
class Seq:
    """Nodes applied one after the other; an empty name adds nothing to the names below."""

    name: str
    children: tuple["Node", ...]
    depth: int | None = None


@dataclass(frozen=True)
class Residual:
    """`body(x) + shortcut(x)`; an empty shortcut is the identity."""

    name: str
    body: tuple["Node", ...]
    shortcut: tuple["Node", ...] = ()
    depth: int | None = None


Node = Layer | Seq | Residual


@dataclass(frozen=True)
class Tree:
    """A model: its name, its root node, the name of its head, and the input it expects ([C, H, W])."""

    name: str
    root: Seq
    head: str
    input_shape: tuple[int, int, int]
    num_classes: int


class ParamSpec(NamedTuple):
    """One array of a layer: local name, shape, role and initial value."""

    name: str
    shape: tuple[int, ...]
    role: str
    init: Init


def _constant(value: float) -> Init:
    return lambda rng, shape: np.full(shape, value, np.float32)


def _normal(std: float) -> Init:
    """Normal, cut at two standard deviations by drawing again (the ViT papers' trunc_normal_)."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        x = rng.standard_normal(shape)
        while (out := np.abs(x) > 2).any():
            x[out] = rng.standard_normal(int(out.sum()))
        return (std * x).astype(np.float32)

    return draw


def _uniform(bound: float) -> Init:
    return lambda rng, shape: rng.uniform(-bound, bound, shape).astype(np.float32)


def _conv(
    in_channels: int, out_channels: int, kernel: int, groups: int = 1, bias: bool = False, **_: int
) -> list[ParamSpec]:
    shape = (out_channels, in_channels // groups, kernel, kernel)
    he = _normal(sqrt(2 / (kernel * kernel * out_channels / groups)))  # He et al. 2015, fan out
    bound = 1 / sqrt(kernel * kernel * in_channels / groups)
    extra = [ParamSpec("bias", (out_channels,), "bias", _uniform(bound))] if bias else []
    return [ParamSpec("weight", shape, "weight", he), *extra]


def _linear(in_features: int, out_features: int, std: float | None = None) -> list[ParamSpec]:
    bound = 1 / sqrt(in_features)
    weight, bias = (_uniform(bound), _uniform(bound)) if std is None else (_normal(std), _constant(0))
    return [
        ParamSpec("weight", (out_features, in_features), "weight", weight),
        ParamSpec("bias", (out_features,), "bias", bias),
    ]


def _norm(features: int, eps: float) -> list[ParamSpec]:
    return [
        ParamSpec("weight", (features,), "scale", _constant(1)),
        ParamSpec("bias", (features,), "shift", _constant(0)),
    ]


def _batchnorm(features: int, eps: float, momentum: float) -> list[ParamSpec]:
    return [
        *_norm(features, eps),
        ParamSpec("running_mean", (features,), "buffer", _constant(0)),
        ParamSpec("running_var", (features,), "buffer", _constant(1)),
    ]


def _attention(dim: int, num_heads: int) -> list[ParamSpec]:
    return [
        ParamSpec("qkv.weight", (3 * dim, dim), "weight", _normal(0.02)),
        ParamSpec("qkv.bias", (3 * dim,), "bias", _constant(0)),
        ParamSpec("proj.weight", (dim, dim), "weight", _normal(0.02)),
        ParamSpec("proj.bias", (dim,), "bias", _constant(0)),
    ]


def _tokens(num_patches: int, dim: int) -> list[ParamSpec]:
    return [
        ParamSpec("cls_token", (1, 1, dim), "weight", _normal(0.02)),
        ParamSpec("pos_embed", (1, num_patches + 1, dim), "weight", _normal(0.02)),
    ]


def _embedding(num_embeddings: int, dim: int) -> list[ParamSpec]:
    return [ParamSpec("weight", (num_embeddings, dim), "weight", _normal(0.02))]


def _layerscale(dim: int, init: float) -> list[ParamSpec]:
    return [ParamSpec("gamma", (dim,), "scale", _constant(init))]


KINDS: Mapping[str, Callable[..., list[ParamSpec]]] = {
    "conv": _conv,  # in_channels, out_channels, kernel, stride, padding, groups, bias
    "linear": _linear,  # in_features, out_features, std
    "batchnorm": _batchnorm,  # features, eps, momentum: new = (1 - momentum) * old + momentum * batch
    "layernorm": _norm,  # features, eps
    "attention": _attention,  # dim, num_heads: multi-head self-attention, one qkv projection
    "tokens": _tokens,  # num_patches, dim: prepend the class token, add the position embedding
    "embedding": _embedding,  # num_embeddings, dim
    "layerscale": _layerscale,  # dim, init: x * gamma
}
"""Kinds with arrays: the function that lists them from the layer's options."""

PLAIN_KINDS: Mapping[str, tuple[str, ...]] = {
    "relu": (),
    "relu6": (),
    "gelu": (),  # the exact one, by erf
    "maxpool": ("kernel", "stride", "padding"),
    "avgpool": ("kernel", "stride"),
    "globalpool": (),  # [B, C, H, W] -> [B, C]
    "flatten": (),
    "dropout": ("p",),
    "drop_path": ("p",),  # stochastic depth (Huang et al. 2016): a sample's whole input is dropped, the kept scaled up
    "to_tokens": (),  # [B, D, H, W] -> [B, H * W, D]
    "first_token": (),  # [B, T, D] -> [B, D]
    "mean_tokens": (),  # mean over all but the class token
}
"""Kinds without arrays, with the names of their options."""

_LAYER_TYPES = {"tokens": "token"}


def join(*names: str) -> str:
    """A dotted name; empty parts add nothing."""
    return ".".join(name for name in names if name)


def walk(node: Node, prefix: str = "", depth: int | None = None) -> Iterator[tuple[str, Layer, int | None]]:
    """Every layer below `node` in execution order: (full name, layer, depth)."""
    name = join(prefix, node.name)
    depth = depth if node.depth is None else node.depth
    if isinstance(node, Layer):
        yield name, node, depth
        return
    children = node.children if isinstance(node, Seq) else node.body + node.shortcut
    for child in children:
        yield from walk(child, name, depth)


def specs(tree: Tree) -> Iterator[tuple[str, ParamSpec, Layer, int | None]]:
    """Every array of the model in execution order: (canonical name, spec, its layer, depth)."""
    for name, layer, depth in walk(tree.root):
        for spec in KINDS[layer.kind](**layer.options) if layer.kind in KINDS else ():
            yield join(name, spec.name), spec, layer, depth


def param_table(tree: Tree) -> ParamTable:
    """The model's ParamTable, straight from its declaration: no framework, no weights."""
    rows = []
    for name, spec, layer, depth in specs(tree):
        assert depth is not None, f"{tree.name}: {name} has no depth"
        layer_type = _LAYER_TYPES.get(layer.kind, layer.kind)
        rows.append(ParamInfo(name, spec.shape, layer_type, spec.role, depth, spec.role != "buffer"))
    return ParamTable(tuple(rows), tree.head)


def initial_weights(tree: Tree, seed: int) -> dict[str, Array]:
    """float32 arrays by canonical name. Each is drawn from its own stream (seed, name), so that another head
    or another depth changes no other parameter."""
    return {
        name: spec.init(np.random.default_rng([seed, zlib.crc32(name.encode())]), spec.shape)
        for name, spec, _, _ in specs(tree)
    }
