"""The seed documents' experiments in every mode of one framework (--framework NAME): a sweep as a user starts it, but
that its jobs share a process per mode, which spares an import of the framework for each.

Each experiment's claim is computed here by the document's own formula and read out of the run folder: lrs per step,
lr_check.jsonl (measured), the distance of every group, the checkpoints of each epoch. 4 epochs of 5 steps; data that is
not at hand is stood in for by the digits.
"""

import csv
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from layerwise_lr.cli import program
from layerwise_lr.run.folder import RunFolder
from layerwise_lr.sweep import jobs, planning

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(p.stem for p in (ROOT / "conf" / "experiment").glob("seed_*.yaml"))
MODES = {
    "torch": ("torch",),
    "oneflow": ("oneflow", "oneflow_graph", "oneflow_graph_native"),
    "mindspore": ("mindspore", "mindspore_graph"),
    "megengine": ("megengine", "megengine_trace"),
}
FEW = ("data.train_size=20", "batch_size=4", "data.val_size=8", "data.test_size=8")
NARROW = ("model.width=8", *FEW)
SIZES = {  # smaller models of the same kinds, fewer pictures, where a framework takes long
    "seed_000": FEW,
    "seed_001_oneflow_vit": ("model.depth=4", "model.embed_dim=64", "model.num_heads=4"),
    "seed_003": ("model=resnet18", *NARROW),
    "seed_002_pytorch_resnet": ("scheduler.every=1 epoch", *NARROW),  # 30 epochs in the document
    "seed_002_unfreezing": NARROW,
    "seed_002_layer_adaptive": NARROW,
}
FIXED = "a compiled OneFlow Graph keeps the parameters it was built with"
CANNOT = {
    ("oneflow_graph_native", "seed_002_unfreezing"): FIXED,
    ("oneflow_graph_native", "seed_004_freezing"): FIXED,
    ("oneflow_graph_native", "seed_002_layer_adaptive"): "layer_adaptive",
}
"""What a mode truly cannot do: it must say so, in these words, before it trains."""


