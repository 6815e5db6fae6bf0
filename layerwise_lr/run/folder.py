"""The run folder: claimed once, written atomically, readable without this program.

config.resolved.yaml command.json git.json git.diff requirements.lock.txt   before the run, by whoever starts it
env.json seed.json data.json params.csv plan.json lrs.csv lr_check.jsonl    before step 0
metrics.jsonl checkpoints/step_N/ checkpoints/resume/step_N/ log.txt .lock   during it
prune.txt                                                                   written by a search that gives the run up
test.csv wrong.png                                                          when all steps are done
status.json                                                                 always: where the run stands
summary.json                                                                last: its presence means finished
"""

import errno
import hashlib
import json
import os
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ..planning import UserError, hidden, plain
from . import alive, checkpoints, files
from .checkpoints import Mark
from .files import inside
from .shapes import MOST_TEXT
from .stopping import Pruned

CONFIG = "config.resolved.yaml"
METRICS_VERSION = 1
PREPARED = ("command.json", "git.json", "git.diff", "requirements.lock.txt")
"""Written by who starts a run, before the config."""
_GIVEN_UP = "prune.txt"
RESULTS = ("summary.json", "metrics.jsonl", "lr_check.jsonl", "test.csv", "wrong.png", "error.txt", "checkpoints")
"""What a run writes as it goes, the result first."""


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place: int | None = None
        self._written = set[str]()

    @classmethod
    def claim(cls, path: Path) -> "RunFolder":
        """Take a folder for one run: atomic, and refused when anybody took it before.

        Raises:
            UserError: the folder holds a run already.
        """
        path.mkdir(parents=True, exist_ok=True)
        files.refuse_foreign(path, "status.json")
        folder = cls(path)
        mine = f".claim.{os.getpid()}"
        folder.write_json(mine, folder._status("claimed"))
        try:
            (path / "status.json").hardlink_to(path / mine)  # a link is made whole, and only where no file is
        except FileExistsError:
            if folder._came_to_nothing() and folder.reclaim():
                return folder
            raise UserError(
                f"{path} holds a run already: choose another folder, or resume=auto to go on with it"
            ) from None
        finally:
            (path / mine).unlink()
        return folder

    def _came_to_nothing(self) -> bool:
        """Whether it was claimed by a process that ended before it had written the config, and holds nothing else."""
        names = {path.name for path in self.path.iterdir()}
        names -= {name for name in names if files.PASSING.fullmatch(name)}
        return names <= {"status.json", alive.LOCK, *PREPARED} and self.state() == "crashed"

    def reclaim(self) -> bool:
        """Take over what a dead, failed or interrupted run left; False: somebody else has it by now."""
        seen, state = self.read_json("status.json"), self.state()
        with alive.locked(self.path, seen or {}):
            if state not in ("crashed", "failed", "interrupted") or self.read_json("status.json") != seen:
                return False
            self.write_json("status.json", self._status("claimed"))
        return True

    def clear(self) -> None:
        """An earlier run's results go: those of a new one shall not be mixed with them."""
        for name in RESULTS:
            if name == "checkpoints":
                self.drop_points()
                checkpoints.clear(self.path / name)
            else:
                checkpoints.remove(self.path / name)

    def write_text(self, name: str, text: str) -> None:
        """Whole or not at all: a temporary file, then a rename."""
        self._write(name, [text])

    def write_rows(self, name: str, rows: Iterable[str]) -> None:
        """Lines, each written as it is computed; whole or not at all."""
        self._write(name, (f"{row}\n" for row in rows))

    def write_whole(self, name: str, held: bytes) -> None:
        """Bytes, whole or not at all."""
        self._write(name, [held])

    def _write(self, name: str, parts: Iterable[str] | Iterable[bytes]) -> None:
        self._stays()
        target = self.path / name
        if target.parent != self.path:
            with files.named(target.parent):
                inside(self.path, str(Path(name).parent)).mkdir(exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        with files.named(target):
            try:
                part.unlink(missing_ok=True)
                with part.open("xb") as file:  # a new one: what lies there, a link above all, is not written through
                    for each in parts:
                        # a name that is not UTF-8 is spelled out
                        file.write(each.encode("utf-8", "backslashreplace") if isinstance(each, str) else each)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(target)
                self._written.add(name)
            except BaseException:
                with suppress(OSError):  # on a full disk, this is the room to say so
                    part.unlink()
                raise

    def write_json(self, name: str, data: Any) -> None:
        """Strict JSON, indented."""
        self.write_text(name, json.dumps(data, indent=1, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """The file's data, None where there is no such file: `files.read_json`."""
        return files.read_json(self.path, name)

    def jobs(self) -> dict[str, Any]:
        """The jobs that sweep.json tells of, by folder: `files.jobs`."""
        return files.jobs(self.path)

    def metrics(self, kept: Mark | None = None) -> "Lines":
        """metrics.jsonl, from its beginning or behind what is kept; the first line tells the version."""
        made = self.lines("metrics.jsonl", kept)
        if kept is None:
            made.write({"metrics_version": METRICS_VERSION})
        return made

    def lines(self, name: str, kept: Mark | None = None) -> "Lines":
        """A file of JSON lines, from its beginning or behind what is kept."""
        return Lines(self.path / name, kept)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps status.json true whatever happens inside; holds the folder's lock meanwhile.

        Raises:
            UserError: another process does.
        """
        with alive.locked(self.path, self.read_json("status.json") or {}), self._held():
            yield from self._running()

    def _running(self) -> Iterator[None]:
        started = _now()
        self._clear_torn()
        self._written = {name for name in (CONFIG, *PREPARED) if (self.path / name).exists()}
        self.write_json("status.json", self._status("running", started=started))
        try:
            yield
            self._whole()
            self.write_json("status.json", self._status("completed", started=started, ended=_now()))
        except KeyboardInterrupt:
            with suppress(OSError):
                self.write_json("status.json", self._status("interrupted", started=started, ended=_now()))
            raise
        except Pruned as error:
            told = {"type": "Pruned", "message": plain(error)}
            self.write_json("status.json", self._status("pruned", started=started, ended=_now(), error=told))
            self.drop_points()
            raise
        except BaseException as error:
            told = {"type": type(error).__name__, "message": hidden(_words(error))}
            with suppress(OSError):  # the place itself may be what failed
                self.write_json("status.json", self._status("failed", started=started, ended=_now(), error=told))
                self.write_text("error.txt", hidden(traceback.format_exc(chain=True))[-files.MOST // 4 :])
            raise

    @contextmanager
    def _held(self) -> Iterator[None]:
        """While it is open, no other folder can pass for it."""
        self._place = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield
        finally:
            os.close(self._place)
            self._place = None

    def _stays(self) -> None:
        """That the folder which the run began in is still here.

        Raises:
            FileNotFoundError: it was removed or renamed, and another may have its name.
        """
        with suppress(OSError):
            if self._place is None or os.path.samestat(os.fstat(self._place), self.path.stat()):
                return
        raise _removed(self.path)

    def _whole(self) -> None:
        """That what the run was made from, and what it has written, is still here.

        Raises:
            FileNotFoundError: somebody has removed it.
        """
        for name in sorted(self._written):
            if not (self.path / name).exists():
                raise _removed(self.path / name)

    def _clear_torn(self) -> None:
        """What killed writers left of files that they had not finished, and what ended an earlier attempt."""
        for name in ("error.txt", _GIVEN_UP):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.path, self.path / "checkpoints", self.path / checkpoints.RESUME):
            for part in folder.glob(".*.part"):
                if checkpoints.PART.fullmatch(part.name) or files.PASSING.fullmatch(part.name):
                    checkpoints.remove(part)

    def fail(self, message: str) -> None:
        """What the parent says of a job that could not speak for itself (killed, timed out, crashed)."""
        told = {"type": "ProcessDied", "message": message}
        with suppress(OSError):  # then nobody says it: its process is gone, which counts as crashed
            self.write_json("status.json", self._status("failed", ended=_now(), error=told))

    def give_up(self, why: str) -> None:
        """Asks the run, whoever trains it, to end as pruned after its next evaluation."""
        self.write_text(_GIVEN_UP, why)

    def given_up(self) -> str:
        """Why, where that was asked; else ""."""
        return files.read_text(self.path, _GIVEN_UP) or ""

    def state(self) -> str:
        """claimed | running | completed | failed | pruned | interrupted | crashed (its process is gone) | missing."""
        status = self.read_json("status.json")
        if status is None:
            return "missing"
        if status["state"] in ("running", "claimed") and not alive.alive(self.path, status):
            return "completed" if (self.path / "summary.json").is_file() else "crashed"
        return str(status["state"])

    def refuse_live(self) -> None:
        """Before anything is loaded for a run that another process trains.

        Raises:
            UserError: it does.
        """
        if self.state() == "running":
            raise alive.taken(self.path, self.read_json("status.json") or {})

    def save_checkpoint(
        self,
        step: int,
        weights: Mapping[str, np.ndarray],
        optimizer: Mapping[str, np.ndarray] | None,
        facts: Mapping[str, Any],
        average: Mapping[str, np.ndarray] | None,
    ) -> None:
        """checkpoints/step_N: the model, the average of its weights and the optimizer as safetensors, and state.json."""
        self._stays()
        held = {"model": weights, "ema": average, "optim": optimizer}
        checkpoints.write(inside(self.path, "checkpoints"), step, held, facts)

    def save_point(self, point: checkpoints.Point, facts: Mapping[str, str]) -> None:
        """checkpoints/resume/step_N: what the run needs to go on; the point before it stays too, older ones go."""
        self._stays()
        root = inside(self.path, checkpoints.RESUME)
        held = {"model": point.weights, "ema": point.average, "optim": point.optimizer}
        checkpoints.write(root, point.step, held, {"of": dict(facts), "memory": point.memory})
        for old in list(checkpoints.steps(root).values())[:-2]:
            checkpoints.discard(old)

    def drop_points(self) -> None:
        """No run goes on here."""
        checkpoints.clear(self.path / checkpoints.RESUME)

    def keep_checkpoints(
        self, latest: Sequence[int], best: Sequence[tuple[int, str]], also: Iterable[int] = ()
    ) -> None:
        """The checkpoints of these steps stay, the others go.

        Args:
            latest: the last of them is what checkpoints/latest names ("step_N").
            best: (step, "model" or "ema"), the best first: checkpoints/best names its file ("step_N/model.safetensors").
            also: what a resume point would need.
        """
        root = self.path / "checkpoints"
        if latest:
            self._point_to("latest", f"step_{latest[-1]}\n")
        if best:
            self._point_to("best", "step_{}/{}.safetensors\n".format(*best[0]))
        stay = {f"step_{step}" for step in (*latest, *(step for step, _ in best), *also)}
        for old in checkpoints.steps(root).values():
            if old.name not in stay:
                checkpoints.discard(old)

    def _point_to(self, name: str, text: str) -> None:
        """Not again what is there: a full disk has no room for it."""
        if files.read_text(self.path, f"checkpoints/{name}") != text:
            self.write_text(f"checkpoints/{name}", text)

    def weights_file(self, step: int, weights: str) -> Path:
        """Where `save_checkpoint` put them: "model" or "ema".

        Raises:
            FileNotFoundError: somebody has removed it since.
        """
        path = self.path / "checkpoints" / f"step_{step}" / f"{weights}.safetensors"
        if not path.is_file():
            raise _removed(path)
        return path

    def checkpoint(self, step: int, weights: str) -> dict[str, np.ndarray]:
        """What `save_checkpoint` wrote: "model" or "ema"."""
        return load_file(str(self.weights_file(step, weights)))

    def _status(self, state: str, **more: Any) -> dict[str, Any]:
        mine = {"pid": os.getpid(), "process": alive.process(os.getpid()), "host": socket.gethostname()}
        return {"state": state, **mine, "updated": _now(), **more}


class Lines:
    """One JSON object per line, written as it happens.

    Args:
        path: of the file; nothing is written through a link.
        kept: what of it stays; None: it begins anew.
    """

    def __init__(self, path: Path, kept: Mark | None = None) -> None:
        if kept is None:
            path.unlink(missing_ok=True)
        how = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.heard: Callable[[Mapping[str, Any]], None] = lambda record: None
        """Told every record that has been written."""
        self._path, self._file = path, os.fdopen(os.open(path, how, 0o644), "r+b")
        self._bytes = kept.bytes if kept else 0
        self._sum = checkpoints.summed(self._file, self._bytes) or hashlib.sha256()
        self._file.truncate(self._bytes)
        self._file.seek(self._bytes)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        with files.named(self._path):
            self._file.write(line)
            self._file.flush()
        self._bytes += len(line)
        self._sum.update(line)
        self.heard(record)

    def mark(self) -> Mark:
        """What has been written; it is on the disk."""
        with files.named(self._path):
            os.fsync(self._file.fileno())
        self._stays()
        return Mark(self._bytes, self._sum.hexdigest())

    def close(self) -> None:
        """No more records; what there are is in the folder."""
        self._stays()
        self._file.close()

    def _stays(self) -> None:
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._file.fileno()), self._path.lstat()):
                return
        raise _removed(self._path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole records of a file of JSON lines; a torn last line is left out; none where there is no file."""
    return list(files.records(path.parent, path.name))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, but for its first line, which tells the version."""
    return read_lines(path)[1:]


def _removed(path: Path) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "was removed, or renamed, during the run", str(path))


def _words(error: BaseException) -> str:
    """What status.json says of an error: one line, not too long; an error that is not our own is named."""
    if isinstance(error, SystemExit):
        return f"exited with code {plain(error.code)} in the middle of the run"
    if isinstance(error, OSError):
        return files.told(error)
    own, words = type(error).__module__.startswith("layerwise_lr."), plain(error, MOST_TEXT // 10)
    return words if own and words else f"{type(error).__name__}{words and ': '}{words}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
