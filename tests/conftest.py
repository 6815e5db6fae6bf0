import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--framework", default="torch", help="which framework test_conformance.py runs")
