"""A table of pictures: CSV with a path, a label and maybe the part of each, as spreadsheets and pandas write it."""

import csv
import io
from pathlib import Path

import numpy as np

from ..planning import UserError, plain
from .folders import PARTS, natural
from .spec import Pool

PATH = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "picture")
LABEL = ("label", "labels", "class", "class_name", "category", "target", "y")
PART = ("split", "subset", "set", "part", "partition")
MAX_BYTES = 2**28


def read(path: Path, label: str | None = None) -> Pool:
    """Its pictures, no file of which is opened; paths are relative to the table, classes in natural order.

    Args:
        path: of the table.
        label: the header of the labels' column; None: one of LABEL.

    Raises:
        UserError: it is no such table; says what is wrong and in which line.
    """
    of = f"data.path={plain(path, 400)}"
    if not path.is_file():
        raise UserError(f"{of} is a folder: data=csv needs a table with columns path and label")
    rows, (where, label_at, part_at) = _table(path, of, label)
    found = dict[str, tuple[str, int]]()
    for line, row in rows:
        if len(row) <= max(where, label_at, part_at or 0):
            raise UserError(f"{of}: line {line} has {len(row)} fields, fewer than the header")
        file, word, part = (row[i].strip() if i is not None else "train" for i in (where, label_at, part_at))
        if not file or not word or part.lower() not in PARTS:
            wrong = "no path" if not file else "no label" if not word else f"{plain(part)!r} for train, val or test"
            raise UserError(f"{of}: line {line} has {wrong}")
        entry = (word, PARTS[part.lower()])
        if found.setdefault(file, entry) != entry:
            raise UserError(f"{of}: line {line} gives {plain(file, 160)} another label or part than a line before it")
    names = tuple(sorted({word for word, _ in found.values()}, key=natural))
    if len(names) < 2:
        raise UserError(f"{of}: needs pictures of at least two classes; it has {len(names)}")
    number = {name: n for n, name in enumerate(names)}
    twice = len(rows) - len(found)
    notes = [f"left out of {plain(path, 160)}: {twice} lines that repeat another's path"] if twice else []
    return Pool(
        None,
        np.array([number[word] for word, _ in found.values()], np.int64),
        None if part_at is None else np.array([part for _, part in found.values()], np.int8),
        names,
        tuple(_place(path.parent, file) for file in found),
        tuple(notes),
    )


def _table(path: Path, of: str, label: str | None) -> tuple[list[tuple[int, list[str]]], tuple[int, int, int | None]]:
    """The rows with their line numbers, and which of their fields hold path, label and part."""
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{of}: more than {MAX_BYTES:,} bytes: no table of pictures")
    try:
        text = path.read_text("utf-8-sig")
        delimiter = max(",;\t|", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{of}: not a table as UTF-8 text ({plain(error)}); save it as CSV, UTF-8") from None
    header = [field.strip().lower() for field in rows[0][1]] if rows else []
    labels = LABEL if label is None else (label.strip().lower(),)
    columns = [next((header.index(name) for name in names if name in header), None) for names in (PATH, labels, PART)]
    for what, names, at in (("paths", PATH, columns[0]), ("labels", labels, columns[1])):
        if at is None:
            raise UserError(
                f"{of}: has no column of {what} ({', '.join(names)}); its header is: {plain(', '.join(header), 200)}"
                + ("; name it: data.label=..." if what == "labels" and header else "")
            )
    where, label_at, part_at = columns
    assert where is not None and label_at is not None
    return rows[1:], (where, label_at, part_at)


def _place(folder: Path, file: str) -> Path:
    """Relative to the table; with the slashes of another system where it is not there as it is written."""
    place = folder / file
    return folder / file.replace("\\", "/") if "\\" in file and not place.exists() else place
