"""Jobs on the accelerators of a machine: a plugin that says there are three, real sweeps, what their folders tell."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest
from killing import unlike

from layerwise_lr.sweep import Options
from layerwise_lr.sweep.placing import accelerators

HERE = Path(__file__).parent
WORDS = ("model=mlp", "weights=none", "optimizer.lr=0.01", "steps=20", "eval_every=10", "+size=test")


def test_which_accelerators_a_config_leaves_open() -> None:
    there = ["cuda:0", "cuda:1", "cpu"]
    assert accelerators("auto", there) == accelerators("cuda", there) == ["cuda:0", "cuda:1"]
    assert accelerators("cuda:1", there) == ["cuda:1"]
    assert accelerators("cpu", there) == accelerators("auto", ["cpu"]) == accelerators("ascend", there) == []
    assert accelerators("auto", ["ascend:0", "cuda:0", "cpu"]) == ["ascend:0"]


def test_how_many_at_once() -> None:
    four = [f"cuda:{i}" for i in range(4)]
    assert Options().at_once(1, four) == 4
    assert Options(jobs_per_device=3).at_once(1, four) == 12
    assert Options(n_jobs=2, jobs_per_device=3).at_once(1, four) == 2
    assert Options(n_jobs=9).at_once(1, four) == 4
    assert Options(n_jobs=9).at_once(1) == 9
    assert Options().at_once(1) == os.cpu_count()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; beside it a package with the frameworks."""
    site = tmp_path / "site"
    (site / "many-1.dist-info").mkdir(parents=True)
    shutil.copy(HERE.parent / "many_devices_framework.py", site)
    (site / "many-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: many\nVersion: 1\n")
    names = "many = many_devices_framework:ManyDevices\nspawned = many_devices_framework:ManySpawned\n"
    (site / "many-1.dist-info/entry_points.txt").write_text(f"[layerwise_lr.frameworks]\n{names}")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    return tmp_path / "home"


def swept(*words: str) -> str:
    start = [sys.executable, "-m", "layerwise_lr", "train", *words, *WORDS]
    ended = subprocess.run(start, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def facts(job: Path) -> tuple[str, str, str]:
    """Its device, when it began and when it ended."""
    status = json.loads((job / "status.json").read_text())
    return json.loads((job / "env.json").read_text())["device"], status["started"], status["ended"]


JOBLIB = pytest.mark.skipif(not find_spec("joblib"), reason="NOT RUN: hydra/launcher=joblib (pip install joblib)")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(("many", ()), ("many", ("hydra.launcher.fork=never",)), ("spawned", ())),
        pytest.param("many", ("hydra/launcher=joblib",), marks=JOBLIB),
    ],
    ids=str,
)
def test_jobs_are_spread_one_on_each(home: Path, name: str, words: tuple[str, ...]) -> None:
    swept("-m", "hydra.sweep.dir=s", f"framework.name={name}", "seed=0,1,2,3,4,5", *words)
    jobs = [path for path in (home / "s").iterdir() if path.is_dir()]
    told = [facts(job) for job in jobs]
    assert Counter(device for device, _, _ in told) == {"npu:0": 2, "npu:1": 2, "npu:2": 2}
    for (one, begun, end), (other, begins, ends) in combinations(told, 2):
        assert one != other or end <= begins or ends <= begun, "two at once on one device"
    for job in jobs:
        assert "device: auto" in (job / "config.resolved.yaml").read_text()  # to be repeated on another machine


def test_two_on_each_and_the_device_changes_no_result(home: Path) -> None:
    words = ("hydra.launcher.jobs_per_device=2", "hydra.launcher.n_jobs=6", "framework.device=npu:1,cpu")
    swept("-m", "hydra.sweep.dir=s", "framework.name=many", "seed=0,1", *words)
    jobs = [path for path in (home / "s").iterdir() if path.is_dir()]
    by = {(facts(job)[0], json.loads((job / "seed.json").read_text())["seed"]): job for job in jobs}
    assert set(by) == {("npu:1", 0), ("npu:1", 1), ("cpu", 0), ("cpu", 1)}
    (_, begun, end), (_, begins, ends) = (facts(by["npu:1", seed]) for seed in (0, 1))
    assert begins < end and begun < ends, "two at once on one device, as was asked"
    assert set(unlike(by["npu:1", 0], by["cpu", 0])) <= {"config_sha256"}


def test_a_device_that_the_config_forbids_is_refused(home: Path) -> None:
    swept("hydra.run.dir=r", "framework.name=many", "framework.device=cpu")
    for name in ("summary.json", "checkpoints/best"):
        (home / "r" / name).unlink()
    words = ["run", "r", "--device", "npu:2"]
    ended = subprocess.run([sys.executable, "-m", "layerwise_lr", *words], capture_output=True, text=True)
    assert ended.returncode == 2 and "framework.device=cpu" in ended.stderr
