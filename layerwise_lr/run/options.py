"""Which keys the chosen options read. A key that the user gave and nothing reads is an error that names what would.

One table per spec: option -> keys; what is not in the row of the chosen option is not read, and in a final config it
has its default, so that two jobs that do the same are the same job. `unread` knows the few keys whose reading hangs
on another key's value.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from ..data import READERS
from ..framework import registry
from ..planning import ScheduleSpec, UserError
from .schema import Config
from .subject import subject

Table = Mapping[str, tuple[str, ...]]

SCHEDULER: Table = {
    "constant": (),
    "linear": ("floor",),
    "step": ("gamma", "every"),
    "multistep": ("gamma", "milestones"),
    "exponential": ("gamma", "every"),
    "cosine": ("floor",),
    "polynomial": ("floor", "power"),
    "one_cycle": ("pct_start", "div_factor", "final_div_factor"),
    "join": ("parts", "starts"),
    "product": ("parts",),
}
OPTIMIZER: Table = {
    "sgd": (),
    "momentum": ("momentum", "nesterov"),
    "adam": ("betas", "eps"),
    "adamw": ("betas", "eps"),
    "nadam": ("betas", "eps", "momentum_decay"),
    "rmsprop": ("alpha", "eps", "momentum"),
    "lion": ("betas",),
    "muon": ("momentum", "nesterov", "betas", "eps"),
    "layer_adaptive": ("betas", "eps"),
}
GROUPING: Table = {
    "flat": (),
    "layer_decay": ("layer_decay", "allow_above_one", "stem_scale", "decay_per_12_layers", "min_scale", "head_scale"),
    "backbone_head": ("backbone_scale", "head_scale"),
    "by_name": (),
    "by_module": (),
    "by_layer_type": (),
}
FREEZE: Table = {
    "none": (),
    "head_first": ("every",),
    "progressive": ("every", "stages"),
    "after": ("match", "at"),
    "only": ("match",),
}
DATA: Table = {
    "digits": (),
    "elpv": ("stand_in",),
    "emoji": ("stand_in",),
    "mnist": ("stand_in",),
    "cifar10": ("path", "checksum", "stand_in"),
    "idx": ("path", "resize", "stand_in"),
    "npz": ("path", "resize", "stand_in"),
    "csv": ("path", "label", "resize", "memory", "skip_broken", "stand_in"),
    "hf_dataset": ("path", "label", "resize", "skip_broken", "stand_in"),
    "image_folder": ("path", "resize", "memory", "skip_broken", "stand_in"),
}
WEIGHTS: Table = {
    "none": (),
    "lenet_mnist": ("renew_head",),
    "mobilenet_v2_imagenet": ("renew_head",),
    "dinov2_vits14": ("resize_pos_embed", "renew_head"),
    "file": ("path", "key", "resize_pos_embed", "renew_head"),
    "pretrained": (),
}
DECLARED = (
    "width",
    "depth",
    "dropout",
    "drop_path",
    "patch_size",
    "embed_dim",
    "num_heads",
    "layer_scale",
    "pool",
    "pre_norm",
)
"""Keys that declared models read, each its own (models/trees.py)."""
TIMM_S = {"dropout": "drop_rate", "drop_path": "drop_path_rate", "pool": "global_pool", "layer_scale": "init_values"}
"""timm's word for the same, where it is another."""


class Section(NamedTuple):
    """A spec that one of its keys chooses an option of.

    Args:
        at: where it stands ("optimizer", "optimizers.slow").
        group: the config group on the command line.
        key: the key that chooses.
        table: option -> keys that it alone reads; keys in no row are read by every option.
    """

    at: str
    group: str
    key: str
    table: Table


SECTIONS = (
    Section("scheduler", "scheduler", "name", SCHEDULER),
    Section("optimizer", "optimizer", "name", OPTIMIZER),
    Section("grouping", "grouping", "strategy", GROUPING),
    Section("freeze", "freeze", "strategy", FREEZE),
    Section("data", "data", "name", DATA),
    Section("weights", "weights", "name", WEIGHTS),
)


def unread(config: Config) -> dict[str, str]:
    """Dotted key -> why nothing reads it, of a config whose durations are steps."""
    found: dict[str, str] = {}
    for section in _sections(config):
        spec = at(config, section.at)
        chosen = getattr(spec, section.key)
        known = {key for keys in section.table.values() for key in keys}
        for key in sorted(known - set(section.table.get(chosen, known))):
            if section.at == "data" and config.data.stands_for:
                continue  # it is the absent data's
            would = [option for option, keys in section.table.items() if key in keys]
            found[f"{section.at}.{key}"] = (
                f"{section.group}={chosen} does not read it, {section.group}={_any(would)} does"
            )
    return found | dict(_by_value(config))


