"""Checkpoints: folders of arrays, each written whole, its files known by their sha256.

checkpoints/step_N/         weights worth keeping
checkpoints/resume/step_N/  what an unfinished run needs to go on: weights, optimizer state, what the loop remembers
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from ..framework import Weights
from ..planning import UserError, plain
from . import files

STATE = "state.json"
RESUME = "checkpoints/resume"
PART = re.compile(r"\.step_[0-9]+\.part")
_DTYPES = {
    "<f4": "F32",
    "<f8": "F64",
    "<f2": "F16",
    "<i8": "I64",
    "<i4": "I32",
    "|i1": "I8",
    "|u1": "U8",
    "|b1": "BOOL",
}
"""safetensors' words for NumPy's types."""
_MOST_STATE = 10_000_000  # bytes


class Damaged(Exception):
    """What is on disk is not what was written."""


class Mark(NamedTuple):
    """How much of a file had been written, and what.

    Args:
        bytes: from its beginning.
        sha256: of these.
    """

    bytes: int
    sha256: str


class Point(NamedTuple):
    """What a run needs to go on.

    Args:
        step: steps that are done.
        weights: of the model.
        optimizer: its state.
        average: of the weights, where the run has one.
        memory: what the loop remembers, as plain data.
    """

    step: int
    weights: Weights
    optimizer: Weights
    average: Weights | None
    memory: dict[str, Any]


def write(
    root: Path, step: int, named: Mapping[str, Mapping[str, np.ndarray] | None], facts: Mapping[str, Any]
) -> None:
    """root/step_N: arrays as NAME.safetensors, and state.json with their sha256. Whole or not at all, and on the disk.

    Args:
        root: made where it is absent.
        step: N.
        named: name -> arrays; None: no such file.
        facts: for state.json.
    """
    part, final = root / f".step_{step}.part", root / f"step_{step}"
    remove(part)
    try:
        part.mkdir(parents=True)
        _fill(part, step, named, facts)
        discard(final)
        part.replace(final)
    except BaseException:
        with suppress(OSError):  # on a full disk, this is the room to say so
            remove(part)
        raise
    _sync(root)


def _fill(
    part: Path, step: int, named: Mapping[str, Mapping[str, np.ndarray] | None], facts: Mapping[str, Any]
) -> None:
    sums = {}
    for name, arrays in named.items():
        if arrays is not None:
            sums[f"{name}.safetensors"] = _put(part / f"{name}.safetensors", _packed(arrays))
    state = {"step": step, **facts, "sha256": sums}
    _put(part / STATE, [json.dumps({**state, "state_sha256": _sum(state)}, allow_nan=False).encode()])
    _sync(part)


def check(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """state.json and the files that it names, of one checkpoint.

    Raises:
        Damaged: something is missing, or is not what was written.
    """
    try:
        state = json.loads(_held(folder / STATE, _MOST_STATE))
        told = state.pop("state_sha256")
        sums = dict(state["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{STATE} is torn ({plain(type(error).__name__)})") from None
    if told != _sum(state):
        raise Damaged(f"{STATE} is not what was written")
    held = {}
    for name, expected in sums.items():
        if not re.fullmatch(r"[a-z]+\.safetensors", name):
            raise Damaged(f"{STATE} names {plain(name)}")
        held[name] = _held(folder / name)
        if hashlib.sha256(held[name]).hexdigest() != expected:
            raise Damaged(f"{name} is not what was written (its sha256 differs)")
    return state, held


def resumable(path: Path) -> list[int]:
    """Steps at which a run folder has a resume point, whole or not, the last one last."""
    return list(steps(path / RESUME))


def steps(root: Path) -> dict[int, Path]:
    """The checkpoints in a folder by their step, the last one last."""
    found = {int(p.name[5:]): p for p in root.glob("step_*") if re.fullmatch(r"step_[0-9]{1,9}", p.name)}
    return dict(sorted(found.items()))


def find(path: Path, facts: Mapping[str, str], like: Weights, say: Callable[[str], None]) -> Point | None:
    """The last whole resume point of a run folder; None: there is none. Damaged ones are told.

    Args:
        path: the run's folder.
        facts: what has to be as it was: name for people -> sha256.
        like: arrays of the names, shapes and types that the weights have.
        say: told a line for every damaged one.

    Raises:
        UserError: the run that was interrupted was another: of another config, other pictures or start weights.
    """
    left = resumable(path)
    while left:
        step = left.pop()
        try:
            return _point(path, path / RESUME / f"step_{step}", facts, like)
        except Damaged as why:
            way = f"the one of step {left[-1]} is used" if left else "there is no other, so from step 0"
            say(f"{RESUME}/step_{step} cannot be used: {why}; {way}")
    return None


def drop(path: Path, point: Point) -> None:
    """What an interrupted run wrote after `point` goes: it comes again."""
    for root in (path / RESUME, path / "checkpoints"):
        for step, old in steps(root).items():
            if step > point.step:
                discard(old)


def discard(step: Path) -> None:
    """A checkpoint goes. What others put into it is kept aside, in step_N.others."""
    if not step.is_dir() or step.is_symlink():
        remove(step)
        return
    for name in step.iterdir():
        if name.suffix == ".safetensors" or name.name == STATE:
            remove(name)
    try:
        step.rmdir()
    except OSError:  # it holds more
        names = (step.with_name(f"{step.name}.others{count or ''}") for count in range(1_000_000))
        step.rename(next(name for name in names if not os.path.lexists(name)))


def clear(root: Path) -> None:
    """All checkpoints of a folder go, and the folder itself where it holds nothing else."""
    if not root.is_dir() or root.is_symlink():
        remove(root)
        return
    for step in steps(root).values():
        discard(step)
    for name in root.iterdir():
        if PART.fullmatch(name.name) or name.name in ("latest", "best"):
            remove(name)
    with suppress(OSError):  # it holds more
        root.rmdir()


def remove(path: Path) -> None:
    """A file, a folder, or a link and not what it leads to; nothing, where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _point(path: Path, folder: Path, facts: Mapping[str, str], like: Weights) -> Point:
    state, held = check(_inside(path, folder))
    for name, sha256 in facts.items():
        if state.get("of", {}).get(name) != sha256:
            raise UserError(
                f"{folder}: the run that was interrupted had another {name}: restore it, or remove {path / RESUME} to "
                "train from step 0"
            )
    try:
        arrays = {name: load(one) for name, one in held.items()}
        memory, step = dict(state["memory"]), int(state["step"])
        weights, optimizer = arrays["model.safetensors"], arrays["optim.safetensors"]
        for name, mark in memory["files"].items():
            _unchanged(path, name, Mark(*mark))
        for kept in memory["keep"]:
            check(_inside(path, path / f"checkpoints/step_{int(kept)}"))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"not a run's ({type(error).__name__}: {plain(error)})") from None
    average = arrays.get("ema.safetensors")
    for found in (weights, *([average] if average else [])):
        if {n: (a.shape, a.dtype) for n, a in found.items()} != {n: (a.shape, a.dtype) for n, a in like.items()}:
            raise Damaged("its weights are not the model's")
    for name, array in optimizer.items():
        of = like.get(name.rpartition("/")[0])
        if of is None or (array.size != 1 and array.shape != of.shape):
            raise Damaged(f"{plain(name)} is no state of the model's")
    return Point(step, weights, optimizer, average, memory)


