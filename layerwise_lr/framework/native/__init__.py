"""Models, optimizers and loops that are not ours: planned for, and verified.

`plan` makes a ModelPlan for any model, `verify` measures what any optimizer does to it. A framework's side is a
`describing.Native`; which one is asked follows from the model's type.
"""

from .changing import Change
from .faults import Fault
from .making import ModelPlan, placed, plan
from .verdict import ModelLrMismatch, Report
from .verifying import examine, verify

__all__ = ["Change", "Fault", "ModelLrMismatch", "ModelPlan", "Report", "examine", "placed", "plan", "verify"]
