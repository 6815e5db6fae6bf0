"""Pictures that stay files until they are needed, and what is needed next made ahead in threads.

Threads, not processes: Pillow decodes and resizes without Python's lock, and a picture need not be sent anywhere.
"""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .caching import kept, status
from .decoding import open_picture
from .spec import DataSpec, resize

if TYPE_CHECKING:
    from PIL import Image

Made = TypeVar("Made")
MOST_WORKERS = 8
"""Where data.workers does not say how many: beyond them a training step is hardly ever waiting."""
TOGETHER = 64
"""Pictures that a worker decodes at a time where a whole part is decoded."""


def workers_of(spec: DataSpec) -> int:
    """Threads that make batches ahead: data.workers, else one for each core but the training's, 1 to MOST_WORKERS."""
    if spec.workers is not None:
        return spec.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores - 1, 1), MOST_WORKERS)


def read_resized(path: Path, spec: DataSpec) -> np.ndarray:
    """uint8 [C, S, S] of one file, as validation and test see it.

    A large JPEG is decoded at a half, a quarter or an eighth, but at no less than twice the size: Pillow's own bound
    (thumbnail's reducing_gap), which changes a value of 0 to 255 by 2 at most.

    Raises:
        UserError: it is no picture, or gone.
    """
    return resize(open_picture(path, spec.channels, least=2 * spec.image_size), spec)


class Files:
    """Pictures that stay files: to index it is to decode, and gives what an array uint8 [N, C, S, S] would.

    Args:
        files: one for each picture.
        spec: how they are resized.
        room: bytes of pictures that may be kept as they are before a random crop, and not decoded again.
    """

    def __init__(self, files: Sequence[Path], spec: DataSpec, room: int = 0) -> None:
        self.files, self.spec, self.room = tuple(files), spec, room
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, C, S, S]."""
        return len(self.files), self.spec.channels, self.spec.image_size, self.spec.image_size

    def __getitem__(self, index: "slice | np.ndarray") -> np.ndarray:
        chosen = np.arange(len(self.files))[index]
        pictures = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for place, i in enumerate(chosen):
            pictures[place] = read_resized(self.files[i], self.spec)
        return pictures

    def uncut(self, index: int, least: int) -> "Image.Image":
        """The whole picture, in mode L or RGB, its short side `least` to twice that where the file has as much."""
        from PIL import Image

        if index in self._kept:
            return Image.fromarray(self._kept[index])
        image = open_picture(self.files[index], self.spec.channels, least=least)
        if (factor := min(image.size) // least) > 1:
            image = image.reduce(factor)
        array = np.asarray(image)
        with self._lock:
            if index not in self._kept and array.nbytes <= self.room:
                self._kept[index] = array
                self.room -= array.nbytes
        return image

    def fingerprint(self) -> str:
        """sha256 over the files' names below their common folder and their sizes in bytes: nothing is decoded."""
        above = os.path.commonpath([path.parent for path in self.files]) if self.files else ""
        lines = [f"{path.relative_to(above).as_posix()}\0{status(path).st_size}" for path in self.files]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


Pixels = np.ndarray | Files
"""uint8 [N, C, S, S], held or read when indexed."""


def picture(x: Pixels, index: int, least: int | None) -> "Image.Image":
    """One of them for Pillow, mode L or RGB.

    Args:
        x: all.
        index: which.
        least: of files, the whole picture with at least so many pixels on its short side; None: as it is in `x`.
    """
    from PIL import Image

    if isinstance(x, Files) and least is not None:
        return x.uncut(index, least)
    (planes,) = x[np.array([index])]
    return Image.fromarray(planes[0] if len(planes) == 1 else np.ascontiguousarray(planes.transpose(1, 2, 0)))


def held(files: Files, workers: int) -> np.ndarray:
    """All of them decoded, uint8 [N, C, S, S]; from the cache where an earlier run left them."""

    def decode() -> np.ndarray:
        pictures = np.empty(files.shape, np.uint8)
        ahead = Ahead(workers)
        try:
            begins = range(0, len(files), TOGETHER)
            for begin, part in zip(begins, ahead.each(lambda b: files[b : b + TOGETHER], begins), strict=True):
                pictures[begin : begin + len(part)] = part
        finally:
            ahead.close()
        return pictures

    return kept(files.files, files.spec, decode)


class Ahead:
    """Calls made in threads before their results are asked for. What is called must be a function of its key alone:
    then the results do not hang on the number of threads.

    Args:
        workers: threads; 0: each call is made when it is asked for.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: dict[Any, Future[Any]] = {}

    def _submit(self, make: Callable[..., Made], key: Any) -> "Future[Made]":
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="pictures")
        return self._pool.submit(make, key)

    def get(self, make: Callable[[Any], Made], key: Any, following: Sequence[Any]) -> Made:
        """make(key), with those that follow begun; what was begun for other keys is given up."""
        if self.workers == 0:
            return make(key)
        future = self._waiting.pop(key, None) or self._submit(make, key)
        for other in set(self._waiting) - set(following):
            self._waiting.pop(other).cancel()
        for other in following:
            if other not in self._waiting:
                self._waiting[other] = self._submit(make, other)
        return future.result()

    def each(self, make: Callable[[Any], Made], keys: Iterable[Any]) -> Iterator[Made]:
        """make(key) of every key in order, as many begun ahead as there are threads."""
        begun: deque[Future[Made]] = deque()
        for key in keys:
            if self.workers == 0:
                yield make(key)
                continue
            begun.append(self._submit(make, key))
            if len(begun) > self.workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()

    def close(self) -> None:
        """No thread is left; what was begun and not asked for is given up."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool, self._waiting = None, {}
