"""What sets a run apart from its reproduction: facts, known before it trains, and numbers, compared after it.

Two folders are read, through `files` alone. What was planned must be equal to the last bit; what was measured too where
the environment is the same, and within TOLERANCE elsewhere.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from ..planning import UserError, plain
from . import files
from .folder import CONFIG
from .schema import Config, FromEnvironment
from .shapes import MOST_NUMBER

TOLERANCE, SHARE = 0.01, 0.02
"""Elsewhere, of a loss (relative) and of an accuracy (a share of the pictures).

Another processor, library or number of threads adds the same numbers in another order: 1e-7 of a sum, which training
multiplies. Measured with PyTorch's kernels for SSE instead of AVX2: losses up to 3e-4 apart after 120 steps of LeNet, 1e-5
after 12 of a ViT and 16 of a ResNet; with other releases of PyTorch and NumPy nothing. This leaves room for longer runs.
"""
DEEPEST = 12
"""Levels of a file of a run."""
DECIDES = (
    *("layerwise_lr", "framework", "framework_version", "device", "threads", "cpu", "machine"),
    *("numpy", "pillow"),
    *("$ATEN_CPU_CAPABILITY", "$MKL_CBWR", "$MKL_ENABLE_INSTRUCTIONS", "$ONEDNN_MAX_CPU_ISA", "$OPENBLAS_CORETYPE"),
)
"""Facts of an environment on which the bits of a run depend; others are told, and change no number."""
BY_TIME = ("train_seconds", "seconds", "resumed", "peak_memory_mb", "config_sha256", "notes")
"""Of summary.json: times, memory, words; the config is compared as such."""
MEASURED = re.compile(r"(loss|((last\.)?(val|test)|val_ema)\.(loss|accuracy|balanced_accuracy))")
"""Elsewhere: these within a tolerance, and lrs exactly; norms, ratios and which step was best may be others."""


class Fact(NamedTuple):
    """Something that is not as it was.

    Args:
        what: it is.
        then, now: as text.
        decides: whether the bits of a run depend on it.
    """

    what: str
    then: str
    now: str
    decides: bool = False


class Compared(NamedTuple):
    """A file of the run against that of its reproduction.

    Args:
        file: its name.
        numbers: that were compared.
        largest: relative difference of two numbers.
        first: (where, then, now) of the first that differs by more than it may; None: the file is reproduced.
    """

    file: str
    numbers: int
    largest: float
    first: tuple[str, str, str] | None


def environment_of(env: Mapping[str, Any], lock: str) -> dict[str, str]:
    """The facts in env.json and requirements.lock.txt, as text by name."""
    told = {key: env.get(key) for key in ("framework", "framework_version", "device", "threads", "layerwise_lr")}
    platform = str(env.get("platform", ""))
    built = re.search(r"[^-]+-with-[^-]+$", platform)  # Linux: behind the kernel's release stand machine and libc
    told |= {"cpu": env.get("cpu"), "machine": built[0] if built else platform, "platform": platform}
    told |= {key: env.get(key) for key in ("python", "cpu_count")}
    held = dict(line.lower().split("==", 1) for line in lock.splitlines() if "==" in line)
    told |= {key: env.get(key, held.get(key)) for key in ("numpy", "pillow")}
    more = env.get("environment")
    told |= {f"${key}": value for key, value in more.items()} if isinstance(more, dict) else {}
    told |= {f"package {name}": version for name, version in held.items() if name not in told}
    return {key: plain(value, 60) for key, value in told.items() if value is not None}


def other_environment(then: Mapping[str, str], now: Mapping[str, str]) -> list[Fact]:
    """What differs in two of `environment_of`; those that decide come first, packages are one fact."""
    names = [*DECIDES, *(name for name in {**then, **now} if name not in DECIDES)]
    off_cpu = not now.get("device", "cpu").startswith("cpu")
    found = [
        Fact(name, then.get(name, "none"), now.get(name, "none"), name in DECIDES and not (name == "cpu" and off_cpu))
        for name in names
        if then.get(name) != now.get(name)
    ]
    packages = [fact for fact in found if fact.what.startswith("package ")]
    found = [fact for fact in found if fact not in packages]
    if packages and all(any(name.startswith("package ") for name in side) for side in (then, now)):
        first = [fact.what.removeprefix("package ") for fact in packages[:3]]
        rest = f" and {len(packages) - 3} more" if len(packages) > 3 else ""
        shown = [", ".join(getattr(fact, side) for fact in packages[:3]) for side in ("then", "now")]
        found.append(Fact(f"packages {', '.join(first)}{rest}", shown[0], shown[1]))
    return found


def other_data(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[Fact]:
    """What differs in two fingerprints, data.json, a fact for each part."""
    if then is None:
        return [Fact("data.json", "none", "its fingerprint")]
    now = json.loads(json.dumps(now))
    return [
        Fact(f"data: {plain(key)}", _shown(then.get(key)), _shown(now.get(key)))
        for key in dict.fromkeys([*now, *then])
        if then.get(key) != now.get(key)
    ]


def _shown(part: Any) -> str:
    """A part of a fingerprint in a few words."""
    if isinstance(part, dict) and isinstance(part.get("sha256"), str):
        return plain(f"{part.get('n')} pictures, {part['sha256'][:12]}")
    return plain("none" if part is None else part, 40)


def other_code(then: tuple[Any, str], now: tuple[Any, str]) -> list[Fact]:
    """What differs in two states of the repository that a run was started in: git.json, and git.diff."""
    (was, changes), (is_now, more) = then, now
    old, new = (plain(str((facts or {}).get("sha", "none"))[:12]) for facts in (was, is_now))
    found = [Fact("git commit", old, new)] if old != new else []
    if changes != more:
        found.append(Fact("git diff", f"{len(changes.splitlines())} lines", f"{len(more.splitlines())} lines"))
    return found


def compare(then: Path, now: Path, config: Config, exact: bool, same_config: str = "") -> list[Compared]:
    """Every file of a finished run against its reproduction.

    Args:
        then, now: the folders.
        config: of both.
        exact: whether what was measured must be equal; else within TOLERANCE.
        same_config: the sha256 that the run's config had; "": unknown.

    Raises:
        UserError: a file of theirs is not as a run writes it.
    """
    found = [_config(then, now, config, same_config)]
    found += [_table(then, now, name) for name in ("params.csv", "lrs.csv")]
    found += [_records(name, [_json(then, name)], [_json(now, name)], _exactly) for name in ("plan.json", "data.json")]
    close = _exactly if exact else _closely
    for name in ("metrics.jsonl", "lr_check.jsonl"):
        if any((folder / name).exists() for folder in (then, now)):
            how = close if name == "metrics.jsonl" or exact else _as_planned
            found.append(_records(name, files.records(then, name), files.records(now, name), how))
    ends = [{k: v for k, v in (_json(f, "summary.json") or {}).items() if k not in BY_TIME} for f in (then, now)]
    if not exact:  # of a tie, another step may be best
        ends = [{key: end.get(key) for key in ("name", "seed", "metric", "plan_sha256", "last")} for end in ends]
    return [*found, _records("summary.json", ends[:1], ends[1:], close)]


def _json(path: Path, name: str) -> Any:
    return files.read_json(path, name)


def _config(then: Path, now: Path, config: Config, was: str) -> Compared:
    """The config is the run's own: its hash (a variable of the environment may have another value: what comes of that is
    judged), and the seed, which stands in a file of its own."""
    row = _records("seed.json", [_json(then, "seed.json")], [_json(now, "seed.json")], _exactly)
    known = was and not isinstance(config, FromEnvironment)
    if row.first is None and known and was != config.sha256():
        row = row._replace(first=("its sha256", plain(was[:12]), config.sha256()[:12]))
    return row._replace(file=CONFIG)


Close = Callable[[str, Any, Any], bool]


def _exactly(key: str, then: Any, now: Any) -> bool:
    return bool(then == now)


def _closely(key: str, then: Any, now: Any) -> bool:
    """Of a record of metrics.jsonl, and summary.json, in another environment."""
    if not MEASURED.fullmatch(key):
        return key.startswith(("groups.", "best")) or bool(then == now)
    if not (_number(then) and _number(now)):
        return bool(then == now)
    if key.endswith("accuracy"):
        return abs(then - now) <= SHARE
    return _apart(then, now) <= TOLERANCE


def _as_planned(key: str, then: Any, now: Any) -> bool:
    """Of a record of lr_check.jsonl, in another environment: what was measured is proved there by itself."""
    return re.search(r"(^|\.)(planned|step|when|group|base_lr_times)$", key) is None or bool(then == now)


def _records(file: str, then: Iterable[Any], now: Iterable[Any], close: Close) -> Compared:
    """Two sequences of records, leaf by leaf."""
    numbers, largest, first = 0, 0.0, None
    for index, (one, other) in enumerate(zip_longest(then, now)):
        if one is None or other is None:
            at = _where(one or other or {}, index)
            sides = [("not there" if record is None else "there") for record in (one, other)]
            first = first or (None if one is other else (at, sides[0], sides[1]))
            break
        held, made = dict(_leaves(one)), dict(_leaves(other))
        for key in {**held, **made}:
            a, b = held.get(key, "not there"), made.get(key, "not there")
            if _number(a) and _number(b):
                numbers, largest = numbers + 1, max(largest, _apart(a, b))
            if first is None and not close(key, a, b):
                first = (f"{_where(one, index)}{plain(key)}", plain(repr(a), 40), plain(repr(b), 40))
    return Compared(file, numbers, largest, first)


def _where(record: Any, index: int) -> str:
    """Of which step a record tells."""
    step = record.get("step") if isinstance(record, dict) else None
    if not isinstance(step, int):
        return f"line {index + 1}, " if index else ""
    return f"{'evaluation at ' if 'val' in record else ''}step {step}, "


def _leaves(value: Any, at: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of plain data; what is deeper than any file of a run is left out."""
    if isinstance(value, dict | list) and depth <= DEEPEST:
        parts = value.items() if isinstance(value, dict) else ((f"[{i}]", one) for i, one in enumerate(value))
        for key, inner in parts:
            yield from _leaves(inner, f"{at}{'' if key[:1] == '[' or not at else '.'}{key}", depth + 1)
    elif not isinstance(value, dict | list):
        yield at, value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST_NUMBER


