"""Whether what an entry point names is a plugin: it loads, is a class of the contract's version, and takes what is called.

Whatever is wrong with somebody's package is one line that names the distribution, what it offers, and the remedy.
"""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from functools import reduce
from importlib.metadata import EntryPoint
from typing import Any

from ..models import KINDS, PLAIN_KINDS
from ..planning import OPTIMIZERS, UserError, did_you_mean, plain
from .contract import CONTRACT, Framework

GUIDE = "see docs/plugins.md"
FACTS: Mapping[str, list[str]] = {
    "kinds": [*KINDS, *PLAIN_KINDS],
    "optimizers": list(OPTIMIZERS),
    "modes": [],
    "precisions": [],
}
"""What a class lists, and what it may list (nothing: any words)."""


def owner(point: EntryPoint) -> str:
    """The distribution of an entry point, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a package without metadata"


def imported(name: str, point: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        UserError: it cannot be had.
    """
    told = f"framework={name}: {owner(point)} offers {plain(point.value, 100)}, which"
    try:
        module, attribute = point.module, point.attr
    except AttributeError:
        raise UserError(f"{told} is no MODULE:CLASS; {GUIDE}") from None
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{told} names no module of it ({error.name} is not there): install it again") from error
        raise UserError(f"{told} needs {error.name}, which is not installed: pip install {error.name}") from error
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {plain(error, 200)}"
        raise UserError(f"{told} does not import ({why}): mend, upgrade or uninstall it") from error
    try:
        return reduce(getattr, attribute.split(".") if attribute else [], found)
    except AttributeError:
        there = [key for key, value in vars(found).items() if _is_plugin(value) and value is not Framework]
        hint = f"; it has {', '.join(there)}" if there else ""
        raise UserError(f"{told} names nothing in {module}{hint}: mend its entry point") from None


def admitted(who: str, found: Any, whole: bool = True) -> type[Framework]:
    """`found`, where it is a plugin's class as the contract asks for it.

    Args:
        who: offers it, for people.
        found: what was imported.
        whole: whether all verbs must be there; else they may be missing, to be checked as far as they go.

    Raises:
        UserError: the first thing that is not so.
    """
    if not _is_plugin(found):
        what = f"a {type(found).__name__}" if not isinstance(found, type) else f"class {found.__name__}"
        raise UserError(f"{who} is {what}, not a class that derives from layerwise_lr.framework.Framework; {GUIDE}")
    if found.contract != CONTRACT:
        newer = isinstance(found.contract, int) and found.contract > CONTRACT
        remedy = "pip install --upgrade layerwise-lr" if newer else "upgrade it, or ask its authors"
        raise UserError(f"{who} is written for contract {found.contract!r}, this layerwise-lr has {CONTRACT}: {remedy}")
    lacking = [
        *sorted(found.__abstractmethods__),
        *(fact for fact in ("kinds", "optimizers") if not hasattr(found, fact)),
    ]
    if lacking and whole:
        raise UserError(f"{who} lacks {', '.join(lacking)}; layerwise-lr check says how far it is, {GUIDE}")
    if why := next(_misfits(found), ""):
        raise UserError(f"{who}: {why}; {GUIDE}")
    return found


def _is_plugin(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Framework)


def _misfits(found: type[Framework]) -> Iterator[str]:
    """What of its facts and signatures is not as the contract says."""
    for fact, known in FACTS.items():
        listed = getattr(found, fact, ())
        if not isinstance(listed, tuple | list) or not all(isinstance(word, str) for word in listed):
            yield f"{fact} is {plain(repr(listed), 60)}, not a tuple of words"
            continue
        if not listed and fact in ("modes", "precisions"):
            yield f"{fact} is empty"
        for word in listed if known else ():
            if word not in known:
                yield f"{fact} lists {word!r}, which is none{did_you_mean(word, known)}"
    for verb, wanted in vars(Framework).items():
        own = inspect.getattr_static(found, verb)
        if (verb.startswith("_") and verb != "__init__") or own is wanted:
            continue
        asked = getattr(wanted, "__func__", wanted)
        if inspect.isfunction(asked):
            parameters = list(inspect.signature(asked).parameters)
            try:
                inspect.signature(getattr(own, "__func__", own)).bind(*parameters)
            except TypeError:
                told = ", ".join(name for name in parameters if name not in ("self", "cls"))
                yield f"{verb} is not called with ({told})"
