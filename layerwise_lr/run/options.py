"""Which keys the chosen options read. A key that the user gave and nothing reads is an error that names what would.

One table per spec: option -> keys; what is not in the row of the chosen option is not read, and in a final config it
has its default, so that two jobs that do the same are the same job. `unread` knows the few keys whose reading hangs
on another key's value.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import Any, NamedTuple

from ..plan import UserError
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
    "layer_decay": ("layer_decay", "allow_above_one", "stem_scale", "min_scale"),
    "backbone_head": ("backbone_scale",),
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
        at: where it stands ("optimizer").
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
    return {".".join(path): why for path, why in _unread(config)}


def bare(config: Config, stepped: Config) -> Config:
    """`config` with the schema's defaults under what nothing reads in `stepped`, its twin with durations in steps."""
    for path, _ in _unread(stepped):
        config = _with_default(config, path)
    return config


Path = tuple[str, ...]


def _unread(config: Config) -> Iterator[tuple[Path, str]]:
    """As a path: a named schedule may have a dot in its name."""
    for section, home, spec in _sections(config):
        chosen = getattr(spec, section.key)
        known = {key for keys in section.table.values() for key in keys}
        for key in sorted(known - set(section.table.get(chosen, known))):
            if section.at == "data" and config.data.stands_for and key in ("path", "checksum"):
                continue  # of the data that were absent
            would = [option for option, keys in section.table.items() if key in keys]
            yield (*home, key), f"{section.group}={chosen} does not read it, {section.group}={_any(would)} does"
    yield from _by_value(config)


def _by_value(config: Config) -> Iterator[tuple[Path, str]]:
    """Keys whose reading hangs on what another key says."""
    for name, schedule in config.schedules_by_name().items():
        if not schedule.warmup:
            home: Path = ("scheduler",) if name == "default" else ("schedules", name)
            yield (*home, "warmup_start"), f"it is read where {'.'.join(home)}.warmup is above 0"
    for name in config.optimizers:
        for key in ("lr", "weight_decay"):
            yield ("optimizers", name, key), f"a group's own is read: grouping.groups.NAME.{key}"
    grouping, freeze = config.grouping, config.freeze
    if grouping.strategy == "layer_decay" and grouping.stem_scale is not None:
        for key in ("layer_decay", "allow_above_one"):
            yield ("grouping", key), "grouping.stem_scale is given and says it all"
    if grouping.strategy != "layer_decay" and (freeze.strategy != "progressive" or freeze.stages):
        yield ("grouping", "depth"), "grouping=layer_decay reads it, and freeze=progressive without stages"
    if config.checkpoint.every is None:
        yield ("checkpoint", "keep"), "it is read where checkpoint.every is given: else there is one checkpoint"
    if not config.verify.training:
        yield ("verify", "every"), "it is read where verify.training is true"
    if not (config.verify.start or config.verify.training):
        yield ("verify", "on_mismatch"), "nothing is measured (verify=off)"


def _sections(config: Config) -> Iterator[tuple[Section, Path, Any]]:
    """(section, where, spec), named schedules and optimizers included."""
    for section in SECTIONS:
        yield section, (section.at,), getattr(config, section.at)
        many = {"scheduler": "schedules", "optimizer": "optimizers"}.get(section.at)
        for name, spec in (getattr(config, many) if many else {}).items():
            yield section, (str(many), name), spec


def _with_default(node: Any, path: Path) -> Any:
    head, rest = path[0], path[1:]
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
        if key in unread_in_all:
            raise UserError(f"{key} would be ignored: {unread_in_all[key]}")


def _any(options: list[str]) -> str:
    return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)
