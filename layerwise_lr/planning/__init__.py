"""What every parameter does at every step: params, depth, groups, schedules, freezing, the law.

NumPy only: no files, no YAML, no framework. Uses nothing else of the package. Data flows
ParamTable -> depths -> assignments -> groups -> Plan; a Plan is data, everybody else applies or draws it.
"""

from .depth import CONVENTIONS, assign
from .errors import Absent, UserError, did_you_mean, near, plain
from .freezing import FreezeSpec
from .groups import FOREVER, Group, GroupingSpec, GroupSpec
from .names import bare_name
from .order import Module, Order, execution_order
from .params import ParamInfo, ParamTable
from .plan import OPTIMIZERS, OptimizerSpec, Phase, Plan, UpdateRule, make_plan
from .schedules import Duration, Schedule, ScheduleSpec

__all__ = [
    "CONVENTIONS",
    "FOREVER",
    "OPTIMIZERS",
    "Absent",
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
    "Schedule",
    "ScheduleSpec",
    "UpdateRule",
    "UserError",
    "assign",
    "bare_name",
    "did_you_mean",
    "execution_order",
    "make_plan",
    "near",
    "plain",
]
