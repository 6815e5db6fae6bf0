"""A model's arrays in a file: under which key, behind which prefix, with which head."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..planning import UserError, plain
from .layers import Tree, join, param_table
from .reading import File, State

AVERAGED = ("state_dict_ema", "model_ema", "module_ema", "ema_state_dict", "ema_model", "ema", "teacher")
"""Taken before others, as timm's load_checkpoint(use_ema=True) and DINO's evaluation do."""
HEADS = ("head", "fc", "classifier", "head.fc", "heads.head", "classifier.1", "linear")
"""What libraries call a head: timm, torchvision, Hugging Face, mmpretrain."""
LONGEST = 1000  # letters of a prefix
FINAL_NORMS = {"norm": "fc_norm", "fc_norm": "norm"}
"""timm's last norm, before or after pooling: with another pool it is another one."""


class Place(NamedTuple):
    """Names in one state that end as the model's do: `at` the state, behind `prefix`."""

    at: str
    prefix: str

    @property
    def label(self) -> str:
        """As weights.key takes it."""
        return join(self.at, self.prefix.rstrip("."))


class Found(NamedTuple):
    """What a file holds of a model.

    Args:
        arrays: by the model's names; not all need be there.
        alike: the other arrays behind the same prefix, without it.
        beside: names of the other arrays of that state.
        notes: what was decided.
    """

    arrays: State
    alike: State
    beside: list[str]
    notes: list[str]


def backbone(tree: Tree) -> list[str]:
    """The model's names but for its head's."""
    table = param_table(tree)
    return [row.name for row in table if not table.is_head(row.name)]


def needed(tree: Tree) -> list[str]:
    """What a file must hold: the backbone, but for a ViT's final norm."""
    return [name for name in backbone(tree) if name.partition(".")[0] not in FINAL_NORMS]


def find(tree: Tree, file: File, key: str | None) -> Found:
    """The model's arrays, from the place that has most of them.

    Raises:
        UserError: there are no arrays, `key` leads to none, or several places fit equally.
    """
    if not file.states:
        raise UserError(f"{file.name} holds no arrays; take another file, or weights=none")
    if file.states.keys() == {""} and file.states[""].keys() == {""}:
        raise UserError(
            f"{file.name} holds one array without a name; weights are arrays by name, as state_dict() gives"
        )
    counts = _places(tree, file)
    if key is not None:
        counts = Counter({place: n for place, n in counts.items() if _leads(key, place, counts)})
        if not counts:
            there = sorted({place.label for place, n in _places(tree, file).items() if place.label and n > 1})
            raise UserError(
                f"weights.key={key}: {file.name} has no weights of model {tree.name} there; "
                f"there are: {plain(', '.join(there), 200) or 'no other keys: leave weights.key out'}"
            )
    full = [place for place in counts if _holds(file, place, tree)]
    place, notes = _choose(full, file) if full else (_most(counts, len(needed(tree)), file), [])
    state = file.states[place.at]
    used = {place.prefix + name: name for name in backbone(tree) if place.prefix + name in state}
    head, where = _head(tree, state, place.prefix, {p.prefix for p in full if p.at == place.at})
    if place.prefix and used:
        notes.append(f"prefix {plain(place.prefix)} taken off the names of {file.name}")
    if head and where != place.prefix + tree.head:
        notes.append(f"head {tree.head} is read from {plain(where)}")
    used |= head
    rest = [name for name in state if name not in used and not name.endswith("num_batches_tracked")]
    alike = {name.removeprefix(place.prefix): state[name] for name in rest if name.startswith(place.prefix)}
    beside = [name for name in rest if not name.startswith(place.prefix)]
    return Found({name: state[held] for held, name in used.items()}, alike, beside, notes)


def _places(tree: Tree, file: File) -> "Counter[Place]":
    """How many of the backbone's names end names of the file, by what stands before them."""
    names = set(backbone(tree))
    return Counter(
        Place(at, prefix)
        for at, state in file.states.items()
        for name in state
        for prefix, rest in _cuts(name)
        if rest in names
    )


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """A name cut at its dots, in every way; the ends of a hostile one are not of interest."""
    yield "", name
    for at, letter in enumerate(name[:LONGEST]):
        if letter == ".":
            yield name[: at + 1], name[at + 1 :]


def _holds(file: File, place: Place, tree: Tree) -> bool:
    return all(place.prefix + name in file.states[place.at] for name in needed(tree))


def _leads(key: str, place: Place, places: "Counter[Place]") -> bool:
    """`key` is the place's label, or where there is none such, whole words of it."""
    if key in {other.label for other in places}:
        return place.label == key
    return f".{key}." in f".{place.label}."


def _most(counts: "Counter[Place]", needed: int, file: File) -> Place:
    """The place that lacks least; where all lack more than half, the largest state as it is."""
    place, count = counts.most_common(1)[0] if counts else (Place("", ""), 0)
    return place if 2 * count > needed else Place(max(file.states, key=lambda at: len(file.states[at])), "")


def _choose(full: list[Place], file: File) -> tuple[Place, list[str]]:
    """The one place that fits, or the first kind of AVERAGED among several, which is told."""

    def rank(place: Place) -> int:
        ranks = [AVERAGED.index(word) for word in place.label.split(".") if word in AVERAGED]
        return min(ranks, default=len(AVERAGED) + bool(place.label))  # then the file itself

    if len(full) == 1:
        return full[0], [f"read from key {plain(full[0].at)} of {file.name}"] if full[0].at else []
    labels = {place: plain(place.label) or "the file itself" for place in full}
    best = [place for place in full if rank(place) == min(map(rank, full))]
    if len(best) > 1:
        raise UserError(
            f"{file.name} holds {len(full)} sets of weights that fit: {', '.join(labels[p] for p in full[:6])}; "
            f"choose one: weights.key={labels[full[0]]}"
        )
    others = [f"weights.key={labels[p]}" for p in full if p is not best[0] and p.label]
    way = f"; {' or '.join(others[:3])} takes the other" if others else ""
    return best[0], [f"{' and '.join(labels[p] for p in full[:4])} fit: {labels[best[0]]} is taken{way}"]


def _head(tree: Tree, state: State, prefix: str, others: set[str]) -> tuple[dict[str, str], str]:
    """The file's names of the head's arrays, each with the model's; and the module's name in the file.

    Looked for behind the backbone's prefix, then above it; under another name only where the size is the model's.
    """
    table = param_table(tree)
    wanted = {row.name: row.shape for row in table if table.is_head(row.name)}
    above = [p for p, _ in sorted(_cuts(prefix), key=lambda cut: -len(cut[0])) if p == prefix or p not in others]
    for before in above:
        if found := {before + name: name for name in wanted if before + name in state}:
            return found, before + tree.head
    for before in above:
        for module in HEADS:
            names = {before + module + name.removeprefix(tree.head): name for name in wanted}
            if all(name in state and np.shape(state[name]) == wanted[own] for name, own in names.items()):
                return names, before + module
    return {}, ""
