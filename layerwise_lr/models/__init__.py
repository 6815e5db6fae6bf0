"""Declared models: the tree of layers, the nets made of it, and published weights into them by canonical name.

Uses planning (ParamTable) and data (files, the cache). No framework: a plugin turns the tree into native modules.
"""

from . import foreign, weights
from .kept import inside, kept_checkpoint
from .layers import (
    KINDS,
    PLAIN_KINDS,
    Layer,
    Node,
    Residual,
    Seq,
    Tree,
    initial_weights,
    join,
    param_table,
    specs,
    walk,
)
from .trees import MODELS, USUAL_SHAPES, batchnorm, conv, linear, make_tree
from .weights import Weights, WeightsSpec

__all__ = [
    "KINDS",
    "MODELS",
    "PLAIN_KINDS",
    "USUAL_SHAPES",
    "Layer",
    "Node",
    "Residual",
    "Seq",
    "Tree",
    "Weights",
    "WeightsSpec",
    "batchnorm",
    "conv",
    "foreign",
    "initial_weights",
    "inside",
    "join",
    "kept_checkpoint",
    "linear",
    "make_tree",
    "param_table",
    "specs",
    "walk",
    "weights",
]
