"""Which keys the chosen options read. A key that the user gave and nothing reads is an error that names what would.

One table per spec: option -> keys; what is not in the row of the chosen option is not read, and in a final config it
has its default, so that two jobs that do the same are the same job. `unread` knows the few keys whose reading hangs
on another key's value.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import Any, NamedTuple

from ..models import walk
from ..planning import UserError
from .schema import Config

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
    "digits": ("stand_in", "stands_for"),
    "elpv": ("stand_in",),
    "mnist": ("stand_in",),
    "cifar10": ("path", "checksum", "stand_in"),
    "idx": ("path", "stand_in"),
    "npz": ("path", "stand_in"),
    "image_folder": ("path", "stand_in"),
}
WEIGHTS: Table = {"none": (), "lenet_mnist": (), "mobilenet_v2_imagenet": (), "file": ("path", "resize_pos_embed")}


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
            if section.at == "data" and config.data.stands_for and key in ("path", "checksum"):
                continue  # of the data that were absent
            would = [option for option, keys in section.table.items() if key in keys]
            found[f"{section.at}.{key}"] = (
                f"{section.group}={chosen} does not read it, {section.group}={_any(would)} does"
            )
    return found | dict(_by_value(config))


def _by_value(config: Config) -> Iterator[tuple[str, str]]:
    """Keys whose reading hangs on what another key says."""
    yield from _named(config)
    for name, schedule in config.schedules_by_name().items():
        if not schedule.warmup:
            where = "scheduler" if name == "default" else f"schedules.{name}"
            yield f"{where}.warmup_start", f"it is read where {where}.warmup is above 0"
    for name in config.optimizers:
        for key in ("lr", "weight_decay"):
            yield f"optimizers.{name}.{key}", f"a group's own is read: grouping.groups.NAME.{key}"
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
    if not any(layer.kind == "batchnorm" for _, layer, _ in walk(config.tree().root)):
        yield "freeze.batchnorm", f"model {config.model.name} has no batchnorm layer"
    elif freeze.strategy == "none" and not grouping.groups and grouping.backbone_scale:
        yield "freeze.batchnorm", "nothing is frozen (freeze=none)"
    if not config.model.name.startswith("vit"):
        yield "weights.resize_pos_embed", f"model {config.model.name} has no position embedding"
    if config.checkpoint.every is None:
        yield "checkpoint.keep", "it is read where checkpoint.every is given: else there is one checkpoint"
    if not config.verify.training:
        yield "verify.every", "it is read where verify.training is true"
    if not (config.verify.start or config.verify.training):
        yield "verify.on_mismatch", "nothing is measured (verify=off)"


def _named(config: Config) -> Iterator[tuple[str, str]]:
    """Keys of the named schedules and optimizers that no group and no other schedule names."""
    groups, every = config.grouping.groups.values(), config.schedules_by_name()
    reached, todo = set[str](), ["default", *(group.schedule for group in groups)]
    while todo:
        if (name := todo.pop()) not in every:  # the plan's check names it, and what there is
            return
        if name not in reached and every[name].name in ("join", "product"):
            todo += every[name].parts
        reached.add(name)
    used = {"schedules": reached, "optimizers": {group.optimizer for group in groups}}
    for at, names in used.items():
        for name, spec in getattr(config, at).items():
            for field in fields(spec) if name not in names else ():
                yield f"{at}.{name}.{field.name}", f"nothing names {name}: grouping.groups.NAME.{at.rstrip('s')}={name}"


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
    if "weights.path" in given and not {"weights", "weights.name"} & set(given):
        return replace(config, weights=replace(config.weights, name="file"))
    return config


def refuse_unread(given: Iterable[str], unread_in_all: Mapping[str, str]) -> None:
    """An error for the first key that the user gave and nothing reads.

    Args:
        given: dotted keys of the command line.
        unread_in_all: what `unread` says; of a sweep, what every job says.
    """
    for key in given:
        if (hit := next((u for u in unread_in_all if f"{key}.".startswith(f"{u}.")), None)) is not None:
            raise UserError(f"{key} would be ignored: {unread_in_all[hit]}")


def _any(options: list[str]) -> str:
    return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)
