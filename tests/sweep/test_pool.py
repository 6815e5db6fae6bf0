"""The pool, with real processes that end in every way a job can end."""

import signal
import subprocess
import sys
import time

import pytest

from layerwise_lr.run import RunFolder
from layerwise_lr.sweep.pool import work_off

ENDS = {
    "exits": ("raise SystemExit(3)", "exited with code 3 before it could finish"),
    "crashes": ("import os; os.kill(os.getpid(), 11)", "died of SIGSEGV before it could finish"),
}
"""What a job does, and what its folder says afterwards."""


@pytest.fixture
def claimed(tmp_path):
    """A function: claimed folders of these names."""
    return lambda *names: [RunFolder.claim(tmp_path / name).path for name in names]


def told(path):
    """What the folder says that the run died of."""
    return RunFolder(path).read_json("status.json")["error"]["message"]


def python(program):
    return subprocess.Popen([sys.executable, "-c", program])


def test_every_job_ends_and_its_folder_says_how(claimed):
    ended = []
    work_off(claimed(*ENDS), lambda path: python(ENDS[path.name][0]), 2, None, ended.append)
    assert {p.name for p in ended} == set(ENDS)
    for path in ended:
        assert RunFolder(path).state() == "failed"
        assert told(path) == ENDS[path.name][1]


def test_a_job_that_takes_too_long_is_stopped(claimed):
    (path,) = claimed("job")
    began = time.monotonic()
    work_off([path], lambda path: python("import time; time.sleep(60)"), 1, 0.5, lambda path: None)
    assert told(path) == "stopped after 0.5 seconds (hydra.launcher.timeout)"
    assert time.monotonic() - began < 30


def test_no_more_at_a_time_than_asked(claimed):
    started = []

    def start(path):
        alive = [process for process in started if process.poll() is None]
        assert len(alive) < 2
        started.append(python("import time; time.sleep(0.1)"))
        return started[-1]

    began = time.monotonic()
    work_off(claimed(*"abcde"), start, 2, None, lambda path: None)
    assert len(started) == 5
    assert time.monotonic() - began > 0.3  # five of 0.1 s, two at a time


@pytest.mark.parametrize(("known", "starts"), [(True, 5), (False, 1)])
def test_a_crash_is_tried_again_where_it_is_known_to_happen(claimed, capfd, known, starts):
    (path,) = claimed("job")
    RunFolder(path).write_json("env.json", {"framework": "some", "retry_on_signal": known})
    started = []

    def start(path):
        started.append(path)
        return python("import os; os.kill(os.getpid(), 6)")

    work_off([path], start, 1, None, lambda path: None)
    assert len(started) == starts
    assert told(path) == "died of SIGABRT before it could finish"
    said = capfd.readouterr().err
    assert said.count("started again") == starts - 1
    assert ("(5 of 5)" in said) == known


def test_ctrl_c_ends_every_job(claimed):
    started = []

    def start(path):
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(python("import time; time.sleep(60)"))
        return started[-1]

    with pytest.raises(KeyboardInterrupt):
        work_off(claimed(*"abc"), start, 3, None, lambda path: None)
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2
