import json
import os
import re
import signal
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before any framework: idle threads sleep
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from layerwise_lr.data import fetch
from layerwise_lr.framework import registry

signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C is heard by what tests start, also under nohup

HERE = Path(__file__).parent
FRAMEWORKS = ("torch", "oneflow", "mindspore", "megengine")
RUN_TORCH = {
    "test_cli.py",
    "test_report.py",
    "test_compare.py",
    "test_packaging.py",
    "test_foreign.py",
}  # `layerwise-lr train` as it is
IMPORTS_TORCH = re.compile(r"^(import|from) (torch|layerwise_lr\.plugins\.torch_plugin)\b", re.MULTILINE)


@pytest.fixture(autouse=True)
def as_a_user_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what an earlier command of this process has set."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    said = "whose plugin, conformance and seed tests to run; none: only tests that need no framework at all"
    parser.addoption("--framework", default="torch", choices=(*FRAMEWORKS, "none"), help=said)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """One framework per process: `pytest --framework NAME` runs test_NAME_*.py and test_seeds_NAME.py, without it torch's.
    What needs the model zoos is run where it is asked for by its folder."""
    chosen = config.getoption("--framework")
    others = "|".join(set(FRAMEWORKS) - {chosen})
    if re.fullmatch(rf"test_(({others})_\w+|seeds_({others}))\.py", collection_path.name):
        return True
    if collection_path.name == "zoo" and not any("zoo" in Path(word).parts for word in config.args):
        return True
    files: set[str] = set()
    if chosen not in ("torch", "none"):
        files.add("test_reference_plugin.py")  # it compares with torch
    if chosen == "none" and collection_path.suffix == ".py":
        own = {"test_corrections.py", "test_devices.py", "test_seeds.py"}
        files |= own | ({collection_path.name} if IMPORTS_TORCH.search(collection_path.read_text()) else set())
    return True if collection_path.name in files else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """What runs the framework of --framework is marked so; all else is the core's, and needs to run in one Python."""
    home = item.path.parent.name if item.path.name != "test_reference_plugin.py" else "framework"
    trains = {"run", "mode", "folders"} & set(getattr(item, "fixturenames", ()))
    if home == "plugins" or (home == "seeds" and (item.path.name != "test_seeds.py" or trains)):
        item.add_marker("framework")
    elif item.path.name in RUN_TORCH:
        item.add_marker("torch")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """--framework none leaves out what needs one."""
    if config.getoption("--framework") == "none":
        out = [i for i in items if i.get_closest_marker("framework") or i.get_closest_marker("torch")]
        config.hook.pytest_deselected(items=out)
        items[:] = [i for i in items if i not in out]


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
