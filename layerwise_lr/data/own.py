"""Arrays of the user's own: an .npz with pictures and labels, of one part or of three."""

from pathlib import Path

import numpy as np

from ..planning import Absent, UserError, did_you_mean, plain
from .files import read_npz
from .spec import TEST, TRAIN, VAL, DataSpec, Pool, from_arrays

ARRAYS = {TRAIN: ("", "_train"), VAL: ("_val", "_valid", "_validation"), TEST: ("_test",)}
"""What is behind x and y in the names of each part's arrays."""
LOOKS_FOR = {
    "image_folder": "a folder with a sub-folder of pictures per class",
    "csv": "a table with columns path and label",
    "npz": "an .npz with arrays x and y",
    "idx": "a folder with MNIST's four files",
}


def given_path(spec: DataSpec) -> Path:
    """data.path, which must be given."""
    if not spec.path:
        raise UserError(f"data.path is missing: data={spec.name} needs data.path=...")
    return Path(spec.path).expanduser()


def find(spec: DataSpec) -> Path:
    """data.path, where something is.

    Raises:
        Absent: nothing is there.
    """
    path = given_path(spec)
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise Absent(
            f"data.path={plain(spec.path, 400)}: no such file or folder; data={spec.name} looks for "
            f"{LOOKS_FOR[spec.name]}{plain(did_you_mean(path.name, beside), 200)}"
        )
    return path


def _npz(spec: DataSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """(x, y, parts, names) as in Pool, x as it is in the file."""
    path = find(spec)
    try:
        held = read_npz(path)
    except (ValueError, OSError) as error:
        raise UserError(f"data.path={path}: not an .npz with arrays x and y ({plain(error, 160)})") from None
    found = [
        (part, _checked(path, held, word))
        for part, words in ARRAYS.items()
        for word in words
        if {f"x{word}", f"y{word}"} & set(held)
    ]
    if not found or found[0][0] != TRAIN:
        there = plain(", ".join(held), 200) or "nothing"
        raise UserError(f"data.path={path}: not an .npz with arrays x and y, or x_train and y_train; it holds {there}")
    shapes = {x.shape[1:] for _, (x, _) in found}
    if len(shapes) > 1:
        raise UserError(f"data.path={path}: its parts are of different shapes: {', '.join(map(str, shapes))}")
    y = np.concatenate([y for _, (_, y) in found])
    check_classes(path, y)
    parts = np.repeat(np.array([part for part, _ in found], np.int8), [len(y) for _, (_, y) in found])
    return np.concatenate([x for _, (x, _) in found]), y, parts if len(found) > 1 else None, _names(path, held, y)


def _checked(path: Path, held: dict[str, np.ndarray], word: str) -> tuple[np.ndarray, np.ndarray]:
    """x and y of one part, if they are pictures and labels."""
    try:
        x, y = held[f"x{word}"], held[f"y{word}"]
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"data.path={path}: not an .npz with arrays x{word} and y{word} ({error})") from None
    if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):  # as NumPy's and Keras's pictures lie
        x = x.transpose(0, 3, 1, 2)
    if y.shape == (len(x), 1):
        y = y[:, 0]
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[1] not in (1, 3)):
        raise UserError(
            f"data.path={path}: x{word} must be uint8 [N, H, W], [N, 1 or 3, H, W] or [N, H, W, 1 or 3], it is {x.dtype} {list(x.shape)}"
        )
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
        raise UserError(f"data.path={path}: y{word} must be {len(x)} labels from 0, it is {y.dtype} {list(y.shape)}")
    return x, y


def _names(path: Path, held: dict[str, np.ndarray], y: np.ndarray) -> tuple[str, ...]:
    """Of the classes, where the file has an array of them."""
    names = held.get("names")
    if names is None:
        return ()
    if names.shape != (int(y.max()) + 1,) or names.dtype.kind != "U":
        raise UserError(
            f"data.path={path}: names must be {int(y.max()) + 1} texts, one a class; it is {names.dtype} "
            f"{list(names.shape)}"
        )
    return tuple(map(str, names))


def npz_pool(spec: DataSpec) -> Pool:
    """The file's pictures."""
    x, y, parts, names = _npz(spec)
    return from_arrays(x, y, spec, parts, names)


def npz_labels(spec: DataSpec) -> Pool:
    """All but the pictures."""
    _, y, parts, names = _npz(spec)
    return Pool(None, y, parts, names)


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
