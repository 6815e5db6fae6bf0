"""Packages that some options need and that come with an extra: the pip line of those that are not here."""

from importlib.util import find_spec

from ..framework import advice

EXTRAS = {"optuna": "optuna"}
"""Option -> the package that it needs, which is the extra's name too."""


def missing(*options: str) -> str:
    """What to type for those of the options that need a package that is not installed, to follow a sentence; "": none."""
    absent = [option for option in options if option in EXTRAS and find_spec(EXTRAS[option]) is None]
    return "".join(f"; {option} is not installed: {advice(option)}" for option in absent)
