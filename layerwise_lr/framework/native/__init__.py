"""Models, optimizers and loops that are not ours: planned for, and verified.

`plan` makes a ModelPlan for any model, `verify` measures what any optimizer does to it. A framework's side is a
`describing.Native`; which one is asked follows from the model's type.
"""

from .making import ModelPlan, placed, plan

__all__ = ["ModelPlan", "placed", "plan"]
