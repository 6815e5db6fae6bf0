"""Depth by execution order, for a model that nobody described: which layers are blocks, and in which order they ran.

All follows from the nesting of the modules and from one traced forward; no architecture is known by name.

- A *block* is a child of a list (Sequential, ModuleList, siblings that differ in a trailing number) with two weight
  layers or more, as deep in the nesting as lists of blocks go. Blocks have depths 1, 2, ... in order of execution.
- What runs before the first block is the stem, depth 0, and so are arrays that no layer owns: position tables, tokens,
  relative biases. A lone number (a logit scale) counts with the head.
- Between blocks, a layer (a downsampling) counts with the block that follows it, a norm with what precedes it.
- After the last block each weight layer counts for itself, the norms after it with it; those right after the block
  count with the layer that follows, as in MAE and BEiT. The last is the head.
- A model without blocks has one depth per weight layer.
- Two or more *towers* (text and image, encoder and decoder) each have their own depth, aligned at their last blocks.
- Adapters (LoRA) lie in their host and have its depth; tied weights have that of their first use.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, prod
from typing import NamedTuple

Array = tuple[str, tuple[int, ...]]


class Module(NamedTuple):
    """One module of a native model.

    Args:
        path: dotted; "" is the model itself.
        kind: its class.
        series: whether it is a list of modules (Sequential, ModuleList, ...).
        arrays: names and shapes of the parameters and buffers that it owns; a tied one is its first user's.
        called: its place in the order of first calls in one forward; None where it was not called.
    """

    path: str
    kind: str
    series: bool
    arrays: tuple[Array, ...]
    called: int | None


class Order(NamedTuple):
    """What was found.

    Args:
        depths: of every array, by name.
        head: paths of the modules that are the head; empty where there is none.
        confidence: share of the numbers whose place the forward showed; times 0.9 where no blocks were found.
        reasons: lines for people.
    """

    depths: Mapping[str, int]
    head: tuple[str, ...]
    confidence: float
    reasons: tuple[str, ...]


@dataclass(eq=False)
class _Node:
    module: Module
    index: int = 0
    children: list["_Node"] = field(default_factory=list)
    outer: bool = False  # the model, or what most of such a one's layers lie in

    @property
    def name(self) -> str:
        return self.module.path.rpartition(".")[2]

    def walk(self) -> Iterator["_Node"]:
        yield self
        for child in self.children:
            yield from child.walk()

    @cached_property
    def weights(self) -> int:
        """Weight layers in it; an adapter's are its host's."""
        if any(child.name == "base_layer" for child in self.children):
            return 1
        own = any(len(shape) > 1 for _, shape in self.module.arrays)
        return own + sum(child.weights for child in self.children)

    @cached_property
    def listed(self) -> list["_Node"]:
        """Its children that stand in a list; on the outside, those of one class too."""
        if self.module.series:
            return self.children
        families: dict[str, list[_Node]] = {}
        for child in self.children:
            numbered = re.fullmatch(r"(\D*)\d+", child.name)
            if numbered and (self.outer or not child.module.series):  # inside, lists side by side are branches
                families.setdefault(numbered[1], []).append(child)
            elif self.outer and not child.holds_blocks and not child.module.series:
                families.setdefault(f"class {child.module.kind}", []).append(child)
        return [child for family in families.values() if len(family) > 1 for child in family]

    @cached_property
    def holds_blocks(self) -> bool:
        """Whether a list is in it of two blocks or more; inside, they are of one class (else they are a block's parts)."""
        kinds = Counter("" if self.outer else child.module.kind for child in self.listed if child.weights > 1)
        return any(child.holds_blocks for child in self.children) or max(kinds.values(), default=0) > 1

    def arrays(self) -> list[Array]:
        return [array for node in self.walk() for array in node.module.arrays]

    def called(self) -> float:
        return min((node.module.called for node in self.walk() if node.module.called is not None), default=inf)


@dataclass(eq=False)
class _Unit:
    """What has one depth: a node, or what an opened node owns itself."""

    node: _Node
    arrays: list[Array]
    weights: int
    block: bool
    called: float


class _Levels(NamedTuple):
    """Units by depth; the first `blocks` of them are the stem and the blocks, the others come after the last block."""

    units: list[list[_Unit]]
    blocks: int


def execution_order(modules: Sequence[Module], heads: Sequence[str] = ()) -> Order:
    """The depth of every array.

    Args:
        modules: of the whole model, frozen parts too, as declared: parents before their children.
        heads: paths of the head's modules, where the model says so itself; else the layer that runs last.
    """
    root = _nest(modules)
    inner: _Node | None = root
    while inner:
        inner.outer, most = True, inner.weights / 2
        inside = () if inner.module.series else inner.children
        inner = next((child for child in inside if child.weights > most), None)
    levels = _levels(root, frozenset(heads))
    depths = {name: depth for depth, units in enumerate(levels.units) for unit in units for name, _ in unit.arrays}
    after = levels.units[levels.blocks :]
    top = [unit.node.module.path for unit in after[-1] if unit.weights] if after else []
    return Order(depths, tuple(heads) or tuple(top), *_confidence(root, levels))


def _nest(modules: Sequence[Module]) -> _Node:
    nodes: dict[str, _Node] = {}
    for module in modules:
        node = nodes[module.path] = _Node(module, len(nodes))
        parent = module.path
        while parent:
            parent = parent.rpartition(".")[0]
            if parent in nodes:
                nodes[parent].children.append(node)
                break
    return nodes[""]


def _levels(node: _Node, heads: frozenset[str]) -> _Levels:
    """Of a model or a tower."""
    towers = _towers(node)
    units = [unit for unit in _units(node, set(towers), not node.holds_blocks) if unit.arrays]
    _stand_in(units)
    top = [unit for unit in units if _under(unit.node.module.path, heads)]
    rest = [unit for unit in units if unit not in top]
    loose = [unit for unit in rest if unit.called < 0]
    chain = sorted((unit for unit in rest if unit.called >= 0), key=lambda unit: unit.called)
    found = _merge(towers, chain, top, heads) if towers else _chain(chain, top)
    scalars = [unit for unit in loose if all(prod(shape) == 1 for _, shape in unit.arrays)]
    found.units[0].extend(unit for unit in loose if unit not in scalars)
    found.units[-1].extend(scalars)
    return found


def _under(path: str, heads: frozenset[str]) -> bool:
    return any(path == head or path.startswith(f"{head}.") for head in heads)


def _towers(node: _Node) -> list[_Node]:
    """Differently named modules that hold blocks and stand side by side, at `node` or below its only holder."""
    holders = [child for child in node.children if child.holds_blocks]
    apart = [child for child in holders if not child.module.series and child not in node.listed]
    if len(apart) > 1:
        return apart
    return _towers(holders[0]) if len(holders) == 1 else []


def _units(node: _Node, towers: set[_Node], plain: bool) -> Iterator[_Unit]:
    """In the order of declaration; a tower is left out."""
    yield from (_Unit(node, [array], 0, False, -1.0) for array in node.module.arrays)
    for child in node.children:
        if child in towers:
            continue
        block = child in node.listed and child.weights > 1 and not plain
        if (
            child.holds_blocks
            or (child.module.series and not block)
            or (plain and child.children and not child.module.arrays)
        ):
            yield from _units(child, towers, plain)
        else:
            yield _Unit(child, child.arrays(), child.weights, block or (plain and child.weights > 0), child.called())


def _stand_in(units: Sequence[_Unit]) -> None:
    """What was not called stands where it is declared: after the unit before it."""
    last = 0.0
    for unit in units:
        if unit.called == inf:
            unit.called = last
        elif unit.called >= 0:
            last = unit.called


def _chain(units: Sequence[_Unit], top: Sequence[_Unit]) -> _Levels:
    """Units in order of execution, by depth; `top` is the head, where the model names it."""
    at = [i for i, unit in enumerate(units) if unit.block]
    if not at:
        return _Levels([list(units), list(top)] if top else [list(units)], 1)
    levels: list[list[_Unit]] = [list(units[: at[0]])]
    waiting: list[_Unit] = []
    for unit in units[at[0] : at[-1] + 1]:
        if unit.block or unit.weights > 1:
            levels.append([*waiting, unit])
            waiting = []
        elif unit.weights:
            waiting.append(unit)
        else:
            (waiting or levels[-1]).append(unit)
    if not levels[0]:
        del levels[0]
    blocks = len(levels)
    for unit in units[at[-1] + 1 :]:
        if unit.weights:
            levels.append([*waiting, unit])
            waiting = []
        else:
            (levels[-1] if len(levels) > blocks else waiting).append(unit)
    if top:
        levels.append([*waiting, *top])
    else:
        levels[-1] += waiting
    return _Levels(levels, blocks)


def _confidence(root: _Node, levels: _Levels) -> tuple[float, tuple[str, ...]]:
    """How sure it is, and why."""
    owners = [node for node in root.walk() if node.module.arrays and node is not root]
    sizes = {node: sum(prod(shape) for _, shape in node.module.arrays) for node in owners}
    within = {child: node for node in root.walk() for child in node.children}
    seen = [node for node in owners if any(n.module.called is not None and n is not root for n in (node, within[node]))]
    share = sum(sizes[node] for node in seen) / max(sum(sizes.values()), 1)
    reasons = [f"{len(seen)} of {len(owners)} layers ran in one traced forward"]
    if unseen := [node.module.path for node in owners if node not in seen]:
        reasons.append(f"placed where they are declared: {', '.join(unseen[:3])}{', ...' if unseen[3:] else ''}")
    if towers := _towers(root):
        reasons.append(
            f"{len(towers)} towers, aligned at their last blocks: {', '.join(t.module.path for t in towers)}"
        )
    if levels.blocks > 1 and root.holds_blocks:
        reasons.append(f"{levels.blocks - 1} blocks between stem and head")
        return share, tuple(reasons)
    return 0.9 * share, (*reasons, "no list of blocks: each weight layer has a depth of its own")


def _merge(towers: Sequence[_Node], units: Sequence[_Unit], top: Sequence[_Unit], heads: frozenset[str]) -> _Levels:
    """Towers aligned at their last blocks. A layer that is declared and runs before a tower is of its stem; all others
    are the top."""
    each, after = [], list(units)
    for tower in sorted(towers, key=_Node.called):
        found = _levels(tower, heads)
        stem = [unit for unit in after if unit.node.index < tower.index and unit.called < tower.called()]
        found.units[0].extend(stem)
        after = [unit for unit in after if unit not in stem]
        each.append(found)
    blocks = max(found.blocks for found in each)
    levels: list[list[_Unit]] = [[] for _ in range(max(blocks - f.blocks + len(f.units) for f in each))]
    for found in each:
        for depth, held in enumerate(found.units, blocks - found.blocks):
            levels[depth].extend(held)
    after += top
    return _Levels([*levels, after] if after else levels, blocks)
