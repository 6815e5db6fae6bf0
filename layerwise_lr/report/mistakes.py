"""What the best setting took for what: the confusion of its classes, and the pictures that it answered wrongly and surest.

Counts are over all its seeds; the pictures are of its first seed. Nothing is written here.
"""

from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..planning import plain
from ..run import answered, files
from .drawing import INK, LINES, STYLE, figure
from .statistics import Run, Setting

MOST = 12
"""Classes that a figure takes; of more, those with the most mistakes."""
RIGHT, WRONG = LINES[0], LINES[1]


class Confusion(NamedTuple):
    """Of a setting.

    Args:
        names: of the classes.
        counts: int64 [classes, classes]: how many of the row's class were taken for the column's, over all runs.
        runs: how many told.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    runs: int

    def worst(self) -> np.ndarray:
        """Numbers of the classes that a figure shows, in order."""
        mistakes = self.counts + self.counts.T
        np.fill_diagonal(mistakes, 0)
        return np.sort(np.argsort(-mistakes.sum(axis=1), kind="stable")[:MOST])


def confusion(setting: Setting) -> Confusion | None:
    """None where no run has told its answers."""
    names = _names(next(iter(setting.runs.values())))
    found = [one for run in setting.runs.values() if (one := answered.read(run.path, len(names))) is not None]
    if len(names) < 2 or not sum(len(one.true) for one in found):
        return None
    return Confusion(names, np.sum([one.confusion(len(names)) for one in found], axis=0), len(found))


def _names(run: Run) -> tuple[str, ...]:
    """Of the classes, by number; where the run kept none, their numbers."""
    told = (files.read_json(run.path, "data.json") or {}).get("classes") or {}
    return tuple(plain(told.get(str(number), number)) for number in range(run.config.model.num_classes or 0))


def matrix(found: Confusion) -> Figure:
    """A row per class: which share of it was taken for which; the counts in the cells."""
    shown = found.worst()
    counts, pictures = found.counts[np.ix_(shown, shown)], found.counts.sum(axis=1)[shown]
    size = len(shown)
    with mpl.rc_context(STYLE):
        made, (axes,) = figure(1.7 + 3.7 * max(size, 4) / MOST)
        for (row, column), count in np.ndenumerate(counts):
            share = count / max(pictures[row], 1)
            colour = RIGHT if row == column else WRONG
            cell = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=0.75 * share**0.6, linewidth=0)
            one, other = (found.names[shown[i]] for i in (row, column))
            cell.set_gid(f"tip:{one} taken for {other}: {count} of {pictures[row]}, {share:.1%}")
            axes.add_patch(cell)
            if count:
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7.5 if size > 6 else 9.5)
        labels = [_short(found.names[i]) for i in shown]
        axes.set_xticks(range(size), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8.5)
        axes.set_yticks(range(size), labels, fontsize=8.5)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel="taken for", ylabel="class")
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
    return made


def gallery(setting: Setting, names: tuple[str, ...]) -> Figure | None:
    """The pictures that the first seed's run answered wrongly, the surest first; None where there are none."""
    path = setting.runs[min(setting.runs)].path
    told = answered.read(path, len(names))
    wrong: np.ndarray | list[int] = [] if told is None else told.mistakes()
    pictures = answered.pictures(path, len(wrong))
    if told is None or pictures is None:
        return None
    columns = min(len(wrong), 4)
    rows = -(-len(wrong) // columns)
    with mpl.rc_context(STYLE):
        made = Figure(figsize=(5.4, 1.75 * rows), layout="constrained")
        for axes, index in zip(
            np.ravel(made.subplots(rows, columns, squeeze=False)), range(rows * columns), strict=True
        ):
            axes.set_axis_off()
            if index < len(wrong):
                number = wrong[index]
                axes.imshow(pictures[index], interpolation="nearest")
                true, given = (_short(names[int(one[number])], 20) for one in (told.true, told.given))
                axes.set_title(f"{given}, {told.sure[number]:.0%}\nis {true}", fontsize=8, color=INK)
    return made


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
