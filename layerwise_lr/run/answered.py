"""What the kept weights answered to each test picture, and the surest of their mistakes as pictures: test.csv, wrong.png.

Class numbers are the run's own (data.json names them); a probability is the softmax of the answer, 0 to 1.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data import Split, read_strip, strip
from ..framework import metrics
from ..planning import UserError, plain
from . import files
from .folder import RunFolder

TABLE, PICTURES = "test.csv", "wrong.png"
HEADING = "picture,class,answer,probability"
MOST, SHOWN, SIDE = 500_000, 12, 64
"""Test pictures of a table, pictures of mistakes, pixels of a side of one."""


class Answers(NamedTuple):
    """Of test pictures, in the order of the part.

    Args:
        true: int64 [N], the classes.
        given: int64 [N], what they were taken for.
        sure: float64 [N], the probability of that.
    """

    true: np.ndarray
    given: np.ndarray
    sure: np.ndarray

    def mistakes(self) -> np.ndarray:
        """Numbers of the wrongly answered pictures, the surest first: int64, at most SHOWN."""
        wrong = np.flatnonzero(self.true != self.given)
        return wrong[np.argsort(-self.sure[wrong], kind="stable")][:SHOWN]

    def confusion(self, classes: int) -> np.ndarray:
        """int64 [classes, classes]: how many of the row's class were taken for the column's."""
        return np.bincount(self.true * classes + self.given, minlength=classes**2).reshape(classes, classes)


def answers(logits: np.ndarray, true: np.ndarray) -> Answers:
    """Of logits [N, classes]; probabilities as they are written, to six digits."""
    sure = [float(f"{share:.6g}") for share in metrics.softmax(logits).max(axis=1)]
    return Answers(true, logits.argmax(axis=1), np.array(sure))


def write(folder: RunFolder, logits: np.ndarray, split: Split) -> None:
    """Both files, unless there are more test pictures than a table takes."""
    if len(split.y) > MOST:
        return
    found = answers(logits, split.y)
    lines = (
        f"{n},{true},{given},{sure!r}"
        for n, (true, given, sure) in enumerate(zip(*(part.tolist() for part in found), strict=True))
    )
    folder.write_rows(TABLE, [HEADING, *lines])
    if len(mistakes := found.mistakes()):
        folder.write_whole(PICTURES, strip(split.x[mistakes], SIDE))


def read(path: Path, classes: int) -> Answers | None:
    """Of a run's folder; None where it has none.

    Raises:
        UserError: the table is not one that `write` makes for so many classes.
    """
    text = files.read_text(path, TABLE)
    if text is None:
        return None
    heading, _, rest = text.partition("\n")
    try:
        table = np.loadtxt(io.StringIO(rest), delimiter=",", ndmin=2) if rest else np.empty((0, 4))
        if heading != HEADING or table.shape[1] != 4 or not np.isfinite(table).all():
            raise ValueError("no such table")
        numbers = table[:, 1:3]
        if ((numbers != np.floor(numbers)) | (numbers < 0) | (numbers >= classes)).any():
            raise ValueError("a class that the model has not")
    except ValueError as error:
        raise UserError(
            f"{path / TABLE}: not a run's table of answers ({plain(error, 120)}); {files.READABLE}"
        ) from None
    true, given = numbers.T.astype(np.int64)
    return Answers(true, given, table[:, 3])


def pictures(path: Path, count: int) -> np.ndarray | None:
    """uint8 [count, SIDE, SIDE, 3] of the first mistakes; None: there are none, or no such picture.

    Raises:
        UserError: it is no plain file of the folder, or too large.
    """
    file = files.opened(path, PICTURES)
    if file is None:
        return None
    with file:
        return read_strip(file.read(), count, SIDE) if count else None
