"""The files of a run folder as data, whoever made them: the one way to read them, and what may be written beside them.

Only plain files are opened, never through a link that leads out of the folder, never more of them than `MOST` bytes; what is
read has the types that its name promises (shapes.py). What does not is a UserError of one line that names the file.
"""

import csv
import errno
import io
import json
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..models import inside
from ..planning import UserError, plain
from .shapes import COLUMNS, LINES, SHAPES, fault

MOST = 16_000_000
"""Bytes of a file that is read whole."""
MOST_LINE, MOST_OF_LINES, MOST_RECORDS = 4_000_000, 1_000_000_000, 3_000_000
"""Bytes of a line, bytes and lines of a file of JSON lines: a run has a million steps at most."""
DEEPEST, MOST_ENTRIES = 12, 500_000
"""Levels below a folder that are looked at for runs, and files and folders there."""
READABLE = "restore it as the run left it, or remove its folder"
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_ELSEWHERE = "choose another folder (hydra.run.dir=..., hydra.sweep.dir=..., --out ...)"
_TIDY = {
    errno.ENOSPC: f"free some space there, or {_ELSEWHERE}",
    errno.EDQUOT: f"free some space there, or {_ELSEWHERE}",
    errno.EFBIG: f"raise the limit (ulimit -f unlimited), or {_ELSEWHERE}",
    errno.EACCES: f"change its permissions, or {_ELSEWHERE}",
    errno.EPERM: f"change its permissions, or {_ELSEWHERE}",
    errno.EROFS: _ELSEWHERE,
    errno.ENAMETOOLONG: "choose a shorter name or folder",
    errno.ENOTDIR: f"a file lies where a folder should be: move it away, or {_ELSEWHERE}",
    errno.EEXIST: f"something lies where it should go: move it away, or {_ELSEWHERE}",
    errno.EISDIR: f"a folder lies where a file should be: move it away, or {_ELSEWHERE}",
    errno.ELOOP: f"a link lies where a file or a folder should be: remove it, or {_ELSEWHERE}",
    errno.ENOENT: "put it back, or begin again in a folder that stays",
    errno.EIO: "the disk fails: choose another (hydra.run.dir=...)",
    errno.EMFILE: "close other programs, or raise the limit: ulimit -n 4096",
}


def told(error: OSError) -> str:
    """An OSError as one line: where, what, and what to do."""
    where = f"{plain(error.filename, 400)}: " if error.filename else ""
    return (
        f"{where}{error.strerror or plain(error)}; {_TIDY.get(error.errno or 0, 'look at it, or choose another place')}"
    )


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What the system complains of inside is of this file: of a full disk it says no more than that it is full."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def opened(path: Path, name: str, most: int = MOST) -> BinaryIO | None:
    """A plain file of the folder `path`, to be read; None where there is none.

    Raises:
        UserError: it is no plain file, leads out of the folder, is larger than `most` bytes or may not be read.
    """
    at = inside(path, name)
    try:
        handle = os.open(at.resolve(), _FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        if at.is_symlink():
            raise UserError(f"{at}: a link to nothing; {READABLE}") from None
        return None
    except OSError as error:
        why = "not a plain file" if error.errno in (errno.ENXIO, errno.ELOOP) else error.strerror
        raise UserError(f"{at}: {why}; {READABLE}") from None
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
        os.close(handle)
        why = f"larger than {most:,} bytes" if stat.S_ISREG(facts.st_mode) else "not a plain file"
        raise UserError(f"{at}: {why}; {READABLE}")
    return os.fdopen(handle, "rb")


def read_text(path: Path, name: str, most: int = MOST) -> str | None:
    """The text of a file of the folder `path`; None where there is none.

    Raises:
        UserError: it is no plain file of the folder, too large, or not UTF-8.
    """
    file = opened(path, name, most)
    if file is None:
        return None
    with file:
        try:
            return file.read(most).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path / name}: not UTF-8 text ({plain(error)}); {READABLE}") from None
        except OSError as error:
            raise UserError(f"{path / name}: {error.strerror}; {READABLE}") from None


def read_json(path: Path, name: str) -> Any:
    """The data in a file of the folder `path`, of the shape that its name promises; None where there is no such file.

    Raises:
        UserError: it is no plain file of the folder, torn, or another program's.
    """
    text = read_text(path, name)
    if text is None:
        return None
    try:
        held = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path / name}: not JSON ({plain(error)}); remove it or its folder") from None
    if why := fault(held, SHAPES[name]) if name in SHAPES else "":
        raise UserError(f"{path / name}: {why}; {READABLE}")
    return held


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