def _unchanged(path: Path, name: str, mark: Mark) -> None:
    """The file still begins as it did."""
    if name not in ("metrics.jsonl", "lr_check.jsonl"):
        raise Damaged(f"{STATE} names {plain(name)}")
    file = _opened(_inside(path, path / name))
    with file:
        held = summed(file, mark.bytes)
    if held is None or held.hexdigest() != mark.sha256:
        raise Damaged(f"{name} is not what was written until then")


def _inside(path: Path, folder: Path) -> Path:
    try:
        return files.inside(path, str(folder.relative_to(path)))
    except UserError:
        raise Damaged(f"{folder.name} leads out of the run's folder") from None


def summed(file: BinaryIO, count: int) -> Any:
    """The running sha256 of a file's next `count` bytes, which are not held; None: it has fewer."""
    made, left = hashlib.sha256(), count
    while left and (held := file.read(min(left, 2**20))):
        made.update(held)
        left -= len(held)
    return None if left else made


def _held(path: Path, most: int = 2**62) -> bytes:
    """A plain file's bytes."""
    with _opened(path, most) as file:
        return file.read()


def _opened(path: Path, most: int = 2**62) -> BinaryIO:
    try:
        file = files.opened(path.parent, path.name, most)
    except UserError as error:
        raise Damaged(f"{path.name} cannot be read ({plain(error)})") from None
    if file is None:
        raise Damaged(f"{path.name} is not there")
    return file


def _packed(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """A safetensors file, part by part: length of the header, header, arrays as they lie in memory. (The package's own
    `save` copies them twice, which took longer than the writing.)"""
    header, held, at = {}, [], 0
    for name, array in sorted(arrays.items()):  # an equal state is an equal file
        # ascontiguousarray makes a scalar 1-D
        flat = np.asarray(array, order="C")
        end = at + flat.nbytes
        header[name] = {"dtype": _DTYPES[flat.dtype.str], "shape": list(flat.shape), "data_offsets": [at, end]}
        held.append(flat.reshape(-1).view(np.uint8).data)
        at = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    yield len(head).to_bytes(8, "little") + head
    yield from held


def _put(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """A new file, on the disk; its sha256."""
    made = hashlib.sha256()
    with files.named(path), path.open("wb") as file:
        for part in parts:
            file.write(part)
            made.update(part)
        file.flush()
        os.fsync(file.fileno())
    return made.hexdigest()


def _sync(folder: Path) -> None:
    """A rename, or a new file, lasts when its folder is on the disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with files.named(folder):
            os.fsync(file)
    finally:
        os.close(file)


def _sum(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def digest(weights: Weights) -> str:
    """sha256 of arrays, their names, types and shapes."""
    made = hashlib.sha256()
    for name, array in sorted(weights.items()):
        made.update(f"{name} {array.dtype} {array.shape}\n".encode())
        made.update(np.ascontiguousarray(array).data)
    return made.hexdigest()
