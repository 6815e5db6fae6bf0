"""Sweeps that joblib, submitit and Ray hand out, through the command: what a job leaves and survives is as with our own pool.

Ray's cluster has two nodes of one CPU each. Slurm's programs are played by shell scripts: a real bash runs the script that
submitit writes for sbatch.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from killing import prepared, unlike
from misbehaving import WORDS, by_mode, ended, left, surroundings, until

from layerwise_lr.planning import UserError
from layerwise_lr.run import CONFIG, RunFolder, read_metrics, reading, resumable
from layerwise_lr.sweep import LAUNCHERS, engines, family, options
from layerwise_lr.sweep.pool import Limits
from layerwise_lr.sweep.tasks import Task

joblib = pytest.importorskip("joblib", reason="NOT RUN: hydra/launcher=joblib (pip install joblib)")
submitit = pytest.importorskip("submitit", reason="NOT RUN: hydra/launcher=submitit_... (pip install submitit)")
ray = pytest.importorskip("ray", reason="NOT RUN: hydra/launcher=ray (pip install ray)")

FAULTS = {
    "raises": "RuntimeError: a layer's name",
    "exits": "exited with code 3 before it could finish",
    "segfaults": "died of SIGSEGV before it could finish",
    "hangs": "stopped after 12 seconds (hydra.launcher.timeout)",
}
SAME = (
    "config.resolved.yaml",
    "params.csv",
    "plan.json",
    "lrs.csv",
    "data.json",
    "seed.json",
    "metrics.jsonl",
    "git.json",
)
ENGINES = ("joblib", "submitit_local", "ray")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launchers")


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    return surroundings(home)


@pytest.fixture(scope="module")
def command(home: Path, environment: dict[str, str]) -> Callable[..., "subprocess.Popen[str]"]:
    usual: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, "cwd": home}
    start = [sys.executable, "-m", "layerwise_lr"]
    return lambda *words, **other: subprocess.Popen(
        [*start, *words], text=True, start_new_session=True, **{**usual, **other}
    )


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[str]:
    """The address of two nodes, which know where the unruly frameworks look, but not where they are."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNRULY", environment["UNRULY"])
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=1)
    yield made.address
    made.shutdown()


