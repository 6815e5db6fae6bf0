"""What the proof costs a run in torch, by proof_cost.py; digits stand in for pictures that nobody has fetched."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from .timing import Case, once

GOALS = {"G17": "proof at start, in steps; proof during training, share of a run"}
NEEDS = ("torch",)
DEVICES = ("cpu",)


def measure(device: str) -> Iterator[Case]:
    """Each run one time: its own steps are the unit."""
    import proof_cost

    with tempfile.TemporaryDirectory() as place:
        for name, words in proof_cost.RUNS.items():
            cost = proof_cost.measure("torch", "eager", words, Path(place, name))
            yield once("G17", f"{name}, start", cost.again, 3, " steps")
            yield once("G17", f"{name}, share", 100 * cost.training, 2, " %")
            yield once("G17", f"{name}, share with the start", 100 * cost.share, None, " %")
