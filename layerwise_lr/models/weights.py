"""Published weights into a declared model, by canonical name: all of its backbone, and every decision told."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Optional

import numpy as np

from ..data import as_timm, cache_folder
from ..planning import UserError, did_you_mean, plain
from . import finding, fitting, likeness, reading
from .layers import Tree, initial_weights

Weights = dict[str, np.ndarray]
"""float32 arrays by canonical name, in PyTorch shapes; parameters and buffers."""
FETCHED = {"mobilenet_v2_imagenet": "mobilenet_v2", "dinov2_vits14": "vit_small"}
OF = {"lenet_mnist": "lenet", **FETCHED}
"""Published weights, and the declared model that each is of."""


@dataclass
class WeightsSpec:
    """Where the pretrained weights come from.

    Args:
        name: none | lenet_mnist (shipped) | mobilenet_v2_imagenet, dinov2_vits14 (fetched) | file | pretrained (a package's own).
        path: a .safetensors, .npz or torch file, an .index.json, a run folder (file).
        key: which weights of a file that holds several: teacher (file).
        resize_pos_embed: fit a ViT's position embedding of another grid; false: refuse it.
        renew_head: start the head from initial values, whatever the file has.
    """

    name: str = "none"
    path: Optional[str] = None  # noqa: UP045 (OmegaConf 2.3 reads Optional)
    key: Optional[str] = None  # noqa: UP045
    resize_pos_embed: bool = True
    renew_head: bool = False


def locate(spec: WeightsSpec) -> Path | None:
    """The file that `spec` means; None for none.

    Raises:
        UserError: it is not there; says how to get it.
    """
    known = ["none", "lenet_mnist", *FETCHED, "file", "pretrained"]
    if spec.name == "none":
        return None
    if spec.name == "pretrained":
        raise UserError(
            "weights=pretrained are a package's own (model=timm); a declared model has weights=file, lenet_mnist, "
            f"{' or '.join(FETCHED)}"
        )
    if spec.name == "lenet_mnist":
        return Path(str(files("layerwise_lr.data.assets") / "lenet_mnist.npz"))
    if spec.name in FETCHED:
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
    try:
        path = Path(spec.path).expanduser()
        if path.is_dir():
            return reading.in_folder(path)
        there = path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, a folder that nobody may read, no such ~user
        raise UserError(f"weights.path={plain(spec.path)}: {plain(error)}") from None
    if not there:
        raise UserError(f"weights.path={spec.path}: no such file")
    return path


def start_weights(tree: Tree, spec: WeightsSpec, seed: int) -> tuple[Weights, list[str]]:
    """The weights a run begins from, and what to tell the user about them.

    Raises:
        UserError: the file is unreadable, or of another model; says which words would fit it, where there are such.
    """
    weights, path = initial_weights(tree, seed), locate(spec)
    if path is None:
        return weights, ["no pretrained weights: every layer starts from its initial values"]
    file = _by_timm_s_names(reading.read(path)) if tree.name.startswith("vit") else reading.read(path)

    def fit(other: Tree) -> fitting.Fitted:
        return fitting.fit(
            other, finding.find(other, file, spec.key), file.name, spec.resize_pos_embed, spec.renew_head
        )

    try:
        fitted = fit(tree)
    except fitting.Misfit as misfit:
        if misfit.remedied:
            raise
        found = finding.find(tree, file, spec.key)
        raise UserError(f"{misfit}; {likeness.advice(tree, found, lambda other: bool(fit(other)))}") from None
    notes = [f"{len(fitted.arrays)} arrays loaded from {file.name}", *fitted.notes, *file.notes]
    if spec.path and Path(spec.path).expanduser().is_dir():
        notes.insert(
            1, f"weights.path={spec.path} is a folder: {path.relative_to(Path(spec.path).expanduser())} is read"
        )
    return weights | fitted.arrays, notes


def _by_timm_s_names(file: reading.File) -> reading.File:
    """The same file; a ViT of Hugging Face under the names that declared models have."""
    renamed = {at: as_timm(state) for at, state in file.states.items()}
    if not any(renamed.values()):
        return file
    states = {at: renamed[at] or state for at, state in file.states.items()}
    return file._replace(states=states, notes=[f"Hugging Face's names of {file.name} read as timm's", *file.notes])
