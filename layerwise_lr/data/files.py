"""Arrays out of files that nobody may run: npz, torch checkpoints, pickles of plain data; and the cache they lie in."""

import importlib
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..planning import UserError, plain

TORN = (EOFError, zlib.error, OSError, tarfile.TarError, ValueError)  # what gzip and tar raise on a faulty file


def cache_folder() -> Path:
    """Where fetched data and weights are kept: $LAYERWISE_LR_CACHE, else layerwise_lr in the user's cache."""
    if "LAYERWISE_LR_CACHE" in os.environ:
        return Path(os.environ["LAYERWISE_LR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerwise_lr"


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz; no code in it can run.

    Raises:
        ValueError, OSError: it is none.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            return dict(held)
    except (ValueError, OSError):
        raise
    except Exception as error:  # zip promises no list of what a torn or an encrypted one raises; a .npy is no mapping
        raise ValueError(str(error)) from None


class _ArraysOnly(pickle.Unpickler):
    """A pickle reader that builds NumPy arrays and nothing else."""

    allowed: Mapping[tuple[str, str], object] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # written by NumPy 2
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): str.encode,  # bytes, in protocol 2 as Python 3 writes it
    }

    def find_class(self, module: str, name: str) -> object:
        """Only what an array needs."""
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return self.allowed[module, name]


def read_pickle(packed: bytes) -> Any:
    """What a pickle of arrays, numbers, texts and containers holds; texts of Python 2 as latin1.

    Raises:
        ValueError: it is none, or speaks of anything else; nothing in it was run.
    """
    try:
        return _ArraysOnly(io.BytesIO(packed), encoding="latin1").load()
    except Exception as error:  # pickle promises no list of what a torn one raises
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def read_torch_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The tensors of a torch file, by the torch plugin's own reader (weights_only=True: no code in it can run).

    Returns:
        Mappings of arrays as they are nested in the file, and the names of the classes that were skipped.

    Raises:
        UserError: torch is not installed, or cannot read the file.
    """
    if find_spec("torch") is None:
        raise UserError(f"{path}: a torch file is read by torch, which is not installed: pip install torch")
    reader = importlib.import_module("layerwise_lr.plugins.torch_plugin.checkpoint").read_checkpoint
    try:
        return reader(path)
    except UserError:
        raise
    except Exception as error:  # torch promises no list either
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{path}: torch cannot read it as plain tensors ({plain(said[0], 160)}); "
            "take a file that torch.save(model.state_dict(), ...) wrote"
        ) from None
