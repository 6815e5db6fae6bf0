"""The schema of a run, its checks, and the turning of durations into steps; the last file that knows OmegaConf.

A Config out of `resolve` is final: sizes are filled in, every duration is a number of steps, every value is in
range. It is what config.resolved.yaml holds and all that `run` reads.
Specs are not frozen dataclasses because OmegaConf makes those read-only for the command line; nobody changes them.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Optional

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..data import READERS, DataSpec, available, facts, train_count
from ..models import Tree, WeightsSpec, make_tree
from ..plan import Duration, FreezeSpec, GroupingSpec, GroupSpec, OptimizerSpec, ScheduleSpec, UserError, did_you_mean

MAX_BYTES = 1_000_000


@dataclass
class FrameworkSpec:
    """Who trains, and on what.

    Args:
        name: torch | oneflow | mindspore | megengine | reference, or a third-party plugin's.
        mode: `layerwise-lr frameworks` lists each one's.
        device: auto (the best) | cpu | cuda:0 | ascend:0.
        precision: fp32 | fp64 | bf16 | fp16, where there is.
        threads: per process.
        deterministic: ask for reproducible kernels, maybe slower.
    """

    name: str = "torch"
    mode: str = "eager"
    device: str = "auto"
    precision: str = "fp32"
    threads: int = 1
    deterministic: bool = False


@dataclass
class ModelSpec:
    """A declared model; what is null is the model's own default, or comes from the data.

    Args:
        name: lenet | mlp | resnet18 | resnet34 | resnet50 | mobilenet_v2 | vit_tiny | vit_small | vit_base.
        num_classes: null: the data's.
        in_channels: null: the data's.
        image_size: null: the data's.
        width: units of a hidden layer (mlp).
        depth: hidden layers (mlp), blocks (vit).
        dropout: before the classifier (mobilenet_v2).
        patch_size: pixels a side (vit).
        embed_dim: width of a token (vit).
        num_heads: of the attention (vit).
        layer_scale: of LayerScale, DINOv2: 1e-5 (vit); null: none.
        pool: token | avg: what the head looks at (vit).
    """

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
    """Which weights are kept.

    Args:
        every: how often one is written; null: at the end.
        keep: how many of them stay.
        optimizer: with the optimizer's state.
    """

    every: Duration = None
    keep: int = 1
    optimizer: bool = True


@dataclass
class Config:
    """One run. Durations are "2 epochs", "10%" or steps.

    Args:
        name: of the experiment: a folder below outputs/.
        seed: of weights, choice and order of pictures, dropout.
        schedules: more schedules by name, for groups: +schedules.NAME={name: linear}.
        optimizers: more optimizers by name, for groups: +optimizers.NAME={name: sgd, lr: 0.1}.
        batch_size: pictures a step.
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


def steps_of(duration: Duration, key: str, total: int, per_epoch: int) -> int:
    """A duration in whole steps: 50, "50 steps", "2 epochs", "10%" (of the run).

    Raises:
        UserError: it is none of these.
    """
    text = str(duration).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|ep|epochs?|st|steps?)?", text)
    if not match or isinstance(duration, bool):
        raise UserError(f"{key}={duration!r} is no duration: give steps (50), epochs ('2 epochs') or a share ('10%')")
    number, unit = float(match[1]), match[2] or "steps"
    steps = number * total / 100 if unit == "%" else number * per_epoch if unit.startswith("ep") else number
    if unit.startswith("st") and number != int(number):
        raise UserError(f"{key}={duration!r}: steps are whole; '10%' is a share of the run")
    return round(steps)


def from_omegaconf(cfg: Any) -> Config:
    """The typed Config of a composed one; unknown keys ("+typo=1") and missing values are errors."""
    data = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return from_data(data)


def from_data(data: Any) -> Config:
    """The typed Config of plain data, by OmegaConf's own conversion against the schema.

    Raises:
        UserError: an unknown key or a wrong type; says where.
    """
    check_keys(data)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(data))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    assert isinstance(config, Config)
    return config


def explain(error: OmegaConfBaseException) -> str:
    """OmegaConf's message as one line: key and fault."""
    key = getattr(error, "full_key", None) or ""
    first = next(line.strip() for line in str(error).splitlines() if line.strip())
    return f"{key}: {first}" if key and key not in first else first


