"""torch's own files, read as plain arrays."""

from collections.abc import Mapping
from pathlib import Path

import torch

from layerwise_lr.framework import Weights


def read_checkpoint(path: Path) -> Weights:
    """A torch file's tensors, read with weights_only=True: no code in it can run."""
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):  # where training scripts put it
        loaded = loaded[key] if isinstance(loaded.get(key), Mapping) else loaded
    return {
        name: tensor.detach().cpu().numpy().copy()
        for name, tensor in loaded.items()
        if isinstance(tensor, torch.Tensor)
    }
