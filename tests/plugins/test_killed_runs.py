"""Real training in one framework (--framework NAME, default torch), killed and resumed in every mode, against an
unbroken run: bit for bit. `python tests/killing.py FRAMEWORK MODE KILLS` kills more often."""

from pathlib import Path

import pytest
from killing import survived

from layerwise_lr.framework import registry

KILLS = 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.config.getoption("--framework")
    metafunc.parametrize("mode", registry.load(name).modes if name != "none" else [])


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path, mode: str, pytestconfig: pytest.Config) -> None:
    name = pytestconfig.getoption("--framework")
    changes = {"freeze": {}} if mode == "graph_native" else {}  # it refuses groups that thaw
    told = survived(tmp_path, KILLS, seed=1, framework={"name": name, "mode": mode}, steps=30, **changes)
    assert (told["kills"], told["damaged"], told["unlike"]) == (KILLS, 0, []), told
