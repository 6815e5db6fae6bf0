"""What model a file that does not fit is of, and which words would make it fit: only such as were tried."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..planning import UserError
from .finding import Found
from .layers import Tree, param_table
from .trees import MODELS, make_tree

FAMILIES: Mapping[str, str] = {
    r"(^|\.)(encoder\.)?layers?\.0\.attention\.": "Hugging Face's",
    r"resnet\.encoder\.stages\.": "Hugging Face's",
    r"encoder_layer_0\.": "torchvision's ViT's",
    r"resblocks\.0\.": "CLIP's own",
    r"encoderblock_0": "Google's JAX",
    r"(^|\.)conv_stem\.": "timm's MobileNets'",
    r"\.lora_[AB]\.": "an adapter's beside it (merge it first)",
    r"(^|\.)(exp_avg|exp_avg_sq|momentum_buffer)$": "an optimizer's",
}
"""Names that tell whose a file is."""
PUBLISHED = {"depth": 12, "patch_size": 16, "layer_scale": None, "pre_norm": False, "pool": "token"}
WIDTHS = {192: "vit_tiny", 384: "vit_small", 768: "vit_base"}


def advice(tree: Tree, found: Found, fits: Callable[[Tree], bool]) -> str:
    """How to go on with a file that does not fit `tree`.

    Args:
        tree: the model.
        found: what the file has of it.
        fits: tries the file on another model.
    """
    for words, name, side, options in _others(tree, found):
        try:
            if fits(make_tree(name, tree.num_classes, tree.input_shape[0], side, **options)):
                return f"{' '.join(words)} fits it, or take weights=none"
        except UserError:
            continue
    names = [*found.alike, *found.beside]
    whose = next((whose for mark, whose in FAMILIES.items() if any(re.search(mark, n) for n in names)), None)
    if whose:
        own = "timm's" if tree.name.startswith("vit") else "torchvision's"
        return f"those names are {whose}, model {tree.name} reads {own}: give a file with such, or weights=none"
    return "give weights of this very model, or weights=none"


def _others(tree: Tree, found: Found) -> Iterator[tuple[list[str], str, int, dict[str, Any]]]:
    """Other declared models: words for the command line; name, side of the pictures and options of what they make."""
    side = tree.input_shape[1]
    yield from (([f"model={name}"], name, side, {}) for name in MODELS if name != tree.name and name[:3] != "vit")
    theirs = _facts(_shapes(found))
    if not theirs or theirs["embed_dim"] not in WIDTHS:
        return
    mine = _facts({row.name: row.shape for row in param_table(tree)}) or PUBLISHED
    name, options = WIDTHS[theirs["embed_dim"]], {key: theirs[key] for key in PUBLISHED}
    words = [] if mine.get("embed_dim") == theirs["embed_dim"] else [f"model={name}"]
    words += [
        f"model.{key}={json.dumps(value)}".replace('"', "") for key, value in options.items() if mine[key] != value
    ]
    if side % (patch := options["patch_size"]):
        side = -(-side // patch) * patch
        words.append(f"data.image_size={side}")
    if words:
        yield words, name, side, options


def _shapes(found: Found) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(held) for name, held in {**found.alike, **found.arrays}.items()}


def _facts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Options of timm's ViT that its arrays tell; nothing where they are another net's."""
    embed = shapes.get("patch_embed.proj.weight", ())
    blocks = {int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d{1,4})\.norm1\.weight$", name))}
    if len(embed) != 4 or not blocks:
        return {}
    return {
        "embed_dim": embed[0],
        "depth": max(blocks) + 1,
        "patch_size": embed[3],
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in shapes else None,
        "pre_norm": "norm_pre.weight" in shapes,
        "pool": "token" if "norm.weight" in shapes else "avg",
    }
