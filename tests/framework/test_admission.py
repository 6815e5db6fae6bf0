"""Plugins as packages of their own, as somebody may have made them: each with its metadata, on the path of this process
and, at the end, of real commands. What is wrong with one is a line that names it, and harms no other."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerwise_lr.framework import CONTRACT, UserError, registry

GOOD = """
from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework
class Good(ReferenceFramework):
    modes = ("quick",)
"""
PLUGIN = "from layerwise_lr.framework import Framework\nclass Good(Framework):\n"
FAULTS = {
    "gone": (None, "{m}:Good", "names no module of it ({m} is not there): install it again"),
    "elsewhere": (GOOD, "{m}.inner:Good", "names no module of it ({m}.inner is not there): install it again"),
    "needy": ("import no_such_package", "{m}:Good", "needs no_such_package, which is not installed: pip install "),
    "broken": ("1 / 0", "{m}:Good", "does not import (ZeroDivisionError: division by zero): mend, upgrade or "),
    "wordy": ("raise ValueError('a\\nb\\x1b[31m' * 900)", "{m}:Good", "does not import (ValueError: a b"),
    "exits": ("raise SystemExit(7)", "{m}:Good", "does not import (SystemExit: 7): mend, upgrade or uninstall it"),
    "misspelt": (GOOD, "{m}:God", "names nothing in {m}; it has ReferenceFramework, Good: mend its entry point"),
    "no_place": (GOOD, "{m}", "is a module, not a class that derives from layerwise_lr.framework.Framework; see doc"),
    "nothing": (GOOD, "a b", "is no MODULE:CLASS; see docs/plugins.md"),
    "factory": ("def Good(*words): return 1", "{m}:Good", "is a function, not a class that derives from layerwise_lr"),
    "stranger": ("class Good: pass", "{m}:Good", "is class Good, not a class that derives from layerwise_lr.framew"),
    "half": (PLUGIN + "    kinds = optimizers = ()", "{m}:Good", "lacks get_optimizer_state, get_weights, make_groups"),
    "older": (GOOD + "    contract = 0", "{m}:Good", "is written for contract 0, this layerwise-lr has 1: upgrade it"),
    "newer": (
        GOOD + "    contract = 9",
        "{m}:Good",
        "contract 9, this layerwise-lr has 1: pip install --upgrade layer",
    ),
    "text": (GOOD + "    kinds = 'linear'", "{m}:Good", "kinds is 'linear', not a tuple of words; see docs/plugins.md"),
    "typo": (GOOD + "    kinds = ('linea',)", "{m}:Good", "kinds lists 'linea', which is none; did you mean 'linear'?"),
    "modeless": (GOOD + "    modes = ()", "{m}:Good", "modes is empty; see docs/plugins.md"),
    "short": (
        GOOD + "    def train_step(self, state, x, y): pass",
        "{m}:Good",
        "train_step is not called with (state, x, y, step); see docs/plugins.md",
    ),
    "static": (GOOD + "    def version(self): return ''", "{m}:Good", "version is not called with (); see docs/pl"),
    "own_init": (
        GOOD + "    def __init__(self, device): pass",
        "{m}:Good",
        "__init__ is not called with (device, mode",
    ),
}
"""Name of the framework and the module: (its text, what the entry point says, what the line must say)."""


def distribution(site: Path, name: str, module: str | None, points: dict[str, str], package: str = "") -> None:
    """As pip leaves one: a module and its metadata."""
    if module is not None:
        (site / f"{package or name}.py").write_text(module)
    info = site / f"layerwise_lr_{name}-0.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: layerwise-lr-{name}\nVersion: 0.3\n")
    lines = [f"{key} = {value}" for key, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[layerwise_lr.frameworks]", *lines]) + "\n")


def install(site: Path) -> None:
    """All of them, with two that clash, one named as ours is, and one that is as it should be."""
    site.mkdir()
    for name, (text, point, _) in FAULTS.items():
        distribution(site, name, text, {name: point.format(m=f"{name}_it")}, f"{name}_it")
    for one in ("clash_a", "clash_b"):
        distribution(site, one, GOOD, {"clash": f"{one}:Good"})
    distribution(site, "shadow", GOOD, {"torch": "shadow:Good", "reference": "shadow:Good"})
    distribution(site, "good", GOOD, {"good": "good:Good"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("somebody") / "site"
    install(path)
    return path


@pytest.fixture
def here(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(site))
    yield
    for name in [name for name, module in sys.modules.items() if str(site) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


@pytest.mark.parametrize("name", FAULTS)
def test_a_plugin_that_is_at_fault_is_told_in_a_line(name: str, here: None) -> None:
    with pytest.raises(UserError) as told:
        registry.load(name)
    line = str(told.value)
    assert FAULTS[name][2].format(m=f"{name}_it") in line
    assert line.startswith(f"framework={name}") and f"layerwise-lr-{name} 0.3" in line
    assert line.isprintable() and len(line) < 600


def test_two_packages_of_one_name_stop_who_asks_for_it_alone(here: None) -> None:
    with pytest.raises(
        UserError, match=r"more than one package \(layerwise-lr-clash_. 0\.3, layerwise-lr-clash_. 0\.3\)"
    ):
        registry.load("clash")
    assert "clash" in registry.names() and registry.load("good").modes == ("quick",)


def test_ours_stands_where_a_package_takes_its_name(here: None) -> None:
    assert registry.shadowed() == {"torch": "layerwise-lr-shadow 0.3", "reference": "layerwise-lr-shadow 0.3"}
    assert registry.load("reference").__module__ == "layerwise_lr.plugins.reference_plugin.plugin"


def test_a_model_finds_its_framework_past_the_broken_ones(here: None) -> None:
    assert [name for name, _ in registry.loadable(["broken", "good", "clash", "half"])] == ["good"]
    with pytest.raises(UserError, match=r"builtins\.list is no model of torch"):
        registry.native([])


def test_a_half_is_had_where_that_is_asked_for(here: None) -> None:
    assert "train_step" in registry.load("half", whole=False).__abstractmethods__
    assert registry.load("good").contract == CONTRACT == 1


def test_commands_go_on_past_all_of_them(site: Path, tmp_path: Path) -> None:
    """And a plugin that ships no YAML is chosen by its name."""
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def ask(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "layerwise_lr", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    small = ["model=mlp", "weights=none", "model.width=8", "data.image_size=8", "data.test_size=20", "steps=2"]
    code, said = ask("train", "framework=good", *small, "hydra.run.dir=run")
    assert code == 0, said
    assert json.loads((tmp_path / "run" / "env.json").read_text())["framework"] == "good"
    code, said = ask("train", "framework=broken", *small)
    assert code == 2 and said.splitlines()[-1].startswith("layerwise-lr: framework=broken: layerwise-lr-broken 0.3")
    assert "Traceback" not in said
    code, said = ask("train", "framework=clash", *small)
    assert code == 2 and said.splitlines()[-1].endswith("uninstall one") and "Traceback" not in said
    code, said = ask("train", "--help")
    assert code == 0 and "clash" in said and "Traceback" not in said
    code, said = ask("frameworks")
    assert code == 0 and "Traceback" not in said
    assert "torch: layerwise-lr-shadow 0.3 offers a framework of that name, which is ours" in said
    assert "framework=broken: layerwise-lr-broken 0.3 offers broken_it:Good" in said.replace("\n", " ")
