"""What a run can be told: every key of its config, with its type and its default.

Specs are not frozen dataclasses because OmegaConf makes those read-only for the command line; nobody changes them.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import yaml

from ..data import AugmentSpec, DataSpec
from ..models import Tree, WeightsSpec, make_tree
from ..planning import Duration, FreezeSpec, GroupingSpec, OptimizerSpec, ScheduleSpec


@dataclass
class FrameworkSpec:
    """Who trains, and on what.

    Args:
        name: torch | oneflow | mindspore | megengine | reference, or a third-party plugin's.
        mode: `layerwise-lr frameworks` lists each one's; empty: its first.
        device: auto (the best) | cpu | cuda:0 | ascend:0.
        precision: fp32 | fp64 | bf16 | fp16, where there is.
        threads: per process; auto: a single run has all cores, each of a sweep's jobs an equal share (hydra.launcher.n_jobs of
            them run at a time).
        deterministic: ask for reproducible kernels, maybe slower.
        distributed: none | ddp | fsdp: one run in several processes, each with its part of every batch (torch).
        processes: how many to start; null: as many as torchrun has started, else one for each GPU.
    """

    name: str = "torch"
    mode: str = "eager"
    device: str = "auto"
    precision: str = "fp32"
    threads: Any = 1
    deterministic: bool = False
    distributed: str = "none"
    processes: Optional[int] = None  # noqa: UP045 (OmegaConf 2.3 reads Optional)


@dataclass
class ModelSpec:
    """A declared model, or one of a package; what is null is the model's own default, or comes from the data.

    Args:
        source: declared, or who makes it: timm | torchvision | transformers | flowvision | mindcv | own (an entry point).
        name: a package's own name for it. Declared: lenet | mlp | resnet18 | resnet34 | resnet50 | mobilenet_v2 | vit_tiny | vit_small | vit_base.
        num_classes: null: the data's.
        in_channels: null: the data's.
        image_size: null: the data's.
        width: units of a hidden layer (mlp), channels of the stem (resnet).
        depth: hidden layers (mlp), blocks (vit).
        dropout: before the classifier (mobilenet_v2, vit).
        drop_path: stochastic depth: the last block's branches are left out with this probability, the first's never
            (vit, resnet).
        patch_size: pixels a side (vit).
        embed_dim: width of a token (vit).
        num_heads: of the attention (vit).
        layer_scale: of LayerScale, DINOv2: 1e-5 (vit); null: none.
        pool: token | avg: what the head looks at (vit).
        pre_norm: a norm before the first block, as in CLIP (vit).
        options: what else a package's maker takes: +model.options.drop_path_rate=0.1.
    """

    name: str = "lenet"
    source: str = "declared"
    num_classes: Optional[int] = None  # noqa: UP045 (OmegaConf 2.3 reads Optional)
    in_channels: Optional[int] = None  # noqa: UP045
    image_size: Optional[int] = None  # noqa: UP045
    width: Optional[int] = None  # noqa: UP045
    depth: Optional[int] = None  # noqa: UP045
    dropout: Optional[float] = None  # noqa: UP045
    drop_path: Optional[float] = None  # noqa: UP045
    patch_size: Optional[int] = None  # noqa: UP045
    embed_dim: Optional[int] = None  # noqa: UP045
    num_heads: Optional[int] = None  # noqa: UP045
    layer_scale: Optional[float] = None  # noqa: UP045
    pool: Optional[str] = None  # noqa: UP045
    pre_norm: Optional[bool] = None  # noqa: UP045
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class CheckpointSpec:
    """Which weights are kept.

    Args:
        every: how often one is written; null: at the end. (Until then the last two evaluations' are kept to go on from.)
        keep: how many of them stay.
        keep_best: how many stay that were best by `metric` on validation; the best is the run's result. 0: its end is.
        optimizer: with the optimizer's state; without it an interrupted run cannot go on.
    """

    every: Duration = None
    keep: int = 1
    keep_best: int = 1
    optimizer: bool = True


@dataclass
class EarlyStopSpec:
    """When a run ends before its time.

    Args:
        patience: evaluations in a row without a better `metric` on validation; null: never.
        min_delta: what counts as better: more than this (a share, 0.01 is one point).
    """

    patience: Optional[int] = None  # noqa: UP045
    min_delta: float = 0.0


@dataclass
class EmaSpec:
    """An exponential moving average of weights and buffers, evaluated and kept beside them; the same in all frameworks.

    Args:
        decay: what it keeps of itself at each step, 0.999 or so; null: none.
        warmup: keep less at first, (1 + step) / (10 + step), as TensorFlow does.
    """

    decay: Optional[float] = None  # noqa: UP045
    warmup: bool = True


@dataclass
class VerifySpec:
    """When the plan is proved by measurement, and what a mismatch does.

    Args:
        start: rehearse up to three steps before step 0.
        training: measure the step before every evaluation, on the running training.
        every: measure a step this often as well; null: at evaluations only.
        on_mismatch: stop | warn.
    """

    start: bool = True
    training: bool = True
    every: Duration = None
    on_mismatch: str = "stop"


@dataclass
class LoggerSpec:
    """Who else is told what a run measures; no tracker changes its result. logger=[csv,tensorboard] are two.

    Args:
        csv: metrics.csv in the run's folder.
        tensorboard: event files in the run's folder.
        mlflow: mlflow.db in the sweep's folder, or where MLFLOW_TRACKING_URI says.
        wandb: an offline run in the run's folder, unless WANDB_MODE says otherwise.
    """

    csv: bool = False
    tensorboard: bool = False
    mlflow: bool = False
    wandb: bool = False


@dataclass
class Config:
    """One run. Durations are "2 epochs", "10%" or steps.

    Args:
        name: of the experiment: a folder below outputs/.
        seed: of weights, choice and order of pictures, dropout.
        schedules: more schedules by name, for groups: +schedules.NAME={name: linear}.
        optimizers: more optimizers by name, for groups: +optimizers.NAME={name: sgd, lr: 0.1}.
        label_smoothing: this much of each training label is spread over all classes. 0.1: torchvision, timm, MAE, BEiT.
        class_weights: none | balanced (each class weighs as much as any other) | a number for each class: [1,2.5].
        batch_size: pictures that go through the model at once.
        accumulate: batches whose mean gradient is one step's: a step takes batch_size * accumulate pictures.
        clip_grad_norm: bound on the norm of all gradients together; null: none.
        clip_grad_value: bound on each number of a gradient; null: none.
        epochs: passes over the training pictures.
        steps: instead of epochs.
        eval_every: how often validation is measured.
        metric: accuracy | balanced_accuracy, to choose by.
        verify: prove before step 0 that all moves as planned.
    """

    name: str = "default"
    seed: int = 0
    framework: FrameworkSpec = field(default_factory=FrameworkSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    weights: WeightsSpec = field(default_factory=WeightsSpec)
    data: DataSpec = field(default_factory=DataSpec)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    label_smoothing: float = 0.0
    class_weights: Any = "none"
    grouping: GroupingSpec = field(default_factory=GroupingSpec)
    scheduler: ScheduleSpec = field(default_factory=ScheduleSpec)
    schedules: dict[str, ScheduleSpec] = field(default_factory=dict)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    optimizers: dict[str, OptimizerSpec] = field(default_factory=dict)
    freeze: FreezeSpec = field(default_factory=FreezeSpec)
    batch_size: int = 32
    accumulate: int = 1
    clip_grad_norm: Optional[float] = None  # noqa: UP045
    clip_grad_value: Optional[float] = None  # noqa: UP045
    ema: EmaSpec = field(default_factory=EmaSpec)
    epochs: int = 4
    steps: Optional[int] = None  # noqa: UP045
    eval_every: Duration = "1 epoch"
    metric: str = "accuracy"
    verify: VerifySpec = field(default_factory=VerifySpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    early_stop: EarlyStopSpec = field(default_factory=EarlyStopSpec)
    logger: LoggerSpec = field(default_factory=LoggerSpec)

    def pictures_a_step(self) -> int:
        """Of all batches that a step takes."""
        return self.batch_size * self.accumulate

    def can_resume(self) -> bool:
        """Whether the run can be continued bit by bit: with the optimizer's state, in no more than 32 bits."""
        return self.checkpoint.optimizer and self.framework.precision != "fp64"

    def schedules_by_name(self) -> dict[str, ScheduleSpec]:
        """The run's own under "default", then the named ones."""
        return {"default": self.scheduler, **self.schedules}

    def optimizers_by_name(self) -> dict[str, OptimizerSpec]:
        """The run's own under "default", then the named ones."""
        return {"default": self.optimizer, **self.optimizers}

    def tree(self) -> Tree:
        """The declared model."""
        given = {
            k: v for k, v in asdict(self.model).items() if v is not None and k not in ("source", "name", "options")
        }
        return make_tree(self.model.name, **given)

    def to_dict(self) -> dict[str, Any]:
        """Every key and its value."""
        return asdict(self)

    def sha256(self) -> str:
        """Content hash of everything that decides the result; a logger does not."""
        deciding = {key: value for key, value in self.to_dict().items() if key != "logger"}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """config.resolved.yaml."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


Told = tuple[tuple[Any, ...], str, Any]
"""Where a value stands in a config, what was typed there, the value."""


@dataclass
class FromEnvironment(Config):
    """A config of which some values are environment variables': used as they are, recorded as they were typed.

    Args:
        told: of each such value.
    """

    told: tuple[Told, ...] = field(default=(), compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Every key and its value."""
        held = asdict(self)
        del held["told"]
        return held

    def to_yaml(self) -> str:
        """config.resolved.yaml; a value that has become another since (a duration: steps) is that."""
        held = self.to_dict()
        for path, text, value in self.told:
            node: Any = held
            for key in path[:-1]:
                node = node[key]
            if node[path[-1]] == value:
                node[path[-1]] = text
        return yaml.safe_dump(held, sort_keys=False)


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
