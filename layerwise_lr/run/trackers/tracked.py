"""What a tracker is told of a run, and what it is."""

import hashlib
import os
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, Protocol

from ...planning import UserError, masked
from .. import files
from ..schema import Config

DATABASE = "mlflow.db"
"""MLflow's file in the sweep's folder."""
Record = Mapping[str, Any]
"""Of metrics.jsonl, behind its first line."""
Number = str | bool | int | float


@dataclass(frozen=True)
class Tracked:
    """The run that is tracked.

    Args:
        path: its folder.
        config: final.
        groups: names, in the order of a record's lrs.
        step: steps that were done when this process began; above 0 the run goes on.
    """

    path: Path
    config: Config
    groups: Sequence[str]
    step: int

    @property
    def home(self) -> Path:
        """The sweep's folder, or that of a single run."""
        return self.path.parent if (self.path.parent / "sweep.json").is_file() else self.path

    @property
    def id(self) -> str:
        """The same whenever this folder's run goes on, and no other's."""
        return hashlib.sha256(f"{socket.gethostname()}:{self.path.resolve()}".encode()).hexdigest()[:16]

    def settings(self) -> dict[str, Number]:
        """The config by dotted key, secrets masked; what is null or a list is text."""
        return dict(_flat(asdict(self.config)))

    def kept(self) -> Iterator[Record]:
        """The records that this process has not written: those before `step`."""
        if self.step:
            yield from islice(files.records(self.path, "metrics.jsonl"), 1, None)

    def told(self, record: Record, most: int) -> bool:
        """Whether a record is one to be told: every evaluation, and of more than `most` steps about as many, evenly, at all
        of which lrs are known."""
        steps = self.config.steps or 0
        apart = max(ceil(steps / 10_000), 1)
        return "loss" not in record or record["step"] % (apart * max(ceil(steps / apart / most), 1)) == 0

    def numbers(self, record: Record) -> dict[str, float]:
        """A record by names: train/loss and lr/GROUP of a step, val/accuracy, distance/GROUP and so on of an evaluation."""
        if "loss" in record:
            lrs = zip(self.groups, record.get("lrs", ()), strict=False)
            return {"train/loss": record["loss"], **{f"lr/{group}": lr for group, lr in lrs}}
        found = {
            f"{part}/{name}": number
            for part in ("val", "val_ema", "test")
            for name, number in record.get(part, {}).items()
        }
        moved = record["groups"].items()
        return found | {f"{what}/{group}": number for group, by in moved for what, number in by.items()}

    def result(self, summary: Mapping[str, Any]) -> dict[str, float]:
        """What summary.json says of the weights that are kept, and the largest error of the proof."""
        found = {f"kept/{part}/{name}": n for part in ("val", "test") for name, n in summary[part].items()}
        return found | {
            "kept/step": summary["kept"]["step"],
            "proof/max_relative_error": summary["proof"]["max_relative_error"],
            "train_seconds": summary["train_seconds"],
        }


def own_database(home: Path) -> str:
    """The address of MLflow's file in a folder.

    Raises:
        UserError: it, or what SQLite puts beside it, is a link or another folder's as well.
    """
    for name in (DATABASE, *(f"{DATABASE}-{part}" for part in ("journal", "wal", "shm"))):
        if not os.path.lexists(home / name):
            continue
        facts = (home / name).lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise UserError(f"{home / name}: not a plain file of this folder alone; remove it")
    return f"sqlite:///{home.resolve() / DATABASE}"


class Tracker(Protocol):
    """One of them; made when the run begins, or goes on. Whatever it raises switches it off."""

    def write(self, record: Record) -> None:
        """A record, as it is written to metrics.jsonl."""

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """The last call; None: the run has not come to its end."""


def _flat(node: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Number]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{at}{key}.")
        elif isinstance(value, bool | int | float):
            yield f"{at}{key}", value
        else:
            text = "null" if value is None else str(value)
            yield f"{at}{key}", masked(f"{at}{key}={text}").partition("=")[2]
