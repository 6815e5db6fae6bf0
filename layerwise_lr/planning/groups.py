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
        match: patterns. by_module: a prefix ("features"); by_layer_type: a type ("conv") or a role of it
            ("linear.weight"); else a glob over the parameter's name, or a regex after "re:". "*": the rest.
        lr: absolute lr; not together with lr_scale.
        lr_scale: multiplies the strategy's own scale.
        weight_decay: null: the optimizer's.
        schedule: default, or a name under schedules.
        optimizer: default, or a name under optimizers.
        start: when the group begins to train.
        stop: when it ends to train; null: with the run.
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
        stem_scale: instead of layer_decay: the stem's lr_scale.
        decay_per_12_layers: instead of layer_decay: that of a net of 12 blocks with the same stem's lr_scale,
            layer_decay = decay_per_12_layers ** (13 / num_layers).
        min_scale: no lr_scale below this.
        allow_above_one: permit layer_decay > 1: early layers learn faster.
        head_scale: multiplies the head's lr_scale (layer_decay, backbone_head).
        backbone_scale: lr_scale of all but the head (backbone_head).
        convention: how layers are numbered: tree | order | timm | mae | oneflow_vit | beit | convnext | swin_mm |
            mmpretrain | detectron2 | dinov2 | electra | xlnet.
        depths: instead of convention: regex -> depth, the first that matches wins.
        stages: coarse: depths below the head, gathered into so many of equal count.
        no_weight_decay: no weight decay of biases, norms and tokens, or of what the convention's source lists.
        groups: named groups, first match wins: all there is for by_*, on top of the strategy for the others.
    """

    strategy: str = "layer_decay"
    layer_decay: float = 0.75
    stem_scale: Optional[float] = None  # noqa: UP045
    decay_per_12_layers: Optional[float] = None  # noqa: UP045
    min_scale: float = 0.0
    allow_above_one: bool = False
    head_scale: float = 1.0
    backbone_scale: float = 0.1
    convention: str = "tree"
    depths: dict[str, int] = field(default_factory=dict)
    stages: Optional[int] = None  # noqa: UP045
    no_weight_decay: bool = True
    groups: dict[str, GroupSpec] = field(default_factory=dict)
