"""Packages that some options need and that come with an extra: the pip line of those that are not here."""

from importlib.util import find_spec

from ..framework import advice
from ..sweep import LAUNCHERS

EXTRAS = {"optuna": "optuna", **{name: schema.needs for name, schema in LAUNCHERS.items() if schema.needs}}
"""Option -> the package that it needs, which is the extra's name too."""


def missing(*options: str) -> str:
    """What to type for those of the options that need a package that is not installed, to follow a sentence; "": none."""
    absent = dict.fromkeys(EXTRAS[option] for option in options if option in EXTRAS)
    return "".join(f"; {name} is not installed: {advice(name)}" for name in absent if find_spec(name) is None)
