"""`layerwise-lr compare`: one small experiment for real, its figures computed again from the run folders."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerwise_lr.cli.hydra_app import composed
from layerwise_lr.models import walk
from layerwise_lr.planning import UserError
from layerwise_lr.report.compare import Comparison, RunFacts
from layerwise_lr.run import resolve
from layerwise_lr.run.reading import from_data

WORDS = (
    "compare",
    "experiment=parity",
    "model=lenet",
    "framework=torch,torch_fp64,reference",
    "steps=14",
    "batch_size=8",
    "data.image_size=16",
    "eval_every=14",
    "optimizer=momentum",
    "hydra.sweep.dir=one",
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    here = tmp_path_factory.mktemp("compare")
    command = [sys.executable, "-m", "layerwise_lr", *WORDS]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return here / "one", done.stdout


def runs(folder: Path) -> dict[str, np.ndarray]:
    names = [path.name for path in folder.iterdir() if (path / "summary.json").exists()]
    found = {re.sub(r"^framework-(.*)_[0-9a-f]+$", r"\1", name): name for name in names}
    return {label: losses_of(folder / name) for label, name in found.items()}


def losses_of(run: Path) -> np.ndarray:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return np.array([record["loss"] for line in lines if "loss" in (record := json.loads(line))])


def test_figures_are_those_of_the_folders(compared: tuple[Path, str]) -> None:
    folder, _ = compared
    curves, told = runs(folder), json.loads((folder / "compare.json").read_text())
    assert set(curves) == {"torch", "torch_fp64", "reference"} and set(told) == {"torch fp64", "reference"}
    for label, name in (("torch fp64", "torch_fp64"), ("reference", "reference")):
        off = np.abs(curves[name] - curves["torch"]) / curves["torch"]
        assert told[label]["loss_all"] == pytest.approx(off.max())
        assert told[label]["loss_first"] == pytest.approx(off[:10].max())
        assert told[label]["same_table"] and told[label]["lr"] <= 1e-6 and told[label]["lr_error"] <= 1e-4
        assert off.max() <= 1e-5 and told[label]["first_step"] is None
    assert (folder / "compare.png").stat().st_size > 10_000


def test_the_table_sets_every_difference_beside_rounding_s_own(compared: tuple[Path, str]) -> None:
    folder, out = compared
    told = json.loads((folder / "compare.json").read_text())
    assert "parameter tables: identical" in out and max(map(len, out.split("parameter tables")[0].splitlines())) <= 80
    (row,) = (line.split() for line in out.splitlines() if line.startswith("reference "))
    for column, key in ((4, "loss_first"), (6, "loss_all")):
        wanted = told["reference"][key] / max(told["torch fp64"][key], np.finfo(np.float32).eps)
        assert float(row[column]) == pytest.approx(wanted, abs=0.06)


def test_another_plan_is_told(compared: tuple[Path, str]) -> None:
    """A run whose parameter table is another one: the same folders with one line of params.csv changed."""
    from layerwise_lr.report.compare import Comparison

    folder, _ = compared
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    made = Comparison.read([folder / name for name in jobs])
    other = made.runs[2]._replace(params=made.runs[2].params.replace("conv1", "conv9", 1))
    assert Comparison((*made.runs[:2], other)).plans() == "ANOTHER parameter table: reference"


def facts(device: str = "cpu", **changes: Any) -> RunFacts:
    """A run of nothing but its config and its device."""
    data = {"data": {"image_size": 32, "channels": 3}, **changes}
    config, empty = resolve(from_data(data)), np.zeros(0)
    return RunFacts("", config, Path(), empty, empty, "", None, {}, 0.0, 0.0, device)


DROPOUT = {"model": {"name": "mobilenet_v2", "dropout": 0.2}}
ORDERED = {"framework": {"name": "torch", "deterministic": True}}


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([facts(), facts()], []),
        ([facts(**DROPOUT)] * 2, ["dropout 0.2 is on.*model.dropout=0"]),
        ([facts(model={"name": "mobilenet_v2"})] * 2, ["dropout 0.2 is on"]),
        ([facts(model={"name": "mobilenet_v2", "dropout": 0.0})] * 2, []),
        ([facts(model={"name": "resnet18", "drop_path": 0.1})] * 2, ["drop_path 0.1 is on.*model.drop_path=0"]),
        ([facts("cuda:0"), facts()], ["on cuda:0 sums have no fixed order.*framework.deterministic=true"]),
        ([facts("cuda:0", **ORDERED), facts(**ORDERED)], []),
        ([facts("cuda:0", **DROPOUT)] * 2, ["dropout", "no fixed order"]),
    ],
)
def test_what_differs_by_design_is_told(runs: list[RunFacts], words: list[str]) -> None:
    told = Comparison(tuple(runs)).by_design()
    assert len(told) == len(words) and all(map(re.search, words, told))


def test_runs_that_stopped_early_at_other_steps_are_not_compared() -> None:
    one = facts(early_stop={"patience": 2})
    longer = one._replace(label="longer", losses=np.ones(14), lrs=np.ones((14, 2)))
    shorter = one._replace(label="shorter", losses=np.ones(12), lrs=np.ones((12, 2)))
    with pytest.raises(UserError, match=r"shorter stopped after 12 steps, longer after 14: early_stop\.patience=null"):
        Comparison((longer, shorter)).differences()


def test_parity_has_no_dropout_in_any_model() -> None:
    for model in ("mobilenet_v2", "resnet18", "lenet"):
        config, _ = composed(["experiment=parity", f"model={model}"])
        tree = resolve(from_data(config)).tree()
        assert not any(layer.options["p"] for _, layer, _ in walk(tree.root) if layer.kind == "dropout"), model
