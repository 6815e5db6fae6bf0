"""A file of weights, whatever its kind, as arrays by name: what is in it, before anybody asks what it means."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from ..data import read_npz, read_torch_file
from ..planning import UserError, plain
from .kept import kept_checkpoint
from .layers import Array, join

Held = Array | str
"""An array; or the name of its dtype, where NumPy has no such."""
State = dict[str, Held]

TORCH_FILES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
IN_FOLDERS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
MOST_BYTES = 100_000_000  # of an index


class File(NamedTuple):
    """What a file holds.

    Args:
        path: the file.
        states: every mapping of arrays in it, by the dotted keys that lead there; "" is the file itself.
        notes: what to tell of the reading.
    """

    path: Path
    states: dict[str, State]
    notes: list[str]

    @property
    def name(self) -> str:
        """For messages."""
        return plain(self.path.name)


def read(path: Path) -> File:
    """The arrays of a .safetensors, .npz or torch file or of an index; no code in it can run.

    Raises:
        UserError: it is none, or cut short.
    """
    if path.name.endswith(".index.json"):
        return File(path, {"": _shards(path)}, [])
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", ".npz", *TORCH_FILES):
        raise UserError(f"{path}: weights are read from .safetensors, .npz, {', '.join(TORCH_FILES)}, .index.json")
    try:
        if suffix == ".safetensors":
            return File(path, {"": _safetensors(path)}, [])
        if suffix == ".npz":
            return File(path, {"": {name: _numpy(a) for name, a in read_npz(path).items()}}, [])
        nested, skipped = read_torch_file(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable {suffix} file ({plain(error, 160)})") from None
    except MemoryError:
        raise UserError(f"{path}: this machine's memory does not hold it; take a smaller file") from None
    classes = f"{', '.join(map(plain, skipped[:3]))}{', ...' if len(skipped) > 3 else ''}"
    return File(path, dict(_states(nested)), [f"left unread in {path.name}: objects of {classes}"] if skipped else [])


def _states(nested: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, State]]:
    if own := {name: held for name, held in nested.items() if not isinstance(held, dict)}:
        yield at, own
    for name, held in nested.items():
        if isinstance(held, dict):
            yield from _states(held, join(at, name))


def _numpy(array: Array) -> Held:
    """NumPy itself has no bfloat16: such an array comes as raw pairs of bytes."""
    return _from_bfloat16(array.view(np.uint16)) if array.dtype == np.dtype("V2") else array


def _from_bfloat16(bits: Array) -> Array:
    """Exact: a bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
SAFETENSORS |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}


def _safetensors(path: Path) -> State:
    """Checked and cut by the safetensors library; bfloat16 and others are NumPy's matter, not the library's.

    Raises:
        ValueError, OSError: it is none.
    """
    from safetensors import SafetensorError, deserialize

    try:
        parts = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    found: State = {}
    for name, part in sorted(parts, key=itemgetter(0)):
        if (kind := part["dtype"]) in SAFETENSORS:
            array = np.frombuffer(part["data"], SAFETENSORS[kind]).reshape(part["shape"])
            found[name] = _from_bfloat16(array) if kind == "BF16" else array
        else:
            found[name] = kind
    return found


def _shards(index: Path) -> State:
    """All arrays that an index names, each from the file beside it that it names.

    Raises:
        UserError: it is no index, leads out of its folder, or names what is not there.
    """
    try:
        if index.stat().st_size > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES} bytes")
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not places or not all(isinstance(word, str) for pair in places.items() for word in pair):
            raise ValueError("its weight_map does not lead from names to files")
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: not an index of weights, {{'weight_map': ...}} ({plain(error, 120)})") from None
    names = sorted(set(places.values()))
    for name in names:
        if PurePosixPath(name).name != name or PureWindowsPath(name).name != name or name.endswith(".index.json"):
            raise UserError(f"{index}: {plain(name)!r} is not a file beside it; take an index as it was published")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(
            f"{index}: {len(absent)} of {len(names)} shards are missing beside it: {plain(', '.join(absent[:3]), 200)}"
        )
    held = {name: read(index.parent / name).states.get("", {}) for name in names}
    lacking = [name for name, shard in places.items() if name not in held[shard]]
    if lacking:
        raise UserError(
            f"{index}: {plain(places[lacking[0]])} lacks {plain(lacking[0])}, which the index says it holds"
        )
    return {name: held[shard][name] for name, shard in places.items()}


def in_folder(folder: Path) -> Path:
    """The weights in a folder: those that a run kept (of a folder that does not say which, its last), or what Hugging
    Face names so.

    Raises:
        UserError: there are none, or those of several runs.
    """
    run = folder.parent if folder.name == "checkpoints" else folder
    if any((run / "checkpoints" / mark).is_file() for mark in ("best", "latest")):
        return kept_checkpoint(run)
    steps = [p for at in ("checkpoints/step_*", "step_*") for p in folder.glob(f"{at}/model.safetensors")]
    if steps := [p for p in steps if p.parent.name[5:].isdecimal()]:
        last = max(steps, key=lambda p: int(p.parent.name[5:]))
        if not last.is_file() or not last.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{last}: no plain file of the run's folder; name the file of weights itself")
        return last
    for name in IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    if runs := sorted({p.parents[2] for p in folder.glob("*/checkpoints/step_*/model.safetensors")}):
        raise UserError(f"weights.path={folder} is a folder of {len(runs)} runs; name one of them: {_typed(runs[0])}")
    if (folder / "config.resolved.yaml").is_file():
        again = shlex.join(["layerwise-lr", "run", str(folder)])
        raise UserError(f"weights.path={folder} is a run folder without a checkpoint; this trains it: {again}")
    raise UserError(f"weights.path={folder} is a folder with none of {', '.join(IN_FOLDERS)} in it; name the file")


def _typed(path: Path) -> str:
    """As it is typed: Hydra takes some signs for its own, such as the "=" in the names of a sweep's runs."""
    plain_path = re.fullmatch(r"[\w./-]+", str(path))
    return f"weights.path={path}" if plain_path else shlex.quote(f'weights.path="{path}"')
