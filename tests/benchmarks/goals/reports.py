"""What a report costs at scale, by report_scale.py."""

from collections.abc import Iterator

from .timing import Case, once

GOALS = {"G18": "report of 1,000 runs of 1,000 steps; of one run of 1,000,000 steps: CPU seconds, MB"}
NEEDS = ("numpy",)
DEVICES = ("cpu",)


def measure(device: str) -> Iterator[Case]:
    """The long run first: what is told of memory is the peak so far."""
    import report_scale

    for which, cost in report_scale.costs(("long", "many")):
        case = {"long": "1,000,000 steps", "many": "1,000 runs"}[which]
        yield once("G18", case, cost.processor, {"long": 5, "many": 10}[which], " s")
        if which == "long":
            yield once("G18", case, cost.peak, 500, " MB")
