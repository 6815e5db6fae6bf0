"""The nets of the checks of kinds: for every kind a few small trees, which between them have each of its options at
several values, and the weights and inputs that show a fault.

What is under test sits behind a layer with weights, so that the gradient of its input is seen in theirs, and before a
head that weighs every element differently. Layers called "same" and "minus" pass their channels on exactly, in another
order and with that sign; so multiples of a half reach the edges of relu6 and make equal maxima. Pictures are not
square, and sizes are odd.
"""

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ...models import Layer, Node, Residual, Seq, Tree, batchnorm, conv, linear, specs, walk
from ..contract import Weights
from .kit import BATCH, CLASSES


class Net(NamedTuple):
    """A tree; of what its inputs are multiples (they go from -10 to 16 of them); the only modules that train, if any."""

    tree: Tree
    unit: float = 0.125
    trains: tuple[str, ...] = ()

    def data(self, tree: Tree, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Pictures, every second of them negative everywhere; or ids of tokens, the first and last among them."""
        rng = np.random.default_rng([78, step])
        y, first = rng.integers(0, CLASSES, BATCH), next(walk(tree.root))[1]
        if first.kind == "embedding":
            ids = rng.integers(0, first.options["num_embeddings"], (BATCH, tree.input_shape[-1]))
            ids[0, :3] = 0, first.options["num_embeddings"] - 1, 0
            return ids, y
        x = rng.integers(-10, 17, (BATCH, *tree.input_shape))
        x[::2] = -np.abs(x[::2]) // 2 - 1
        return (self.unit * x).astype(np.float32), y


def loud(tree: Tree) -> Weights:
    """Weights under which everything matters: no zero biases, no scales of 1, attention that attends."""
    return {name: _loud(name, spec.shape, spec.role, layer) for name, spec, layer, _ in specs(tree)}


def _loud(name: str, shape: tuple[int, ...], role: str, layer: Layer) -> np.ndarray:
    rng = np.random.default_rng([79, zlib.crc32(name.encode())])
    if layer.name.startswith(("same", "minus")):
        exact = np.roll(np.eye(shape[0]), 1, axis=0).reshape(shape)
        return (exact if layer.name.startswith("same") else -exact).astype(np.float32)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 2, shape).astype(np.float32)
    if role == "scale":
        return (rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)).astype(np.float32)
    dense = layer.kind in ("conv", "linear", "attention") and len(shape) > 1
    size = 1 / np.sqrt(np.prod(shape[1:])) if dense else 0.7
    return ((0.4 if name.startswith("head") else 1.0) * size * rng.standard_normal(shape)).astype(np.float32)


def _tree(name: str, shape: tuple[int, int, int], features: int, *nodes: Node) -> Tree:
    """`nodes`, whose last output has `features` elements, flat; then the head."""
    root = Seq("", (*nodes, linear("head", features, CLASSES)), depth=0)
    return Tree(name, root, "head", shape, CLASSES)


def _norm(name: str, features: int, eps: float, momentum: float) -> Layer:
    return Layer("batchnorm", name, {"features": features, "eps": eps, "momentum": momentum})


def _layernorm(name: str, features: int, eps: float) -> Layer:
    return Layer("layernorm", name, {"features": features, "eps": eps})


def _maxpool(kernel: int, stride: int, padding: int) -> Layer:
    return Layer("maxpool", "", {"kernel": kernel, "stride": stride, "padding": padding})


def _avgpool(kernel: int, stride: int) -> Layer:
    return Layer("avgpool", "", {"kernel": kernel, "stride": stride})


def _attention(name: str, dim: int, heads: int) -> Residual:
    return Residual("", (Layer("attention", name, {"dim": dim, "num_heads": heads}),))


def _pointwise(kind: str) -> Tree:
    """On pictures and on vectors."""
    rest = (Layer("flatten"), linear("mid", 60, 8), Layer(kind))
    return _tree(kind, (3, 4, 5), 8, conv("same", 3, 3, 1), Layer(kind), *rest)


def _embedding(count: int, dim: int, length: int, *nodes: Node, features: int) -> Tree:
    first = Layer("embedding", "ids", {"num_embeddings": count, "dim": dim})
    return _tree("embedding", (1, 1, length), features, first, *nodes, Layer("flatten"))


FLAT, TOKENS = Layer("flatten"), Layer("to_tokens")

CONV = (
    _tree(
        "conv",
        (4, 9, 7),
        16,
        conv("a", 4, 6, 3, 2, 1, 1, False),
        conv("b", 6, 6, 3, 1, 1, 6, True),
        conv("c", 6, 4, 1, 1, 0, 2, False),
        conv("d", 4, 8, 2, 1, 1, 2, True),
        conv("e", 8, 8, 3, 2, 0, 8, False),
        conv("f", 8, 4, 1, 1, 0, 1, True),
        FLAT,
    ),
    _tree(
        "conv",
        (2, 11, 8),
        4,
        conv("a", 2, 6, 5, 3, 2, 2, True),
        conv("b", 6, 6, 1, 1, 1, 1, False),
        conv("c", 6, 6, 1, 2, 0, 1, False),
        conv("d", 6, 12, 3, 1, 1, 6, True),
        conv("e", 12, 4, 2, 2, 0, 4, False),
        FLAT,
    ),
)
RESIDUAL = _tree(
    "residual",
    (4, 5, 4),
    36,
    Residual("identity", (conv("a", 4, 4, 3), batchnorm("bn", 4), Layer("gelu"))),
    Residual(
        "0",
        (Residual("inner", (conv("a", 4, 4, 1, bias=True),)), Layer("gelu"), conv("b", 4, 4, 3)),
        (Seq("downsample", (conv("0", 4, 4, 1), batchnorm("1", 4))),),
    ),
    Residual("1", (conv("a", 4, 6, 3, 2),), (conv("b", 4, 6, 1, 2, 0),)),
    FLAT,
)

NETS: Mapping[str, tuple[Net, ...]] = {
    "conv": tuple(map(Net, CONV)),
    "linear": (
        Net(
            _tree(
                "linear",
                (3, 2, 3),
                7,
                TOKENS,
                linear("a", 3, 5),
                linear("b", 5, 4, 0.02),
                FLAT,
                linear("c", 24, 7, 0.5),
            )
        ),
    ),
    "batchnorm": (
        Net(
            _tree(
                "batchnorm",
                (3, 3, 2),
                24,
                conv("a", 3, 4, 1, bias=True),
                _norm("bn1", 4, 0.5, 0.1),
                Layer("relu"),
                conv("b", 4, 3, 1),
                _norm("bn2", 3, 1e-5, 0.6),
                Layer("relu"),
                conv("c", 3, 5, 1),
                _norm("bn3", 5, 0.9, 0.9),
                Layer("relu"),
                conv("d", 5, 4, 1),
                _norm("resting", 4, 1.0, 0.3),
                FLAT,
            ),
            trains=("a", "bn1", "b", "bn2", "c", "bn3", "d", "head"),
        ),
    ),
    "layernorm": (
        Net(
            _tree(
                "layernorm",
                (3, 2, 3),
                6,
                TOKENS,
                linear("a", 3, 5),
                _layernorm("ln1", 5, 0.5),
                linear("b", 5, 4),
                _layernorm("ln2", 4, 1e-6),
                FLAT,
                linear("c", 24, 6),
                _layernorm("ln3", 6, 2.0),
            )
        ),
    ),
    "attention": (
        Net(
            _tree(
                "attention",
                (3, 1, 5),
                40,
                TOKENS,
                linear("a", 3, 6),
                _attention("one", 6, 1),
                _attention("three", 6, 3),
                linear("b", 6, 8),
                _attention("two", 8, 2),
                FLAT,
            )
        ),
    ),
    "tokens": (
        Net(
            _tree(
                "tokens",
                (3, 2, 3),
                40,
                TOKENS,
                linear("a", 3, 4),
                Layer("tokens", "", {"num_patches": 6, "dim": 4}),
                linear("b", 4, 5),
                Layer("tokens", "more", {"num_patches": 7, "dim": 5}),
                FLAT,
            )
        ),
    ),
    "embedding": (Net(_embedding(11, 5, 7, features=35)), Net(_embedding(4, 3, 5, linear("a", 3, 2), features=10))),
    "layerscale": (
        Net(
            _tree(
                "layerscale",
                (3, 2, 3),
                4,
                TOKENS,
                linear("a", 3, 5),
                Layer("layerscale", "ls1", {"dim": 5, "init": 0.5}),
                FLAT,
                linear("b", 30, 4),
                Layer("layerscale", "ls2", {"dim": 4, "init": 1e-5}),
            )
        ),
    ),
    "relu": (Net(_pointwise("relu"), 0.5),),
    "relu6": (Net(_pointwise("relu6"), 0.5),),
    "gelu": (Net(_pointwise("gelu"), 0.25),),
    "maxpool": (
        Net(
            _tree(
                "maxpool",
                (3, 11, 9),
                126,
                conv("same", 3, 3, 1),
                _maxpool(3, 2, 1),
                conv("minus", 3, 3, 1),
                _maxpool(2, 1, 1),
                FLAT,
            ),
            0.5,
        ),
        Net(
            _tree(
                "maxpool",
                (2, 11, 10),
                4,
                conv("same", 2, 2, 1),
                _maxpool(2, 3, 0),
                conv("minus1", 2, 2, 1),
                _maxpool(3, 1, 1),
                conv("minus2", 2, 2, 1),
                _maxpool(2, 2, 0),
                FLAT,
            ),
            0.5,
        ),
    ),
    "avgpool": (
        Net(
            _tree(
                "avgpool",
                (3, 15, 13),
                6,
                conv("a", 3, 3, 1),
                _avgpool(2, 2),
                conv("b", 3, 3, 1),
                _avgpool(3, 2),
                conv("c", 3, 3, 1),
                _avgpool(2, 1),
                FLAT,
            )
        ),
        Net(
            _tree("avgpool", (2, 9, 8), 2, conv("a", 2, 2, 1), _avgpool(2, 3), conv("b", 2, 2, 1), _avgpool(3, 1), FLAT)
        ),
    ),
    "globalpool": (Net(_tree("globalpool", (3, 5, 4), 4, conv("a", 3, 4, 1), Layer("globalpool"))),),
    "flatten": (Net(_tree("flatten", (3, 4, 5), 40, conv("a", 3, 2, 1), FLAT)),),
    "to_tokens": (Net(_tree("to_tokens", (3, 2, 4), 24, conv("a", 3, 4, 1), TOKENS, linear("b", 4, 3), FLAT)),),
    "first_token": (Net(_tree("first_token", (3, 1, 5), 4, TOKENS, linear("a", 3, 4), Layer("first_token"))),),
    "mean_tokens": (Net(_tree("mean_tokens", (3, 1, 5), 4, TOKENS, linear("a", 3, 4), Layer("mean_tokens"))),),
}
"""Kind -> its nets. Dropout, which draws, has its own (see dropout.py)."""
