"""Two conventions side by side: which parameters they treat differently."""

from dataclasses import replace
from typing import NamedTuple

from .assigning import group_table
from .errors import UserError
from .groups import GroupingSpec
from .params import ParamTable


class Treated(NamedTuple):
    """What one parameter is given under a convention."""

    depth: int
    lr_scale: float
    weight_decay: float


class Difference(NamedTuple):
    """A parameter that two conventions treat differently."""

    name: str
    first: Treated
    second: Treated


def differences(
    table: ParamTable, spec: GroupingSpec, conventions: tuple[str, str], base_lr: float, weight_decay: float
) -> list[Difference]:
    """The trainable parameters whose depth, lr_scale or weight decay differ under the grouping's other keys.

    Raises:
        UserError: a convention that does not know the model, or a grouping that reads none.
    """
    if spec.strategy != "layer_decay":
        raise UserError(f"grouping={spec.strategy} reads no convention: compare under grouping=layer_decay")
    first, second = (
        treated(table, replace(spec, convention=name, depths={}), base_lr, weight_decay) for name in conventions
    )
    return [Difference(name, first[name], second[name]) for name in first if first[name] != second[name]]


def treated(table: ParamTable, spec: GroupingSpec, base_lr: float, weight_decay: float) -> dict[str, Treated]:
    """What every trainable parameter is given, by name."""
    table, given = group_table(table, spec, base_lr, weight_decay)
    return {name: Treated(table.by_name[name].depth, a.lr_scale, a.weight_decay) for name, a in given.items()}
