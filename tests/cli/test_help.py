"""The help pages: every key, once, with its meaning, at 80 columns."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from layerwise_lr.cli import help
from layerwise_lr.models import MODELS
from layerwise_lr.planning import GroupSpec
from layerwise_lr.run import Config
from layerwise_lr.sweep import LAUNCHERS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(Path(sys.executable).with_name("layerwise-lr"))


def shown(*words: str) -> str:
    ended = subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.fixture(scope="module")
def page() -> str:
    return shown("train", "--help")


def keys(node: Any, at: str = "") -> Iterator[str]:
    """Of the schema as OmegaConf sees it: another route than the page's."""
    for key in node:
        value = node[key]
        if OmegaConf.is_dict(value) and OmegaConf.get_type(value) is not dict:
            yield from keys(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def entries(page: str) -> dict[str, str]:
    """key -> all that is said of it, its value included."""
    found: dict[str, str] = {}
    key = ""
    for line in page.partition("Keys: ")[2].splitlines():
        if line[:2] == "  " and line[2:4].strip() and "NAME={KEY" not in line:
            key = line.split()[0].partition("=")[0]
            found[key] = line.strip()
        elif line.startswith("    "):
            if line[4] != " ":
                key = f"group.{line.split()[0]}"
            found[key] = f"{found.get(key, '')} {line.strip()}"
    return found


def meaning(entry: str) -> str:
    """What stands after the first word, or after a value in quotes."""
    head, _, rest = entry.partition("='")
    return rest.partition("' ")[2] if rest and " " not in head else entry.partition(" ")[2]


def test_every_key_of_the_schema_has_a_meaning(page: str) -> None:
    found = entries(page)
    for key in keys(OmegaConf.structured(Config)):
        assert len(meaning(found[key]).strip()) > 5, key
    for field in fields(GroupSpec):
        assert len(meaning(found[f"group.{field.name}"]).strip()) > 5, field.name
    for field in {field.name for schema in LAUNCHERS.values() for field in fields(schema)}:
        assert len(meaning(found[f"hydra.launcher.{field}"]).strip()) > 5, field


@pytest.mark.parametrize(
    "command",
    [
        *("train", "plan", "verify", "lr-find", "tune", "compare", "report", "check", "frameworks", "fetch", "run"),
        *("resume", "reproduce", "watch"),
    ],
)
def test_no_help_is_wider_than_a_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(command, "--help")
    assert f"layerwise-lr {command}" in text
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_the_first_page_is_no_wider_than_a_terminal() -> None:
    assert [line for line in shown().splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    "group", [p for p in (ROOT / "conf").iterdir() if p.is_dir() and p.name != "__pycache__"], ids=lambda p: p.name
)
def test_every_option_of_every_group_is_listed(group: Path, page: str) -> None:
    for text in (page, shown("plan", "--help") if group.name == "model" else page):
        paragraph = text.partition("GROUP=OPTION")[2].partition("\n\n")[0]
        own = re.split(r"\n  (?=\S)", paragraph.partition(f"\n  {group.name} ")[2])[0]
        assert {p.stem for p in group.glob("*.yaml")} == set(own.split())


def test_the_choices_are_those_that_there_are(page: str) -> None:
    told = entries(page)
    assert set(MODELS) <= set(meaning(told["model.name"]).replace("|", " ").split())
    for group, key in (
        ("optimizer", "optimizer.name"),
        ("grouping", "grouping.strategy"),
        ("scheduler", "scheduler.name"),
    ):
        names = {OmegaConf.load(p)[key.rpartition(".")[2]] for p in (ROOT / "conf" / group).glob("*.yaml")}
        assert names <= set(meaning(told[key]).replace("|", " ").split()), key


def test_values_are_those_of_the_composed_config() -> None:
    text = shown("train", "-m", "model=vit_tiny", "optimizer.lr=0.5", "seed=0,1", "--help")
    assert "  model.patch_size=16 " in text and "  optimizer.lr=0.5 " in text and "  seed=0 " in text


def test_a_mistake_beside_help_is_one_line() -> None:
    ended = subprocess.run([SCRIPT, "train", "model=resnet19", "--help"], capture_output=True, text=True)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1 and "resnet18" in ended.stderr


def test_a_key_without_a_meaning_would_be_seen() -> None:
    assert is_dataclass(Config)
    told = help.meanings(Config)
    assert "seed" in told and "framework" not in told


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["--version"], ["-V"]])
def test_the_first_page_waits_for_no_other_room(words: list[str]) -> None:
    script = (
        "import sys; from layerwise_lr.cli import main\ntry: main(sys.argv[1:])\nfinally: print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    told, loaded = done.stdout.rstrip("\n").rpartition("\n")[::2]
    assert told.startswith("layerwise-lr") and not {"numpy", "hydra", "rich", "layerwise_lr.run"} & set(loaded.split())