def _by_value(config: Config) -> Iterator[tuple[str, str]]:
    """Keys whose reading hangs on what another key says."""
    yield from _named(config)
    for where, schedule in _schedules(config):
        if not schedule.warmup:
            yield f"{where}.warmup_start", f"it is read where {where}.warmup is above 0"
    for name in config.optimizers:
        for key in ("lr", "weight_decay"):
            yield f"optimizers.{name}.{key}", f"a group's own is read: grouping.groups.NAME.{key}"
    if not config.optimizer.weight_decay:
        yield "grouping.no_weight_decay", "optimizer.weight_decay is 0"
    if not registry.threaded(config.framework.name):
        why = "NumPy reads OPENBLAS_NUM_THREADS when it starts"
        yield "framework.threads", f"framework={config.framework.name} does not read it ({why})"
    if config.framework.distributed == "none":
        yield "framework.processes", "it is read where framework.distributed is ddp or fsdp"
    yield from _of_pictures(config)
    grouping, freeze = config.grouping, config.freeze
    for instead in ("stem_scale", "decay_per_12_layers"):
        if grouping.strategy == "layer_decay" and getattr(grouping, instead) is not None:
            for key in ("layer_decay", "allow_above_one"):
                yield f"grouping.{key}", f"grouping.{instead} is given and says it all"
    if grouping.strategy != "layer_decay" and (freeze.strategy != "progressive" or freeze.stages):
        for key in ("convention", "depths", "stages"):
            yield f"grouping.{key}", "grouping=layer_decay reads it, and freeze=progressive without stages"
    elif grouping.depths:
        yield "grouping.convention", "grouping.depths are given and say it all"
    model = config.model
    if model.source == "declared":
        yield "model.options", "a declared model has keys of its own (layerwise-lr train --help model)"
    else:
        own = TIMM_S if model.source == "timm" else {}
        for key in DECLARED:
            yield f"model.{key}", f"{model.source} has words of its own: +model.options.{own.get(key, key)}=..."
    if not subject(config).table.batchnorms():
        yield "freeze.batchnorm", f"model {config.model.name} has no batchnorm layer"
    elif freeze.strategy == "none" and not grouping.groups and grouping.backbone_scale:
        yield "freeze.batchnorm", "nothing is frozen (freeze=none)"
    if model.source != "declared" or not model.name.startswith("vit"):
        yield "weights.resize_pos_embed", f"model {config.model.name} has no position embedding"
    if config.checkpoint.every is None:
        yield "checkpoint.keep", "it is read where checkpoint.every is given: else there is one checkpoint"
    if config.ema.decay is None:
        yield "ema.warmup", "it is read where ema.decay is given"
    if config.early_stop.patience is None:
        yield "early_stop.min_delta", "it is read where early_stop.patience is given"
    if not config.verify.training:
        yield "verify.every", "it is read where verify.training is true"
    if not (config.verify.start or config.verify.training):
        yield "verify.on_mismatch", "nothing is measured (verify=off)"


def _of_pictures(config: Config) -> Iterator[tuple[str, str]]:
    """Keys of loading and augmentation that hang on another's value."""
    augment = config.augment
    if not READERS[config.data.name].files and not augment.any():
        yield "data.workers", "the pictures are in memory and nothing is done with them (augment=none)"
    if augment.hflip:
        yield "data.flip", f"augment.hflip={augment.hflip:g} is given and says it"
    if augment.crop_scale is None:
        yield "augment.crop_ratio", "it is read where augment.crop_scale is given"
    if not augment.randaugment_ops:
        for key in ("magnitude", "std", "prob"):
            yield f"augment.randaugment_{key}", "it is read where augment.randaugment_ops is above 0"
    if not augment.mixes():
        yield "augment.mix_prob", "it is read where augment.mixup or augment.cutmix is above 0"
    if not (augment.mixup and augment.cutmix):
        yield "augment.mix_switch", "it is read where augment.mixup and augment.cutmix are above 0"


def _named(config: Config) -> Iterator[tuple[str, str]]:
    """Keys of the named schedules and optimizers that no group and no other schedule names."""
    used = {"schedules": _lengths(config), "optimizers": {g.optimizer for g in config.grouping.groups.values()}}
    for at, names in used.items():
        for name, spec in getattr(config, at).items():
            for field in fields(spec) if name not in names else ():
                yield f"{at}.{name}.{field.name}", f"nothing names {name}: grouping.groups.NAME.{at.rstrip('s')}={name}"


def _schedules(config: Config) -> Iterator[tuple[str, ScheduleSpec]]:
    """Every schedule with where it stands."""
    for name, spec in config.schedules_by_name().items():
        yield "scheduler" if name == "default" else f"schedules.{name}", spec


def _lengths(config: Config) -> dict[str, int]:
    """How many steps each schedule that is named anywhere, and the run's own, has for itself, after its warm-up.

    All have the whole run where a name is of none: the plan's check tells of it, and what there is.
    """
    every, found = config.schedules_by_name(), dict[str, int]()
    todo = [(name, config.steps or 0) for name in ("default", *(g.schedule for g in config.grouping.groups.values()))]
    while todo:
        name, length = todo.pop()
        if name not in every:
            return dict.fromkeys(every, config.steps or 0)
        if name in found and found[name] >= length:
            continue
        spec, found[name] = every[name], length
        own = length - spec.warmup
        lengths = [b - a for a, b in pairwise([0, *spec.starts, own])] if spec.name == "join" else []
        parts = spec.parts if spec.name in ("join", "product") else []
        todo += zip(parts, lengths or [own] * len(parts), strict=False)
    return {name: length - every[name].warmup for name, length in found.items()}


