"""What "implements Framework" means, as plain functions: CHECKS. Run by `layerwise-lr check NAME`.

Every check trains something small and compares numbers: with the plan, with the reference plugin (NumPy, every
backward pass by hand) or with itself. The first line of a check's docstring is its specification. A failure names
the check, the group or parameter, the step, what was wanted and what was measured. What a plugin does not list in
`kinds` and `optimizers` is not asked of it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from . import dropout, freezing, gradients, kinds, learning_rates, optimizers, precisions, runs, values
from .kit import TREES, Failure, Kit, NotApplicable

CHECKS: Mapping[str, Callable[[Kit], None]] = {
    name.removeprefix("check_"): function
    for room in (values, gradients, kinds, dropout, learning_rates, optimizers, freezing, runs, precisions)
    for name, function in vars(room).items()
    if name.startswith("check_")
}


class Outcome(NamedTuple):
    """One check in one mode: passed | failed | known failure | not applicable."""

    check: str
    result: str
    message: str = ""


def run_check(kit: Kit, name: str) -> Outcome:
    """Never raises for a plugin's fault: whatever it raises is its failure. One that the plugin knows of and gives
    its framework's reason for is a known failure; one that it knows of and that passes is a failure too."""
    known = kit.framework_class.known_failures.get(kit.mode, {}).get(name)
    try:
        CHECKS[name](kit)
    except NotApplicable as reason:
        return Outcome(name, "not applicable", str(reason))
    except Failure as failure:
        return Outcome(name, "known failure" if known else "failed", known or str(failure))
    except Exception as error:
        return Outcome(name, "known failure" if known else "failed", known or f"{type(error).__name__}: {error}")
    return Outcome(name, "failed", f"listed as known, but it passes: {known}") if known else Outcome(name, "passed")


def specification(name: str) -> str:
    """First line of the check's docstring."""
    return (CHECKS[name].__doc__ or "").strip().splitlines()[0]


__all__ = ["CHECKS", "TREES", "Failure", "Kit", "NotApplicable", "Outcome", "run_check", "specification"]