@pytest.fixture
def launcher(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The words that choose it."""
    words = [f"hydra/launcher={request.param}", "hydra.launcher.n_jobs=2"]
    if request.param == "ray":
        words.append(f"hydra.launcher.address={request.getfixturevalue('cluster')}")
    return tuple(words)


def sweep(name: str, modes: str) -> tuple[str, ...]:
    return ("train", "-m", f"hydra.sweep.dir={name}", "framework.name=unruly", f"framework.mode={modes}", *WORDS)


@pytest.fixture(scope="module")
def local(command: Callable[..., "subprocess.Popen[str]"], home: Path) -> Path:
    """What our own pool leaves."""
    words = sweep("local", ",".join((*FAULTS, "eager")))
    ended(command(*words, "hydra.launcher.timeout=12", "hydra.launcher.n_jobs=2"), 1)
    return home / "local"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def end_of(job: Path) -> dict[str, Any]:
    """How it ended, but for when and in which process."""
    status = RunFolder(job).read_json("status.json")
    return {key: status.get(key) for key in ("state", "error", "host")}


def ours(home: Path) -> list[str]:
    """Processes of ours that are left, those of the cluster not counted."""
    return [line for line in left(home) if "-m layerwise_lr" in line or "sleep 1000" in line]


@pytest.mark.parametrize("launcher", ENGINES, indirect=True)
def test_its_folder_is_that_of_our_own_pool_whatever_jobs_do(launcher, local: Path, command, home: Path) -> None:
    engine = launcher[0].partition("=")[2]
    words = sweep(engine, ",".join((*FAULTS, "eager")))
    out, err = ended(command(*words, *launcher, "hydra.launcher.timeout=12"), 1)
    made = home / engine
    assert files(made) == files(local)
    assert (made / "sweep.json").read_bytes() == (local / "sweep.json").read_bytes()
    theirs, own = by_mode(made), by_mode(local)
    for mode, job in own.items():
        assert end_of(theirs[mode]) == end_of(job)
        assert not [name for name in SAME if (theirs[mode] / name).read_bytes() != (job / name).read_bytes()], mode
    for mode, why in FAULTS.items():
        assert why in end_of(theirs[mode])["error"]["message"]
    assert unlike(own["eager"], theirs["eager"]) == []
    for name in ("log.txt", "env.json", "requirements.lock.txt"):
        assert (theirs["eager"] / name).read_bytes() == (own["eager"] / name).read_bytes()
    assert "4 of 5 jobs failed, the others are finished and kept:" in out
    assert len(err.splitlines()) == 1 and err.endswith(f"layerwise-lr resume {engine}\n")
    assert ours(home) == []
    if engine == "ray":  # a node has one CPU: two at once are on two nodes
        times = [RunFolder(theirs[mode]).read_json("status.json")["updated"] for mode in ("eager", "hangs")]
        assert times == sorted(times), "the last was begun while the one before it hung"


@pytest.mark.parametrize("launcher", ENGINES, indirect=True)
def test_the_command_s_end_is_that_of_its_jobs_and_the_sweep_goes_on(launcher, command, home: Path) -> None:
    """Killed, then asked to stop."""
    name = launcher[0].partition("=")[2]
    words = (*sweep(f"{name}_cut", "eager,graph"), *launcher, "steps=100000", "eval_every=50000")
    kept: dict[Path, int] = {}
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = command(*words)
        made = home / f"{name}_cut"
        until(partial(gone_on, process, made, kept), 60)
        process.send_signal(number)
        until(lambda: ours(home) == [], 60)
        _, err = process.communicate(timeout=20)
        jobs = by_mode(made)
        # Ray kills what the tasks of a dead command have started
        fine = {"interrupted"} | ({"crashed"} if (name, number) == ("ray", signal.SIGKILL) else set())
        until(partial(all_in, jobs.values(), fine))
        kept = {job: resumable(job)[-1] for job in jobs.values()}
    assert process.returncode == 130 and "0 of 2 jobs are finished and kept; this continues" in err
    assert all((job / "log.txt").read_text().count("goes on after step") == 1 for job in jobs.values())
    assert len(list(made.glob(f"{engines.PLACE}*"))) == 1, "the killed one's alone"


def all_in(jobs: Iterable[Path], states: set[str]) -> bool:
    return {RunFolder(job).state() for job in jobs} <= states


def gone_on(process: "subprocess.Popen[str]", made: Path, kept: dict[Path, int]) -> bool:
    """Whether both jobs have a resume point, behind what they had."""
    assert process.poll() is None, process.communicate()
    jobs = [path for path in made.glob("mode-*") if path.is_dir()]
    return len(jobs) == 2 and all((resumable(job) or [0])[-1] > kept.get(job, 0) for job in jobs)


SLURM = {
    "sbatch": """
export SLURM_ARRAY_JOB_ID=7 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
cp "$1" "$PLAYED/script.sh"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for task in $(seq 0 "$last"); do
  SLURM_JOB_ID=$((8 + task)) SLURM_ARRAY_TASK_ID=$task bash "$1" >/dev/null 2>&1 &
done
echo "Submitted batch job 7"
""",
    "srun": """
while [ "${1#--}" != "$1" ]; do
  case $1 in --output|--error) shift 2;; *) shift;; esac
done
exec "$@"
""",
    "sacct": """
echo "JobID|State|NodeList"
""",
    "scancel": """
