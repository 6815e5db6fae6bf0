"""Sweeps whose jobs misbehave, and sweeps that are killed, through the command: real processes, real signals."""

import fcntl
import json
import os
import pty
import random
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from killing import unlike
from misbehaving import WORDS, by_mode, ended, left, surroundings, until

from layerwise_lr.run import RunFolder, resumable
from layerwise_lr.sweep import family, logs

ENDS = {
    "hangs": "stopped after 12 seconds (hydra.launcher.timeout)",
    "eats": "more than hydra.launcher.memory=350 MiB; raise it, or take less: a smaller batch_size or data.memory",
    "segfaults": "died of SIGSEGV before it could finish",
    "exits": "exited with code 3 before it could finish",
    "calls_exit": "exited with code 4 in the middle of the run",
    "raises": "RuntimeError: a layer's name a layer's name ",
}
"""What a job does, and what its folder says afterwards."""
FINE = ("eager", "graph", "floods")
KILLS = {"unruly": 2, "spawned": 1}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts `layerwise-lr`, beside a package with the unruly frameworks, in an empty folder."""
    environment = surroundings(tmp_path)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, "start_new_session": True}
    start = [sys.executable, "-m", "layerwise_lr"]
    return lambda *words, **other: subprocess.Popen([*start, *words], text=True, **{**usual, **other})


def test_six_faults_in_a_sweep_harm_no_other_and_only_they_are_run_again(command, tmp_path: Path) -> None:
    ended(command("train", "framework.name=unruly", "hydra.run.dir=single", *WORDS), 0)
    limits = ("hydra.launcher.timeout=12", "hydra.launcher.memory=350MiB", "hydra.launcher.n_jobs=4")
    modes = f"framework.mode={','.join((*ENDS, *FINE))}"
    out, err = ended(command("train", "-m", "hydra.sweep.dir=s", "framework.name=unruly", modes, *limits, *WORDS), 1)

    jobs = by_mode(Path("s"))
    for mode, why in ENDS.items():
        status = RunFolder(jobs[mode]).read_json("status.json")
        assert status["state"] == "failed" and why in status["error"]["message"]
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {jobs[mode].name}")]
        assert len(line) <= 80 and why[:30] in line
    for mode in FINE:
        assert set(unlike(Path("single"), jobs[mode])) <= {"config_sha256"}, mode
    assert left(tmp_path) == []
    assert "6 of 9 jobs failed, the others are finished and kept:" in out
    assert len(err.splitlines()) == 1 and "6 of 9 jobs failed" in err and err.endswith("layerwise-lr resume s\n")
    log = (jobs["floods"] / "log.txt").read_bytes()
    assert len(log) < logs.MOST and log.count(b"bytes were left out here") == 1
    assert b"line 000000" in log and b"line 000959" in log and log.endswith(b"\n")
    told, _ = ended(command("report", "s"), 0)
    assert all(jobs[mode].name in told for mode in ENDS)

    before = {mode: (jobs[mode] / "summary.json").stat().st_mtime_ns for mode in FINE}
    (tmp_path / "unruly").unlink()  # now they behave
    out, _ = ended(command(*shlex.split(err.rpartition("again: ")[2])[1:]), 0)
    assert "limits of each job: timeout 12.0, memory 350MiB" in out and "6 jobs in s" in out
    assert {mode: (jobs[mode] / "summary.json").stat().st_mtime_ns for mode in FINE} == before
    for mode in ENDS:
        assert set(unlike(Path("single"), jobs[mode])) <= {"config_sha256"}, mode
        assert json.loads((jobs[mode] / "summary.json").read_text())["resumed"]


@pytest.mark.parametrize("framework", ["unruly", "spawned"])
def test_a_sweep_killed_at_random_leaves_no_process(command, tmp_path: Path, framework: str) -> None:
    """Its own process, or the one that starts the jobs; jobs that hang, with children, and jobs that train."""
    rng = random.Random(framework)
    words = (f"framework.name={framework}", "framework.mode=hangs,eats,graph,eager", "hydra.launcher.n_jobs=3")
    sweep = ("train", "-m", "hydra.sweep.dir=s", *words, *WORDS, "steps=100000", "eval_every=50000")
    for index in range(KILLS[framework]):
        process = command(*sweep)
        if index % 2:
            until(lambda: any("sleep 1000" in line for line in left(tmp_path)))
        time.sleep(rng.uniform(0, 2) if index % 2 else rng.uniform(0.5, 8))
        starter = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(starter[0]) if index % 2 and starter else process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        until(lambda: not left(tmp_path))
    states = {RunFolder(job).state() for job in by_mode(Path("s")).values()}
    assert states <= {"interrupted", "failed", "crashed", "claimed", "missing"}


def test_a_job_takes_as_much_as_all_its_processes_and_none_of_it_stays(tmp_path: Path) -> None:
    program = "import subprocess, sys, time; held = b'1' * (60 * 2**20); print('full', flush=True); time.sleep(1000)"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    leaves = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}], start_new_session=True)"
    for code in (starts, leaves):
        job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
        assert job.stdout and job.stdout.readline() == b"full\n"
        own = int((Path("/proc") / str(job.pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert 60 * 2**20 < family.memory(job.pid, 2**40) - own < 90 * 2**20
        assert 60 * 2**20 < family.memory(job.pid, 0) < 90 * 2**20
        assert len(family.members(job.pid)) == 2
        family.kill(job.pid)
        job.communicate(timeout=20)  # its output is closed: nobody holds it any more
        assert family.members(job.pid, ended=True) == {}


def test_pages_that_jobs_share_count_once() -> None:
    """Two forked from one that holds much take little more than it does."""
    program = """