class Ran:
    """A finished run, as its folder tells."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def records(self, key: str) -> list[dict[str, Any]]:
        lines = (self.path / "metrics.jsonl").read_text().splitlines()
        return [record for line in lines if key in (record := json.loads(line))]

    def groups(self) -> dict[str, dict[str, Any]]:
        return {g["name"]: g for g in self.json("plan.json")["groups"]}

    def lrs(self, group: str) -> list[float]:
        """As the native optimizer held them, step by step."""
        at = list(self.groups()).index(group)
        return [record["lrs"][at] for record in self.records("loss")]

    def measured(self, group: str) -> dict[int, float]:
        """lr by displacement."""
        rows = [r for line in self.proof() if line["resolution"] < 1e-4 for r in line["groups"]]
        return {r["step"]: r["measured"] for r in rows if r["group"] == group}

    def proof(self) -> list[dict[str, Any]]:
        """lr_check.jsonl: the rehearsal's steps, then every evaluation's."""
        return [json.loads(line) for line in (self.path / "lr_check.jsonl").read_text().splitlines()]

    def moved(self) -> dict[int, set[str]]:
        """Evaluation step -> parameters that are elsewhere than at the start."""
        params = {name: g["params"] for name, g in self.groups().items()}
        return {
            r["step"]: {p for name, at in r["groups"].items() if at["distance"] > 0 for p in params[name]}
            for r in self.records("groups")
        }

    def weights(self, step: int) -> dict[str, np.ndarray]:
        return load_file(self.path / "checkpoints" / f"step_{step}" / "model.safetensors")

    def state(self, step: int) -> dict[str, np.ndarray]:
        return load_file(self.path / "checkpoints" / f"step_{step}" / "optim.safetensors")


def own(experiment: str) -> tuple[str, ...]:
    return next((words for name, words in SIZES.items() if experiment.startswith(name)), ())


def claim_all(mode: str, root: Path) -> None:
    """Composed, checked and claimed as any sweep, one per set of sizes; no job is run. Before the framework is imported
    here: `train` asks it in a forked process what it has, and not all can be forked once they are used."""
    jobs.run_jobs = lambda *_: None
    planning.elsewhere = lambda planned: []  # they are ours: nobody is waited for
    for index, words in enumerate(sorted({own(e) for e in EXPERIMENTS})):
        members = [e for e in EXPERIMENTS if own(e) == words]
        varied = (f"experiment={','.join(members)}", f"framework={mode}")
        options = ("eval_every=1 epoch", "checkpoint.every=1 epoch", "checkpoint.keep=4")
        sweep = f"hydra.sweep.dir={root / str(index)}"
        with suppress(SystemExit):  # 1: the jobs have no result yet
            program.main(["train", "-m", *varied, "+size=test", *words, *options, sweep])


def train_all(mode: str, root: Path) -> None:
    """Every experiment in one mode, one after another in this process, which imports the framework once. Begun again,
    what has ended stays."""
    if not root.exists():
        claim_all(mode, root)
    for path in sorted(file.parent for file in root.glob("*/*/config.resolved.yaml")):
        if RunFolder(path).state() not in ("completed", "failed"):
            with (path / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
                jobs.run_and_tell(path)


@pytest.fixture(scope="session")
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """(mode, experiment) -> run folder: a process for each mode."""
    root, found = tmp_path_factory.mktemp("seeds"), {}
    for mode in MODES[request.config.getoption("--framework")]:
        command = [sys.executable, __file__, mode, str(root / mode)]
        environment = {**os.environ, **jobs.thread_environment(1), "LAYERWISE_LR_CACHE": str(root / "nothing")}
        for _ in range(5):  # OneFlow's race, see its retry_on_signal
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
            if done.returncode >= 0:
                break
        for file in (root / mode).glob("*/sweep.json"):
            for name in json.loads(file.read_text())["jobs"]:
                words = json.loads((file.parent / name / "command.json").read_text())["overrides"]
                (experiment,) = (word.partition("=")[2] for word in words if word.startswith("experiment="))
                found[mode, experiment] = file.parent / name
        assert {e for m, e in found if m == mode} == set(EXPERIMENTS), done.stdout + done.stderr
    return found


def of(experiment: str):  # type: ignore[no-untyped-def]
    """The test's `run`: this experiment in every mode that can do it."""

    def mark(test):  # type: ignore[no-untyped-def]
        test.experiment = experiment
        return test

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test in every mode of the framework asked for."""
    modes = MODES[metafunc.config.getoption("--framework")]
    if "experiment" in metafunc.fixturenames:
        metafunc.parametrize(("mode", "experiment"), [(m, e) for m in modes for e in EXPERIMENTS])
    elif "run" in metafunc.fixturenames:
        wanted = metafunc.function.experiment
        able = [(m, wanted) for m in modes if (m, wanted) not in CANNOT]
        metafunc.parametrize("run", able, indirect=True, ids="-".join)
    elif "mode" in metafunc.fixturenames:
        metafunc.parametrize("mode", modes)


@pytest.fixture
def run(folders: dict[tuple[str, str], Path], request: pytest.FixtureRequest) -> Ran:
    return Ran(folders[request.param])


def test_it_runs_or_says_why(folders: dict[tuple[str, str], Path], mode: str, experiment: str) -> None:
    """Every experiment ends, its effective lr proved to 1e-4; or it is refused before step 0, with the way out."""
    run = Ran(folders[mode, experiment])
    if (mode, experiment) in CANNOT:
        error = run.json("status.json")["error"]
        assert error["type"] == "UserError" and CANNOT[mode, experiment] in error["message"]
        assert "framework=oneflow" in error["message"] and not (run.path / "metrics.jsonl").exists()
        return
    assert run.json("status.json")["state"] == "completed", run.json("status.json")
    assert run.json("summary.json")["steps"] == 20
    assert all(line["max_relative_error"] <= 1e-4 for line in run.proof() if line["resolution"] < 1e-4)
    assert run.json("summary.json")["proof"]["mismatches"] == 0
    assert all(math.isfinite(r["loss"]) for r in run.records("loss"))


def test_a_sweep_with_a_process_per_job_gives_the_same_numbers(
    folders: dict[tuple[str, str], Path], mode: str, tmp_path: Path
) -> None:
    """As a user starts it; the other tests' runs follow one another in one process."""
    experiment = "seed_004_megengine_lenet"
    varied = (f"experiment={experiment}", f"framework={mode}", "seed=0")
    options = ("+size=test", "eval_every=1 epoch", "checkpoint.every=1 epoch", "checkpoint.keep=4")
    command = [sys.executable, "-m", "layerwise_lr", "train", "-m", *varied, *options, "hydra.sweep.dir=sweep"]
    environment = {**os.environ, "LAYERWISE_LR_CACHE": str(tmp_path / "nothing")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (alone,) = (Ran(path.parent) for path in (tmp_path / "sweep").glob("*/summary.json"))
    among = Ran(folders[mode, experiment])
    assert alone.json("summary.json")["config_sha256"] == among.json("summary.json")["config_sha256"]
    assert [r["loss"] for r in alone.records("loss")] == pytest.approx(
        [r["loss"] for r in among.records("loss")], rel=1e-6
    )


def test_data_that_is_absent_is_stood_in_for_aloud(folders: dict[tuple[str, str], Path], mode: str) -> None:
    for experiment, absent in (("seed_000_oneflow_mobilenet_v2", "cifar10"), ("seed_004_megengine_lenet", "mnist")):
        run = Ran(folders[mode, experiment])
        notes = " ".join(run.json("summary.json")["notes"])
        assert f"'{absent}' is not on this machine" in notes and "digits stand in" in notes
        assert run.json("data.json")["name"] == "digits"


@of("seed_000_oneflow_mobilenet_v2")
def test_seed_000_each_group_decays_by_its_own_factor_every_10_batches(run: Ran) -> None:
    assert run.lrs("features") == pytest.approx([1e-3 * 0.9 ** (s // 10) for s in range(20)], rel=1e-6)
    assert run.lrs("classifier") == pytest.approx([1e-5 * 0.7 ** (s // 10) for s in range(20)], rel=1e-6)
    for step, lr in run.measured("classifier").items():
        assert lr == pytest.approx(1e-5 * 0.7 ** (step // 10), rel=1e-4)


@of("seed_000_oneflow_graph")
def test_seed_000_lr_scale_multiplies_lr(run: Ran) -> None:
    for group, lr_scale in (("features", 0.9), ("classifier", 0.7)):
        assert run.lrs(group) == pytest.approx([1e-3 * lr_scale] * 20, rel=1e-6)
        assert list(run.measured(group).values()) == pytest.approx(
            [1e-3 * lr_scale] * len(run.measured(group)), rel=1e-4
        )


def get_layer_idx_for_vit(name: str, num_layers: int) -> int:
    """The document calls it without showing it; MAE's and LiBai's function of that name."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else num_layers


@of("seed_001_oneflow_vit")
def test_seed_001_layer_scales(run: Ran) -> None:
    num_layers = 4 + 1
    layer_scales = [0.9 ** (num_layers - i) for i in range(num_layers + 1)]
    with (run.path / "params.csv").open() as file:
        rows = list(csv.DictReader(file))
    group_of = {row["name"]: row["group"] for row in rows}
    for name, group in group_of.items():
        wanted = 1e-3 * layer_scales[get_layer_idx_for_vit(name, num_layers)]
        assert run.lrs(group) == pytest.approx([wanted] * 20, rel=1e-6), name
        assert list(run.measured(group).values()) == pytest.approx([wanted] * len(run.measured(group)), rel=1e-4), name


@of("seed_002_pytorch_resnet")
def test_seed_002_backbone_and_classifier_under_step_lr(run: Ran) -> None:
    assert run.lrs("backbone") == pytest.approx([1e-4 * 0.1 ** (s // 5) for s in range(20)], rel=1e-5)
    assert run.lrs("classifier") == pytest.approx([1e-3 * 0.1 ** (s // 5) for s in range(20)], rel=1e-5)


@of("seed_002_unfreezing")
def test_seed_002_unfreezing_moves_fc_then_layer4_then_layer3(run: Ran) -> None:
    tops = {step: {name.partition(".")[0] for name in names} for step, names in run.moved().items()}
    three = {"fc", "layer4", "layer3"}
    assert tops == {5: {"fc"}, 10: {"fc", "layer4"}, 15: three, 20: three}
    now, then = run.weights(20), run.weights(5)
    for name in (
        n for n in now if n.endswith((".weight", ".bias")) and n.split(".")[0] in ("layer1", "layer2", "conv1")
    ):
        assert np.array_equal(now[name], then[name]), name


@of("seed_002_layer_adaptive")
def test_seed_002_layer_adaptive_moves_every_parameter(run: Ran) -> None:
    """By the measured lr of test_it_runs_or_says_why; its formula over 5 steps is the conformance kit's check."""
    state, now, then = run.state(20), run.weights(20), run.weights(15)
    (group,) = run.groups().values()
    for name in group["params"]:
        assert not np.array_equal(now[name], then[name]), name
        assert {f"{name}/exp_avg", f"{name}/exp_avg_sq"} <= set(state)
        assert state[f"{name}/exp_avg_sq"].min() >= 0 and state[f"{name}/exp_avg"].any()


@of("seed_003_mindspore_resnet50")
def test_seed_003_groups_by_cell_type_static_lr_beside_dynamic(run: Ran) -> None:
    cosine = [1e-3 * 0.5 * (1 + math.cos(math.pi * (s // 5) / 4)) for s in range(20)]  # nn.cosine_decay_lr
    assert run.lrs("conv") == pytest.approx(cosine, rel=1e-5)
    for name, lr in (("bn", 1e-4), ("dense", 1e-3), ("other", 1e-3)):
        assert run.lrs(name) == pytest.approx([lr] * 20, rel=1e-6)
    groups = run.groups()
    assert {n: g["weight_decay"] for n, g in groups.items()} == {"conv": 1e-4, "bn": 0.0, "dense": 1e-5, "other": 0.0}
    assert groups["other"]["params"] == ["fc.bias"] and groups["dense"]["params"] == ["fc.weight"]
    assert all(".bn" in p or "bn1" in p or "downsample.1" in p for p in groups["bn"]["params"])
    assert len(groups["conv"]["params"]) == 20 and len(groups["bn"]["params"]) == 40


@of("seed_003_grad_centralization")
def test_seed_003_centralized_gradients_keep_every_channels_sum(run: Ran, folders: dict[tuple[str, str], Path]) -> None:
    mode = next(mode for (mode, _), path in folders.items() if path == run.path)
    conv = run.groups()["conv"]["params"]

    def drift(of: Ran) -> float:
        """How far a channel's mean goes in 15 steps, in units of how far its weights go."""
        now, then = of.weights(20), of.weights(5)
        moved = {n: now[n].astype(np.float64) - then[n] for n in conv}
        return max(float(np.abs(d.mean(axis=(1, 2, 3))).max() / np.abs(d).max()) for d in moved.values())

    assert drift(run) < 1e-3 < drift(Ran(folders[mode, "seed_003_mindspore_resnet50"]))


@of("seed_004_megengine_lenet")
def test_seed_004_one_lr_given_one_inherited_both_fall_per_epoch(run: Ran) -> None:
    assert run.lrs("conv") == pytest.approx([0.05 * (1 - (s // 5) / 4) for s in range(20)], rel=1e-6)
    assert run.lrs("fc") == pytest.approx([0.01 * (1 - (s // 5) / 4) for s in range(20)], rel=1e-6)


FC = ("fc1.weight", "fc2.weight", "classifier.weight")


def stands_still_after_two_epochs(run: Ran) -> None:
    for name in FC:
        assert not np.array_equal(run.weights(5)[name], run.weights(10)[name])
        assert np.array_equal(run.weights(10)[name], run.weights(20)[name]), name
    assert not np.array_equal(run.weights(10)["conv1.weight"], run.weights(20)["conv1.weight"])


@of("seed_004_lr_zero")
def test_seed_004_lr_zero_stops_the_values_not_the_momentum(run: Ran) -> None:
    stands_still_after_two_epochs(run)
    assert run.lrs("fc") == pytest.approx([0.01] * 10 + [0.0] * 10)
    for name in FC:
        assert not np.array_equal(*(run.state(step)[f"{name}/momentum_buffer"] for step in (10, 20)))


@of("seed_004_freezing")
def test_seed_004_freezing_stops_the_momentum_too(run: Ran) -> None:
    stands_still_after_two_epochs(run)
    for name in FC:
        assert np.array_equal(*(run.state(step)[f"{name}/momentum_buffer"] for step in (10, 20)))


@of("seed_004_two_optimizers")
def test_seed_004_two_optimizers_step_together(run: Ran) -> None:
    kept = {key.rpartition("/")[0] for key in run.state(20) if key.endswith("/exp_avg")}
    assert kept == set(run.groups()["fc"]["params"])
    assert {float(a) for key, a in run.state(20).items() if key.endswith("/step")} == {20.0}
    assert run.lrs("conv") == [pytest.approx(0.05)] * 20 and run.lrs("fc") == [pytest.approx(0.01)] * 20
    assert run.moved()[5] == {p for g in run.groups().values() for p in g["params"]}


@of("seed_004_subset")
def test_seed_004_only_the_subset_moves(run: Ran) -> None:
    conv = {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    assert set(run.moved()) == {5, 10, 15, 20} and all(names == conv for names in run.moved().values())


# --- without a framework: the plans at full size ---------------------------------------------------------------------


def planned(*words: str, cwd: Path) -> Ran:
    command = [sys.executable, "-m", "layerwise_lr", "plan", *words, f"hydra.run.dir={cwd / 'plan'}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Ran(cwd / "plan")


def test_seed_000_decay_is_not_lost_under_another_scheduler(tmp_path: Path) -> None:
    run = planned("experiment=seed_000_oneflow_mobilenet_v2", "+size=test", "scheduler=cosine", cwd=tmp_path)
    with (run.path / "lrs.csv").open() as file:
        rows = list(csv.DictReader(file))
    warm = 2  # 10 % of 20 steps
    for s, row in enumerate(rows):
        cosine = s / warm if s < warm else 0.5 * (1 + math.cos(math.pi * (s - warm) / (20 - warm)))
        assert float(row["features"]) == pytest.approx(1e-3 * cosine * 0.9 ** (s // 10), rel=1e-9)
        assert float(row["classifier"]) == pytest.approx(1e-5 * cosine * 0.7 ** (s // 10), rel=1e-9)


def test_seed_001_full_size_has_the_document_s_scales(tmp_path: Path) -> None:
    run, num_layers = planned("experiment=seed_001_oneflow_vit", cwd=tmp_path), 13
    with (run.path / "params.csv").open() as file:
        for row in csv.DictReader(file):
            wanted = 0.9 ** (num_layers - get_layer_idx_for_vit(row["name"], num_layers))
            assert float(row["lr_scale"]) == pytest.approx(wanted, rel=1e-12), row["name"]


def test_seed_003_full_size_puts_fc_bias_alone_into_other(tmp_path: Path) -> None:
    groups = planned("experiment=seed_003_mindspore_resnet50", "+size=test", cwd=tmp_path).groups()
    assert {n: len(g["params"]) for n, g in groups.items()} == {"conv": 53, "bn": 106, "dense": 1, "other": 1}


def rows_of_the_table() -> Iterator[tuple[str, str]]:
    """(feature, test) of docs/seeds.md."""
    for line in (ROOT / "docs" / "seeds.md").read_text().splitlines():
        for name in re.findall(r"`(test_\w+)`", line):
            yield line.split("|")[2].strip() if line.startswith("|") else line, name


def test_every_test_that_the_table_names_exists_and_every_experiment_has_a_row() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = list(rows_of_the_table())
    assert len(named) >= 20
    for feature, name in named:
        assert f"def {name}(" in code or f"{name} = " in code, (feature, name)
    text = (ROOT / "docs" / "seeds.md").read_text()
    assert all(f"`{name}`" in text for name in EXPERIMENTS)


def test_the_table_s_cells_are_what_is_tested() -> None:
    """yes where the experiment's tests run in that mode, no with its note where the mode cannot."""
    lines = [line.strip("| ").split(" | ") for line in (ROOT / "docs" / "seeds.md").read_text().splitlines()]
    heads = next(cells for cells in lines if cells[0] == "feature")
    rows = [
        dict(zip(heads, cells, strict=True)) for cells in lines if len(cells) == len(heads) and cells[0] != "feature"
    ]
    assert sorted(row["experiment"].strip("`") for row in rows) == EXPERIMENTS
    for row in rows:
        for mode in (mode for modes in MODES.values() for mode in modes):
            can = (mode, row["experiment"].strip("`")) not in CANNOT
            assert (row[mode] == "yes") == can and (can or row[mode] in ("no [1]", "no [2]")), (row["feature"], mode)


if __name__ == "__main__":
    train_all(sys.argv[1], Path(sys.argv[2]))
