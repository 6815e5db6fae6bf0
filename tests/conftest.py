import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before any framework: idle threads sleep
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from layerwise_lr.data import fetch
from layerwise_lr.framework import registry

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--framework", default="torch", help="whose plugin tests and conformance tests to run")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """One framework per process: `pytest --framework NAME` runs test_NAME_plugin.py and test_seeds_NAME.py, without it
    torch's."""
    chosen = config.getoption("--framework")
    others = {"oneflow", "mindspore", "megengine"} - {chosen}
    files = {f"test_{name}_plugin.py" for name in others}
    files |= {f"test_seeds_{name}.py" for name in {"torch", "oneflow", "mindspore", "megengine"} - {chosen}}
    return True if collection_path.name in files else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is marked cuda or ascend runs where the framework sees such a device."""
    name = item.config.getoption("--framework")
    for kind in ("cuda", "ascend"):
        if item.get_closest_marker(kind):
            there = registry.load(name).devices()
            if not any(device.startswith(kind) for device in there):
                pytest.skip(f"did not run: {name} sees {', '.join(there)} only")


@pytest.fixture(scope="session")
def golden():
    """Numbers computed by MAE's, BEiT's and timm's own code; `provenance` names the commits."""
    return json.loads((HERE / "ground_truth.json").read_text())


@pytest.fixture(scope="session")
def mobilenet_checkpoint():
    return fetch.fetch("mobilenet_v2_imagenet") / "model.safetensors"
