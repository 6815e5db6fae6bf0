"""What every parameter does at every step: params, depth, groups, schedules, freezing, the law.

NumPy only: no files, no YAML, no framework. Uses nothing else of the package. Data flows
ParamTable -> depths -> assignments -> groups -> Plan; a Plan is data, everybody else applies or draws it.
"""

from . import ranges
from .comparing import Difference, differences
from .depth import CONVENTIONS
from .errors import Absent, ProcessDied, UserError, did_you_mean, near, plain, printable
from .freezing import FreezeSpec
from .groups import FOREVER, Group, GroupingSpec, GroupSpec
from .names import bare_name
from .optimizers import OPTIMIZERS, OptimizerSpec
from .order import Module, Order, execution_order
from .params import ParamInfo, ParamTable
from .plan import NO_CLIP, Clip, Phase, Plan, UpdateRule, every_shown, make_plan
from .schedules import Duration, Schedule, ScheduleSpec
from .secrets import hidden, hide, is_secret, masked, masked_text
from .timm_groups import timm_depths

__all__ = [
    "CONVENTIONS",
    "FOREVER",
    "NO_CLIP",
    "OPTIMIZERS",
    "Absent",
    "Clip",
    "Difference",
    "Duration",
    "FreezeSpec",
    "Group",
    "GroupSpec",
    "GroupingSpec",
    "Module",
    "OptimizerSpec",
    "Order",
    "ParamInfo",
    "ParamTable",
    "Phase",
    "Plan",
    "ProcessDied",
    "Schedule",
    "ScheduleSpec",
    "UpdateRule",
    "UserError",
    "bare_name",
    "did_you_mean",
    "differences",
    "every_shown",
    "execution_order",
    "hidden",
    "hide",
    "is_secret",
    "make_plan",
    "masked",
    "masked_text",
    "near",
    "plain",
    "printable",
    "ranges",
    "timm_depths",
]
