"""Arrays of a file into a declared model: what is taken as it is, what is fitted, what starts anew, what is refused."""

from itertools import takewhile
from math import ceil, isqrt
from typing import NamedTuple

import numpy as np

from ..planning import UserError, plain
from .finding import FINAL_NORMS, Found, backbone, needed
from .layers import Array, Tree, param_table, specs
from .reading import Held, State

CHANGES_ALL = ("norm_pre",)
"""Modules of their own that change what every later layer sees."""
POOLS = {"norm": "token", "fc_norm": "avg"}
REGISTERS = ("reg_token", "register_tokens")


class Misfit(UserError):
    """The file is of another model; `remedied`: the message says how to go on."""

    def __init__(self, message: str, remedied: bool = False) -> None:
        super().__init__(message)
        self.remedied = remedied


class Fitted(NamedTuple):
    """Arrays by canonical name in the model's shapes, as far as the file has them; and what to tell."""

    arrays: dict[str, Array]
    notes: list[str]


def fit(tree: Tree, found: Found, file: str, resize: bool = True, renew_head: bool = False) -> Fitted:
    """What of a file goes into the model.

    Args:
        tree: the model.
        found: the file's arrays by the model's names.
        file: its name, for messages.
        resize: fit a position embedding of another grid.
        renew_head: leave the file's head out.

    Raises:
        Misfit: some of the backbone is missing, is of another shape, or has layers that the model lacks.
        UserError: an array holds no numbers.
    """
    wanted = {name: tuple(spec.shape) for name, spec, _, _ in specs(tree)}
    held, notes = dict(found.arrays), list(found.notes)
    _refuse_others(tree, found, file)
    notes += _final_norm(tree, held, found, file)
    notes += _head(tree, held, wanted, file, renew_head)
    fitted: dict[str, Array] = {}
    wrong = []
    for name, want in wanted.items():
        if name not in held:
            continue
        array = _numbers(file, name, held[name])
        if array.shape == want:
            fitted[name] = float32(file, name, array)
        elif other := _fitted(tree, file, name, array, want, found, resize):
            fitted[name], note = other[0].astype(np.float32), other[1]
            notes.append(note)
        else:
            wrong.append(f"{name} {list(array.shape)} instead of {list(want)}")
    if wrong:
        raise Misfit(_fault(tree, file, "of another shape", wrong))
    return Fitted(fitted, notes + _left_out(found, file))


def _fault(tree: Tree, file: str, fault: str, names: list[str], more: str = "") -> str:
    shown = f"{', '.join(map(plain, names[:4]))}{', ...' if len(names) > 4 else ''}"
    return f"{file} does not fit model {tree.name}: {len(names)} {fault}: {shown}{more}"


def _refuse_others(tree: Tree, found: Found, file: str) -> None:
    """Another model: some of the backbone is not there, or there is more of it than the model has."""
    if missing := [name for name in needed(tree) if name not in found.arrays]:
        others = [*found.alike, *found.beside]
        more = f"; it holds {len(others)} of other names: {', '.join(map(plain, others[:4]))}" if others else ""
        raise Misfit(_fault(tree, file, "missing from the file", missing, f"{more}{', ...' if others[4:] else ''}"))
    modules = {_module(name) for name in backbone(tree) if "." in name} - set(FINAL_NORMS)
    if layers := [name for name in found.alike if "." in name and _module(name) in {*modules, *CHANGES_ALL}]:
        raise Misfit(_fault(tree, file, "not in the model", layers))


def _module(name: str) -> str:
    """The outermost module, without its number: fc3 is of the row fc1, fc2."""
    return name.partition(".")[0].rstrip("0123456789")


def _final_norm(tree: Tree, held: State, found: Found, file: str) -> list[str]:
    """A ViT's last norm is another one with another pool: it starts anew, as in MAE's fine-tuning."""
    mine = {name for name in backbone(tree) if name.partition(".")[0] in FINAL_NORMS}
    if mine <= set(held):
        return []
    name = next(iter(mine)).partition(".")[0]
    other = FINAL_NORMS[name]
    if f"{other}.weight" not in found.alike:
        raise Misfit(_fault(tree, file, "missing from the file", sorted(mine - set(held))))
    for key in mine & set(held):
        del held[key]
    return [f"{name} starts from initial values: the file has {other}, of model.pool={POOLS[other]}"]


def _head(tree: Tree, held: State, wanted: dict[str, tuple[int, ...]], file: str, renew: bool) -> list[str]:
    """The head as a whole or not at all: a kept bias would belong to other classes."""
    table = param_table(tree)
    head = [name for name in wanted if table.is_head(name)]
    there = [name for name in head if name in held]
    if renew:
        why = "as weights.renew_head says"
    elif not there:
        why = "the file has none"
    elif any(np.shape(held[name]) != wanted[name] for name in there):
        why = "the file's is of another size"
    elif there != head:
        lacking = [name for name in head if name not in there]
        way = "; weights.renew_head=true starts the head anew"
        raise Misfit(_fault(tree, file, "missing from the file", lacking, way), remedied=True)
    else:
        return []
    for name in there:
        del held[name]
    return [f"head {tree.head} starts from initial values: {why}"]


def _left_out(found: Found, file: str) -> list[str]:
    names = [*found.alike, *found.beside]
    if not names:
        return []
    rows: dict[str, list[list[str]]] = {}
    for name in names:
        rows.setdefault(name.partition(".")[0], []).append(name.split("."))
    shown = [f"{plain(_common(row))}{f' ({len(row)})' if len(row) > 1 else ''}" for row in rows.values()]
    much = f"{len(names)} arrays" if len(names) > 1 else "1 array"
    return [f"{much} of {file} left out, not the model's: {', '.join(shown[:6])}{', ...' if shown[6:] else ''}"]