echo "$@" >> "$PLAYED/cancelled"
""",
}


def test_slurm_is_given_an_array_and_the_folder_is_the_same(
    home: Path, command, environment: dict[str, str], local: Path
) -> None:
    played = home / "slurm"
    played.mkdir()
    for name, script in SLURM.items():
        (played / name).write_text(f"#!/bin/bash{script}")
        (played / name).chmod(0o755)
    own = {**environment, "PATH": f"{played}{os.pathsep}{environment['PATH']}", "PLAYED": str(played)}
    asked = ("n_jobs=1", "partition=gpu", "gpus_per_node=2", "mem_gb=4", "timeout_min=30", "setup=[module load python]")
    words = [*(f"hydra.launcher.{word}" for word in asked), "+hydra.launcher.additional_parameters.reservation=mine"]
    ended(command(*sweep("slurm_sweep", "eager,graph"), "hydra/launcher=submitit_slurm", *words, env=own), 0)
    script = (played / "script.sh").read_text().splitlines()
    told = {line.partition(" --")[2] for line in script if line.startswith("#SBATCH")}
    assert told >= {
        *("array=0-1%1", "partition=gpu", "gpus-per-node=2", "mem=4GB", "time=30", "cpus-per-task=1"),
        *("reservation=mine", "job-name=layerwise-lr", "signal=USR2@120"),
    }
    assert "module load python" in script
    assert unlike(by_mode(local)["eager"], by_mode(home / "slurm_sweep")["eager"]) == []
    assert not (played / "cancelled").exists() and not list((home / "slurm_sweep").glob(f"{engines.PLACE}*"))
    _, err = ended(command(*sweep("no_slurm", "eager"), "hydra/launcher=submitit_slurm"), 2)
    assert "there is no sbatch here" in err and len(err.splitlines()) == 1 and not (home / "no_slurm").exists()


def test_told_that_its_time_is_up_a_job_is_queued_again_and_goes_on(home: Path) -> None:
    """As Slurm tells it, and submitit's local executor, which begins the job again."""
    path = prepared(home / "queued", framework={"name": "reference"})
    place, goes_on = home / "queue", home / "goes_on"
    goes_on.touch()
    task = Task(path, 1, Limits(), None, goes_on, home, {}, os.getpid())
    executor = submitit.LocalExecutor(place)
    executor.update_parameters(timeout_min=10)
    job = executor.submit(task)
    until(lambda: resumable(path))
    (worker,) = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    own = family.members(int(worker))
    assert len(own) >= 3, "the worker, its guard and the job"
    for pid in sorted(own, reverse=True):  # Slurm tells all of them
        os.kill(pid, signal.SIGUSR2)
    assert job.result() == "completed"
    (resumed,) = json.loads((path / "summary.json").read_text())["resumed"]
    assert resumed > 0 and len({record["step"] for record in read_metrics(path / "metrics.jsonl")}) == 61


def test_what_an_engine_loses_its_folder_says(tmp_path: Path) -> None:
    """A worker of joblib is killed: the job that it watched is told to end, and the sweep goes on with the next."""
    paths = [
        prepared(tmp_path / "s" / name, framework={"name": "reference"}, steps=steps)
        for name, steps in (("a", 9999), ("b", 6))
    ]
    killed: list[int] = []

    def kill() -> None:
        if not killed and resumable(paths[0]):
            job = RunFolder(paths[0]).read_json("status.json")["pid"]
            killed.append(int(Path(f"/proc/{job}/stat").read_text().rpartition(")")[2].split()[1]))
            os.kill(killed[0], signal.SIGKILL)

    configs = {path: reading.read(path / CONFIG) for path in paths}
    engines.run_jobs(configs, options.Joblib(n_jobs=1), lambda path: None, kill)
    until(lambda: RunFolder(paths[0]).state() != "running")
    assert RunFolder(paths[0]).state() in ("interrupted", "failed") and resumable(paths[0])
    assert "unexpectedly" in (paths[0] / "log.txt").read_text() and RunFolder(paths[1]).state() == "completed"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("joblib", {"n_jobs": 0}),
        ("joblib", {"jobs_per_device": 0}),
        ("submitit_local", {"timeout": -1.0}),
        ("submitit_slurm", {"timeout_min": 0}),
        ("submitit_slurm", {"mem_gb": 0.0}),
        ("submitit_slurm", {"cpus_per_task": 0}),
        ("submitit_slurm", {"signal_delay_s": 3600}),
        ("submitit_slurm", {"max_num_timeout": -1}),
        ("ray", {"num_cpus": -1.0}),
        ("ray", {"num_gpus": 1.5}),
        ("ray", {"memory": "lots"}),
    ],
)
def test_nonsense(name: str, said: dict[str, Any]) -> None:
    (key,) = said
    with pytest.raises(UserError, match=f"hydra.launcher.{key}"):
        LAUNCHERS[name](**said)
