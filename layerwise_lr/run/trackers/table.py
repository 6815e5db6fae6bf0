"""csv: metrics.csv, a line per record of metrics.jsonl, a column per number."""

import csv
import os
from collections.abc import Mapping
from typing import Any

from ...framework import metrics
from .. import files
from .tracked import Record, Tracked

NAME = "metrics.csv"
MOVED = ("gradient_norm", "update_ratio", "distance")


class Table:
    """Made anew from metrics.jsonl where the run goes on."""

    def __init__(self, run: Tracked) -> None:
        parts = ("val", "val_ema", "test") if run.config.ema.decay is not None else ("val", "test")
        columns = ["train/loss", *(f"lr/{group}" for group in run.groups)]
        columns += [f"{part}/{name}" for part in parts for name in metrics.METRICS]
        columns += [f"{what}/{group}" for what in MOVED for group in run.groups]
        (run.path / NAME).unlink(missing_ok=True)
        self._run = run
        self._file = os.fdopen(files.appended(run.path / NAME), "w", encoding="utf-8", newline="")
        self._rows = csv.DictWriter(self._file, ["step", *columns], lineterminator="\n")
        self._rows.writeheader()
        for record in run.kept():
            self.write(record)

    def write(self, record: Record) -> None:
        """A line; the file is up to date at every evaluation."""
        self._rows.writerow({"step": record["step"], **self._run.numbers(record)})
        if "val" in record:
            self._file.flush()

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """No more lines."""
        self._file.close()
