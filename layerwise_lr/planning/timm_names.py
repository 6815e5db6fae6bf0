"""Which of timm's families a model's names belong to, and the depths that follow."""

import re
from collections.abc import Collection, Mapping, Sequence

from .errors import UserError, unknown
from .names import bare_name, parts
from .timm_families import CAIT, FAMILIES, Family
from .timm_groups import Matcher, specs, timm_depths

UNGROUPED = r"\.(?:layer|res)_scale\d\.scale$|^stem_dct\."
"""Names of the models that look like a family's while timm itself has no matcher for them."""


def family_depths(names: Sequence[str], needed: Collection[str] | None = None) -> dict[str, int]:
    """Depths by the family that explains every name.

    Args:
        names: of all parameters and buffers: what is frozen counts in the depth of the whole.
        needed: those that must be explained (None: all); any other that is not goes with the head.

    Raises:
        UserError: none does, or two that do would number them otherwise.
    """
    bare = {bare_name(name): needed is None or name in needed for name in names}
    if any(re.search(UNGROUPED, name) for name in bare):
        raise UserError(unknown("timm", "what timm has a group_matcher for: not metaformer, poolformer or csatv2"))
    explained = [name for name, family in FAMILIES.items() if not unexplained(family, bare)]
    signed = [name for name in explained if FAMILIES[name].sign] or explained
    depths = {name: timm_depths(names, matcher_of(FAMILIES[name], list(bare))) for name in signed}
    if not depths:
        raise UserError(_refusal(bare))
    first, *others = depths
    if differing := [other for other in others if depths[other] != depths[first]]:
        raise UserError(
            f"grouping.convention=timm: these names fit timm's {first} and its {differing[0]}, which number them "
            "otherwise; use it on a model that timm made (it brings its own group_matcher), or grouping.depths"
        )
    return depths[first]


def matcher_of(family: Family, bare: Sequence[str]) -> Matcher:
    """timm's matcher for a model of these names."""
    return family.matcher if isinstance(family.matcher, Mapping) else family.matcher(bare)


def unexplained(family: Family, bare: Mapping[str, bool]) -> list[str]:
    """Of the bare names (True: needed), those that the family does not know: all where its sign, its stem or its blocks
    are not there."""
    if not any(re.search(family.sign, name) for name in bare):
        return list(bare)
    known = specs(family.matcher) if isinstance(family.matcher, Mapping) else CAIT
    rules = [(re.compile(regex), place) for place, regex, _ in known]
    hits = {name: next((place for regex, place in rules if regex.match(name)), None) for name in bare}
    if not {0, 1} <= set(hits.values()) - {None}:
        return list(bare)
    heads = tuple(f"{word}." for word in family.head.split())
    return [name for name, hit in hits.items() if hit is None and bare[name] and not f"{name}.".startswith(heads)]


def _refusal(bare: Mapping[str, bool]) -> str:
    """Which family comes closest, and what it does not know."""
    lost = {name: left for name, family in FAMILIES.items() if len(left := unexplained(family, bare)) < len(bare)}
    if not lost:
        return unknown(
            "timm", f"{len(FAMILIES)} families of timm's names and recognises none, from {parts(list(bare))} on"
        )
    closest = min(lost, key=lambda name: len(lost[name]))
    return unknown("timm", f"names of timm's {closest}, and not {parts(lost[closest])} beside them")