def read(path: Path) -> Config:
    """config.resolved.yaml as data: no interpolation, no tags, no code.

    Raises:
        UserError: it is missing, too large, not YAML, or not a Config.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; a run folder holds config.resolved.yaml")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES} bytes, not a run's config")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    if "${" in repr(data):  # of the data, not the text: YAML can spell "$" as "\x24"
        raise UserError(f"{path}: holds an interpolation ('${{'); a resolved config has none")
    try:
        return from_data(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_keys(data: Any, schema: Any = Config, at: str = "") -> None:
    """Refuse a key that the schema lacks: Hydra's "+key=value" would add it in silence."""
    if not isinstance(data, Mapping):
        raise UserError(f"{at or 'config'} must be a mapping, it is {type(data).__name__}")
    types = {f.name: f.type for f in fields(schema)}
    for key, value in data.items():
        if key not in types:
            raise UserError(f"unknown key {at}{key}; known: {', '.join(types)}" + did_you_mean(str(key), list(types)))
        kind = types[key]
        if is_dataclass(kind):
            check_keys(value, kind, f"{at}{key}.")
        elif (inner := getattr(kind, "__args__", ())) and is_dataclass(inner[-1]):
            if not isinstance(value or {}, Mapping):
                raise UserError(f"{at}{key}={value} must be a mapping: {{name: {{...}}}}")
            for name, entry in (value or {}).items():
                check_keys(entry, inner[-1], f"{at}{key}.{name}.")


def resolve(config: Config) -> Config:
    """Fill in sizes, turn durations into steps, check every range; absent data give way to their stand-in.

    Raises:
        UserError: the first fault found, with its key.
    """
    _check_numbers(asdict(config), "")
    _check_ranges(config)
    config = replace(config, data=available(config.data))
    known = facts(config.data)
    model = _fill(config, known.classes)
    per_epoch = train_count(config.data) // config.batch_size
    if per_epoch == 0:
        raise UserError(f"batch_size={config.batch_size} is more than the {train_count(config.data)} training pictures")
    total = config.steps if config.steps is not None else config.epochs * per_epoch

    def steps(value: Duration, key: str) -> int:
        return steps_of(value, key, total, per_epoch)

    def schedule(spec: ScheduleSpec, key: str) -> ScheduleSpec:
        uses_every = spec.name in ("step", "exponential")
        every = max(steps(spec.every, f"{key}.every"), 1) if uses_every else 1
        if steps(spec.warmup, f"{key}.warmup") > total:
            raise UserError(f"{key}.warmup={spec.warmup} is longer than the run of {total} steps")
        return replace(
            spec,
            warmup=steps(spec.warmup, f"{key}.warmup"),
            every=every,
            interval=max(steps(spec.interval, f"{key}.interval"), 1),
            milestones=[steps(m, f"{key}.milestones") for m in spec.milestones],
            starts=[steps(m, f"{key}.starts") for m in spec.starts],
        )

    def group(spec: GroupSpec, key: str) -> GroupSpec:
        stop = None if spec.stop is None else steps(spec.stop, f"{key}.stop")
        return replace(spec, start=steps(spec.start, f"{key}.start"), stop=stop)

    groups = {n: group(g, f"grouping.groups.{n}") for n, g in config.grouping.groups.items()}
    every, thaw = config.checkpoint.every, config.freeze.every
    if thaw is None and config.freeze.strategy == "head_first":
        raise UserError("freeze.every is missing: how long shall the head train alone? freeze.every=10%")
    if config.freeze.strategy == "after" and steps(config.freeze.at, "freeze.at") >= total:
        raise UserError(f"freeze.at={config.freeze.at} is not within the run of {total} steps")
    return replace(
        config,
        model=model,
        steps=total,
        eval_every=max(steps(config.eval_every, "eval_every"), 1),
        scheduler=schedule(config.scheduler, "scheduler"),
        schedules={n: schedule(s, f"schedules.{n}") for n, s in config.schedules.items()},
        grouping=replace(config.grouping, groups=groups),
        freeze=replace(
            config.freeze,
            at=steps(config.freeze.at, "freeze.at"),
            every=None if thaw is None else max(steps(thaw, "freeze.every"), 1),
        ),
        checkpoint=replace(
            config.checkpoint, every=None if every is None else max(steps(every, "checkpoint.every"), 1)
        ),
    )


def _fill(config: Config, classes: int) -> ModelSpec:
    """The model with the data's sizes; a size given by hand must agree."""
    given, data = config.model, config.data
    for key, mine, theirs in (
        ("num_classes", given.num_classes, classes),
        ("in_channels", given.in_channels, data.channels),
        ("image_size", given.image_size, data.image_size),
    ):
        if mine is not None and mine != theirs:
            raise UserError(
                f"model.{key}={mine}, but data {data.name} has {theirs}; leave model.{key} out or change the data"
            )
    model = replace(given, num_classes=classes, in_channels=data.channels, image_size=data.image_size)
    replace(config, model=model).tree()
    return model


