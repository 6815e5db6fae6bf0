"""What verify found, as a table of 80 columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np

from ..proof import LrMismatch
from .faults import Fault
from .measuring import Measured

WIDTH = 80
GROUPS = 12
"""Rows of the table; more are counted."""
MOMENTS = 4


@dataclass(frozen=True)
class Report:
    """How far each parameter really moves. Printed, it is a table.

    Args:
        measured: the effective lr of every parameter, now and while the scheduler goes on.
        faults: what is wrong; empty where nothing is.
        notes: what could not be known.
    """

    measured: Measured
    faults: tuple[Fault, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.faults

    @property
    def lrs(self) -> dict[str, float]:
        """parameter -> its effective lr now; NaN where a zero gradient moves nothing."""
        return dict(zip(self.measured.names, map(float, self.measured.lr[0]), strict=True))

    def __str__(self) -> str:
        return "\n".join([*self._head(), *self._table(), *self._told()])

    def _head(self) -> Iterator[str]:
        m = self.measured
        scheduler = f", {m.subject.scheduler}" if m.subject.scheduler else ""
        ahead = f" and for {counted(m.steps[-1], 'scheduler step')}" if m.steps[-1] else ""
        yield from _wrapped(
            f"effective lr of {len(m.names)} parameters of {m.subject.model} in {counted(len(m.subject.groups), 'group')}, "
            f"{m.by}: {m.subject.optimizer}{scheduler}, now{ahead}"
        )

    def _table(self) -> Iterator[str]:
        m = self.measured
        rows = sorted({round(k) for k in np.linspace(0, len(m.steps) - 1, min(MOMENTS, len(m.steps)))})
        counts = [str(len(group)) for group in m.subject.groups]
        labels = [label if len(label) < 25 else f"{label[:21]}..." for label in m.subject.labels]
        lines = [["group", "params", *(f"step {m.steps[k]}" if m.steps[k] else "now" for k in rows)]]
        for g in range(min(len(labels), GROUPS)):
            lrs = (m.group_lr[k, g] for k in rows)
            lines.append([labels[g], counts[g], *("-" if np.isnan(lr) else f"{lr:.3g}" for lr in lrs)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = (c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            yield "  " + "  ".join(cells)
        if len(labels) > GROUPS:
            yield f"  ... {counted(len(labels) - GROUPS, 'more group')}"

    def _told(self) -> Iterator[str]:
        for fault in self.faults:
            yield from ("", f"WRONG: {fault.name}")
            for word, text in (
                ("where", named(fault.where)),
                ("measured", fault.measured),
                ("expected", fault.expected),
                ("remedy", fault.remedy),
            ):
                yield from _wrapped(text, f"  {word:<10}")
        if not self.faults:
            yield "nothing is wrong"
        for note in self.notes:
            yield from _wrapped(note, "note: ")


class ModelLrMismatch(LrMismatch):
    """A model's parameters do not move as they should; `report` says how, and is printed with the error."""

    def __init__(self, report: Report) -> None:
        first, more = report.faults[0], len(report.faults) - 1
        self.line = f"{first.name}: {named(first.where)}" + (f"; and {more} more" if more else "")
        Exception.__init__(self, f"{self.line}\n{report}")
        self.report, self.records = report, ()


def counted(number: int, what: str) -> str:
    """1 group, 2 groups."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def named(names: Sequence[str], most: int = 3) -> str:
    """The first of several names, and how many there are."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _wrapped(text: str, head: str = "") -> list[str]:
    return wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
