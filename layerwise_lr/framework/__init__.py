"""The door to a framework. All that a plugin imports is here: the contract, the plan, the tree, and what is
offered so that no plugin writes it again.

Uses plan and models. `registry` finds plugins by name, `proof` measures that they do what the plan says,
`conformance` is the whole kit.
"""

from ..models import KINDS, PLAIN_KINDS, Layer, Node, Residual, Seq, Tree, Weights, join, specs
from ..plan import OPTIMIZERS, OptimizerSpec, Plan, UserError
from . import metrics, proof, registry
from .contract import LOSS_SCALE, Framework, Scheduler, TrainState

__all__ = [
    "KINDS",
    "LOSS_SCALE",
    "OPTIMIZERS",
    "PLAIN_KINDS",
    "Framework",
    "Layer",
    "Node",
    "OptimizerSpec",
    "Plan",
    "Residual",
    "Scheduler",
    "Seq",
    "TrainState",
    "Tree",
    "UserError",
    "Weights",
    "join",
    "metrics",
    "proof",
    "registry",
    "specs",
]
