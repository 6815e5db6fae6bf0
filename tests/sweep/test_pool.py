"""The pool, with real processes that end in every way a job can end."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from layerwise_lr.run import RunFolder
from layerwise_lr.sweep.pool import PATIENCE, Limits, work_off

ENDS = {
    "exits": ("raise SystemExit(3)", "exited with code 3 before it could finish"),
    "crashes": ("import os; os.kill(os.getpid(), 11)", "died of SIGSEGV before it could finish"),
    "is killed": (
        "import os; os.kill(os.getpid(), 9)",
        "died of SIGKILL before it could finish; somebody killed it, or",
    ),
    "ruins its status": (
        "import sys; open(sys.argv[1] + '/status.json', 'w').write('[')",
        "exited with code 0 before it could finish",
    ),
}
"""What a job does, and what its folder says afterwards."""


@pytest.fixture
def claimed(tmp_path):
    """A function: claimed folders of these names."""
    return lambda *names: [RunFolder.claim(tmp_path / name).path for name in names]


def told(path):
    """What the folder says that the run died of."""
    return RunFolder(path).read_json("status.json")["error"]["message"]


def python(program, *words):
    return subprocess.Popen([sys.executable, "-c", program, *words], start_new_session=True)


def test_every_job_ends_and_its_folder_says_how(claimed):
    ended = []
    work_off(claimed(*ENDS), lambda path: python(ENDS[path.name][0], path), 2, Limits(), ended.append)
    assert {p.name for p in ended} == set(ENDS)
    for path in ended:
        assert RunFolder(path).state() == "failed"
        assert told(path).startswith(ENDS[path.name][1])


def test_a_job_that_takes_too_long_is_stopped(claimed):
    (path,) = claimed("job")
    began = time.monotonic()
    work_off([path], lambda path: python("import time; time.sleep(60)"), 1, Limits(timeout=0.5), lambda path: None)
    assert told(path) == "stopped after 0.5 seconds (hydra.launcher.timeout)"
    assert time.monotonic() - began < 30


def test_a_job_that_takes_too_much_is_stopped_and_the_next_begins(claimed):
    programs = {"much": "held = b'1' * (200 * 2**20); import time; time.sleep(60)", "little": "raise SystemExit(3)"}
    much, little = claimed(*programs)
    began = time.monotonic()
    work_off([much, little], lambda path: python(programs[path.name]), 1, Limits(memory=100 * 2**20), lambda path: None)
    found = re.fullmatch(r"took (\d+) MiB, more than hydra.launcher.memory=100 MiB; raise it, .*", told(much))
    assert found and 100 < int(found[1]) < 300
    assert told(little) == "exited with code 3 before it could finish"
    assert time.monotonic() - began < 30


def test_one_that_cannot_be_started_harms_no_other(claimed):
    def start(path):
        if path.name == "a":
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return python("raise SystemExit(3)")

    a, b = claimed("a", "b")
    work_off([a, b], start, 1, Limits(), lambda path: None)
    assert told(a).startswith("could not be started: Resource temporarily unavailable")
    assert told(b) == "exited with code 3 before it could finish"


def test_ctrl_c_again_reaches_the_jobs_as_such(claimed, tmp_path):
    """The pool waits, deaf, for a job that takes its time; the second Ctrl-C ends that at once."""
    program = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path(sys.argv[1]).touch())
signal.signal(signal.SIGINT, lambda *_: sys.exit(5))
pathlib.Path(sys.argv[2]).touch()
while True:
    time.sleep(0.05)
"""
    begun, asked, started = tmp_path / "begun", tmp_path / "asked", []

    def start(path):
        started.append(python(program, asked, begun))
        return started[-1]

    def press():
        for file in (begun, asked):
            while not file.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        work_off(claimed("a"), start, 1, Limits(), lambda path: None)
    assert started[0].returncode == 5 and time.monotonic() - began < PATIENCE / 2


def test_no_more_at_a_time_than_asked(claimed):
    started = []

    def start(path):
        alive = [process for process in started if process.poll() is None]
        assert len(alive) < 2
        started.append(python("import time; time.sleep(0.1)"))
        return started[-1]

    began = time.monotonic()
    work_off(claimed(*"abcde"), start, 2, Limits(), lambda path: None)
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

    work_off([path], start, 1, Limits(), lambda path: None)
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
        work_off(claimed(*"abc"), start, 3, Limits(), lambda path: None)
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2
