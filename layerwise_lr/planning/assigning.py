"""Grouping strategies: ParamTable -> groups, each with one lr_scale, weight decay, schedule, optimizer and window.

Every parameter is assigned by itself (strategy, then named groups, then weight decay, then freezing); parameters
whose assignment is equal form a group. So strategies compose, and coverage can be proved parameter by parameter.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from .conventions import factor, undecayed
from .depth import assign
from .errors import UserError, did_you_mean
from .groups import FOREVER, Group, GroupingSpec, GroupSpec
from .params import ParamInfo, ParamTable
from .searching import bounded, limited


@dataclass(frozen=True)
class Assignment:
    """What one parameter is given, before equal ones are gathered into a group."""

    label: str
    rule: str
    lr_scale: float
    weight_decay: float
    optimizer: str = "default"
    schedule: str = "default"
    active: tuple[int, int] = (0, FOREVER)
    grad_centralization: bool = False


def scale_of_depth(spec: GroupingSpec, depth: int, num_layers: int) -> float:
    """layer_decay ** (num_layers - depth), not below min_scale: 1 for the head. A net of 12 blocks has num_layers 13, so
    the stem's scale is stem_scale, or decay_per_12_layers ** 13, whatever the depth."""
    layers = max(num_layers, 1)
    if spec.stem_scale is not None:
        decay = spec.stem_scale ** (1 / layers)
    elif spec.decay_per_12_layers is not None:
        decay = spec.decay_per_12_layers ** (13 / layers)
    else:
        decay = spec.layer_decay
    return max(decay ** (num_layers - depth), spec.min_scale)


def _flat(row: ParamInfo, spec: GroupingSpec, table: ParamTable) -> tuple[str, str, float]:
    return "all", "flat", 1.0


def _layer_decay(row: ParamInfo, spec: GroupingSpec, table: ParamTable) -> tuple[str, str, float]:
    scale, rule = scale_of_depth(spec, row.depth, table.num_layers), f"depth {row.depth} of {table.num_layers}"
    if not spec.depths and (times := factor(row.name, spec.convention)) != 1:
        scale, rule = scale * times, f"{rule}, times {times:g} ({spec.convention})"
    if spec.head_scale != 1 and table.is_head(row.name):
        return "head", f"{rule}, head {table.head}", scale * spec.head_scale
    return f"layer_{row.depth}", rule, scale


def _backbone_head(row: ParamInfo, spec: GroupingSpec, table: ParamTable) -> tuple[str, str, float]:
    if table.is_head(row.name):
        return "head", f"head {table.head}", spec.head_scale
    return "backbone", f"not {table.head}", spec.backbone_scale


STRATEGIES: Mapping[str, Callable[[ParamInfo, GroupingSpec, ParamTable], tuple[str, str, float]] | None] = {
    "flat": _flat,
    "layer_decay": _layer_decay,
    "backbone_head": _backbone_head,
    "by_name": None,
    "by_module": None,
    "by_layer_type": None,
}
"""(label, rule, lr_scale) of a parameter; None: the named groups alone decide."""


def matches(pattern: str, row: ParamInfo, strategy: str) -> bool:
    """Whether a group's pattern takes the parameter; what a pattern means depends on the strategy."""
    if pattern == "*":
        return True
    if strategy == "by_layer_type":
        return pattern in (row.layer_type, f"{row.layer_type}.{row.role}")
    if strategy == "by_module":
        return row.name == pattern or row.name.startswith(pattern + ".")
    if pattern.startswith("re:"):
        return re.search(pattern[3:], row.name) is not None
    return fnmatchcase(row.name, pattern)


def assignments(table: ParamTable, spec: GroupingSpec, base_lr: float, weight_decay: float) -> dict[str, Assignment]:
    """What every trainable parameter is given, by name. `table` holds the depths that `spec` asks for already."""
    strategy = STRATEGIES[spec.strategy]
    used: set[tuple[str, str]] = set()
    result, uncovered = {}, []
    for row in table.trainable:
        found = next(
            ((name, p) for name, g in spec.groups.items() for p in g.match if matches(p, row, spec.strategy)), None
        )
        if found is None and strategy is None:
            uncovered.append(row.name)
            continue
        label, rule, scale = strategy(row, spec, table) if strategy else ("", "", 1.0)
        given = Assignment(label, rule, scale, weight_decay)
        if found is not None:
            used.add(found)
            given = _in_group(given, found, spec.groups[found[0]], base_lr)
        if spec.no_weight_decay and given.weight_decay and undecayed(row, "tree" if spec.depths else spec.convention):
            given = replace(given, weight_decay=0.0)
        result[row.name] = given
    _check_rules(spec, used, uncovered, table)
    return result


