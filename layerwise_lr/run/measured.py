"""What a run measured, out of its metrics.jsonl at one pass, in bounded memory: a million steps take about two seconds.

A step's line is short but for its lrs, and one pattern reads it; any other line is read as the data that it is.
"""

import re
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..planning import UserError
from . import files
from .ranges import MOST_STEPS
from .shapes import MOST_NUMBER

LOG = "metrics.jsonl"
MOST_EVALUATIONS = 1000
_NUMBER = rb"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?"
_STEP = re.compile(rb'\{"step": (\d{1,9}), "loss": (' + _NUMBER + rb')(?:\}\n\Z|, "lrs": \[)')
_EVALUATION = re.compile(rb'\{"step": (\d{1,9}), "val": \{"loss": (' + _NUMBER + rb")[,}]")


class Measured(NamedTuple):
    """Of one run.

    Args:
        steps, losses: of every step: int64 and float64 [steps].
        val_steps, val_losses: of every evaluation, its loss on validation: likewise.
        evaluations: their records; of more than a thousand every second, fourth, ... and the last.
        lrs: read back, at those steps whose line tells them: float64 [lines, groups]; empty, where not asked for.
    """

    steps: np.ndarray
    losses: np.ndarray
    val_steps: np.ndarray
    val_losses: np.ndarray
    evaluations: list[dict[str, Any]]
    lrs: np.ndarray


class _Reader:
    """What the lines so far say."""

    def __init__(self, lrs_every: int) -> None:
        self.steps, self.losses = array("q"), array("d")
        self.val_steps, self.val_losses = array("q"), array("d")
        self.evaluations: list[dict[str, Any]] = []
        self.lrs: list[list[float]] = []
        self._lrs_every, self._seen, self._stride, self._last = lrs_every, 0, 1, b""

    def take(self, line: bytes) -> bool:
        """Whether the line is a run's; none behind one that is not counts."""
        whole = line.endswith(b"}\n")
        if whole and (found := _STEP.match(line)) and line.find(b"{", 1) < 0:  # nothing was appended to a torn line
            return self._step(int(found[1]), float(found[2]), line)
        if whole and (found := _EVALUATION.match(line)):
            return self._evaluation(int(found[1]), float(found[2]), line)
        record = files.record(line, LOG)
        if record is None:
            return False
        if "loss" in record:
            return self._step(record["step"], record["loss"], line)
        return "val" not in record or self._evaluation(record["step"], record["val"].get("loss"), line)

    def _step(self, step: int, loss: float, line: bytes) -> bool:
        if step >= MOST_STEPS or abs(loss) > MOST_NUMBER:
            return False
        if self._lrs_every and step % self._lrs_every == 0 and b'"lrs"' in line:
            record = files.record(line, LOG)
            if record is None:
                return False
            self.lrs.append(record["lrs"])
        self.steps.append(step)
        self.losses.append(loss)
        return True

    def _evaluation(self, step: int, loss: float | None, line: bytes) -> bool:
        if step > MOST_STEPS or (loss is not None and abs(loss) > MOST_NUMBER):
            return False
        if self._seen % self._stride:
            self._last = line
        elif not self._keep(line):
            return False
        self._seen += 1
        if loss is not None:
            self.val_steps.append(step)
            self.val_losses.append(loss)
        return True

    def _keep(self, line: bytes) -> bool:
        record = files.record(line, LOG)
        if record is None:
            return False
        self.evaluations.append(record)
        self._last = b""
        if len(self.evaluations) > MOST_EVALUATIONS:
            self.evaluations, self._stride = self.evaluations[::2], 2 * self._stride  # the newest is among them
        return True

    def made(self) -> Measured:
        """All of it."""
        if self._last and (record := files.record(self._last, LOG)):
            self.evaluations.append(record)
        even = self.lrs if len({len(row) for row in self.lrs}) == 1 else []
        return Measured(
            np.asarray(self.steps),
            np.asarray(self.losses),
            np.asarray(self.val_steps),
            np.asarray(self.val_losses),
            self.evaluations,
            np.array(even),
        )


def measured(path: Path, lrs_every: int = 0) -> Measured:
    """What the run in `path` measured until now; a torn last line is left out.

    Args:
        path: the run's folder.
        lrs_every: lrs are read of the lines whose step is a multiple of it; 0: of none.

    Raises:
        UserError: metrics.jsonl is no plain file of the folder, too large, or another program's.
    """
    reader = _Reader(lrs_every)
    lines = files.lines(path, LOG)
    first = next(lines, None)
    if first is not None and files.record(first, LOG, first=True) is None:
        raise UserError(f"{path / LOG}: its first line is none that a run writes; {files.READABLE}")
    for line in lines:
        if not reader.take(line):
            break
    return reader.made()
