"""The kit on a framework (--framework NAME, default torch), on the reference, and on the saboteurs it must catch.

Each mode of the framework runs in a process of its own, by the command that a user has: `layerwise-lr check`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from functools import cache

import pytest
from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework
from saboteurs import SABOTEURS

from layerwise_lr.framework import conformance, registry
from layerwise_lr.framework.conformance import CHECKS, Kit, run_check, specification

MODES = {
    "torch": ("eager", "compile"),
    "oneflow": ("eager", "graph", "graph_native"),
    "mindspore": ("pynative", "graph"),
    "megengine": ("eager", "trace"),
}
MAY_CRASH = {("oneflow", "graph"), ("oneflow", "graph_native")}  # OneFlow's race, see its retry_on_signal
LINE = re.compile(r"^  (passed|failed|known failure|not applicable) +(\w+) *(.*)$", re.MULTILINE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per mode and check of the framework asked for."""
    if "mode" in metafunc.fixturenames:
        modes = MODES.get(metafunc.config.getoption("--framework"), ())
        metafunc.parametrize(("mode", "check"), [(m, c) for m in modes for c in CHECKS])


@cache
def outcomes(name: str, mode: str) -> dict[str, tuple[str, str]]:
    """check -> (result, message) of a whole mode."""
    command = [sys.executable, "-m", "layerwise_lr", "check", name, "--mode", mode]
    for attempt in range(5):
        done = subprocess.run(command, capture_output=True, text=True)
        if (name, mode) not in MAY_CRASH or done.returncode >= 0:
            break
        print(f"{name} {mode} died of {signal.Signals(-done.returncode).name}: started again ({attempt + 2} of 5)")
    found = {check: (result, message) for result, check, message in LINE.findall(done.stdout)}
    assert set(found) == set(CHECKS), (done.returncode, done.stdout, done.stderr)
    return found


@pytest.mark.framework
def test_framework(mode: str, check: str, request: pytest.FixtureRequest) -> None:
    if mode == "compile" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("NOT RUN: torch.compile finds no C++ compiler: apt-get install g++, or set CXX")
    result, message = outcomes(request.config.getoption("--framework"), mode)[check]
    assert result != "failed", message


@pytest.mark.framework
def test_the_modes_are_the_plugins(request: pytest.FixtureRequest) -> None:
    name = request.config.getoption("--framework")
    assert set(MODES[name]) == set(registry.load(name).modes)


@pytest.mark.parametrize("check", CHECKS)
def test_reference(check: str) -> None:
    outcome = run_check(Kit("reference", ReferenceFramework, "eager"), check)
    assert outcome.result == ("not applicable" if check == "mode_equals_first_mode" else "passed"), outcome.message


@pytest.mark.parametrize(("check", "saboteur"), SABOTEURS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_saboteur_is_caught(check: str, saboteur: type[ReferenceFramework]) -> None:
    mode = saboteur.modes[-1]
    with pytest.raises(conformance.Failure, match=r"wanted .*measured"):
        CHECKS[check](Kit("saboteur", saboteur, mode))


def test_every_check_has_a_saboteur() -> None:
    assert {check for check, _ in SABOTEURS} == set(CHECKS)
    assert len(CHECKS) >= 26


def test_every_check_says_what_it_specifies() -> None:
    for name in CHECKS:
        assert specification(name).endswith("."), name


def test_a_known_failure_is_told_from_others() -> None:
    class Known(ReferenceFramework):
        """Knows of one fault that it has and of one that it has not."""

        known_failures = {"eager": {"absent_device": "takes any", "gradients": "are wrong"}}  # noqa: RUF012

        def __init__(self, device: str, *rest: object) -> None:
            super().__init__("cpu", *rest)

    kit = Kit("known", Known, "eager")
    assert run_check(kit, "absent_device") == ("absent_device", "known failure", "takes any")
    assert run_check(kit, "gradients").result == "failed"  # listed, but it passes
    assert run_check(kit, "same_logits").result == "passed"
