"""Folders of pictures as people have them: a sub-folder per class, or train, val and test folders of such."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..planning import UserError, plain
from .decoding import SUFFIXES
from .spec import TEST, TRAIN, VAL, Pool

PARTS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}
"""What the parts of a set that comes split are called."""
OF_THE_SYSTEM = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
HIDDEN, SYSTEM = "with a dot in front", "of the operating system's own"
OTHERS, LINKS, OUTSIDE = "of no picture format", "leading nowhere or in a circle", "in no class's folder"
NEEDS = "needs a sub-folder with pictures per class, at least two"


class Walk:
    """One reading of a folder: which pictures are below it, and what is left out, by the reason why."""

    def __init__(self, root: Path) -> None:
        self.root, self.left = root, dict[str, list[str]]()

    def leave(self, reason: str, path: Path) -> None:
        """Count it."""
        self.left.setdefault(reason, []).append(plain(path.relative_to(self.root), 60))

    def entries(self, folder: Path) -> Iterator[Path]:
        """What is in a folder and may be data, by name."""
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                self.leave(HIDDEN, path)
            elif path.name.lower() in OF_THE_SYSTEM:
                self.leave(SYSTEM, path)
            else:
                yield path

    def folders(self, folder: Path) -> list[Path]:
        """The sub-folders; files beside them are counted."""
        found = []
        for path in self.entries(folder):
            if path.is_dir():
                found.append(path)
            else:
                self.leave(OUTSIDE if path.suffix.lower() in SUFFIXES else OTHERS, path)
        return found

    def pictures(self, folder: Path) -> Iterator[Path]:
        """All below a folder; links are followed where they do not lead back."""
        root, todo = self.root.resolve(), [folder]
        seen = {_identity(above) for above in (root, *root.parents)}
        while todo:
            here = todo.pop()
            if _identity(here) in seen:
                self.leave(LINKS, here)
                continue
            seen.add(_identity(here))
            inner = []
            for path in self.entries(here):
                if path.is_dir():
                    inner.append(path)
                else:
                    yield from self.beside(path)
            todo += reversed(inner)

    def beside(self, path: Path) -> Iterator[Path]:
        """What is no folder, where it is a picture."""
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            yield path
        else:
            self.leave(LINKS if path.is_symlink() and not path.exists() else OTHERS, path)

    def told(self) -> list[str]:
        """What was left out, in one line; nothing where that is nothing."""
        reasons = [
            f"{len(names)} {reason} ({names[0]}{', ...' if len(names) > 1 else ''})"
            for reason, names in self.left.items()
        ]
        return [f"left out of {plain(self.root, 400)}: {', '.join(reasons)}"] if reasons else []


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts as people count: 1, 2, 10 rather than 1, 10, 2."""
    parts = re.split(r"(\d+)", name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts if part]


def read(root: Path) -> Pool:
    """The names of the files by part and class, classes in natural order; no file is opened.

    Raises:
        UserError: there are no two classes with pictures to train on; with the way on.
    """
    if not root.is_dir():
        raise UserError(f"data.path={plain(root, 400)} is a file: data=image_folder {NEEDS}{_of_a_file(root)}")
    walk = Walk(root)
    try:
        parts = _parts(walk)
        found = [
            (part, folder.name, path)
            for part, folders in parts.items()
            for folder in folders
            for path in walk.pictures(folder)
        ]
    except OSError as error:
        raise UserError(f"data.path={plain(root, 400)}: {plain(error.filename, 400)}: {error.strerror}") from None
    names = sorted({folder.name for folders in parts.values() for folder in folders}, key=natural)
    _check(walk, names, {name for part, name, _ in found if part == TRAIN}, "" if len(parts) == 1 else " to train on")
    number = {name: label for label, name in enumerate(names)}
    found.sort(key=lambda entry: (entry[0], number[entry[1]]))  # by name within a class, as they were found
    return Pool(
        None,
        np.array([number[name] for _, name, _ in found], np.int64),
        np.array([part for part, *_ in found], np.int8) if len(parts) > 1 else None,
        tuple(names),
        tuple(path for *_, path in found),
        (*walk.told(), *_drawn(parts)),
    )


def _parts(walk: Walk) -> dict[int, list[Path]]:
    """The class folders by part; of TRAIN alone where the set does not come split."""
    tops = walk.folders(walk.root)
    named = {folder: PARTS[folder.name.lower()] for folder in tops if folder.name.lower() in PARTS}
    nested = any(below.is_dir() for folder, part in named.items() if part == TRAIN for below in folder.iterdir())
    if not nested or (len(tops) > 1 and len(set(named.values())) == 1):  # train may be a class: plane, ship, train
        return {TRAIN: tops}
    for folder in tops:
        if folder not in named:
            walk.leave("beside train, val and test", folder)
    return {
        part: [below for folder, of in named.items() if of == part for below in walk.folders(folder)]
        for part in (TRAIN, VAL, TEST)
    }


def _drawn(parts: Mapping[int, Sequence[Path]]) -> list[str]:
    """Where the set brings one part and not another, which is not."""
    drawn = [word for word, part in (("validation", VAL), ("test", TEST)) if part in parts and not parts[part]]
    return [f"no folder with classes for {' and '.join(drawn)}: drawn from train"] if drawn else []


def _check(walk: Walk, names: Sequence[str], trained: Collection[str], where: str) -> None:
    """Two classes, each with pictures to train on."""
    empty = [plain(name) for name in names if name not in trained]
    if len(names) >= 2 and not empty:
        return
    without = f", without pictures{where}: {', '.join(empty[:10])}" if empty else ""
    way = _way_on(walk.root, names) if len(names) < 2 else "; fill or remove these folders"
    left = "".join(f" ({line})" for line in walk.told())
    raise UserError(f"data.path={plain(walk.root, 400)}: {NEEDS}; found {len(names)}{without}{way}{left}")


def _way_on(root: Path, names: Sequence[str]) -> str:
    """What a folder of fewer than two classes may have been meant for."""
    tables = sorted(root.glob("*.csv"))
    inner = [p for p in (root / name for name in names) if sum(below.is_dir() for below in p.iterdir()) > 1]
    if inner:
        return f"; the classes are one level down? data.path={plain(inner[0], 400)}"
    if tables:
        return f"; the labels are in a table? data=csv data.path={plain(tables[0], 400)}"
    if names:
        return f" ({plain(names[0])}); one class is nothing to tell apart: add a folder of the others"
    return "; sort the pictures into such folders, or list path and label in a table: data=csv data.path=labels.csv"


def _of_a_file(path: Path) -> str:
    """What a file may have been meant for."""
    name = path.name.lower()
    if name.endswith((".csv", ".tsv")):
        return f"; a table of paths and labels: data=csv data.path={plain(path, 400)}"
    if name.endswith(".npz"):
        return f"; arrays: data=npz data.path={plain(path, 400)}"
    if name.endswith((".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")):
        return "; unpack the archive, and give the folder"
    return "; give the folder that holds these"
