"""Gradients for a trial: of a batch, of the user's own making, or made up; and what hooks make of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from layerwise_lr import framework as core

Gradients = dict[str, torch.Tensor]


def gradients(model: nn.Module, named: Mapping[str, nn.Parameter], batch: Any) -> tuple[Gradients, tuple[str, ...]]:
    """(gradient of every trainable parameter before any hook, those that the batch does not reach).

    Without a batch they are drawn, from a seed of their own. Gradients of frozen parameters are theirs, stale or none.
    """
    wanted = {name: p for name, p in named.items() if p.requires_grad}
    if batch is None:
        return made_up(wanted), ()
    for parameter in wanted.values():
        for hooks in (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None)):
            if hooks:
                hooks.clear()  # whoever calls keeps and restores them
    loss = loss_of(model, batch)
    if loss is not None:
        for parameter in wanted.values():
            parameter.grad = None
        with torch.enable_grad():
            loss.backward()
    reached = {name: p.grad.detach().clone() for name, p in wanted.items() if p.grad is not None}
    if not reached and loss is None:
        return made_up(wanted), ()
    for name, gradient in reached.items():
        if not torch.isfinite(gradient.to_dense() if gradient.is_sparse else gradient).all():
            raise core.UserError(f"the gradient of {name} is not finite: verify with another batch")
    return reached, tuple(name for name in wanted if name not in reached)


def made_up(wanted: Mapping[str, nn.Parameter]) -> Gradients:
    """Drawn from N(0, 1), each from the same seed."""
    source = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(p.shape, generator=source, dtype=torch.float32).to(p.device, p.dtype)
        for name, p in wanted.items()
    }


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor | None:
    """(x, y): cross-entropy of the logits; a mapping: the output's loss; a function's result; else the mean square of
    what the model gives."""
    if callable(batch) and not isinstance(batch, torch.Tensor):
        result = batch(model)
        if result is not None and not isinstance(result, torch.Tensor):
            raise core.UserError(f"batch(model) gave a {type(result).__name__}: it must give the loss, a tensor")
        return result
    with torch.enable_grad():
        if isinstance(batch, tuple | list) and len(batch) == 2:
            x, y = (_moved(model, torch.as_tensor(part)) for part in batch)
            logits = _tensor(model(x))
            return functional.cross_entropy(logits.flatten(0, -2), y.flatten() if y.dim() < logits.dim() else y)
        if isinstance(batch, Mapping) or hasattr(batch, "keys"):
            output = model(**{k: _moved(model, v) if isinstance(v, torch.Tensor) else v for k, v in batch.items()})
            loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            if loss is None:
                raise core.UserError("the model's output has no loss: put labels into the batch, or give (x, y)")
            return loss
        return _tensor(core.run(model, batch)).float().square().mean()


def _moved(model: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """On the model's device; floating numbers in its own."""
    first = next(model.parameters())
    return tensor.to(first.device, first.dtype if tensor.is_floating_point() else tensor.dtype)


def _tensor(output: Any) -> torch.Tensor:
    """The logits in what a model gives."""
    found = getattr(output, "logits", output)
    if isinstance(found, tuple | list):
        found = found[0]
    if not isinstance(found, torch.Tensor):
        raise core.UserError(f"the model gives a {type(output).__name__}: give batch=lambda model: the loss")
    return found


def hooked(gradient: torch.Tensor, parameter: nn.Parameter, hooks: Mapping[int, Callable[..., Any]]) -> torch.Tensor:
    """What the parameter's own hooks make of a gradient."""
    with torch.no_grad():
        for hook in hooks.values():
            made = hook(gradient)
            gradient = gradient if made is None else made
    return gradient


def factor(seen: torch.Tensor, raw: torch.Tensor) -> float:
    """By how much a gradient was multiplied on its way."""
    a, b = (t.detach().to_dense() if t.is_sparse else t.detach() for t in (seen, raw))
    square = float((b.double() ** 2).sum())
    return float((a.double() * b.double()).sum()) / square if square else 1.0
