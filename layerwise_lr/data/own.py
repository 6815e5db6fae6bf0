"""Pictures of the user's own: an .npz of arrays, or a folder with a sub-folder per class."""

import re
from pathlib import Path

import numpy as np

from ..planning import Absent, UserError
from .files import read_npz
from .spec import DataSpec, Facts, Pool, from_arrays

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def given_path(spec: DataSpec) -> Path:
    """data.path, which must be given."""
    if not spec.path:
        raise UserError(f"data.path is missing: data={spec.name} needs data.path=...")
    return Path(spec.path)


def find(spec: DataSpec) -> Path:
    """data.path, where something is.

    Raises:
        Absent: nothing is there.
    """
    if not given_path(spec).exists():
        raise Absent(f"data.path={spec.path}: no such file or folder")
    return given_path(spec)


def _npz(spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    path = find(spec)
    try:
        held = read_npz(path)
        x, y = held["x"], held["y"]
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"data.path={path}: not an .npz with arrays x and y ({error})") from None
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[1] not in (1, 3)):
        raise UserError(
            f"data.path={path}: x must be uint8 [N, H, W] or [N, 1 or 3, H, W], it is {x.dtype} {list(x.shape)}"
        )
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
        raise UserError(f"data.path={path}: y must be {len(x)} labels from 0, it is {y.dtype} {list(y.shape)}")
    check_classes(path, y)
    return x, y


def npz_pool(spec: DataSpec) -> Pool:
    """The file's pictures."""
    return from_arrays(*_npz(spec), spec)


def npz_facts(spec: DataSpec) -> Facts:
    """Of the labels."""
    y = _npz(spec)[1]
    return Facts(len(y), int(y.max()) + 1, 0)


def check_classes(path: Path, y: np.ndarray) -> None:
    """At least two, without a gap."""
    if len(y) == 0:
        raise UserError(f"data.path={path}: holds no pictures")
    without = sorted(set(range(int(y.max()) + 1)) - set(y.tolist())) if y.max() < len(y) else ["..."]
    if y.max() < 1 or without:
        gap = f", no picture is of class {without[0]}" if without else ""
        raise UserError(
            f"data.path={path}: needs at least two classes, numbered 0, 1, 2, ... without a gap; "
            f"the highest label is {y.max()}{gap}"
        )


def class_folders(path: Path) -> list[Path]:
    """The sub-folders in natural order: 1, 2, 10 rather than 1, 10, 2; their places are the classes' numbers."""

    def key(folder: Path) -> list[tuple[bool, int, str]]:
        parts = re.split(r"(\d+)", folder.name)
        return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts if part]

    return sorted((p for p in path.iterdir() if p.is_dir()), key=key)


def _folder_files(spec: DataSpec) -> list[tuple[Path, int]]:
    path = find(spec)
    classes = class_folders(path) if path.is_dir() else []
    found = [(p, label) for label, c in enumerate(classes) for p in sorted(c.iterdir()) if p.suffix.lower() in PICTURES]
    empty = [c.name for label, c in enumerate(classes) if label not in {n for _, n in found}]
    if len(classes) < 2 or empty:
        raise UserError(
            f"data.path={path}: needs a sub-folder with pictures per class, at least two; found "
            f"{len(classes)}{', without pictures: ' + ', '.join(empty) if empty else ''}"
        )
    return found


def folder_pool(spec: DataSpec) -> Pool:
    """The folder's pictures, class by class; they stay files."""
    found = _folder_files(spec)
    names = tuple(p.name for p in class_folders(find(spec)))
    return Pool(None, np.array([n for _, n in found], np.int64), names=names, files=tuple(p for p, _ in found))


def folder_facts(spec: DataSpec) -> Facts:
    """Of the names of the files."""
    found = _folder_files(spec)
    return Facts(len(found), found[-1][1] + 1, 0)
