"""The kit as tests of one's own repository, one per check and mode:

    pytest -p layerwise_lr.framework.conformance.suite --pyargs layerwise_lr.framework.conformance.suite --framework foo

or, in a conftest.py, pytest_plugins = ["layerwise_lr.framework.conformance.suite"], and test_promise imported by a test file.
"""

from typing import Any

from .. import registry
from . import CHECKS, Kit, run_check


def pytest_addoption(parser: Any) -> None:
    """--framework NAME."""
    parser.addoption("--framework", help="whose promises are tested; it must be installed")


def pytest_generate_tests(metafunc: Any) -> None:
    """A test for each check in each of the framework's modes."""
    if metafunc.function is test_promise:
        import pytest

        name = metafunc.config.getoption("--framework")
        if not name:  # without a case it would be skipped, and look well
            raise pytest.UsageError("--framework NAME is missing: whose promises are tested?")
        cases = [(name, mode, check) for mode in registry.load(name).modes for check in CHECKS]
        ids = [f"{mode}-{check}" for _, mode, check in cases]
        metafunc.parametrize(("framework", "mode", "check"), cases, ids=ids)


def test_promise(framework: str, mode: str, check: str) -> None:
    """The check passes, or is not asked of the framework, or is a failure that it gives its reason for."""
    import pytest

    outcome = run_check(Kit(framework, registry.load(framework), mode), check)
    if outcome.result == "not applicable":
        pytest.skip(outcome.message)
    if outcome.result == "known failure":
        pytest.xfail(outcome.message)
    assert outcome.result == "passed", f"{outcome.result}: {outcome.message}\n{outcome.trace}"
