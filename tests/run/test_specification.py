"""docs/run-folder.md as a test: a finished run and sweep have the files and fields that it lists, of its types, and no
others; and readers (run/shapes.py) ask for nothing that it does not promise."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from layerwise_lr.run import shapes
from layerwise_lr.run.checkpoints import Point
from layerwise_lr.run.folder import RunFolder

PAGE = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text()
SMALL = ("framework=reference", "model=mlp", "weights=none", "+size=test")
ELSEWHERE = {"error.txt", "prune.txt", "export/", "checkpoints/resume/step_N/"}
"""Of a failed run, a search, an export, a run that is not finished."""
TYPES = {
    "text": str,
    "word": str,
    "name": str,
    "number": (int, float),
    "count": int,
    "whole": int,
    "flag": bool,
    "null": type(None),
}
NARROWER = {
    shapes.TEXT: {"text", "word", "name"},
    shapes.NUMBER: {"number", "count", "whole"},
    shapes.COUNT: {"count"},
    shapes.WORD: {"word"},
    shapes.FLAG: {"flag"},
    shapes.NAME: {"name"},
    shapes.NOTHING: {"null"},
}
"""What a reader that takes the kind also takes."""


class Field(NamedTuple):
    """A row of a table of fields."""

    parts: tuple[str, ...]
    types: frozenset[str]
    there: str


def split(path: str) -> tuple[str, ...]:
    """`groups[].params[]`: groups [] params []."""
    return tuple(re.findall(r"[^.\[\]]+|\[\]", path))


def tables() -> dict[str, list[Field]]:
    """The fields of every file."""
    found: dict[str, list[Field]] = {}
    name = ""
    for line in PAGE.splitlines():
        if heading := re.match(r"(?:#+ `?|`)([\w.]+)", line):
            name = heading[1]
        if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) == 4:
            types = frozenset(re.split(r", | or ", cells[1]))
            found.setdefault(name, []).extend(
                Field(split(path), types, cells[2]) for path in re.findall("`([^`]+)`", cells[0])
            )
    return found


FIELDS = tables()


def described(name: str, at: tuple[str, ...]) -> Field | None:
    """The first row that is of this place."""

    def fits(field: Field) -> bool:
        whole = len(field.parts) == len(at) or ("any" in field.types and len(at) > len(field.parts))
        return whole and all(told in (part, "*") for told, part in zip(field.parts, at, strict=False))

    return next(filter(fits, FIELDS[name]), None)


def leaves(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that holds no others, with its place."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, (*at, key))
    elif isinstance(value, list):
        for one in value:
            yield from leaves(one, (*at, "[]"))
    else:
        yield at, value


def has(value: Any, parts: tuple[str, ...]) -> bool:
    """Whether the place is there; an empty list or mapping has all that could be in it."""
    if not parts:
        return True
    if parts[0] in ("[]", "*"):
        inner = value if isinstance(value, list) else value.values()
        return all(has(one, parts[1:]) for one in inner)
    return parts[0] in value and has(value[parts[0]], parts[1:])


def check(name: str, value: Any, always: bool = True) -> None:
    """What `value` holds is described, and all that is always there is there."""
    for at, leaf in leaves(value):
        field = described(name, at)
        assert field, f"{name}: {'.'.join(at)} is not in docs/run-folder.md"
        fit = [t for t in field.types if t == "any" or isinstance(leaf, TYPES[t])]
        assert fit and not (isinstance(leaf, bool) and {"any", "flag"}.isdisjoint(field.types)), (name, at, leaf)
    for field in FIELDS[name] if always else ():
        assert field.there != "always" or has(value, field.parts), f"{name}: {field.parts} is missing"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, one with an average of the weights, and a range test; started among code that was changed."""
    code, home = tmp_path_factory.mktemp("code"), tmp_path_factory.mktemp("sweep")
    (code / "own.py").write_text("one = 1\n")
    for git in (("init", "-q"), ("add", "."), ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")):
        subprocess.run(["git", *git], cwd=code, check=True)
    (code / "own.py").write_text("one = 2\n")
    for words in (
        ("train", "-m", *SMALL, "ema.decay=null,0.9", "logger=csv", f"hydra.sweep.dir={home}"),
        ("lr-find", *SMALL, "--steps", "20", f"hydra.run.dir={home}/lr_find"),
    ):
        done = subprocess.run([sys.executable, "-m", "layerwise_lr", *words], capture_output=True, text=True, cwd=code)
        assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="module")
def runs(sweep: Path) -> list[Path]:
    return sorted(path.parent for path in sweep.glob("*/summary.json"))


def test_the_page_has_tables_of_all_that_readers_read() -> None:
    assert set(FIELDS) >= {*shapes.SHAPES, *shapes.LINES, *shapes.COLUMNS}


