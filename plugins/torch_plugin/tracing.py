"""One forward of any nn.Module: which module was called when; and inputs for it where nobody gives one."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from layerwise_lr import framework as core


def traced(model: nn.Module, batch: Any) -> dict[str, int]:
    """Module paths in the order of first calls in one forward."""
    called: dict[str, int] = {}

    def hook(path: str) -> Callable[[nn.Module, Any], None]:
        def first(module: nn.Module, args: Any) -> None:
            called.setdefault(path, len(called))

        return first

    paths = [(core.bare_name(path), module) for path, module in model.named_modules()]
    handles = [module.register_forward_pre_hook(hook(path)) for path, module in paths]
    try:
        with as_it_was(model), torch.no_grad():
            core.run(model.eval(), batch)
    finally:
        for handle in handles:
            handle.remove()
    return called


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Training flags, buffers and the random state are afterwards what they were."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_available() else ()):
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training
            with torch.no_grad():
                for buffer, held in buffers:
                    buffer.copy_(held)


def made_up(model: nn.Module, modules: Sequence[core.NativeModule]) -> Iterator[Any]:
    """Inputs that the model might take, the likeliest first: by timm's and transformers' own words, else by its layers."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is None:
        return
    if size := (getattr(model, "pretrained_cfg", None) or {}).get("input_size"):
        yield first.new_zeros(1, *size)
    if (config := getattr(model, "config", None)) is not None:
        yield from _of_config(model, config, first)
    for array in core.likely_inputs(modules):
        yield torch.from_numpy(array).to(first.device, first.dtype if array.dtype.kind == "f" else torch.long)


def _of_config(model: nn.Module, config: Any, like: torch.Tensor) -> Iterator[Any]:
    """Keywords for a transformers model."""
    takes = set(inspect.signature(model.forward).parameters)
    vision = getattr(config, "vision_config", config)
    side = getattr(vision, "image_size", None) or 224
    sides = (side, side) if isinstance(side, int) else tuple(side)
    pictures = {"pixel_values": like.new_zeros(1, getattr(vision, "num_channels", None) or 3, *sides)}
    words = {"input_ids": like.new_ones(1, 8, dtype=torch.long)}
    if {"pixel_values", "input_ids"} <= takes:
        yield {**pictures, **words}
    if {"input_ids", "decoder_input_ids"} <= takes:
        yield {**words, "decoder_input_ids": words["input_ids"]}
    yield from (made for made in (pictures, words) if takes & set(made))
