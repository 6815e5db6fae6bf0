"""torch's own files, read as plain arrays; what else is in them is skipped unread."""

import pickle
import pickletools
import warnings
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from layerwise_lr.framework import UserError, plain

BUILTIN_TYPES = {"bool", "dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str", "tuple"}
RUNNERS = {"builtins", "ctypes", "importlib", "io", "nt", "os", "posix", "pty", "runpy", "shutil", "socket"}
RUNNERS |= {"subprocess", "sys"}


class Skipped:
    """Stands where a file names a class that is none of torch's: takes anything, holds nothing, runs nothing."""

    __slots__ = ()

    def __new__(cls, *args: Any) -> "Skipped":
        """The same for every class and every argument."""
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        """The object's state is dropped."""


class SkippedDict:
    """The same for collections.defaultdict, whose entries torch's reader takes into a plain dict only."""

    def __new__(cls, *args: Any) -> Any:
        """Empty, whatever the arguments."""
        return {}


def read_checkpoint(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The arrays of a torch file by name, nested as they are there, and the classes that were skipped.

    torch's weights_only reader never looks a class up by the name that a file gives: it takes it from a table.
    For classes that are not in torch's own table, such as argparse.Namespace, that table is lent `Skipped`; so
    no code that the file names is imported or called. Where NumPy lacks a tensor's kind, its name stands in place
    of the array.

    Raises:
        UserError: the file names something that runs code, or objects that cannot be skipped.
    """
    skipped = sorted(_strangers(path))
    if runners := [name for name in skipped if _runs(name)]:
        raise UserError(
            f"{path}: it names {plain(runners[0])}, which runs code: nothing of it was run; take the weights elsewhere"
        )
    lent: list[Any] = [(SkippedDict if name == "collections.defaultdict" else Skipped, name) for name in skipped]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(lent):
            warnings.simplefilter("ignore")
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not skipped:  # torch's advice, to trust the file, is left out
            raise ValueError(str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)) from None
        raise UserError(
            f"{path}: objects of {_named(skipped)} stand in the way of its tensors; where you trust the file, "
            "let the program that made it save model.state_dict() alone"
        ) from None
    found = _arrays({"": held} if isinstance(held, torch.Tensor) else held, set())
    if skipped and not found:
        raise UserError(
            f"{path}: it holds objects of {_named(skipped)}, and no tensors by name; "
            "let the program that made it save model.state_dict()"
        )
    return found, skipped


def _named(classes: list[str]) -> str:
    return f"{', '.join(map(plain, classes[:3]))}{f' and {len(classes) - 3} more' if len(classes) > 3 else ''}"


def _strangers(path: Path) -> set[str]:
    """Classes that a file names and torch's reader does not know: read off the pickle, which is not run."""
    if zipfile.is_zipfile(path):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    named = set()
    with path.open("rb") as file:  # as torch wrote it before 1.6: magic number, version, system, the object
        for opcode, arg, _ in chain.from_iterable(pickletools.genops(file) for _ in range(4)):
            if opcode.name == "GLOBAL" and arg is not None:
                module, _, name = arg.partition(" ")
                module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                named.add(f"{module}.{name}")
    return named - set(torch._weights_only_unpickler._get_allowed_globals())


def _runs(name: str) -> bool:
    module, _, last = name.partition(".")
    return module in RUNNERS and not (module == "builtins" and last in BUILTIN_TYPES)


def _arrays(held: Any, seen: set[int]) -> dict[str, Any]:
    """Mappings of arrays out of containers; each container once, all else left out."""
    pairs = dict.items(held) if isinstance(held, dict) else enumerate(held) if isinstance(held, (list, tuple)) else ()
    seen.add(id(held))
    found: dict[str, Any] = {}
    for key, value in pairs:
        if isinstance(value, torch.Tensor):
            found[str(key)] = _array(value)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen and (below := _arrays(value, seen)):
            found[str(key)] = below
    return found


def _array(tensor: torch.Tensor) -> Any:
    try:
        return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).detach().numpy()
    except (TypeError, RuntimeError):  # quantized, float8, sparse, on no device
        kind = "" if tensor.layout is torch.strided else "sparse "
        return f"{'meta ' if tensor.is_meta else kind}{str(tensor.dtype).removeprefix('torch.')}"
