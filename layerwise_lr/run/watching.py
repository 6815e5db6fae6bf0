"""A run's folder looked at again and again while somebody trains in it: cheap, and as data, like all reading of folders.

Of metrics.jsonl the end is read, and later what was added since; a million steps cost what a hundred do.
"""

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from ..planning import UserError
from . import files, reading
from .folder import CONFIG, RunFolder
from .ranges import MOST_STEPS

LOG = "metrics.jsonl"
FIRST, MOST = 2**18, 2**22
"""Bytes of it that are read at the first look, and at a later one at most."""
ALIVE = ("running", "claimed")
WORDS = {"claimed": "waiting", "completed": "done"}
"""What a person calls a state of a folder."""


class Seen(NamedTuple):
    """What a folder shows at a look.

    Args:
        name: of the job.
        state: waiting | running | done | failed | interrupted | crashed | missing | unreadable.
        step, total: steps that are done, and that there shall be; 0: not known yet.
        loss: of the last step.
        metric: what the run chooses by.
        last, best: of the evaluations that were looked at, the last one's metric and the best; of a finished run, the kept one's.
        left: seconds, by its pace; None: not known.
        why: it failed.
    """

    name: str
    state: str
    step: int = 0
    total: int = 0
    loss: float | None = None
    metric: str = ""
    last: float | None = None
    best: float | None = None
    left: float | None = None
    why: str = ""


class Watched:
    """One run's folder.

    Args:
        path: of it.
        name: what it is called.
        ours: its process is our own child: what its status says is so, and its lock is not tried.
    """

    def __init__(self, path: Path, name: str, ours: bool = False) -> None:
        self.path, self.name, self.ours = path, name, ours
        self._offset: int | None = None
        self._seen = Seen(name, "missing")
        self._since: tuple[float, int] | None = None

    def look(self) -> Seen:
        """At it now; a folder that cannot be read says why."""
        if self._seen.state == "done":
            return self._seen
        try:
            self._seen = self._looked(self._seen)
        except UserError as error:
            self._seen = Seen(self.name, "unreadable", why=str(error))
        return self._seen

    def _looked(self, seen: Seen) -> Seen:
        folder = RunFolder(self.path)
        status = folder.read_json("status.json") or {"state": "missing"}
        state = str(status["state"]) if self.ours else folder.state()
        if not seen.total and state != "missing":
            config = reading.read(self.path / CONFIG)
            total = config.steps if config.steps and 0 < config.steps <= MOST_STEPS else 0
            seen = seen._replace(total=total, metric=config.metric)
        error = status.get("error") or {"message": ""}
        seen = seen._replace(state=WORDS.get(state, state), why=error["message"] if state == "failed" else "")
        for line in self._new():
            seen = _heard(seen, line)
        if state == "completed" and (summary := folder.read_json("summary.json")):
            kept = summary["val"].get(seen.metric)
            return seen._replace(step=summary["steps"], last=kept, best=kept, left=None)
        return seen._replace(left=self._left(seen, status) if state == "running" else None)

    def _new(self) -> list[bytes]:
        """The whole lines that were added since the last look: all but the last step's and the evaluations' left out."""
        file = files.opened(self.path, LOG, files.MOST_OF_LINES)
        if file is None:
            return []
        with file:
            size = file.seek(0, 2)
            if self._offset is None or size < self._offset:  # it begins, or was cut off where the run goes on
                self._offset = max(size - FIRST, 0)
            file.seek(self._offset)
            held = file.read(MOST)
        end = held.rfind(b"\n") + 1
        self._offset += end or (len(held) if len(held) == MOST else 0)
        lines = held[:end].splitlines()
        steps = [line for line in lines if b'"loss": ' in line and b'"val"' not in line]
        return [*(line for line in lines if b'"val"' in line), *steps[-1:]]

    def _left(self, seen: Seen, status: dict[str, Any]) -> float | None:
        now = time.monotonic()
        if self._since is None or seen.step < self._since[1]:
            self._since = now, seen.step
        took, made = now - self._since[0], seen.step - self._since[1]
        if not made and "started" in status:  # until it has been watched for a while: of all steps, since it began
            took, made = _ago(status["started"]), seen.step
        return (seen.total - seen.step) * took / made if seen.total > seen.step and made > 0 and took > 0 else None


def _heard(seen: Seen, line: bytes) -> Seen:
    record = files.record(line, LOG)
    if record is None or "step" not in record:
        return seen
    if "val" not in record:
        return seen._replace(step=record["step"] + 1, loss=record.get("loss"))
    last = max(
        (part[seen.metric] for key in ("val", "val_ema") if seen.metric in (part := _part(record, key))), default=None
    )
    best = last if seen.best is None or (last is not None and last > seen.best) else seen.best
    return seen._replace(step=max(record["step"], seen.step), last=last, best=best)


def _part(record: dict[str, Any], key: str) -> dict[str, float]:
    held = record.get(key)
    return {k: v for k, v in held.items() if isinstance(v, int | float)} if isinstance(held, dict) else {}


def _ago(moment: str) -> float:
    try:
        return (datetime.now(timezone.utc) - datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


def watched(folder: Path) -> list[Watched]:
    """The jobs of a sweep's folder, or the run in it.

    Raises:
        UserError: it is neither.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a sweep's or a run's, such as layerwise-lr train prints")
    if jobs := files.jobs(folder):
        return [Watched(files.inside(folder, name), name) for name in jobs]
    if (folder / "status.json").exists():
        return [Watched(folder, folder.resolve().name)]
    raise UserError(f"{folder}: holds no sweep.json and no run's status.json; give a sweep's or a run's folder")
