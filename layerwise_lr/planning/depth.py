"""The depth of every parameter, by one of several conventions; the same model has more than one.

`tree` is what the model declares; `order` gives each layer its own depth, in execution order; the others are
published code bases', by parameter name:
  mae   facebookresearch/mae@efb2a80 util/lr_decay.py (= seed document 001's get_layer_idx_for_vit)
  beit  microsoft/unilm@768a3c8 beit/optim_factory.py
  timm  timm 1.0.31 models/_manipulate.py group_with_matcher over each family's group_matcher
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from .errors import UserError, did_you_mean
from .params import ParamTable


class Family(NamedTuple):
    """How timm orders a family's parameters: a stem, numbered blocks, and what comes after the last block.

    Of `blocks`, the first regex that matches gives the sort key (its groups as integers, then `suffix`);
    what matches nothing is the head. `tail` is counted with the last block, not as a depth of its own.
    """

    stem: str
    blocks: tuple[tuple[str, tuple[int, ...]], ...]
    tail: str = "$^"


TIMM = {
    "vit": Family(
        r"cls_token|pos_embed|reg_token|patch_embed|norm_pre|mask_token|rel_pos_bias",
        ((r"blocks\.(\d+)\.", ()),),
        r"norm\.",
    ),
    "resnet": Family(r"conv1|bn1", ((r"layer(\d+)\.(\d+)\.", ()),)),
    "convnext": Family(
        r"stem\.", ((r"stages\.(\d+)\.downsample", (0,)), (r"stages\.(\d+)\.blocks\.(\d+)", ())), r"norm_pre"
    ),
    "mobilenetv3": Family(r"conv_stem|bn1", ((r"blocks\.(\d+)\.(\d+)\.", ()),)),
}


def tree_depths(table: ParamTable) -> dict[str, int]:
    """As declared by the model."""
    return {row.name: row.depth for row in table}


def order_depths(table: ParamTable) -> dict[str, int]:
    """One depth per layer that has parameters, in execution order."""
    layers = list(dict.fromkeys(row.name.rpartition(".")[0] for row in table))
    return {row.name: layers.index(row.name.rpartition(".")[0]) for row in table}


def vit_depths(table: ParamTable, stem: str) -> dict[str, int]:
    """MAE's and BEiT's: `stem` 0, blocks.i at i + 1, all the rest with the head."""
    blocks = [int(m[1]) for row in table if (m := re.match(r"blocks\.(\d+)\.", row.name))]
    if not blocks:
        raise UserError("this depth convention knows ViT only and found no blocks.0; use grouping.depth=tree")

    def depth(name: str) -> int:
        if re.match(stem, name):
            return 0
        block = re.match(r"blocks\.(\d+)\.", name)
        return int(block[1]) + 1 if block else max(blocks) + 2

    return {row.name: depth(row.name) for row in table}


def timm_depths(table: ParamTable) -> dict[str, int]:
    """timm's, by the first family in which every regex kind finds something."""
    return family_depths([row.name for row in table])


def family_depths(names: Iterable[str]) -> dict[str, int]:
    """timm's numbering of `names`: distinct sort keys in order are depths 0, 1, 2, ..."""
    names = list(names)
    for family in TIMM.values():
        found = [any(re.match(regex, n) for n in names) for regex, _ in family.blocks]
        if all(found) and any(re.match(family.stem, n) for n in names):
            break
    else:
        raise UserError(
            f"grouping.depth=timm knows {', '.join(TIMM)} and recognises none of these names; use grouping.depth=tree"
        )

    def key(name: str) -> tuple[float, ...]:
        if re.match(family.stem, name):
            return (-1,)
        if re.match(family.tail, name):
            return (float("inf"), 0)
        for regex, suffix in family.blocks:
            if match := re.match(regex, name):
                return (*map(int, match.groups()), *suffix)
        return (float("inf"), 1)

    keys = {name: key(name) for name in names}
    order = sorted(k for k in set(keys.values()) if k != (float("inf"), 0))
    last_block = max(i for i, k in enumerate(order) if k[0] != float("inf"))
    return {name: last_block if k == (float("inf"), 0) else order.index(k) for name, k in keys.items()}


CONVENTIONS: Mapping[str, Callable[[ParamTable], dict[str, int]]] = {
    "tree": tree_depths,
    "order": order_depths,
    "mae": lambda table: vit_depths(table, r"cls_token$|pos_embed$|patch_embed"),
    "beit": lambda table: vit_depths(table, r"cls_token$|mask_token$|pos_embed$|patch_embed"),
    "timm": timm_depths,
}


def assign(table: ParamTable, convention: str) -> ParamTable:
    """`table` with the depths of `convention`."""
    if convention not in CONVENTIONS:
        raise UserError(
            f"grouping.depth={convention!r} is unknown; there are: {', '.join(CONVENTIONS)}"
            + did_you_mean(convention, list(CONVENTIONS))
        )
    return table.with_depths(CONVENTIONS[convention](table))
