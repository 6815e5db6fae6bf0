"""What each file of a run folder promises: the types and bounds of what a reader uses of it; more may be in it.

A shape is a kind (`COUNT`), [shape] (each of a list), {TEXT: shape} (each of a mapping), {"key": shape, "key?": shape}
(a mapping that has these, but for those with "?", which may be missing), or a tuple of shapes (any of them).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..planning import plain

MOST_TEXT = 20_000
"""Letters of a text."""
MOST_NUMBER = 1e45
"""Of what a framework can measure in 32 bits, with room."""
Shape = Any
Kind = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MOST_TEXT and not any("\ud800" <= c <= "\udfff" for c in value)


def _number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) and abs(value) <= MOST_NUMBER


TEXT, NUMBER, COUNT, WORD = "text", "a number", "a count", "a word"
FLAG, NAME, NOTHING = "true or false", "a plain name", "null"
KINDS: Mapping[str, Kind] = {
    TEXT: _text,
    NUMBER: lambda value: _number(value) and math.isfinite(value),
    COUNT: lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31,
    WORD: lambda value: isinstance(value, str) and value.isascii() and value.isidentifier() and len(value) <= 40,
    FLAG: lambda value: isinstance(value, bool),
    NOTHING: lambda value: value is None,
    NAME: lambda value: _text(value) and is_plain_name(value),
}


def is_plain_name(name: str) -> bool:
    """Whether it names a thing in a folder, and nothing else: no path, no option, nothing hidden, nothing unprintable."""
    known = name and len(name.encode("utf-8", "surrogatepass")) <= 255 and name.isprintable()
    return bool(known) and name[0] not in ".-~ " and not set(name) & {"/", "\\"}


def fault(value: Any, shape: Shape, at: str = "") -> str:
    """What of `value` does not have this shape, and where; "": nothing."""
    if isinstance(shape, str):
        return "" if KINDS[shape](value) else f"{_where(at)} is not {shape}"
    if isinstance(shape, tuple):
        return "" if any(not fault(value, one, at) for one in shape) else fault(value, shape[-1], at)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{_where(at)} is not a list"
        found = (fault(one, shape[0], f"{at}[{index}]") for index, one in enumerate(value))
        return next(filter(None, found), "")
    if not isinstance(value, dict):
        return f"{_where(at)} holds no facts by name"
    return next(filter(None, _faults_by_name(value, shape, at)), "")


def _where(at: str) -> str:
    return plain(at or "all of it")


def _faults_by_name(value: dict[str, Any], shape: Mapping[str, Shape], at: str) -> Any:
    dot = "." if at else ""
    for key, inner in shape.items():
        name, needed = key.removesuffix("?"), not key.endswith("?")
        if key in (TEXT, NAME):
            yield from (
                fault(one, key, f"{at}{dot}{one}") or fault(value[one], inner, f"{at}{dot}{one}") for one in value
            )
        elif name not in value:
            yield f"{at}{dot}{name} is missing" if needed else ""
        else:
            yield fault(value[name], inner, f"{at}{dot}{name}")


METRICS = {TEXT: NUMBER}
MOVED = {"gradient_norm": NUMBER, "update_ratio": NUMBER, "distance": NUMBER}
COUNTED = ("training", "faint", "evaluations", "mismatches")
PROOF = {"start": FLAG, "max_relative_error": NUMBER, **dict.fromkeys(COUNTED, COUNT)}
EVALUATED = {"step": COUNT, "val": METRICS, "test": METRICS}
SHAPES: Mapping[str, Shape] = {
    "status.json": {
        "state": WORD,
        "pid": COUNT,
        "host": TEXT,
        "updated?": TEXT,
        "started?": TEXT,
        "ended?": TEXT,
        "error?": (NOTHING, {"type": TEXT, "message": TEXT}),
    },
    "lr_find.json": {"suggestion": NUMBER},
    "summary.json": {
        "steps": COUNT,
        "val": METRICS,
        "test": METRICS,
        "metric": WORD,
        "seconds": NUMBER,
        "train_seconds": NUMBER,
        "notes": [TEXT],
        "stopped_early?": FLAG,
        "kept?": {"step": COUNT, "weights": WORD},
        "last?": EVALUATED,
        "proof?": (NOTHING, PROOF),
    },
    "command.json": {"argv": [TEXT], "overrides": [TEXT]},
    "env.json": {
        **{f"{key}?": TEXT for key in ("layerwise_lr", "python", "cpu", "framework", "framework_version", "device")},
        "cpu_count?": (NOTHING, COUNT),
        "retry_on_signal?": FLAG,
    },
    "git.json": (NOTHING, {"sha": TEXT}),
    "data.json": {"classes?": (NOTHING, {TEXT: TEXT})},
    "plan.json": {
        "groups": [{"name": TEXT, "params": [TEXT], "lr_scale": NUMBER, "weight_decay": NUMBER, "active": [NUMBER]}],
        "base_lr": NUMBER,
        "total_steps": COUNT,
        "schedules": {TEXT: {"name": WORD}},
        "optimizers": {TEXT: {"name": WORD}},
    },
    "sweep.json": {
        "jobs": {NAME: {"config_sha256": TEXT, "overrides": [TEXT]}},
        "limits?": {"timeout?": (NOTHING, NUMBER), "memory?": (NOTHING, NUMBER, TEXT)},
    },
}
"""By a file's name; what is not here has no promised shape."""
LINES: Mapping[str, Shape] = {
    "metrics.jsonl": {
        "step": COUNT,
        "loss?": NUMBER,
        "lrs?": [NUMBER],
        "val?": METRICS,
        "test?": METRICS,
        "groups?": {TEXT: MOVED},
    },
    "lr_check.jsonl": {"when": TEXT, "step": COUNT, "max_relative_error": NUMBER, "resolution": NUMBER},
}
"""Of each line, likewise."""
COLUMNS: Mapping[str, tuple[str, ...]] = {"params.csv": ("name", "depth", "group", "lr", "weight_decay")}