def records(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines, as they are read: until the end or the first line that is not whole.

    Raises:
        UserError: it is no plain file of the folder, too large, or its first line is none of this program's.
    """
    for index, line in enumerate(lines(path, name)):
        made = record(line, name, first=index == 0)
        if made is None and index == 0:
            raise UserError(f"{path / name}: its first line is none that a run writes; {READABLE}")
        if made is None:
            return
        yield made


def lines(path: Path, name: str) -> Iterator[bytes]:
    """The lines of a file, as they are read, none looked at; none where there is no such file.

    Raises:
        UserError: it is no plain file of the folder, or too large.
    """
    file = opened(path, name, MOST_OF_LINES)
    if file is None:
        return
    with file:
        for _ in range(MOST_RECORDS):
            line = file.readline(MOST_LINE)
            if not line:
                return
            yield line
    raise UserError(f"{path / name}: more than {MOST_RECORDS:,} lines; {READABLE}")


def record(line: bytes, name: str, first: bool = False) -> dict[str, Any] | None:
    """A line of the file of JSON lines `name`; None: it is not whole, or not of the shape that the name promises.

    Args:
        first: it is the file's first, which in metrics.jsonl tells the version.
    """
    try:
        held = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    if first and name == "metrics.jsonl":
        return held if isinstance(held, dict) and isinstance(held.get("metrics_version"), int) else None
    return held if not fault(held, LINES.get(name, {})) else None


def rows(path: Path, name: str) -> list[dict[str, str]]:
    """The lines of a table of the folder `path`, by heading; none where there is no such file.

    Raises:
        UserError: it is no plain file of the folder, or no such table.
    """
    text = read_text(path, name)
    if text is None:
        return []
    try:
        found = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        for row in found:
            lacking = [column for column in COLUMNS[name] if not isinstance(row.get(column), str)]
            if lacking or not 0 <= int(row["depth"]) < 10**6:
                raise ValueError(f"no {lacking[0] if lacking else 'depth'}")
            for column in ("lr", "weight_decay") if row["group"] else ():  # a buffer is in no group
                if not math.isfinite(float(row[column])):
                    raise ValueError(f"{column} is no number")
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path / name}: not a run's table of parameters ({plain(error)}); {READABLE}") from None
    return found


def jobs(path: Path) -> dict[str, Any]:
    """The jobs that sweep.json tells of, by folder; none where there is no such file.

    Raises:
        UserError: it tells of none, or names what is no folder in this one.
    """
    held = read_json(path, "sweep.json")
    return {} if held is None else dict(held["jobs"])


def below(folders: Sequence[Path], name: str) -> list[Path]:
    """The folders in and below `folders` that hold something called `name`, in order; links are not followed.

    Raises:
        UserError: more is there than a sweep makes.
    """
    found, left = set[Path](), MOST_ENTRIES
    waiting = [(folder, 0) for folder in folders]
    while waiting:
        folder, depth = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise UserError(told(error)) from None
        left -= len(entries)
        if left < 0:
            raise UserError(f"{folders[0]}: more than {MOST_ENTRIES:,} files in and below it; name a sweep's folder")
        for entry in entries:
            if entry.name == name:
                found.add(folder)
            elif depth < DEEPEST and entry.is_dir(follow_symlinks=False):
                waiting.append((folder / entry.name, depth + 1))
    return sorted(found)


def only_plain(path: Path) -> None:
    """That nothing which is written below `path` can go elsewhere.

    Raises:
        UserError: names the first link, or what else is neither a file nor a folder.
    """
    for home, folders, names in os.walk(path):
        for name in (*folders, *names):
            at = Path(home) / name
            mode = at.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"{at}: a link or no plain file, nothing is written beside it; remove it")


OURS = ("status.json", "sweep.json", "plan.json", "conventions.csv", "lr_check.jsonl")
"""A folder that holds one of these, as this program writes it, is this program's."""
_CONVENTIONS = re.compile(r"name(,(depth|lr_scale|weight_decay) [a-z_]+){6}\n")
PASSING = re.compile(r"\.claim\.[0-9]+|\..+\.[0-9]+\.part")
"""Names of files while they are written, and of what a killed writer left."""


def refuse_foreign(path: Path, *besides: str) -> None:
    """That a folder is empty, not there yet, or this program's: somebody else's files are not written over.

    Args:
        path: the folder.
        besides: what in it is another's matter to refuse.

    Raises:
        UserError: it holds other files, and nothing of ours.
    """
    try:
        names = [entry.name for entry in os.scandir(path)] if path.is_dir() else []
    except OSError as error:
        raise UserError(told(error)) from None
    held = [name for name in names if not (PASSING.fullmatch(name) or name in besides)]
    if held and not any(_is_ours(path, name) for name in OURS):
        raise UserError(
            f"{path}: holds files that are no run's ({plain(', '.join(sorted(held)[:3]))}), which would be written over; "
            "choose a new or an empty folder"
        )


def refuse_over(path: Path, ours: Callable[[bytes], bool]) -> None:
    """That nothing, or a file of this program's, is where one is to be written.

    Args:
        path: of the file.
        ours: whether bytes are of such a file.

    Raises:
        UserError: somebody else's file is there.
    """
    file = opened(path.parent, path.name, MOST_OF_LINES)
    if file is None:
        return
    with file:
        if not ours(file.read()):
            raise UserError(
                f"{path}: a file that this program has not written, or that was changed since; move it away, or choose "
                "another (--out ...)"
            )


def _is_ours(path: Path, name: str) -> bool:
    try:
        if name.endswith(".json"):
            return read_json(path, name) is not None
        if name.endswith(".jsonl"):
            return next(records(path, name), None) is not None
        return bool(_CONVENTIONS.match(read_text(path, name) or ""))
    except UserError:
        return not os.access(path / name, os.R_OK)  # its reader says why


def appended(path: Path) -> int:
    """A handle that writes at the end of a file of a run's folder: of that file and no other, whatever lies there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags, 0o644)
        facts = os.fstat(handle)
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1:
            return handle
        os.close(handle)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
    path.unlink()
    return os.open(path, flags | os.O_EXCL, 0o644)


def open_streams() -> None:
    """A standard stream that was closed (`>&-`) leads to nowhere: the next file opened would take its number, and what is
    printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