def _common(names: list[list[str]]) -> str:
    """What dotted names begin with, all of them."""
    return ".".join(words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*names, strict=False)))


def _numbers(file: str, name: str, held: Held) -> Array:
    """An array of floating-point numbers.

    Raises:
        UserError: it is of anything else; of a quantized model for example.
    """
    if isinstance(held, str) or held.dtype.kind != "f":
        kind = held if isinstance(held, str) else str(held.dtype)
        quantized = " (quantized?)" if "int" in kind or "8" in kind else ""
        raise UserError(
            f"{file}: {name} is of {plain(kind)}{quantized}, not of floating-point numbers; "
            "take another file, or weights=none"
        )
    return held


def float32(file: str, name: str, held: Held) -> Array:
    """An array of the file as the frameworks take it.

    Raises:
        UserError: some are no numbers, or more than float32 holds.
    """
    array = _numbers(file, name, held)
    with np.errstate(over="ignore"):
        numbers = np.array(array, np.float32, order="C")
    if count := int((~np.isfinite(numbers)).sum()):
        raise UserError(
            f"{file}: {count} of {array.size} numbers of {name} are NaN, infinite or more than float32 "
            "holds; take another file, or weights=none"
        )
    return numbers


def _fitted(
    tree: Tree, file: str, name: str, array: Array, want: tuple[int, ...], found: Found, resize: bool
) -> tuple[Array, str] | None:
    """The array in another shape and what was done to it; None: it cannot be."""
    stem, _, layer, _ = next(specs(tree))
    if name == stem and layer.kind == "conv" and array.size and _but(array.shape, 1) == _but(want, 1):
        return fit_channels(float32(file, name, array), want[1])
    if name == "pos_embed" and array.ndim == 3 and _but(array.shape, 1) == _but(want, 1):
        try:
            return fit_pos_embed(float32(file, name, array), want[1], found.alike, resize)
        except Misfit as misfit:
            told = f"{file} does not fit model {tree.name}: {misfit}"
            raise Misfit(told, misfit.remedied) from None
    return None


def _but(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def fit_channels(weight: Array, channels: int) -> tuple[Array, str]:
    """A first convolution for another number of channels: timm's adapt_input_conv."""
    held = weight.shape[1]
    if channels == 1:
        done = weight.sum(1, keepdims=True, dtype=np.float64)
        return done, f"stem: its {held} input channels summed to 1"
    done = np.tile(weight, (1, ceil(channels / held), 1, 1))[:, :channels] * (held / channels)
    return done, f"stem: its {held} input channels repeated to {channels}, times {held}/{channels}"


def fit_pos_embed(held: Array, tokens: int, alike: State, resize: bool = True) -> tuple[Array, str]:
    """A ViT's position embedding for the class token and another square grid: timm's resample_abs_pos_embed.

    Args:
        held: [1, prefix + n * n, D]; the prefix is the class token, with DeiT's distillation token or register
            tokens after it, or nothing.
        tokens: 1 + m * m, the number wanted.
        alike: the file's other arrays: whether they hold such tokens.
        resize: whether another grid is fitted.

    Raises:
        Misfit: no such grid; or another one, and it shall not be fitted.
    """
    count, new = held.shape[1], isqrt(tokens - 1)
    extra = 1 if "dist_token" in alike else next((np.shape(alike[n])[1] for n in REGISTERS if _is_token(alike, n)), 0)
    prefixes = [
        p for p in dict.fromkeys((1 + extra if "dist_token" in alike else 1, 1, 0, 1 + extra)) if _square(count - p)
    ]
    if not prefixes:
        raise Misfit(
            f"pos_embed of {count} positions: neither they nor all but the class token's make a square grid, "
            f"this model's is {new}x{new}, and the sides of an oblong one cannot be seen"
        )
    prefix = prefixes[0]
    old = isqrt(count - prefix)
    if old != new and not resize:
        raise Misfit(
            f"pos_embed of {old}x{old} patches instead of {new}x{new}; weights.resize_pos_embed=true fits it",
            remedied=True,
        )
    grid = held[0, prefix:].reshape(old, old, -1).astype(np.float64)
    told = []
    if old != new:
        along = bicubic(old, new)
        grid = np.einsum("iy,jx,yxc->ijc", along, along, grid, optimize=True)
        told.append(f"resized from {old}x{old} to {new}x{new}")
    if prefix == 0:
        told.append("no position of the class token in the file: zero")
    if prefix > 1:
        told.append(f"{prefix - 1} after the class token's left out, of tokens that the model lacks")
    first = held[:, :1] if prefix else np.zeros_like(held[:, :1])
    done = np.concatenate([first, grid.reshape(1, new * new, -1)], axis=1)
    return done, f"position embedding: {', '.join(told)}"


def _is_token(alike: State, name: str) -> bool:
    return name in alike and len(np.shape(alike[name])) == 3


def _square(number: int) -> bool:
    return number > 0 and isqrt(number) ** 2 == number


def bicubic(old: int, new: int) -> Array:
    """[new, old] weights of a resize with antialias: Keys' cubic with a = -0.5, widened where it shrinks."""
    scale = old / new
    width = max(scale, 1.0)
    centre = (np.arange(new)[:, None] + 0.5) * scale
    x = np.abs(np.arange(old)[None] + 0.5 - centre) / width
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)
