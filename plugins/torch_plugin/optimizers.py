"""Optimizer names as torch's own classes, every number explicit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it anyway; here a forked job finds it imported

from layerwise_lr.plan import OptimizerSpec

NATIVE: Mapping[str, Callable[[OptimizerSpec], tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]]] = {
    "sgd": lambda s: (torch.optim.SGD, {"momentum": 0.0, "dampening": 0.0, "nesterov": False}),
    "momentum": lambda s: (torch.optim.SGD, {"momentum": s.momentum, "dampening": 0.0, "nesterov": s.nesterov}),
    "adam": lambda s: (torch.optim.Adam, {"betas": tuple(s.betas), "eps": s.eps}),
    "adamw": lambda s: (torch.optim.AdamW, {"betas": tuple(s.betas), "eps": s.eps}),
}


def make(spec: OptimizerSpec, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's optimizer over its groups. fused: one kernel per group, 2 to 4 times faster than the CPU default."""
    native, options = NATIVE[spec.name](spec)
    return native(list(groups), lr=spec.lr, fused=True, **options)
