"""A Config of what Hydra composed, of plain data, or of a file."""

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..planning import UserError, did_you_mean, plain
from . import environment, files
from .environment import last as last
from .hints import SYNONYMS, meant
from .schema import Config

MAX_BYTES, DEEPEST, MOST_EVENTS = 1_000_000, 20, 200_000
_PLAIN = (type(None), bool, int, float, str, list, dict)
_MEANT = re.compile(r"\$\{|^\?\?\?$")
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Plain data alone; libyaml's is ten times faster, and not in every build."""


def from_omegaconf(cfg: Any) -> Config:
    """The typed Config of a composed one; unknown keys ("+typo=1") and missing values are errors."""
    with environment.given() as used:
        data = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    config = from_data(data)
    return environment.remembering(config, environment.as_typed(cfg)) if used else config


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
    except (OverflowError, ValueError) as error:  # an integer of hundreds of digits for a float
        raise UserError(f"a number is none that a run could use ({plain(str(error).splitlines()[0], 200)})") from None
    assert isinstance(config, Config)
    return config


def explain(error: OmegaConfBaseException) -> str:
    """OmegaConf's message as one line: key and fault."""
    key = getattr(error, "full_key", None) or ""
    if own := environment.cause(error):
        return f"{key}: {own}" if key else own
    first = next(line.strip() for line in str(error).splitlines() if line.strip())
    hint = "; a list is written key=[a,b]" if "is not a ListConfig" in first else ""
    return (f"{key}: {first}" if key and key not in first else first) + hint


def read(path: Path, needed: bool = True) -> Config:
    """config.resolved.yaml as data: no tags, no code, no interpolation but of environment variables.

    Args:
        path: of the file.
        needed: whether all values will be used; else places and names that are variables' stay as they were typed.

    Raises:
        UserError: it is missing, too large, not YAML, or not a Config.
    """
    text = None if path.is_dir() else files.read_text(path.parent, path.name, MAX_BYTES)
    if text is None:
        raise UserError(f"{path}: no such file; a run folder holds config.resolved.yaml")
    try:
        _check_events(text)
        data = yaml.load(text, Loader=LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({plain(str(error).splitlines()[0], 200)})") from None
    if isinstance(data, dict) and isinstance(data.get("verify"), bool):  # as version 0.1 wrote it
        data["verify"] = {"start": data["verify"], "training": data["verify"]}
    try:
        told = environment.resolved(data, needed)
        try:
            config = cast(Config, _as_written(Config, data))
        except _Otherwise:
            config = from_data(data)
    except UserError as error:
        raise UserError(f"{path}: {plain(error, 900)}") from None
    return environment.remembering(config, told) if told else config


class _Otherwise(Exception):
    """Data is not as `Config.to_yaml` writes it, and for OmegaConf to judge."""


def _as_written(kind: Any, value: Any) -> Any:
    """What OmegaConf makes of data that has every key, and nothing to convert: a hundred times as fast.

    Raises:
        _Otherwise: a key is missing or unknown, a value is of another type or means something to OmegaConf.
    """
    arguments = get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, dict) or value.keys() != {f.name for f in fields(kind)}:
            raise _Otherwise
        return kind(**{f.name: _as_written(f.type, value[f.name]) for f in fields(kind)})
    if type(None) in arguments and value is None:
        return None
    if type(None) in arguments:
        return _as_written(arguments[0], value)
    kind = get_origin(kind) or kind
    if type(value) not in (_PLAIN if kind is Any else (kind,)) or (isinstance(value, str) and _MEANT.search(value)):
        raise _Otherwise
    inner = arguments[-1] if arguments else Any
    if isinstance(value, list):
        return [_as_written(inner, one) for one in value]
    if isinstance(value, dict):
        return {_as_written(str, key): _as_written(inner, one) for key, one in value.items()}
    return value


def _check_events(text: str) -> None:
    """What a config has no need of, told before anything is built of it.

    Raises:
        ValueError: it repeats itself by name (an alias: a few of them make billions), or is deeper or longer than any config.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=LOADER)):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("holds an alias (*name); write its value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or count > MOST_EVENTS:
            raise ValueError("deeper or longer than a run's config")


def check_keys(data: Any, schema: Any = Config, at: str = "") -> None:
    """Refuse a key that the schema lacks: Hydra's "+key=value" would add it in silence."""
    if not isinstance(data, Mapping):
        raise UserError(f"{at.rstrip('.') or 'config'} must be a mapping, it is {type(data).__name__}")
    types = {f.name: f.type for f in fields(schema)}
    for key, value in data.items():
        if key not in types:
            near = "" if f"{at}{key}" in SYNONYMS else did_you_mean(str(key), list(types))
            hint = near or meant(f"{at}{key}")
            raise UserError(f"unknown key {at}{key}; known: {', '.join(types)}{hint}")
        kind = types[key]
        if is_dataclass(kind):
            check_keys(value, kind, f"{at}{key}.")
        elif (inner := getattr(kind, "__args__", ())) and is_dataclass(inner[-1]):
            if not isinstance(value or {}, Mapping):
                raise UserError(f"{at}{key}={value} must be a mapping: {{name: {{...}}}}")
            for name, entry in (value or {}).items():
                check_keys(entry, inner[-1], f"{at}{key}.{name}.")