def _check_numbers(data: Any, at: str) -> None:
    """No NaN and no infinity anywhere."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            _check_numbers(value, f"{at}.{key}" if at else str(key))
    elif isinstance(data, list):
        for value in data:
            _check_numbers(value, at)
    elif isinstance(data, float) and not math.isfinite(data):
        raise UserError(f"{at}={data} is not a finite number")


def _check_ranges(config: Config) -> None:
    """The ranges that types do not say, each with its key."""
    grouping, data = config.grouping, config.data

    def need(good: bool, key: str, value: object, wanted: str) -> None:
        if not good:
            raise UserError(f"{key}={value} must be {wanted}")

    for key, value, low in (
        ("seed", config.seed, 0),
        ("batch_size", config.batch_size, 1),
        ("epochs", config.epochs, 1),
        ("steps", 1 if config.steps is None else config.steps, 1),
        ("framework.threads", config.framework.threads, 1),
        ("data.image_size", data.image_size, 4),
        ("data.train_size", 1 if data.train_size is None else data.train_size, 1),
        ("data.val_size", data.val_size, 1),
        ("data.test_size", data.test_size, 1),
        ("data.split_seed", data.split_seed, 0),
        ("checkpoint.keep", config.checkpoint.keep, 1),
    ):
        need(value >= low, key, value, f"at least {low}")
    for key in ("width", "depth", "patch_size", "embed_dim", "num_heads"):
        size = getattr(config.model, key)
        need(size is None or size >= 1, f"model.{key}", size, "at least 1")
    need(
        re.fullmatch(r"[^/\\\s.][^/\\\0]*", config.name) is not None,
        "name",
        repr(config.name),
        "a name for a folder: not empty, no slash, no dot or space in front",
    )
    need(config.metric in ("accuracy", "balanced_accuracy"), "metric", config.metric, "accuracy or balanced_accuracy")
    need(data.channels in (1, 3), "data.channels", data.channels, "1 or 3")
    need(len(data.mean) in (1, data.channels), "data.mean", data.mean, f"1 or {data.channels} numbers")
    need(
        len(data.std) in (1, data.channels) and min(data.std) > 0,
        "data.std",
        data.std,
        f"1 or {data.channels} numbers above 0",
    )
    need(data.stand_in in (None, "digits"), "data.stand_in", data.stand_in, "digits or null")
    need(
        data.stands_for is None or (data.name == "digits" and data.stands_for in READERS),
        "data.stands_for",
        data.stands_for,
        "null: it is filled in where data.stand_in takes effect",
    )
    need(grouping.layer_decay > 0, "grouping.layer_decay", grouping.layer_decay, "above 0 and at most 1")
    need(
        grouping.stem_scale is None or 0 < grouping.stem_scale <= 1,
        "grouping.stem_scale",
        grouping.stem_scale,
        "above 0 and at most 1",
    )
    need(0 <= grouping.min_scale <= 1, "grouping.min_scale", grouping.min_scale, "from 0 to 1")
    need(grouping.backbone_scale >= 0, "grouping.backbone_scale", grouping.backbone_scale, "0 or more")
    dropout = config.model.dropout or 0.0
    need(0 <= dropout < 1, "model.dropout", dropout, "from 0 to below 1")
    for name, group in grouping.groups.items():
        for part in ("lr", "lr_scale", "weight_decay"):
            value = getattr(group, part)
            need(value is None or value >= 0, f"grouping.groups.{name}.{part}", value, "0 or more")
    for name, optimizer in config.optimizers_by_name().items():
        _check_optimizer(optimizer, "optimizer" if name == "default" else f"optimizers.{name}", need)
    for name, spec in config.schedules_by_name().items():
        _check_schedule(spec, "scheduler" if name == "default" else f"schedules.{name}", need)


def _check_optimizer(spec: OptimizerSpec, at: str, need: Any) -> None:
    need(spec.lr > 0, f"{at}.lr", spec.lr, "above 0")
    need(spec.weight_decay >= 0, f"{at}.weight_decay", spec.weight_decay, "0 or more")
    need(0 <= spec.momentum < 1, f"{at}.momentum", spec.momentum, "from 0 to below 1")
    need(
        len(spec.betas) == 2 and all(0 <= b < 1 for b in spec.betas),
        f"{at}.betas",
        spec.betas,
        "two numbers from 0 to below 1",
    )
    need(spec.eps > 0, f"{at}.eps", spec.eps, "above 0")


def _check_schedule(spec: ScheduleSpec, at: str, need: Any) -> None:
    need(0 <= spec.floor <= 1, f"{at}.floor", spec.floor, "from 0 to 1: a fraction of the group's lr")
    need(0 <= spec.warmup_start <= 1, f"{at}.warmup_start", spec.warmup_start, "from 0 to 1: a fraction")
    event = spec.name == "multistep"  # a milestone may set the lr to zero
    need(spec.gamma > 0 or (event and spec.gamma == 0), f"{at}.gamma", spec.gamma, "0 or more" if event else "above 0")
    need(spec.power > 0, f"{at}.power", spec.power, "above 0")
    need(0 < spec.pct_start < 1, f"{at}.pct_start", spec.pct_start, "between 0 and 1")
    need(spec.div_factor >= 1, f"{at}.div_factor", spec.div_factor, "at least 1")
    need(spec.final_div_factor >= 1, f"{at}.final_div_factor", spec.final_div_factor, "at least 1")
