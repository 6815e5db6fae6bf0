"""The depth of every parameter: as declared, in execution order, as a published code base counts, or by rules.

The same model has more than one; which one is `grouping.convention`, or `grouping.depths` for rules of one's own.
"""

import re
from collections.abc import Mapping

from .conventions import PUBLISHED, published_depths
from .errors import UserError, did_you_mean
from .groups import GroupingSpec
from .names import host_name, parts
from .params import ParamTable
from .searching import bounded
from .timm_names import family_depths

CONVENTIONS = ("tree", "order", "timm", *PUBLISHED)
"""tree: as the model declares. order: each layer its own depth, in execution order. timm: its group_matcher, by names.
The others: conventions.py."""


def assign(table: ParamTable, spec: GroupingSpec) -> ParamTable:
    """`table` under the depths that the grouping asks for.

    Raises:
        UserError: a name that the convention does not know, a rule that matches nothing, a parameter in no rule.
    """
    if spec.depths:
        table = table.with_depths(rule_depths(table, spec.depths))
    elif spec.convention != "tree":
        table = table.with_depths(*_numbered(table, spec.convention))
    return table if spec.stages is None else staged(table, spec.stages)


def _numbered(table: ParamTable, convention: str) -> tuple[dict[str, int], int]:
    """Depths, and num_layers where the model may lack what is there (0: the highest depth)."""
    names, needed = [row.name for row in table], {row.name for row in table.trainable}
    if convention == "order":
        return order_depths(table), 0
    if convention == "timm":
        return family_depths(names, needed), 0
    if convention not in PUBLISHED:
        raise UserError(
            f"grouping.convention={convention!r} is unknown; there are: {', '.join(CONVENTIONS)}"
            + did_you_mean(convention, list(CONVENTIONS))
        )
    return published_depths(names, convention, needed)


def order_depths(table: ParamTable) -> dict[str, int]:
    """One depth per layer that has parameters, in execution order; an adapter is in its host's layer."""
    layer = {row.name: host_name(row.name).rpartition(".")[0] for row in table}
    order = {name: depth for depth, name in enumerate(dict.fromkeys(layer.values()))}
    return {name: order[of] for name, of in layer.items()}


def rule_depths(table: ParamTable, rules: Mapping[str, int]) -> dict[str, int]:
    """regex -> depth, searched for in the bare name; the first that matches wins. A buffer that no rule matches goes with
    its layer."""
    compiled = {regex: _compiled(regex) for regex in rules}
    found = {
        row.name: next((regex for regex, c in compiled.items() if c.search(host_name(row.name))), None) for row in table
    }
    lost = [row.name for row in table.trainable if found[row.name] is None]
    if lost:
        raise UserError(
            f"grouping.depths: {len(lost)} parameters match no rule: {parts(lost)}; add one, such as "
            f"{{'.*': {max(rules.values())}}} as the last"
        )
    for regex, c in compiled.items():
        if regex not in found.values():
            taken = any(c.search(host_name(row.name)) for row in table)
            words = sorted(
                {host_name(row.name) for row in table} | {host_name(row.name).rpartition(".")[0] for row in table}
            )
            why = (
                "an earlier rule takes all that it matches (first match wins)"
                if taken
                else "matches no parameter of the model" + did_you_mean(regex.strip("^$").replace("\\", ""), words)
            )
            raise UserError(f"grouping.depths: {regex!r} {why}")
    layers = {row.name.rpartition(".")[0]: rules[of] for row in table.trainable if (of := found[row.name]) is not None}
    return {
        name: layers.get(name.rpartition(".")[0], 0) if regex is None else rules[regex] for name, regex in found.items()
    }


def _compiled(regex: str) -> re.Pattern[str]:
    try:
        return re.compile(bounded(regex, "grouping.depths"))
    except re.error as error:
        raise UserError(f"grouping.depths: {regex!r} is no regex: {error}") from None


def staged(table: ParamTable, stages: int) -> ParamTable:
    """Coarse depths: those below the head, 0 to n - 1, gathered into `stages` of equal count (as near as whole numbers
    come: depth * stages // n); the head is the stage after the last."""
    n = table.num_layers
    if stages > n:
        raise UserError(f"grouping.stages={stages} is more than the {n} depths below the head: at most {n}")
    return table.with_depths({row.name: row.depth * stages // n for row in table}, stages)
