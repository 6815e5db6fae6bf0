"""The kit on a framework (--framework NAME, default torch), on the reference, and on the saboteurs it must catch."""

import pytest
from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework
from saboteurs import SABOTEURS

from layerwise_lr import conformance, registry
from layerwise_lr.conformance import CHECKS, Kit, run_check, specification


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per mode and check of the framework asked for."""
    if "mode" in metafunc.fixturenames:
        name = metafunc.config.getoption("--framework")
        modes = registry.load(name).modes
        metafunc.parametrize(("mode", "check"), [(m, c) for m in modes for c in CHECKS])


def test_framework(mode: str, check: str, request: pytest.FixtureRequest) -> None:
    name = request.config.getoption("--framework")
    outcome = run_check(Kit(name, registry.load(name), mode), check)
    assert outcome.result != "failed", outcome.message


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
