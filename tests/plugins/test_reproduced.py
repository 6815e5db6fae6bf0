"""Whatever a run remembers from step to step, trained in one framework (--framework NAME, default torch) and reproduced:
bit for bit, in every mode."""

import json
from pathlib import Path

import pytest
from finished_runs import said
from killing import prepared

from layerwise_lr.framework import registry
from layerwise_lr.run import page


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.config.getoption("--framework")
    metafunc.parametrize("mode", registry.load(name).modes if name != "none" else [])


def test_a_run_is_reproduced_to_the_last_bit(tmp_path: Path, mode: str, pytestconfig: pytest.Config) -> None:
    name = pytestconfig.getoption("--framework")
    changes = {"freeze": {}} if mode == "graph_native" else {}  # it refuses groups that thaw
    run = prepared(tmp_path / "run", framework={"name": name, "mode": mode}, steps=10, **changes)
    page.run(run, lambda line: None)
    out, _ = said(["reproduce", str(run), "--json"])
    verdict = json.loads(out[out.index('{"verdict"') :])
    assert (verdict["exact"], verdict["verdict"]) == (True, "reproduced")
    assert {one["file"]: one["numbers"] for one in verdict["compared"]}["metrics.jsonl"] > 100
