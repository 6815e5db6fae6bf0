"""Whatever a run remembers from step to step, trained in one framework (--framework NAME, default torch) and reproduced:
bit for bit, in every mode. In processes of their own, as people run them: behind hundreds of tests in one process MindSpore
2.10 took an int for no int."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from killing import finished, prepared

from layerwise_lr.framework import registry


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.config.getoption("--framework")
    metafunc.parametrize("mode", registry.load(name).modes if name != "none" else [])


def test_a_run_is_reproduced_to_the_last_bit(tmp_path: Path, mode: str, pytestconfig: pytest.Config) -> None:
    name = pytestconfig.getoption("--framework")
    changes = {"freeze": {}} if mode == "graph_native" else {}  # it refuses groups that thaw
    run = prepared(tmp_path / "run", framework={"name": name, "mode": mode}, steps=10, **changes)
    finished(run)
    words = [sys.executable, "-m", "layerwise_lr", "reproduce", str(run), "--json"]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    verdict = json.loads(out[out.index('{"verdict"') :])
    assert (verdict["exact"], verdict["verdict"]) == (True, "reproduced")
    assert {one["file"]: one["numbers"] for one in verdict["compared"]}["metrics.jsonl"] > 100