def test_every_field_of_a_finished_run_is_described(runs: list[Path], sweep: Path) -> None:
    assert len(runs) == 2
    for path in (
        *(p for run in runs for p in run.glob("*.json")),
        sweep / "sweep.json",
        sweep / "lr_find/lr_find.json",
    ):
        check(path.name, json.loads(path.read_text()))
    for state in (p for run in runs for p in run.glob("checkpoints/step_*/state.json")):
        check("state.json", json.loads(state.read_text()))


def test_every_line_and_column_is_described(runs: list[Path]) -> None:
    for run in runs:
        for name in ("metrics.jsonl", "lr_check.jsonl"):
            lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
            for number, line in enumerate(lines):
                check(name, line, always=number > 0 or name == "lr_check.jsonl")
            seen = {described(name, at) for line in lines for at, _ in leaves(line)}
            averaged = (run / "checkpoints/latest").exists() and any("val_ema" in line for line in lines)
            left = {f.parts for f in FIELDS[name] if f not in seen}
            assert left <= ({("val_ema", "*")} if not averaged else set()), left
        with (run / "params.csv").open(newline="") as file:
            assert next(csv.reader(file)) == [field.parts[0] for field in FIELDS["params.csv"]]
        groups = [group["name"] for group in json.loads((run / "plan.json").read_text())["groups"]]
        assert (run / "lrs.csv").read_text().splitlines()[0].split(",") == ["step", *groups]
    assert any("val_ema" in (run / "metrics.jsonl").read_text() for run in runs)


def listed(heading: str, until: str) -> dict[str, str]:
    """The files of a table, with when they are written."""
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]*) \|", PAGE[PAGE.index(heading) : PAGE.index(until)], flags=re.MULTILINE)
    return {name: when for cell, when in rows for name in re.findall("`([^`]+)`", cell)}


def test_every_file_is_listed(runs: list[Path], sweep: Path) -> None:
    of_run, of_sweep = listed("## Files", "A sweep's folder"), listed("A sweep's folder", "## Types")
    for run in runs:
        found = {re.sub(r"step_\d+/.*", "step_N/", str(p.relative_to(run))) for p in run.rglob("*") if p.is_file()}
        assert found <= set(of_run), found - set(of_run)
        gone = {name for name, when in of_run.items() if "tracker" not in when} - found
        assert gone == ELSEWHERE
    assert {path.name for path in sweep.iterdir() if path.is_file()} <= set(of_sweep)
    assert {path.name for path in (sweep / "lr_find").iterdir()} <= set(FIELDS) | set(of_run) | {"lr_find.png"}
    of_checkpoint = listed("### Checkpoints", "`state.json`:")
    assert {p.name for run in runs for p in run.glob("checkpoints/step_*/*")} == set(of_checkpoint)


def test_a_resume_point_is_described(tmp_path: Path) -> None:
    facts = {"config": "a", "plan": "b", "pictures": "c", "start weights": "d"}
    point = Point(3, {"w": np.ones(2, np.float32)}, {"w/exp_avg": np.ones(2, np.float32)}, None, {"spent": 1.0})
    RunFolder(tmp_path).save_point(point, facts)
    (state,) = tmp_path.glob("checkpoints/resume/step_3/state.json")
    check("state.json", json.loads(state.read_text()))


def demanded(
    shape: Any, at: tuple[str, ...] = (), needed: bool = True
) -> Iterator[tuple[tuple[str, ...], set[str], bool]]:
    """(place, kinds, whether it must be there) of every leaf of a readers' shape."""
    if isinstance(shape, tuple) and all(isinstance(one, str) for one in shape):
        yield at, set(shape), needed
    elif isinstance(shape, tuple):
        for one in shape:
            if one != shapes.NOTHING:
                yield from demanded(one, at, False)
    elif isinstance(shape, str):
        yield at, {shape}, needed
    elif isinstance(shape, list):
        yield from demanded(shape[0], (*at, "[]"), needed)
    else:
        for key, inner in shape.items():
            part = "*" if key in (shapes.TEXT, shapes.NAME) else key.removesuffix("?")
            yield from demanded(inner, (*at, part), needed and not key.endswith("?"))


@pytest.mark.parametrize("name", [*shapes.SHAPES, *shapes.LINES])
def test_readers_demand_nothing_that_is_not_promised(name: str) -> None:
    for at, kinds, needed in demanded({**shapes.SHAPES, **shapes.LINES}[name]):
        field = described(name, at)
        assert field, f"{name}: readers know {'.'.join(at)}, docs/run-folder.md does not"
        taken = set().union(*(NARROWER[kind] for kind in kinds))
        assert field.types <= taken, f"{name}: {'.'.join(at)} may be {set(field.types)}, readers take {taken}"
        assert field.there == "always" or not needed, f"{name}: readers need {'.'.join(at)}"


def test_readers_columns_are_described() -> None:
    for name, columns in shapes.COLUMNS.items():
        assert set(columns) <= {field.parts[0] for field in FIELDS[name]}
