"""How published code bases number the parts of a model, by name alone.

A numbering is a function of the bare names: each one's depth, or None where the code base does not know the name.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

Found = tuple[dict[str, int | None], int]
"""Depth by bare name (None: a name that the convention does not know), and num_layers."""
Numbering = Callable[[Sequence[str]], Found | None]
"""None: no such model at all."""


@dataclass(frozen=True)
class Blocks:
    """`stem` at 0, block i at `first` + i, `rest` at (number of blocks) + `last`, which is num_layers."""

    stem: str
    block: str
    rest: str
    first: int = 1
    last: int = 1

    def __call__(self, names: Sequence[str]) -> Found | None:
        """Depths by the first of stem, block, rest that matches."""
        found = [int(m[1]) for name in names if (m := re.match(self.block, name))]
        top = max(found, default=-1) + 1 + self.last

        def depth(name: str) -> int | None:
            if re.match(self.stem, name):
                return 0
            if block := re.match(self.block, name):
                return int(block[1]) + self.first
            return top if re.match(self.rest, name) else None

        return ({name: depth(name) for name in names}, top) if found else None


def convnext(names: Sequence[str], last: int = 12) -> Found | None:
    """Stages of 3, 3, 27, 3 blocks in 12 buckets, three blocks of the third stage in each, downsampling with what
    follows it. Its own names (downsample_layers.1, stages.2.0) and timm's (stages.1.downsample, stages.2.blocks.0)."""

    def depth(name: str) -> int | None:
        if re.match(r"stem\.", name):
            return 0
        if down := re.match(r"downsample_layers\.([0-3])\.|stages\.([1-3])\.downsample\.", name):
            return (0, 2, 3, last)[int(down[1] or down[2])]
        if block := re.match(r"stages\.([0-3])\.(?:blocks\.)?(\d+)\.", name):
            return (1, 2, 3 + int(block[2]) // 3, last)[int(block[1])]
        return last + 1 if re.match(r"norm\d?\.|norm_pre\.|head\.|neck\.", name) else None

    depths = {name: depth(name) for name in names}
    return (depths, last + 1) if any(re.match(r"stem\.|downsample_layers\.0\.", name) for name in names) else None


def swin_mm(names: Sequence[str]) -> Found | None:
    """A block each; downsampling ends its stage. timm counts it as the next stage's (layers.1.downsample), Swin's own
    code and mmpretrain as the stage's before (stages.0.downsample): which of them named it shows in stage 0."""
    block = re.compile(r"(?:stages|layers)\.(\d+)\.blocks\.(\d+)\.")
    down = re.compile(r"(?:stages|layers)\.(\d+)\.downsample\.")
    counts: dict[int, int] = {}
    for m in filter(None, map(block.match, names)):
        counts[int(m[1])] = max(counts.get(int(m[1]), 0), int(m[2]) + 1)
    ends = any(m[1] == "0" for m in filter(None, map(down.match, names)))
    top = sum(counts.values()) + 1

    def before(stage: int) -> int:
        return sum(n for s, n in counts.items() if s < stage)

    def depth(name: str) -> int | None:
        if re.match(r"patch_embed\.", name):
            return 0
        if m := block.match(name):
            return before(int(m[1])) + int(m[2]) + 1
        if m := down.match(name):
            return before(int(m[1]) + ends)
        return top if re.match(r"norm\d?\.|head\.|neck\.|absolute_pos_embed$", name) else None

    return ({name: depth(name) for name in names}, top) if counts else None


BUCKETS = {(4, 6): (2, 3), (4, 23): (2, 3), (8, 36): (4, 4), (24, 36): (4, 4), (30, 48): (5, 6)}
"""mmpretrain's ResNets: blocks of layer2 and layer3 -> how many of each share a depth."""


def _resnet_mm(names: Sequence[str]) -> Found | None:
    """Buckets of blocks (`BUCKETS`); conv1 and bn1 at 0, the head at the top. ResNet-18 and 34 are not in the source."""
    block = re.compile(r"layer([1-4])\.(\d+)\.")
    counts = dict.fromkeys("1234", 0)
    for m in filter(None, map(block.match, names)):
        counts[m[1]] = max(counts[m[1]], int(m[2]) + 1)
    if (counts["2"], counts["3"]) not in BUCKETS:
        return None
    second, third = BUCKETS[counts["2"], counts["3"]]
    begin3 = 2 + ceil(counts["2"] / second)
    begin4 = begin3 + ceil(counts["3"] / third)

    def depth(name: str) -> int | None:
        if m := block.match(name):
            return (1, 2 + int(m[2]) // second, begin3 + int(m[2]) // third, begin4)[int(m[1]) - 1]
        if re.match(r"conv1\.|bn1\.|norm1\.|stem\.", name):
            return 0
        return begin4 + 1 if re.match(r"head\.|neck\.|fc\.", name) else None

    return {name: depth(name) for name in names}, begin4 + 1


def _convnext_mm(names: Sequence[str]) -> Found | None:
    """As ConvNeXt's own, but 6 buckets where the third stage has no more than 9 blocks."""
    blocks = [int(m[1]) for name in names if (m := re.match(r"stages\.2\.(?:blocks\.)?(\d+)\.", name))]
    return convnext(names, 12 if max(blocks, default=0) >= 9 else 6)


VIT_MM = Blocks(
    r"cls_token$|pos_embed$|patch_embed\.",
    r"(?:layers|blocks)\.(\d+)\.(?!blocks\.|downsample\.)",
    r"(?:ln[12]|norm|fc_norm|pre_norm|norm_pre|head|neck)\.|rel_pos_bias\.|mask_token$",
)


def mmpretrain(names: Sequence[str]) -> Found | None:
    """The first of its backbones that knows every name, else the one that knows most."""
    found = [result for number in (VIT_MM, swin_mm, _convnext_mm, _resnet_mm) if (result := number(names))]
    return min(found, key=lambda result: sum(depth is None for depth in result[0].values()), default=None)
