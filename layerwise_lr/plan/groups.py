"""What a group is, and how groups are asked for: the grouping as data."""

from dataclasses import dataclass, field
from typing import Optional

from .schedules import Duration

FOREVER = 2**31


@dataclass(frozen=True)
class Group:
    """Parameters that move alike: lr(step) = base_lr * lr_scale * schedule(step) in `active`, no update outside.

    `active` is [start, stop) in steps; `rule` says which rule made the group; weight decay is the optimizer's
    (decoupled for adamw, L2 for all others).
    """

    name: str
    params: tuple[str, ...]
    lr_scale: float
    weight_decay: float
    optimizer: str = "default"
    schedule: str = "default"
    active: tuple[int, int] = (0, FOREVER)
    grad_centralization: bool = False
    rule: str = ""


@dataclass
class GroupSpec:
    """A named group in the config: which parameters, and what is theirs alone.

    Args:
        match: patterns; for by_name and on top of another strategy a glob over the canonical name, or a regex
            after "re:"; for by_module a prefix ("features"); for by_layer_type a layer type ("conv") or one role of it
            ("linear.weight"). "*": the rest.
        lr: absolute lr; `lr_scale` instead multiplies the strategy's own scale. At most one of the two.
        weight_decay, schedule, optimizer: default to the run's; the latter two are names under `schedules:` and
            `optimizers:`.
        start, stop: the window in which the group trains.
        grad_centralization: subtract each filter's mean from its gradient.
    """

    match: list[str] = field(default_factory=list)
    lr: Optional[float] = None  # noqa: UP045 (OmegaConf 2.3 reads Optional)
    lr_scale: Optional[float] = None  # noqa: UP045
    weight_decay: Optional[float] = None  # noqa: UP045
    schedule: str = "default"
    optimizer: str = "default"
    start: Duration = 0
    stop: Duration = None
    grad_centralization: bool = False


@dataclass
class GroupingSpec:
    """The grouping as data.

    Args:
        strategy: flat | layer_decay | backbone_head | by_name | by_module | by_layer_type.
        layer_decay: lr_scale = layer_decay ** (num_layers - depth).
        stem_scale: instead of layer_decay, the whole ratio stem : head; comparable between depths.
        min_scale: no lr_scale below this.
        allow_above_one: permit layer_decay > 1 (early layers learn faster).
        backbone_scale: lr_scale of everything but the head (backbone_head).
        depth: the convention that numbers the layers (depth.py).
        no_weight_decay: no weight decay for 1-D parameters (biases, norms) and tokens.
        groups: named groups: all there is for by_*; on top of the strategy for the others. First match wins.
    """

    strategy: str = "layer_decay"
    layer_decay: float = 0.75
    stem_scale: Optional[float] = None  # noqa: UP045
    min_scale: float = 0.0
    allow_above_one: bool = False
    backbone_scale: float = 0.1
    depth: str = "tree"
    no_weight_decay: bool = True
    groups: dict[str, GroupSpec] = field(default_factory=dict)
