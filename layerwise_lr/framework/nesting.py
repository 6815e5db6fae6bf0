"""From the modules of any framework to a Description: what is equal in all of them is written once, here."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..planning import Module, ParamInfo, bare_name
from .describing import Description

SIZES = (224, 256, 299, 384, 64, 32, 28)
"""Sides of pictures that are tried on a convolution, in this order."""
WORDS = (1, 8)
"""Shape of the token ids that are tried on an embedding."""
ROLES = {"weight": "scale", "gamma": "scale", "bias": "shift", "beta": "shift"}
"""Of a norm's arrays; the others are its buffers."""

Calls = Mapping[str, int]
"""Module path -> its place in the order of first calls."""


class NativeTensor(NamedTuple):
    """A parameter or a buffer, where a module owns it.

    Args:
        key: its name in the module.
        tensor: the native object; a tied one is the same in several modules.
        shape: in PyTorch's order.
        trainable: whether it gets a gradient.
        buffer: whether it is one.
    """

    key: str
    tensor: Any
    shape: tuple[int, ...]
    trainable: bool = True
    buffer: bool = False


class NativeModule(NamedTuple):
    """A module: where it is, what it is, what it owns itself.

    Args:
        path: dotted; "" is the model.
        kind: its class.
        layer_type: in the words of ParamInfo.
        series: whether it is a list of modules.
        tensors: its own.
    """

    path: str
    kind: str
    layer_type: str
    series: bool
    tensors: tuple[NativeTensor, ...]


def layer_type(module: Any, known: Mapping[str, tuple[type, ...]]) -> str:
    """In the words of ParamInfo, by the framework's classes; a layer of another kind by its class's name."""
    found = (name for name, classes in known.items() if isinstance(module, classes))
    named = type(module).__name__.lower()
    return next(found, "layernorm" if named.endswith("norm") else "conv" if named.startswith("conv") else named)


def describe(
    modules: Iterable[NativeModule],
    calls: Calls,
    notes: tuple[str, ...] = (),
    exempt: Collection[str] = (),
    heads: tuple[str, ...] = (),
    matcher: Mapping[str, Any] | None = None,
) -> Description:
    """The model as data: parameters, then buffers, by bare name; tied ones once, with their first user.

    Args:
        modules: parents before their children.
        calls: by bare path; empty where no forward was traced.
        notes, heads, matcher: as in Description.
        exempt: names that the model's author exempts from weight decay.
    """
    nested = {bare_name(module.path): module for module in modules}
    users: dict[int, list[str]] = {}
    for path, module in nested.items():
        for own in module.tensors:
            users.setdefault(id(own.tensor), []).append(path)
    rows: list[ParamInfo] = []
    arrays: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    done: set[int] = set()
    for buffers in (False, True):
        for path, module in nested.items():
            for own in module.tensors:
                if own.buffer is not buffers or id(own.tensor) in done:
                    continue
                done.add(id(own.tensor))
                name = _name(path, own.key)
                loose = not re.search("weight|bias", own.key) and _holds_layers(path, nested)
                kind = "token" if name in exempt or loose else module.layer_type
                rows.append(ParamInfo(name, own.shape, kind, _role(own.key, kind), 0, own.trainable and not buffers))
                first = min(users[id(own.tensor)], key=lambda p: calls.get(p, len(calls)))
                arrays.setdefault(first, []).append((name, own.shape))
    told = tuple(
        Module(path, m.kind, m.series, tuple(arrays.get(path, ())), calls.get(path)) for path, m in nested.items()
    )
    return Description(tuple(rows), told, heads, matcher, notes)


def _name(path: str, key: str) -> str:
    return bare_name(f"{path}.{key}" if path else key)


def _role(key: str, kind: str) -> str:
    if kind.endswith("norm"):
        return ROLES.get(key, "buffer")
    return "bias" if key.endswith("bias") else "weight"


def _holds_layers(path: str, nested: Mapping[str, NativeModule]) -> bool:
    """Whether layers lie in it: what it owns besides is no layer's weight, but a token or a position table."""
    inside = f"{path}." if path else ""
    return any(
        other != path and other.startswith(inside) and any(not own.buffer for own in module.tensors)
        for other, module in nested.items()
    )


def tensors(modules: Iterable[NativeModule], buffers: bool = False) -> dict[str, Any]:
    """The native parameters by the names that `describe` gives them, and the buffers if wanted."""
    found: dict[int, tuple[str, Any]] = {}
    for module in modules:
        for own in module.tensors:
            if buffers or not own.buffer:
                found.setdefault(id(own.tensor), (_name(bare_name(module.path), own.key), own.tensor))
    return dict(found.values())


def first_calls(trace: Callable[[Any], Calls], batch: Any, made_up: Iterable[Any]) -> tuple[Calls, tuple[str, ...]]:
    """The order of calls in one forward; notes where none succeeded.

    Args:
        trace: one forward on a batch.
        batch: what the user gave; None: the first of `made_up` that the model takes.
        made_up: native inputs, the likeliest first.
    """
    if batch is not None:
        return trace(batch), ()
    failed = "it has no parameters"
    for made in made_up:
        try:
            return trace(made), ()
        except Exception as error:  # whatever a foreign forward raises: the next guess may fit
            failed = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return {}, (f"no made-up input fits ({failed}): order of declaration; give batch=",)


def likely_inputs(modules: Sequence[NativeModule], most: int = 24) -> Iterator[np.ndarray]:
    """Inputs that the model might take, by its layers: which of them is the first, only a forward tells."""
    seen: set[tuple[int, ...]] = set()
    for module in modules:
        weight = next((own.shape for own in module.tensors if len(own.shape) > 1), ())
        for shape in _input_shapes(module.layer_type, weight):
            if shape not in seen and len(seen) < most:
                seen.add(shape)
                yield np.zeros(shape, np.float32) if shape != WORDS else np.ones(shape, np.int32)


def _input_shapes(kind: str, weight: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Of what a layer with this weight takes."""
    if kind == "conv" and len(weight) > 2:
        return [(1, weight[1], *[side] * (len(weight) - 2)) for side in SIZES]
    if kind == "linear" and len(weight) == 2:
        return [(1, weight[1]), (1, WORDS[1], weight[1])]
    return [WORDS] if kind == "embedding" else []


def run(model: Any, batch: Any) -> Any:
    """The model's output on a batch: a tensor, a tuple of arguments, a mapping of keywords, or a function of it."""
    if isinstance(batch, Mapping) or hasattr(batch, "keys"):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return batch(model) if callable(batch) else model(batch)
