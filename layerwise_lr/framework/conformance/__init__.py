"""What "implements Framework" means, as plain functions: CHECKS. Run by `layerwise-lr check NAME`.

Every check trains something small and compares numbers: with the plan, with the reference plugin (NumPy, every
backward pass by hand) or with itself. The first line of a check's docstring is its specification. A failure names
the check, the group or parameter, the step, what was wanted and what was measured. What a plugin does not list in
`kinds` and `optimizers` is not asked of it, and of a verb that is not written yet no more is said than that: CHECKS stand
in the order in which a plugin is written (ladder.py).
"""

import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..contract import CONTRACT
from . import dropout, freezing, gradients, kinds, learning_rates, optimizers, precisions, runs, values
from .kit import TREES, Failure, Kit, NotApplicable, Session, batch, plan_for
from .ladder import RUNGS, not_yet, rung_of

_FOUND: Mapping[str, Callable[[Kit], None]] = {
    name.removeprefix("check_"): function
    for room in (values, gradients, kinds, dropout, learning_rates, optimizers, freezing, runs, precisions)
    for name, function in vars(room).items()
    if name.startswith("check_")
}
CHECKS: Mapping[str, Callable[[Kit], None]] = {
    name: _FOUND[name]
    for rung, starts in RUNGS.items()
    for start in starts
    for name in _FOUND
    if name.startswith(start) and rung_of(name) == rung
}


class Outcome(NamedTuple):
    """One check in one mode.

    Args:
        check: its name.
        result: passed | failed | known failure | not applicable | not yet.
        message: why; of a check that is not yet, the verb that is missing.
        trace: the traceback, where something was raised.
    """

    check: str
    result: str
    message: str = ""
    trace: str = ""


def run_check(kit: Kit, name: str) -> Outcome:
    """Never raises for a plugin's fault: whatever it raises is its failure. One that the plugin knows of and gives
    its framework's reason for is a known failure; one that it knows of and that passes is a failure too."""
    known = kit.framework_class.known_failures.get(kit.mode, {}).get(name)
    try:
        CHECKS[name](kit)
    except NotApplicable as reason:
        return Outcome(name, "not applicable", str(reason))
    except Exception as error:
        if missing := not_yet(error):
            return Outcome(name, "not yet", str(missing))
        told = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        return Outcome(name, "known failure" if known else "failed", known or told, traceback.format_exc())
    return Outcome(name, "failed", f"listed as known, but it passes: {known}") if known else Outcome(name, "passed")


def summary(outcomes: Iterable[Outcome]) -> str:
    """In a line: "conformant with contract 1: 78 passed, 4 not applicable", "not conformant ...", "conformant in part ..." where it
    has known failures, or of some checks
    "6 of 82 checks: 6 passed"."""
    results = [outcome.result for outcome in outcomes]
    order = ("passed", "failed", "not yet", "known failure", "not applicable")
    counts = ", ".join(f"{results.count(result)} {result}" for result in order if result in results)
    if len(results) < len(CHECKS):
        return f"{len(results)} of {len(CHECKS)} checks: {counts}"
    whole = not {"failed", "not yet"} & set(results) and "passed" in results
    but = " in part" if whole and "known failure" in results else ""
    return f"{'conformant' if whole else 'not conformant'}{but} with contract {CONTRACT}: {counts}"


def specification(name: str) -> str:
    """First line of the check's docstring."""
    return (CHECKS[name].__doc__ or "").strip().splitlines()[0]


__all__ = [
    "CHECKS",
    "RUNGS",
    "TREES",
    "Failure",
    "Kit",
    "NotApplicable",
    "Outcome",
    "Session",
    "batch",
    "plan_for",
    "run_check",
    "rung_of",
    "specification",
    "summary",
]
