"""Environment variables in a config: ${oc.env:NAME} is resolved when it is used, and recorded as it was typed.

OmegaConf resolves; here stand its resolvers: one that gives the value (and tells `hidden` of it), one that gives the words
back. A folder that others made may name variables too, in this form alone; their values reach no file and no terminal.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from ..planning import UserError, hide, is_secret, plain
from .schema import Config, FromEnvironment, Told

OPEN, CLOSE = "\ue000", "\ue001"
"""Stand for "${" and "}" while OmegaConf looks."""
KNOWN = re.compile(r"\$\{\s*(oc\.env|oc\.decode|last)\s*:")
LONGEST = 1000
"""Letters of a value with a variable in it, in a folder."""
UNUSED = ("path", "key", "label", "checksum")
"""Last words of the keys that a reader of results has no use for, as of `name`."""
_NONE = "\ue002"
Path = tuple[Any, ...]


@contextmanager
def given() -> Iterator[list[str]]:
    """Inside, OmegaConf's oc.env gives values; the names of the variables that it gave.

    Raises:
        UserError: inside, as OmegaConf's own error's cause: a variable is not set, or named as secrets are.
    """
    used: list[str] = []

    def value(name: str, default: Any = _NONE) -> str | None:
        if is_secret(name) or name.upper().endswith(("TOKEN", "KEY")):
            raise UserError(
                f"${{oc.env:{plain(name)}}} looks like a secret: leave it out; a package that needs it reads the "
                "environment itself"
            )
        used.append(name)
        if name in os.environ:
            hide(os.environ[name], f"${{oc.env:{name}}}")
            return os.environ[name]
        if default == _NONE:
            raise UserError(
                f"environment variable {plain(name)} is not set: export {plain(name)}=... before the command"
            )
        return None if default is None else str(default)

    with _resolvers(value, oc.decode, last):
        yield used


def last(path: str) -> str:
    """Behind the last slash."""
    return str(path).rstrip("/").rpartition("/")[2]


@contextmanager
def _resolvers(env: Any, decode: Any, behind: Any) -> Iterator[None]:
    own: tuple[Any, ...] = (oc.env, oc.decode, last)
    names = ("oc.env", "oc.decode", "last")
    for name, resolver in zip(names, (env, decode, behind), strict=True):
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    try:
        yield
    finally:
        for name, resolver in zip(names, own, strict=True):
            OmegaConf.register_new_resolver(name, resolver, replace=True)


def as_typed(cfg: Any) -> dict[Path, str]:
    """Where in a composed config values are made of environment variables, and how that was typed; all else is resolved."""

    def env(name: str, *default: Any) -> str:
        return f"{OPEN}oc.env:{','.join([name, *map(_spelled, default)])}{CLOSE}"

    def through(name: str, plainly: Any) -> Any:
        return lambda text: f"{OPEN}{name}:{text}{CLOSE}" if OPEN in str(text) else plainly(text)

    untyped = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    with _resolvers(env, through("oc.decode", oc.decode), through("last", last)):
        held = OmegaConf.to_container(untyped, resolve=True)
    return {
        path: text.replace(OPEN, "${").replace(CLOSE, "}")
        for path, text in _leaves(held)
        if isinstance(text, str) and OPEN in text
    }


def _spelled(default: Any) -> str:
    """A default as OmegaConf reads it."""
    if isinstance(default, str) and not re.fullmatch(r"[\w./-]+", default) and OPEN not in default:
        return "'" + default.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "null" if default is None else str(default)


def _leaves(value: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*at, index))
    else:
        yield at, value


def resolved(data: Any, needed: bool) -> dict[Path, str]:
    """Put values where a folder's config has variables: in `data` itself; where they stood, and how.

    Args:
        data: plain.
        needed: else places and the like stay as they are.

    Raises:
        UserError: another interpolation is there, or it cannot be resolved.
    """
    found = {path: text for path, text in _leaves(data) if "${" in str(text)}
    if "${" in "".join(map(str, _keys(data))) or any(not _is_known(text) for text in found.values()):
        raise UserError("holds an interpolation ('${') other than ${oc.env:NAME}; a resolved config has none")
    for path, text in found.items():
        unused = not needed and (path == ("name",) or path[-1] in UNUSED)
        value = text.replace("${", OPEN) if unused else _value(text, ".".join(map(str, path)))
        _at(data, path[:-1])[path[-1]] = value
    return found


def _at(node: Any, path: Path) -> Any:
    """What stands there; None: nothing."""
    for key in path:
        known = isinstance(node, list) or (isinstance(node, dict) and key in node)
        node = node[key] if known else getattr(node, str(key), None)
    return node


def _value(text: str, at: str) -> Any:
    try:
        with given():
            held: Any = OmegaConf.to_container(OmegaConf.create({"value": text}), resolve=True)
    except OmegaConfBaseException as error:
        why = cause(error) or str(error).splitlines()[0]
        raise UserError(f"{at}: {plain(why, 400)}") from None
    return held["value"]


def cause(error: BaseException | None) -> str:
    """What one of these resolvers complained of, below OmegaConf's own words; "": nothing."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return "" if error is None else str(error)


def _keys(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _keys(inner)


def _is_known(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= LONGEST and len(KNOWN.findall(text)) == text.count("${") <= 8


def remembering(config: Config, typed: Mapping[Path, str]) -> Config:
    """`config`, which records these values as they were typed."""
    told: list[Told] = []
    for path, text in typed.items():
        value = _at(config, path)
        if isinstance(value, str) and OPEN in value:  # nobody will use it
            setattr(_at(config, path[:-1]), path[-1], value := text)
        told.append((path, text, value))
        for _, leaf in _leaves(value):
            if isinstance(leaf, str) and leaf != text:
                hide(leaf, text)
    return FromEnvironment(**{f.name: getattr(config, f.name) for f in fields(Config)}, told=tuple(told))