import os, time
held = bytearray(b"1" * (200 * 2**20))
jobs = []
for _ in range(2):
    jobs.append(os.fork())
    if jobs[-1] == 0:
        time.sleep(1000)
print(*jobs, flush=True)
time.sleep(1000)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    assert parent.stdout
    jobs = [int(word) for word in parent.stdout.readline().split()]
    try:
        assert all(family.memory(job, 2**40) > 200 * 2**20 for job in jobs)
        assert all(family.memory(job, 100 * 2**20) < 100 * 2**20 for job in jobs)
    finally:
        family.kill(parent.pid)
        parent.communicate()


def trains(command, name: str, *words: str) -> "subprocess.Popen[str]":
    """A run that does, and could go on."""
    process = command("train", "framework.name=unruly", f"hydra.run.dir={name}", *WORDS, "steps=100000", *words)
    until(lambda: resumable(Path(name)) or process.poll() is not None)
    return process


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_asked_twice_is_asked_once(command, name: str) -> None:
    """A closed terminal sends SIGHUP twice; the status and the last line are whole whenever the second comes."""
    for index, delay in enumerate((0, 0.001, 0.05)):
        process = trains(command, f"r{index}")
        for _ in range(10):
            process.send_signal(getattr(signal, name))
            time.sleep(delay)
        _, err = ended(process, 130)
        assert json.loads(Path(f"r{index}/status.json").read_text())["state"] == "interrupted"
        assert len(err.splitlines()) == 1 and err.endswith(f"this continues: layerwise-lr resume r{index}\n")


@pytest.mark.parametrize("many", [(), ("-m", "seed=0,1", "hydra.sweep.dir=s")], ids=["run", "sweep"])
def test_a_terminal_that_is_closed_interrupts(command, many: tuple[str, ...]) -> None:
    """Its processes can write no more, and are told by the kernel."""
    ours, theirs = pty.openpty()
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "preexec_fn": partial(own, theirs)}
    words = ("train", *many, "framework.name=unruly", *WORDS, "steps=100000")
    process = command(*words, *([] if many else ["hydra.run.dir=s/r"]), **terminal)
    os.close(theirs)
    until(lambda: any(resumable(path) for path in Path("s").glob("*/")))
    os.close(ours)
    assert process.wait(60) == 130
    states = [RunFolder(path.parent).state() for path in Path("s").glob("*/status.json")]
    assert set(states) == {"interrupted"} and len(states) == (2 if many else 1)


def own(terminal: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def test_ctrl_z_stops_the_jobs_too(command) -> None:
    process = command("train", "-m", "hydra.sweep.dir=s", "framework.name=unruly", "seed=0", *WORDS, "steps=100000")
    until(lambda: list(Path("s").glob("*/checkpoints/resume/step_*")))
    (metrics,) = Path("s").glob("*/metrics.jsonl")
    os.killpg(process.pid, signal.SIGTSTP)
    time.sleep(1)
    held = metrics.stat().st_size
    time.sleep(1)
    assert metrics.stat().st_size == held
    os.killpg(process.pid, signal.SIGCONT)
    until(lambda: metrics.stat().st_size > held)
    os.killpg(process.pid, signal.SIGINT)
    ended(process, 130)
