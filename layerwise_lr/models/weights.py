"""Published weights into a declared model, by canonical name: strict, but for a head of another size."""

from dataclasses import dataclass
from importlib.resources import files
from math import isqrt
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..data import cache_folder, read_npz, read_torch_file
from ..planning import UserError, did_you_mean
from .layers import Tree, initial_weights, param_table

Weights = dict[str, np.ndarray]
"""float32 arrays by canonical name, in PyTorch shapes; parameters and buffers."""

TORCH_FILES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass
class WeightsSpec:
    """Where the pretrained weights come from.

    Args:
        name: none | lenet_mnist (shipped) | mobilenet_v2_imagenet (fetched) | file.
        path: a .safetensors, .npz or torch file (file).
        resize_pos_embed: fit a ViT's position embedding to this size.
    """

    name: str = "none"
    path: Optional[str] = None  # noqa: UP045 (OmegaConf 2.3 reads Optional)
    resize_pos_embed: bool = False


def locate(spec: WeightsSpec) -> Path | None:
    """The file that `spec` means; None for none.

    Raises:
        UserError: it is not there; says how to get it.
    """
    known = ["none", "lenet_mnist", "mobilenet_v2_imagenet", "file"]
    if spec.name == "none":
        return None
    if spec.name == "lenet_mnist":
        return Path(str(files("layerwise_lr.data.assets") / "lenet_mnist.npz"))
    if spec.name == "mobilenet_v2_imagenet":
        path = cache_folder() / spec.name / "model.safetensors"
        if not path.exists():
            raise UserError(f"weights {spec.name!r} are not on this machine: layerwise-lr fetch {spec.name}")
        return path
    if spec.name != "file":
        raise UserError(
            f"weights.name={spec.name!r} is unknown; there are: {', '.join(known)}" + did_you_mean(spec.name, known)
        )
    if not spec.path:
        raise UserError("weights.path is missing: weights=file needs weights.path=...")
    if not Path(spec.path).is_file():
        raise UserError(f"weights.path={spec.path}: no such file")
    return Path(spec.path)


def read(path: Path) -> Weights:
    """Arrays by name from a .safetensors, .npz or torch file; no code in the file can run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            return read_npz(path)
    except (TypeError, KeyError) as error:  # bfloat16, which NumPy lacks
        raise UserError(f"{path}: holds a data type that NumPy has not ({error}); save it as float32") from None
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable {path.suffix} file ({error})") from None
    if path.suffix in TORCH_FILES:
        return read_torch_file(path)
    raise UserError(f"{path}: weights are read from .safetensors, .npz, {', '.join(TORCH_FILES)}")


def start_weights(tree: Tree, spec: WeightsSpec, seed: int) -> tuple[Weights, list[str]]:
    """The weights a run begins from, and what to tell the user about them.

    Raises:
        UserError: names missing from the file, left over in it, or of another shape.
    """
    weights, path = initial_weights(tree, seed), locate(spec)
    if path is None:
        return weights, ["no pretrained weights: every layer starts from its initial values"]
    found = {n: a for n, a in read(path).items() if not n.endswith("num_batches_tracked")}
    table, notes = param_table(tree), []
    if spec.resize_pos_embed and "pos_embed" in found and "pos_embed" in weights:
        found["pos_embed"], note = resize_pos_embed(found["pos_embed"], weights["pos_embed"].shape[1])
        notes.append(note)
    other_head = {n for n in weights if table.is_head(n) and n in found and found[n].shape != weights[n].shape}
    faults = {
        "missing from the file": sorted(set(weights) - set(found)),
        "not in the model": sorted(set(found) - set(weights)),
        "of another shape": [
            f"{n} {list(found[n].shape)} instead of {list(weights[n].shape)}"
            for n in weights
            if n in found and n not in other_head and found[n].shape != weights[n].shape
        ],
    }
    for fault, names in faults.items():
        if names:
            raise UserError(
                f"{path.name} does not fit model {tree.name}: {len(names)} {fault}: "
                f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}; "
                f"{_remedy(names)}"
            )
    if other_head:  # all of the head: a kept bias would belong to other classes
        other_head = {n for n in weights if table.is_head(n)}
    weights |= {n: _float32(path, n, a) for n, a in found.items() if n not in other_head}
    notes.insert(0, f"{len(weights) - len(other_head)} arrays loaded from {path.name}")
    if other_head:
        notes.append(f"head {tree.head} starts from initial values: the file's is of another size")
    return weights, notes


def _float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """An array of the file as the frameworks take it.

    Raises:
        UserError: it holds no numbers, or some that float32 does not hold.
    """
    if array.dtype.kind not in "fiub":
        raise UserError(f"{path.name}: {name} is of {array.dtype}, not of numbers; take another file, or weights=none")
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(array, np.float32)
    if count := int((~np.isfinite(numbers)).sum()):
        raise UserError(
            f"{path.name}: {count} of {array.size} numbers of {name} are NaN, infinite or more than float32 holds; "
            "take another file, or weights=none"
        )
    return numbers


def _remedy(names: list[str]) -> str:
    if names[0].startswith("pos_embed "):
        return "weights.resize_pos_embed=true fits it to this image_size and patch_size"
    return "give weights of this very model, or weights=none"


def resize_pos_embed(held: np.ndarray, tokens: int) -> tuple[np.ndarray, str]:
    """A ViT's position embedding on another square grid: bicubic, antialiased, as timm's resample_abs_pos_embed.

    Args:
        held: float32 [1, 1 + n * n, D], the class token's first.
        tokens: 1 + m * m, the number wanted.
    """
    old, new = (isqrt(n - 1) for n in (held.shape[1], tokens))
    grid = held[0, 1:].reshape(old, old, -1).astype(np.float32)
    channels = [
        Image.fromarray(grid[:, :, c]).resize((new, new), Image.Resampling.BICUBIC) for c in range(grid.shape[2])
    ]
    patches = np.stack([np.asarray(c) for c in channels], axis=-1).reshape(1, new * new, -1)
    return np.concatenate([held[:, :1], patches], axis=1), f"position embedding resized from {old}x{old} to {new}x{new}"
