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
from typing import Any

import pytest
from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework
from saboteurs import SABOTEURS
from saboteurs_kinds import FAULTS, PLUGINS

from layerwise_lr.framework import Framework, UserError, conformance, registry
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
    lacking = check == "mode_equals_first_mode" or check.startswith("precision_")
    assert outcome.result == ("not applicable" if lacking else "passed"), outcome.message


@pytest.mark.parametrize(("check", "saboteur"), SABOTEURS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_saboteur_is_caught(check: str, saboteur: type[ReferenceFramework]) -> None:
    mode = saboteur.modes[-1]
    with pytest.raises(conformance.Failure, match=r"wanted .*measured"):
        CHECKS[check](Kit("saboteur", saboteur, mode))


def test_every_check_has_a_saboteur() -> None:
    assert {check for check, _ in [*SABOTEURS, *PLUGINS]} | {fault.check for fault in FAULTS} == set(CHECKS)
    assert len(CHECKS) >= 26


def test_every_check_says_what_it_specifies() -> None:
    for name in CHECKS:
        assert specification(name).endswith("."), name


class Few(ReferenceFramework):
    """Has no batchnorm, no gelu, and one optimizer."""

    kinds = ("conv", "relu", "maxpool", "flatten", "linear")
    optimizers = ("momentum",)


@pytest.mark.parametrize(
    ("check", "wanted"),
    [
        ("batchnorm_statistics", "it lists no batchnorm in kinds"),
        ("golden_curve_vit", "it lists no to_tokens in kinds"),
        ("optimizer_adamw", "it lists no adamw in optimizers"),
        ("two_optimizers", "it lists no adamw in optimizers"),
        ("effective_lr_layer_adaptive", "it lists no layer_adaptive in optimizers"),
        ("reset_optimizer_state", None),
        ("optimizer_state", None),
        ("gradients", None),
    ],
)
def test_what_a_plugin_does_not_list_is_not_asked_of_it(check: str, wanted: str | None) -> None:
    outcome = run_check(Kit("few", Few, "eager"), check)
    assert outcome[:3] == (check, "passed" if wanted is None else "not applicable", wanted or "")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"mode": "graph"}, r"framework\.mode='graph': few has eager"),
        ({"precision": "bf16"}, r"framework\.precision='bf16': few has fp32"),
        ({"kinds": ("conv", "gelu")}, r"model: layers of kind 'gelu': few has conv, relu, maxpool, flatten, linear"),
        ({"optimizers": ("momentum", "adamw")}, r"optimizer\.name='adamw': few has momentum"),
    ],
)
def test_a_run_asks_for_no_more_than_is_listed(
    change: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "load", lambda name: Few)
    able = {"mode": "eager", "precision": "fp32", "kinds": Few.kinds, "optimizers": Few.optimizers}
    registry.check_abilities("few", **able)
    with pytest.raises(UserError, match=f"^{line}$"):
        registry.check_abilities("few", **{**able, **change})


class NotDerived:
    """Has verbs, and does not derive from Framework."""

    train_step = ReferenceFramework.train_step


class Unfinished(Framework):
    """Lacks most of the contract."""

    optimizers = ()
    get_weights = ReferenceFramework.get_weights
    predict = ReferenceFramework.predict


@pytest.mark.parametrize(
    ("plugin", "line"),
    [
        (
            NotDerived,
            r"framework=torch is class NotDerived, not a class that derives from layerwise_lr\.framework\.Framework; see .*",
        ),
        (
            Unfinished,
            r"framework=torch lacks get_optimizer_state, make_groups, .*version, kinds; layerwise-lr check .*",
        ),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)
def test_what_is_no_plugin_is_not_loaded(plugin: type, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = registry.BuiltIn(__name__, plugin.__name__, "numpy", "")
    monkeypatch.setattr(registry, "BUILT_INS", {"torch": here})
    with pytest.raises(UserError, match=f"^{line}$"):
        registry.load("torch")


def test_a_known_failure_is_told_from_others() -> None:
    class Known(ReferenceFramework):
        """Knows of one fault that it has and of one that it has not."""

        known_failures = {"eager": {"absent_device": "takes any", "gradients": "are wrong"}}  # noqa: RUF012

        def __init__(self, device: str, *rest: object) -> None:
            super().__init__("cpu", *rest)

    kit = Kit("known", Known, "eager")
    assert run_check(kit, "absent_device")[:3] == ("absent_device", "known failure", "takes any")
    assert run_check(kit, "gradients").result == "failed"  # listed, but it passes
    assert run_check(kit, "same_logits").result == "passed"