def _apart(then: float, now: float) -> float:
    """The relative difference of two numbers; 0 where they are equal."""
    return 0.0 if then == now else abs(then - now) / max(abs(then), abs(now))


def _table(then: Path, now: Path, name: str) -> Compared:
    """Two tables, cell by cell as text: what is planned is equal to the last digit. The first difference ends it."""
    held, made = _lines(then, name), _lines(now, name)
    titles, cells = next(held, None), 0
    heading = next(made, "")
    if titles != heading:  # whatever it is, it is not shown
        return Compared(name, 0, 0.0, ("its heading", "not there" if titles is None else "of another table", "there"))
    columns = _row(heading, now / name)
    for line, other in zip_longest(held, made):
        if line != other:
            return Compared(name, cells, 0.0, _cell(columns, line, other, then / name))
        cells += len(columns) - 1
    return Compared(name, cells, 0.0, None)


def _cell(heading: list[str], line: str | None, other: str | None, path: Path) -> tuple[str, str, str]:
    """The first cell in which two lines differ, by the line's name and the column's heading."""
    name = (line or other or "").partition(",")[0]
    if line is None or other is None:
        sides = [("not there" if text is None else "there") for text in (line, other)]
        return plain(f"{heading[0]} {name}"), sides[0], sides[1]
    cells = zip_longest(heading, _row(line, path), _row(other, path), fillvalue="")
    column, one, two = next((cell for cell in cells if cell[1] != cell[2]), ("how it is written", line, other))
    return plain(f"{heading[0]} {name}, {column}"), plain(one, 40), plain(two, 40)


def _row(line: str, path: Path) -> list[str]:
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise UserError(f"{path}: not a run's table ({plain(error)}); {files.READABLE}") from None


def _lines(path: Path, name: str) -> Iterator[str]:
    file = files.opened(path, name, files.MOST_OF_LINES)
    if file is not None:
        with file:
            while line := file.readline(files.MOST_LINE):
                yield line.decode("utf-8", "replace").rstrip("\n")
