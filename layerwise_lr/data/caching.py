"""Decoded pictures kept for the next run: what a sweep's twenty jobs read, one of them decodes.

An entry is named by all that its bytes follow from: the files' paths, sizes and times of change, and how they are
resized. It is an .npy in the user's cache, below `decoded`, mapped into memory and so shared by processes.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..planning import UserError, plain
from .files import cache_folder
from .spec import DataSpec, filling

MOST_BYTES = 4 * 2**30
"""Of the whole folder: the entries that were not used for longest go."""
WORTH_SECONDS = 2.0
"""What was decoded faster is not kept."""
_recent: dict[str, np.ndarray] = {}
"""The last six of this process and of those forked from it: a run is checked and then run, a sweep's jobs are alike."""


def kept(files: Sequence[Path], spec: DataSpec, decode: Callable[[], np.ndarray]) -> np.ndarray:
    """What `decode` gives of these files, from the cache where it is there.

    Args:
        files: in their order.
        spec: how they are resized.
        decode: uint8 [N, C, S, S] of them; read-only where it came from the cache.
    """
    key = _key(files, spec)
    if key not in _recent:
        shape = (len(files), spec.channels, spec.image_size, spec.image_size)
        _recent[key] = _from_disk(cache_folder() / "decoded" / f"{key}.npy", shape, decode)
        for oldest in list(_recent)[:-6]:
            del _recent[oldest]
    return _recent[key]


def status(path: Path) -> os.stat_result:
    """Size and time of change of a file that was there a moment ago.

    Raises:
        UserError: it is gone.
    """
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f"{plain(path, 400)}: not a readable picture ({error.strerror}); mend or remove it") from None


def _from_disk(path: Path, shape: tuple[int, ...], decode: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        held = np.load(path, mmap_mode="r", allow_pickle=False)
        os.utime(path)
        if held.shape == shape and held.dtype == np.uint8:
            return np.asarray(held)
    except (OSError, ValueError):  # not there, or torn
        pass
    began = time.monotonic()
    made = decode()
    if time.monotonic() - began > WORTH_SECONDS and made.nbytes <= MOST_BYTES:
        _keep(path, made)
    return made


def _key(files: Sequence[Path], spec: DataSpec) -> str:
    import PIL

    found = [(str(path.resolve()), (at := status(path)).st_size, at.st_mtime_ns) for path in files]
    how = [PIL.__version__, spec.image_size, spec.channels, spec.resize, filling(spec)]
    return hashlib.sha256(json.dumps([how, found]).encode()).hexdigest()


def _keep(path: Path, made: np.ndarray) -> None:
    """Whole or not at all; a cache that cannot be written is none."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.save(file, made)
        part.replace(path)
        _make_room(path.parent)
    except OSError:
        with suppress(OSError):
            part.unlink()


def _make_room(folder: Path) -> None:
    """Down to MOST_BYTES; a run that has a removed entry mapped keeps it."""
    entries = sorted(((at := path.stat()).st_mtime, at.st_size, path) for path in folder.iterdir())
    excess = sum(size for _, size, _ in entries) - MOST_BYTES
    for _, size, path in entries[:-1]:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