def ignored(config: Config) -> dict[str, str]:
    """As `unread`, with the keys that are read but do nothing in this run, because their moment is never reached."""
    return dict(_unreached(config)) | unread(config)


def _unreached(config: Config) -> Iterator[tuple[str, str]]:
    total, lengths = config.steps or 0, _lengths(config)
    for (where, spec), name in zip(_schedules(config), config.schedules_by_name(), strict=True):
        length = lengths.get(name, 0)
        within = f"is not within its {length} steps" + (" after the warm-up" if spec.warmup else "")
        if spec.name in ("step", "exponential") and spec.every >= length:
            yield f"{where}.every", f"{spec.every} {within}"
        if spec.name == "multistep":
            late = [m for m in spec.milestones if m >= length]
            if late or not spec.milestones:
                yield f"{where}.milestones", f"{late[0]} {within}" if late else "it is empty"
    lasting = {f"grouping.groups.{name}.stop": group.stop for name, group in config.grouping.groups.items()}
    for key, steps in {
        **lasting,
        "checkpoint.every": config.checkpoint.every,
        "verify.every": config.verify.every,
    }.items():
        if steps is not None and steps > total:
            yield key, f"{steps} is more than the run's {total} steps"
    groups = config.grouping.groups.values()
    if config.grouping.strategy.startswith("by_"):  # the named groups are all there is
        if not any(g.schedule == "default" for g in groups) and not any(
            "default" in s.parts for _, s in _schedules(config)
        ):
            for field in fields(config.scheduler):
                yield f"scheduler.{field.name}", "every group has a schedule of its own"
        if not any(g.optimizer == "default" for g in groups):
            for key in {key for keys in OPTIMIZER.values() for key in keys}:
                yield f"optimizer.{key}", "every group has an optimizer of its own"


def _sections(config: Config) -> Iterator[Section]:
    for section in SECTIONS:
        yield section
        many = {"scheduler": "schedules", "optimizer": "optimizers"}.get(section.at)
        for name in getattr(config, many) if many else ():
            yield section._replace(at=f"{many}.{name}")


def at(config: Config, path: str) -> Any:
    """The spec at a dotted path."""
    node: Any = config
    while path:
        head, path = _split(node, path)
        node = node[head] if isinstance(node, dict) else getattr(node, head)
    return node


def _split(node: Any, path: str) -> tuple[str, str]:
    """The first key of a path below `node`, and the rest; a named entry's name may hold dots ("by_0.94")."""
    if isinstance(node, dict):
        head = max((name for name in node if f"{path}.".startswith(f"{name}.")), key=len)
        return head, path[len(head) + 1 :]
    head, _, rest = path.partition(".")
    return head, rest


def bare(config: Config, keys: Iterable[str]) -> Config:
    """`config` with the schema's defaults under these dotted keys."""
    for key in keys:
        config = _with_default(config, key)
    return config


def _with_default(node: Any, path: str) -> Any:
    head, rest = _split(node, path)
    if isinstance(node, dict):
        return {**node, head: _with_default(node[head], rest)}
    if rest:
        return replace(node, **{head: _with_default(getattr(node, head), rest)})
    return replace(node, **{head: default(next(f for f in fields(node) if f.name == head))})


def default(field: Field[Any]) -> Any:
    """A dataclass field's default value."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def leaves(schema: Any = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema that holds a value; of named entries, the mapping itself."""
    for field in fields(schema):
        if is_dataclass(field.type):
            yield from leaves(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def implied(config: Config, given: Collection[str]) -> Config:
    """`config` with what the given keys imply: a path of weights alone means weights=file.

    Raises:
        UserError: two keys say the same thing, so one would be ignored.
    """
    if "epochs" in given and config.steps is not None:
        raise UserError(
            f"epochs would be ignored: steps={config.steps} says how long; give one of the two (steps=null)"
        )
    if "data.stands_for" in given:
        raise UserError(
            f"data.stands_for={config.data.stands_for} must be null: it is filled in where data.stand_in takes effect"
        )
    if "weights.path" in given and not {"weights", "weights.name"} & set(given):
        return replace(config, weights=replace(config.weights, name="file"))
    return config


def refuse_ignored(given: Iterable[str], ignored_in_all: Mapping[str, str]) -> None:
    """An error for the first key that the user gave and nothing reads.

    Args:
        given: dotted keys of the command line.
        ignored_in_all: what `ignored` says; of a sweep, what every job says.
    """
    for key in given:
        if (hit := next((u for u in ignored_in_all if f"{key}.".startswith(f"{u}.")), None)) is not None:
            raise UserError(f"{key} would be ignored: {ignored_in_all[hit]}")


def _any(options: list[str]) -> str:
    return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)
