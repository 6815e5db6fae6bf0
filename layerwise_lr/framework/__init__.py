"""The door to a framework. All that a plugin imports is here: the contract, the plan, the tree, and what is
offered so that no plugin writes it again.

Uses planning and models. `registry` finds plugins by name, `proof` measures that they do what the plan says,
`conformance` is the whole kit; `native` plans for and verifies what is not declared here.
"""

from ..models import KINDS, PLAIN_KINDS, Layer, Node, Residual, Seq, Tree, Weights, join, specs
from ..planning import (
    OPTIMIZERS,
    Clip,
    Group,
    Module,
    OptimizerSpec,
    ParamInfo,
    Plan,
    ProcessDied,
    UserError,
    bare_name,
    near,
    plain,
)
from . import metrics, native, proof, registry
from .attempts import GroupTrial, SmallTrial, check_finite, check_loss, made_up
from .contract import CONTRACT, LOSS_SCALE, Framework, Scheduler, Step, StepResult, TrainState
from .describing import Description, Native, ZooModel
from .finding import alive, children, owner, schedulers, stepping, until_first_step
from .following import (
    GroupPlanScheduler,
    PlanScheduler,
    check_lrs,
    check_state,
    lrs_at,
    param_groups,
    places,
    stretches,
)
from .install import advice
from .keeping import Memento, refill
from .nesting import NativeModule, NativeTensor, describe, first_calls, layer_type, likely_inputs, run, tensors
from .offers import STATE_KEYS, GroupScheduler, by_optimizer, central_axes, fold, in_plan_order
from .proof import TOLERANCE
from .steps import begin, take_step
from .trials import Known, Move, Subject, Trial
from .zoos import arrays_once, check_name, check_picture, first_that_fits, from_zoo, logits, renew_head

__all__ = [
    "CONTRACT",
    "KINDS",
    "LOSS_SCALE",
    "OPTIMIZERS",
    "PLAIN_KINDS",
    "STATE_KEYS",
    "TOLERANCE",
    "Clip",
    "Description",
    "Framework",
    "Group",
    "GroupPlanScheduler",
    "GroupScheduler",
    "GroupTrial",
    "Known",
    "Layer",
    "Memento",
    "Module",
    "Move",
    "Native",
    "NativeModule",
    "NativeTensor",
    "Node",
    "OptimizerSpec",
    "ParamInfo",
    "Plan",
    "PlanScheduler",
    "ProcessDied",
    "Residual",
    "Scheduler",
    "Seq",
    "SmallTrial",
    "Step",
    "StepResult",
    "Subject",
    "TrainState",
    "Tree",
    "Trial",
    "UserError",
    "Weights",
    "ZooModel",
    "advice",
    "alive",
    "arrays_once",
    "bare_name",
    "begin",
    "by_optimizer",
    "central_axes",
    "check_finite",
    "check_loss",
    "check_lrs",
    "check_name",
    "check_picture",
    "check_state",
    "children",
    "describe",
    "first_calls",
    "first_that_fits",
    "fold",
    "from_zoo",
    "in_plan_order",
    "join",
    "layer_type",
    "likely_inputs",
    "logits",
    "lrs_at",
    "made_up",
    "metrics",
    "native",
    "near",
    "owner",
    "param_groups",
    "places",
    "plain",
    "proof",
    "refill",
    "registry",
    "renew_head",
    "run",
    "schedulers",
    "specs",
    "stepping",
    "stretches",
    "take_step",
    "tensors",
    "until_first_step",
]