def _in_group(base: Assignment, found: tuple[str, str], group: GroupSpec, base_lr: float) -> Assignment:
    """`base` with what the named group says."""
    name, pattern = found
    if group.lr is not None:
        scale = group.lr / base_lr
    else:
        scale = base.lr_scale * (1.0 if group.lr_scale is None else group.lr_scale)
    return Assignment(
        label=f"{name}/{base.label}" if base.label not in ("", "all") and group.lr is None else name,
        rule=f"{name}: {pattern}",
        lr_scale=scale,
        weight_decay=base.weight_decay if group.weight_decay is None else group.weight_decay,
        optimizer=group.optimizer,
        schedule=group.schedule,
        active=(group.start, FOREVER if group.stop is None else group.stop),
        grad_centralization=group.grad_centralization,
    )


def _check_rules(spec: GroupingSpec, used: set[tuple[str, str]], uncovered: list[str], table: ParamTable) -> None:
    """Every pattern took a parameter, every parameter was taken."""
    for name, group in spec.groups.items():
        for pattern in group.match:
            if (name, pattern) in used:
                continue
            shadowed = any(matches(pattern, row, spec.strategy) for row in table.trainable)
            why = (
                "an earlier group takes all that it matches (first match wins)"
                if shadowed
                else "matches no parameter of the model" + did_you_mean(pattern, _words(spec.strategy, table))
            )
            raise UserError(f"grouping.groups.{name}.match: {pattern!r} {why}")
    if uncovered and not spec.groups:
        raise UserError(
            f"grouping={spec.strategy} has no groups: add some, such as '+grouping.groups.all={{match: [\"*\"]}}'"
        )
    if uncovered:
        raise UserError(
            f"{len(uncovered)} parameters are in no group: {', '.join(uncovered[:4])}"
            f"{', ...' if len(uncovered) > 4 else ''}; add a group with match: ['*']"
        )


def _words(strategy: str, table: ParamTable) -> list[str]:
    """What a pattern could have meant."""
    if strategy == "by_layer_type":
        return sorted({word for row in table.trainable for word in (row.layer_type, f"{row.layer_type}.{row.role}")})
    if strategy == "by_module":
        parts = [row.name.split(".") for row in table.trainable]
        return sorted({".".join(p[:i]) for p in parts for i in range(1, len(p))})
    return [row.name for row in table.trainable]


def gather(given: Mapping[str, Assignment]) -> tuple[Group, ...]:
    """Parameters with equal assignments form a group; names stay unique and say what sets two groups apart."""
    members: dict[Assignment, list[str]] = {}
    for name, a in given.items():
        members.setdefault(replace(a, rule=""), []).append(name)
    decayed = {a.label for a in members if a.weight_decay}
    groups: list[Group] = []
    for a, names in members.items():
        name = f"{a.label}_no_decay" if not a.weight_decay and a.label in decayed else a.label
        taken = {g.name for g in groups}
        name = next(n for i in range(len(groups) + 1) if (n := f"{name}_{i + 1}" if i else name) not in taken)
        rule = given[names[0]].rule
        groups.append(
            Group(
                name,
                tuple(names),
                a.lr_scale,
                a.weight_decay,
                a.optimizer,
                a.schedule,
                a.active,
                a.grad_centralization,
                rule,
            )
        )
    return tuple(groups)


def check_spec(spec: GroupingSpec) -> None:
    """The strategy exists and takes what it was given."""
    if spec.strategy not in STRATEGIES:
        raise UserError(
            f"grouping.strategy={spec.strategy!r} is unknown; there are: {', '.join(STRATEGIES)}"
            + did_you_mean(spec.strategy, list(STRATEGIES))
        )
    if spec.layer_decay > 1 and not spec.allow_above_one:
        raise UserError(
            f"grouping.layer_decay={spec.layer_decay} is above 1, early layers would learn fastest; "
            "say grouping.allow_above_one=true if you mean it"
        )
    if spec.stem_scale is not None and spec.decay_per_12_layers is not None:
        raise UserError(
            f"grouping.stem_scale={spec.stem_scale} and grouping.decay_per_12_layers={spec.decay_per_12_layers} both say "
            "what layer_decay is: give one of the two"
        )
    for name, group in spec.groups.items():
        if not group.match:
            raise UserError(f"grouping.groups.{name}.match is empty: name the parameters of the group")
        if group.lr is not None and group.lr_scale is not None:
            raise UserError(f"grouping.groups.{name}: give lr or lr_scale, not both")
        for pattern in group.match:
            try:
                re.compile(bounded(pattern, f"grouping.groups.{name}.match")[3:] if pattern.startswith("re:") else "")
            except re.error as error:
                raise UserError(f"grouping.groups.{name}.match: {pattern!r} is no regex: {error}") from None


def group_table(
    table: ParamTable, spec: GroupingSpec, base_lr: float, weight_decay: float
) -> tuple[ParamTable, dict[str, Assignment]]:
    """The table under the depths that `spec` asks for, and every trainable parameter's assignment."""
    regexes = [p for group in spec.groups.values() for p in group.match if p.startswith("re:")] + list(spec.depths)
    with limited("grouping.depths, grouping.groups") if regexes else nullcontext():
        check_spec(spec)
        table = assign(table, spec)
        return table, assignments(table, spec, base_lr, weight_decay)
