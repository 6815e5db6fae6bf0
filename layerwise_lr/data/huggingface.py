"""Hugging Face's names of a ViT (ViT, DeiT, DINOv2) as timm's, which declared models have."""

import re
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

RENAMED: Mapping[str, str] = {
    r"(^|\.)embeddings\.(cls_token|mask_token)$": r"\1\2",
    r"(^|\.)embeddings\.distillation_token$": r"\1dist_token",
    r"(^|\.)embeddings\.register_tokens$": r"\1reg_token",
    r"(^|\.)embeddings\.position_embeddings$": r"\1pos_embed",
    r"(^|\.)embeddings\.patch_embeddings\.projection\.": r"\1patch_embed.proj.",
    r"(^|\.)(?:encoder\.layer|layers)\.(\d+)\.": r"\1blocks.\2.",
    r"(\.\d+)\.attention\.attention\.(query|key|value)\.": r"\1.attn.\2.",
    r"(\.\d+)\.attention\.q_proj\.": r"\1.attn.query.",  # transformers 5 has these in memory, and the others in its files
    r"(\.\d+)\.attention\.k_proj\.": r"\1.attn.key.",
    r"(\.\d+)\.attention\.v_proj\.": r"\1.attn.value.",
    r"(\.\d+)\.attention\.(?:output\.dense|o_proj)\.": r"\1.attn.proj.",
    r"(\.\d+)\.intermediate\.dense\.": r"\1.mlp.fc1.",
    r"(\.\d+)\.output\.dense\.": r"\1.mlp.fc2.",
    r"(\.\d+)\.layernorm_before\.": r"\1.norm1.",
    r"(\.\d+)\.layernorm_after\.": r"\1.norm2.",
    r"(\.\d+)\.layer_scale([12])\.lambda1$": r"\1.ls\2.gamma",
    r"(^|\.)layernorm\.(weight|bias)$": r"\1norm.\2",
}
QUERY = re.compile(r"(^|\.)blocks\.\d+\.attn\.query\.(weight|bias)$")
Held = TypeVar("Held", np.ndarray, np.ndarray | str)


def as_timm(state: Mapping[str, Held]) -> dict[str, Held] | None:
    """The same arrays under timm's names, with query, key and value stacked to one; a name that no rule knows is kept.

    None where they are no ViT of Hugging Face, or where a query lacks its key or its value.
    """
    found = {_renamed(name): held for name, held in state.items()}
    queries = [name for name in found if QUERY.search(name)]
    for name in queries:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        arrays = [a for part in parts if isinstance(a := found.pop(part, None), np.ndarray) and a.ndim]
        if len(arrays) < 3 or len({a.shape for a in arrays}) > 1:
            return None
        found[name.replace(".query.", ".qkv.")] = np.concatenate(arrays)
    return found if queries else None


def _renamed(name: str) -> str:
    for pattern, other in RENAMED.items():
        name = re.sub(pattern, other, name)
    return name
