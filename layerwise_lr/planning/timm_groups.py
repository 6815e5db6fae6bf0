"""timm's depths: the groups of a model's own `group_matcher`, as timm 1.0.31 models/_manipulate.py makes them.

A matcher is timm's: part -> regex, or (regex, suffix) pairs; or a function of the name. The sort key of a name is (place
of the part, the regex's numbers, suffix), infinite where nothing matches; distinct keys in order are depths 0, 1, 2, ...,
but a key that ends in `PREVIOUS` shares the depth before it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from math import inf
from typing import Any

from .names import host_name

PREVIOUS = 99999
"""timm's MATCH_PREV_GROUP."""
Matcher = Mapping[str, Any] | Callable[[str], Any]
Key = tuple[float, ...]


def timm_depths(names: Iterable[str], matcher: Matcher) -> dict[str, int]:
    """name -> depth, as timm's `group_parameters(model, matcher, reverse=True)`; wrappers in a name do not matter.

    Args:
        names: of all parameters, trainable or not: a frozen part counts in the depth of the whole.
        matcher: `model.group_matcher(coarse=False)` of a timm model.
    """
    key = matcher if callable(matcher) else _by_regex(matcher)
    keys = {name: _ordinal(key(host_name(name))) for name in names}
    depth, depths = -1, dict[Key, int]()
    for k in sorted({k for k in keys.values() if k is not None}):
        depth += depth < 0 or k[-1] != PREVIOUS
        depths[k] = depth
    return {name: depth if k is None else depths[k] for name, k in keys.items()}


def _by_regex(matcher: Mapping[str, Any]) -> Callable[[str], Key]:
    rules = [(re.compile(regex), place, suffix) for place, regex, suffix in specs(matcher)]

    def key(name: str) -> Key:
        for regex, place, suffix in rules:
            if found := regex.match(name):
                return tuple(map(float, chain((place,), found.groups(), suffix or ())))
        return (inf,)

    return key


def specs(matcher: Mapping[str, Any]) -> Iterable[tuple[int, str, Sequence[float] | None]]:
    """(place, regex, suffix) of every entry of a matcher."""
    for place, part in enumerate(matcher.values()):
        if part is not None:
            for regex, suffix in part if isinstance(part, (list, tuple)) else [(part, None)]:
                yield place, regex, suffix


def _ordinal(key: Any) -> Key | None:
    """A function's answer may be a number, a tuple or None: timm puts what has None into no group, so at the top."""
    return key if key is None else tuple(key) if isinstance(key, Iterable) else (key,)
