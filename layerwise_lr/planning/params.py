"""One row per parameter: the table that everything else is planned on.

Names are canonical (equal in every framework and in the published checkpoint); shapes are in PyTorch order;
depth counts from 0 (the stem) to `num_layers` (the head).
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from .errors import UserError
from .names import host_name


@dataclass(frozen=True)
class ParamInfo:
    """What is known of one parameter or buffer before any framework is loaded.

    Args:
        name: canonical name, as in torchvision (ResNet, MobileNetV2) or timm (ViT).
        shape: in PyTorch order.
        layer_type: conv | linear | batchnorm | layernorm | embedding | attention | token | layerscale.
        role: weight | bias | scale | shift | buffer.
        depth: 0 is the stem, the highest is the head.
        trainable: False for buffers.
    """

    name: str
    shape: tuple[int, ...]
    layer_type: str
    role: str
    depth: int
    trainable: bool = True

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class ParamTable:
    """All parameters and buffers of a model, in execution order; `head` is the classifier's name prefix.

    `top` is the depth whose lr_scale is 1 where no parameter has it (a model without its head); else 0.
    """

    rows: tuple[ParamInfo, ...]
    head: str
    top: int = 0

    def __post_init__(self) -> None:
        twice = [name for name, n in Counter(row.name for row in self.rows).items() if n > 1]
        if twice:
            raise UserError(f"parameter names are not unique: {', '.join(twice)}")

    def __iter__(self) -> Iterator[ParamInfo]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def by_name(self) -> Mapping[str, ParamInfo]:
        """Rows by canonical name."""
        return {row.name: row for row in self.rows}

    @property
    def trainable(self) -> tuple[ParamInfo, ...]:
        """The rows that an optimizer may change: all but the buffers."""
        return tuple(row for row in self.rows if row.trainable)

    @property
    def num_layers(self) -> int:
        """Depth of the head: `layer_decay ** (num_layers - depth)` is 1 there."""
        return max(self.top, *(row.depth for row in self.rows))

    def is_head(self, name: str) -> bool:
        """Whether `name` belongs to the classification head, whatever wraps it."""
        name = host_name(name)
        return name == self.head or name.startswith(self.head + ".")

    def batchnorms(self) -> dict[str, tuple[str, ...]]:
        """Every batchnorm layer that has parameters, and their names."""
        found: dict[str, tuple[str, ...]] = {}
        for row in self.trainable:
            if row.layer_type == "batchnorm":
                layer = row.name.rpartition(".")[0]
                found[layer] = (*found.get(layer, ()), row.name)
        return found

    def with_depths(self, depths: Mapping[str, int], top: int = 0) -> "ParamTable":
        """The same table under other depths, one for every row."""
        rows = tuple(replace(row, depth=depths[row.name]) for row in self.rows)
        return replace(self, rows=rows, top=top if top > max(depths.values()) else 0)

    def csv(self, columns: Mapping[str, Mapping[str, Any]]) -> str:
        """params.csv: a line per parameter; `columns` adds a value per parameter name under a heading."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["name", "shape", "numel", "layer_type", "role", "depth", "trainable", *columns])
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            extra = [values.get(row.name, "") for values in columns.values()]
            writer.writerow([row.name, shape, row.numel, row.layer_type, row.role, row.depth, row.trainable, *extra])
        return out.getvalue()
