"""What a run can be told: every key of its config, with its type and its default.

Specs are not frozen dataclasses because OmegaConf makes those read-only for the command line; nobody changes them.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import yaml

from ..data import DataSpec
from ..models import Tree, WeightsSpec, make_tree
from ..plan import Duration, FreezeSpec, GroupingSpec, OptimizerSpec, ScheduleSpec


@dataclass
class FrameworkSpec:
    """Who trains: plugin name, mode, device ("auto" takes the best there is), precision, threads per process."""

    name: str = "torch"
    mode: str = "eager"
    device: str = "auto"
    precision: str = "fp32"
    threads: int = 1
    deterministic: bool = False


@dataclass
class ModelSpec:
    """A declared model; what is null is the model's own default, or comes from the data."""

    name: str = "lenet"
    num_classes: Optional[int] = None  # noqa: UP045 (OmegaConf 2.3 reads Optional)
    in_channels: Optional[int] = None  # noqa: UP045
    image_size: Optional[int] = None  # noqa: UP045
    width: Optional[int] = None  # noqa: UP045
    depth: Optional[int] = None  # noqa: UP045
    dropout: Optional[float] = None  # noqa: UP045
    patch_size: Optional[int] = None  # noqa: UP045
    embed_dim: Optional[int] = None  # noqa: UP045
    num_heads: Optional[int] = None  # noqa: UP045
    layer_scale: Optional[float] = None  # noqa: UP045
    pool: Optional[str] = None  # noqa: UP045


@dataclass
class CheckpointSpec:
    """What is kept: every so often (null: only at the end), the last `keep`, with or without optimizer state."""

    every: Duration = None
    keep: int = 1
    optimizer: bool = True


@dataclass
class Config:
    """One run. Durations are "2 epochs", "10%" or steps; `steps` wins over `epochs`."""

    name: str = "default"
    seed: int = 0
    framework: FrameworkSpec = field(default_factory=FrameworkSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    weights: WeightsSpec = field(default_factory=WeightsSpec)
    data: DataSpec = field(default_factory=DataSpec)
    grouping: GroupingSpec = field(default_factory=GroupingSpec)
    scheduler: ScheduleSpec = field(default_factory=ScheduleSpec)
    schedules: dict[str, ScheduleSpec] = field(default_factory=dict)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    optimizers: dict[str, OptimizerSpec] = field(default_factory=dict)
    freeze: FreezeSpec = field(default_factory=FreezeSpec)
    batch_size: int = 32
    epochs: int = 4
    steps: Optional[int] = None  # noqa: UP045
    eval_every: Duration = "1 epoch"
    metric: str = "accuracy"
    verify: bool = True
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)

    def schedules_by_name(self) -> dict[str, ScheduleSpec]:
        """The run's own under "default", then the named ones."""
        return {"default": self.scheduler, **self.schedules}

    def optimizers_by_name(self) -> dict[str, OptimizerSpec]:
        """The run's own under "default", then the named ones."""
        return {"default": self.optimizer, **self.optimizers}

    def tree(self) -> Tree:
        """The declared model."""
        given = {k: v for k, v in asdict(self.model).items() if v is not None and k != "name"}
        return make_tree(self.model.name, **given)

    def sha256(self) -> str:
        """Content hash of everything that decides the result."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """config.resolved.yaml."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


@dataclass
class ComposedGrouping(GroupingSpec):
    """As GroupingSpec, but named groups are plain mappings."""

    groups: dict[str, Any] = field(default_factory=dict)


@dataclass
class ComposedConfig(Config):
    """What Hydra composes. Named entries are plain mappings until `from_data`: OmegaConf 2.3 takes no
    mapping for a new entry of a typed dict, and "+grouping.groups.head={match: [fc]}" is one."""

    grouping: ComposedGrouping = field(default_factory=ComposedGrouping)
    schedules: dict[str, Any] = field(default_factory=dict)
    optimizers: dict[str, Any] = field(default_factory=dict)
