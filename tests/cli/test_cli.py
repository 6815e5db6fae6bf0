"""The command line as a person meets it: real processes, real signals, from an empty folder."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from layerwise_lr.run import RunFolder, read_metrics, reading, resolve

SCRIPT = str(Path(sys.executable).with_name("layerwise-lr"))
LONG = ("epochs=20000", "eval_every=20000 epochs")  # some minutes: never ends by itself in a test
SHORT = ("epochs=1", "eval_every=1 epoch")


def layerwise_lr(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *words], capture_output=True, text=True, env={**os.environ, **env}, timeout=100)


def start(*words: str, on_interrupt: Any = signal.default_int_handler) -> subprocess.Popen[str]:
    """In a process group of its own, as a shell starts it: Ctrl-C is heard, even where these tests run under nohup."""
    return subprocess.Popen(
        [SCRIPT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, on_interrupt),
    )


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def states(sweep: Path) -> dict[str, str]:
    return {p.parent.name: read(p)["state"] for p in sweep.glob("*/status.json")}


def steps(run: Path) -> list[dict]:
    """Those that are written by now."""
    return read_metrics(run / "metrics.jsonl")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_and_config_import_no_framework(here: Path) -> None:
    code = (
        "import sys\nfrom layerwise_lr import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([m for m in ('torch', 'matplotlib', 'scipy') if m in sys.modules])\n"
    )
    for words in ([], ["train", "--help"], ["train", "--cfg", "job"], ["plan", "--help"]):
        ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert (ended.stderr, ended.stdout.splitlines()[-1]) == ("", "[]")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "offers", "lacks"),
    [
        ("tr", "train", "plan"),
        ("train mod", "model=", "data="),
        ("plan grouping=by_n", "grouping=by_name", "grouping=flat"),
        ("train seed=1 grouping.layer", "grouping.layer_decay=", "seed="),
        ("report ", "", "model="),
        ("fetch ", "elpv", "model="),
    ],
)
def test_completion(line: str, offers: str, lacks: str, here: Path) -> None:
    typed = f"layerwise-lr {line}"
    ended = layerwise_lr("-sc", "query=bash", COMP_LINE=typed, COMP_POINT=str(len(typed)))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not offers or offers in ended.stdout.split()
    assert lacks not in ended.stdout.split()


def test_completion_in_a_real_bash() -> None:
    typed = "layerwise-lr train model=resnet1"
    script = (
        f'PATH="{Path(SCRIPT).parent}:$PATH"; eval "$(layerwise-lr train -sc install=bash)"; '
        f'COMP_LINE="{typed}"; COMP_POINT={len(typed)}; COMP_WORDS=({typed}); COMP_CWORD=2; '
        'hydra_bash_completion; echo "${COMPREPLY[@]}"'
    )
    ended = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True)
    assert ended.stdout.split() == ["model=resnet18"]


def test_a_run_to_a_pipe_is_plain_lines_in_this_folder(here: Path) -> None:
    ended = subprocess.run([sys.executable, "-m", "layerwise_lr", "train", *SHORT], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout and "\r" not in ended.stdout
    told = next(line for line in ended.stdout.splitlines() if line.startswith("run folder: "))
    assert (here / told.removeprefix("run folder: ") / "summary.json").exists()
    assert [p.name for p in here.iterdir()] == ["outputs"]


def test_a_reader_that_leaves_is_no_error() -> None:
    ended = subprocess.run(
        f"set -o pipefail; '{SCRIPT}' plan model=resnet50 weights=none | head -1",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert ended.stderr == ""
    assert len(ended.stdout.splitlines()) == 1


def test_interrupted_run(here: Path) -> None:
    run = here / "r"
    process = start("train", "hydra.run.dir=r", "scheduler=constant", *LONG)
    until(lambda: (run / "metrics.jsonl").exists() and len(steps(run)) > 3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(err.splitlines()) == 1
    assert " is kept in r; this continues: " in err and err.endswith("layerwise-lr resume r\n")
    assert read(run / "status.json")["state"] == "interrupted"
    assert [record["step"] for record in steps(run)] == list(range(len(steps(run))))
    again = layerwise_lr("train", "hydra.run.dir=r", *SHORT)
    assert again.returncode == 2 and "holds a run already" in again.stderr
    config, before = run / "config.resolved.yaml", len(steps(run))
    held = reading.read(config)
    config.write_text(resolve(replace(held, steps=3)).to_yaml())
    other = layerwise_lr("resume", "r")
    assert other.returncode == 2 and "had another config" in other.stderr and len(steps(run)) == before
    shutil.rmtree(run / "checkpoints/resume")
    assert layerwise_lr(*shlex.split(err)[-2:]).returncode == 0, "what Ctrl-C told"
    assert [record["step"] for record in steps(run) if "loss" in record] == [0, 1, 2]


def test_resume_and_resume_auto(here: Path) -> None:
    words = ["train", "resume=auto", *SHORT, "epochs=20", "eval_every=2", "hydra.run.dir="]
    whole = layerwise_lr(*words[:-1], "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    words[-1] += "r"
    process = start(*words)
    until(lambda: len(steps(here / "r")) > 8)
    os.killpg(process.pid, signal.SIGSTOP)  # it lives, and waits for us
    live = [layerwise_lr(*command) for command in (("run", "r"), ("resume", "r"), words)]
    assert [(done.returncode, "is being trained by process" in done.stderr) for done in live] == [(2, True)] * 3
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert RunFolder(here / "r").state() == "crashed"
    other = layerwise_lr(*words, "seed=3")
    assert other.returncode == 2 and "seed: 3 is asked for, 0 is there" in other.stderr
    ended = layerwise_lr(*words)
    assert ended.returncode == 0 and "goes on after step" in ended.stdout, ended.stderr
    assert (here / "r/metrics.jsonl").read_bytes() == (here / "whole/metrics.jsonl").read_bytes()
    for again in (words, ["resume", "r"]):
        assert "r is finished" in layerwise_lr(*again).stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "resume=auto"), "resume=auto needs a folder of its own: hydra.run.dir="),
        (("train", "-m", "resume=auto", "seed=0,1"), "resume=auto is a single run's"),
        (("train", "resume=yes"), "resume is auto or never"),
        (("resume", "nowhere"), "nowhere: no such folder"),
        (("resume", "."), ".: holds no run"),
    ],
    ids=str,
)
def test_resume_of_what_cannot(here: Path, words: tuple[str, ...], says: str) -> None:
    ended = layerwise_lr(*words)
    assert ended.returncode == 2 and says in ended.stderr and len(ended.stderr.splitlines()) == 1
    assert list(here.iterdir()) == []


def test_a_killed_sweep_leaves_no_orphan_and_resumes_half_finished_jobs(here: Path) -> None:
    words = ("train", "-m", "hydra.sweep.dir=s", "hydra.launcher.n_jobs=2", "seed=0,1", "epochs=300", "eval_every=20")
    process = start(*words)
    until(lambda: all(len(steps(here / "s" / job)) > 40 for job in states(here / "s")) and len(states(here / "s")) == 2)
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: set(states(here / "s").values()) == {"interrupted"}, 40)
    told = layerwise_lr("resume", "s", "--jobs", "2")
    assert told.returncode == 0, told.stderr
    assert list(states(here / "s").values()) == ["completed", "completed"]
    for job in states(here / "s"):
        (resumed,) = read(here / "s" / job / "summary.json")["resumed"]
        assert resumed >= 39  # of the 41 records, two may be evaluations


def test_two_equal_sweeps_at_once_share_the_work(here: Path) -> None:
    words = ("train", "-m", "hydra.sweep.dir=s", "hydra.launcher.n_jobs=1", *SHORT, "seed=0,1,2,3")
    both = [start(*words), start(*words)]
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert list(states(here / "s").values()) == ["completed"] * 4


@pytest.mark.parametrize(
    "words", [("hydra.run.dir=s/one",), ("-m", "seed=0,1", "hydra.sweep.dir=s")], ids=["run", "sweep"]
)
def test_terminated_where_ctrl_c_is_ignored(words: tuple[str, ...], here: Path) -> None:
    """Under nohup or a batch system, SIGTERM to the first process alone stops all, and says so in every folder."""
    process = start("train", *words, *LONG, on_interrupt=signal.SIG_IGN)
    until(lambda: "running" in states(here / "s").values())
    until(lambda: any(len(steps(p.parent)) > 3 for p in (here / "s").glob("*/metrics.jsonl")))
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert set(states(here / "s").values()) == {"interrupted"}


def test_interrupted_sweep_continues(here: Path) -> None:
    """The first job ends, the second is interrupted; the rerun leaves the first alone."""
    words = (
        "train",
        "-m",
        "hydra.sweep.dir=s",
        "hydra.launcher.n_jobs=1",
        "eval_every=50%",
        "data.val_size=10",
        "data.test_size=10",
    )
    process = start(*words, "epochs=1,20000")
    until(lambda: "running" in states(here / "s").values() and "completed" in states(here / "s").values())
    assert len(read(here / "s" / "sweep.json")["jobs"]) == 2
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(err.splitlines()) == 1 and "1 of 2 jobs are finished and kept" in err
    told = shlex.split(err.partition("this continues: ")[2])
    assert set(told) == {"layerwise-lr", *words, "epochs=1,20000"} and told[-1] == "hydra.sweep.dir=s"
    assert sorted(states(here / "s").values()) == ["completed", "interrupted"]
    done = next((here / "s").glob("*epochs-1_*/summary.json"))
    before = (done.read_bytes(), done.stat().st_mtime_ns)
    again = layerwise_lr(*words, "epochs=1,2")
    assert again.returncode == 0, again.stderr
    assert "1 of 2 jobs are done" in again.stdout
    assert (done.read_bytes(), done.stat().st_mtime_ns) == before
    assert len(read(here / "s" / "sweep.json")["jobs"]) == 3


def test_the_same_sweep_again_runs_what_was_interrupted(here: Path) -> None:
    words = ("train", "-m", "hydra.sweep.dir=s", "hydra.launcher.n_jobs=1", "seed=0,1", "epochs=300")
    process = start(*words)
    until(lambda: "running" in states(here / "s").values())
    assert len(read(here / "s" / "sweep.json")["jobs"]) == 2
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert "completed" not in states(here / "s").values()
    again = layerwise_lr(*words)
    assert again.returncode == 0, again.stderr
    assert list(states(here / "s").values()) == ["completed", "completed"]


def test_a_killed_job_harms_no_other(here: Path) -> None:
    process = start(
        "train", "-m", "hydra.sweep.dir=s", "hydra.launcher.n_jobs=2", "eval_every=100%", "epochs=20000,1,2"
    )

    def victim() -> Path | None:
        return next((p for p in (here / "s").glob("*epochs-20000_*/metrics.jsonl")), None)

    until(victim)
    os.kill(read(victim().with_name("status.json"))["pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1 and "SIGKILL" in err and "log.txt" in err
    assert sorted(states(here / "s").values()) == ["completed", "completed", "failed"]
    assert victim().with_name("log.txt").exists()


def test_a_job_out_of_time_harms_no_other(here: Path) -> None:
    ended = layerwise_lr(
        "train",
        "-m",
        "hydra.sweep.dir=s",
        "hydra.launcher.timeout=6",
        "hydra.launcher.n_jobs=1",
        "verify=off",
        "data.val_size=10",
        "data.test_size=10",
        "eval_every=100%",
        "epochs=20000,1",
    )
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "stopped after 6 seconds (hydra.launcher.timeout)" in ended.stderr and "log.txt" in ended.stderr
    assert sorted(states(here / "s").values()) == ["completed", "failed"]


def test_fork_or_not_the_numbers_are_the_same(here: Path) -> None:
    for fork in ("auto", "never"):
        ended = layerwise_lr(
            "train",
            "-m",
            f"hydra.sweep.dir={fork}",
            f"hydra.launcher.fork={fork}",
            "seed=0,1",
            "epochs=2",
            "data.val_size=10",
            "data.test_size=10",
        )
        assert ended.returncode == 0, ended.stderr
    forked = {p.name: steps(p) for p in (here / "auto").iterdir() if p.is_dir()}
    assert len(forked) == 2
    assert forked == {p.name: steps(p) for p in (here / "never").iterdir() if p.is_dir()}


NOTE = "data 'cifar10' is not on this machine (looked in nowhere"
STAND_IN = ("data=cifar10", "data.path=nowhere", "data.stand_in=digits", "model=mlp", "weights=none", "+size=test")


def test_a_stand_in_is_told_and_kept(here: Path) -> None:
    """On the terminal and in summary.json; the folder says what was trained on and runs again from there."""
    ended = layerwise_lr("train", *STAND_IN, "hydra.run.dir=run")
    told = [line for line in ended.stdout.splitlines() if line.startswith(NOTE)]
    assert len(told) == 1
    assert told[0].endswith("the shipped digits stand in for it")
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz" in told[0]
    assert told[0] in read(here / "run/summary.json")["notes"]
    final = yaml.safe_load((here / "run/config.resolved.yaml").read_text())["data"]
    assert (final["name"], final["stands_for"], final["stand_in"]) == ("digits", "cifar10", None)
    assert read(here / "run/data.json")["train"]["n"] == 50
    assert read(here / "run/data.json")["shape"] == [3, 32, 32]

    (here / "again").mkdir()
    (here / "again/config.resolved.yaml").write_text((here / "run/config.resolved.yaml").read_text())
    again = layerwise_lr("run", "again")
    assert again.returncode == 0, again.stderr
    assert read(here / "again/summary.json")["val"] == read(here / "run/summary.json")["val"]
    assert "mlp from initial values on digits (standing in for cifar10)" in layerwise_lr("report", "run").stdout


@pytest.mark.parametrize(
    "words", [("plan",), ("verify",), ("train", "-m", "seed=0,1"), ("compare", "framework=torch,reference")]
)
def test_every_command_tells_of_a_stand_in_once(words: tuple[str, ...]) -> None:
    ended = layerwise_lr(*words, *STAND_IN)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(NOTE) == 1


def test_the_proof_takes_a_whole_step_s_pictures() -> None:
    ended = layerwise_lr("verify", "batch_size=5", "accumulate=3")
    assert ended.returncode == 0, ended.stderr
    assert "10 parameters in 10 groups move as planned" in ended.stdout


@pytest.mark.parametrize("experiment", [(), ("experiment=solar_cells",), ("experiment=pretrain_lenet",)])
@pytest.mark.parametrize("last", [False, True])
def test_size_test_wins_over_any_experiment(experiment: tuple[str, ...], last: bool) -> None:
    words = (*experiment, "+size=test") if last else ("+size=test", *experiment)
    shown = yaml.safe_load(layerwise_lr("train", "--cfg", "job", *words).stdout)
    assert [shown["data"][f"{part}_size"] for part in ("train", "val", "test")] == [50, 50, 100]
    assert [shown[key] for key in ("epochs", "steps", "batch_size", "eval_every")] == [4, None, 10, "2 epochs"]
    assert shown["name"] != "test"


def test_numpy_has_no_idle_threads_that_spin():
    """One core or sixteen; a person's own setting stands. (They multiplied the time of a sweep's forked jobs.)"""
    ask = (
        "import layerwise_lr.cli, numpy as np; from pathlib import Path; a = np.ones(1 << 20); a @ a; "
        "print(len(list(Path('/proc/self/task').iterdir())))"
    )
    unset = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    threads = [
        subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env={**unset, **own}).stdout.strip()
        for own in ({}, {"OPENBLAS_NUM_THREADS": "2"})
    ]
    assert threads == ["1", str(min(2, os.cpu_count() or 1))]
