"""The bound of a job's log, under real writers."""

import re
import subprocess
import sys
import time

import pytest

from layerwise_lr.sweep import logs

WRITER = """
import os, sys
out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for number in range(int(sys.argv[2])):
    os.write(out, b"".join(b"%09d\\n" % (number * 100 + line) for line in range(100)))
"""


@pytest.fixture
def small(monkeypatch):
    """Bounds that a test reaches soon."""
    for name, size in (("MOST", 160_000), ("HEAD", 40_000), ("TAIL", 40_000)):
        monkeypatch.setattr(logs, name, size)


def read(folder):
    """Numbers before and behind the gap, and the bytes that it says it has."""
    head, told, tail = re.split(rb"\n\[(\d+) bytes were left out here\]\n", (folder / logs.LOG).read_bytes())
    return [int(line) for line in head.split()], int(told), [int(line) for line in tail.split()]


def test_a_log_is_cut_while_it_is_written_and_its_two_ends_stay(tmp_path, small):
    count = 5000
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / logs.LOG, str(count)])
    most = 0
    while writer.poll() is None:
        logs.bound(tmp_path)
        if (tmp_path / logs.LOG).exists():
            most = max(most, (tmp_path / logs.LOG).stat().st_size)
        time.sleep(0.001)
    logs.bound(tmp_path)
    head, told, tail = read(tmp_path)
    assert writer.returncode == 0 and most < count * 1000
    assert head == list(range(4000))
    assert tail == sorted(set(tail)) and tail[-1] == count * 100 - 1, "whole lines, in order, to the end"
    lost = count * 100 - tail[0] - len(tail)
    assert lost <= 3000, "what is written in the very moment of a cut"
    assert abs(told - 10 * (tail[0] - 4000)) <= 10 * 100 * 500, "and it is not counted"
    assert (tmp_path / logs.LOG).stat().st_size <= logs.MOST


def test_a_short_log_stays_and_a_line_without_an_end_is_cut_too(tmp_path, small):
    logs.bound(tmp_path)  # there is none
    (tmp_path / logs.LOG).write_bytes(b"a\n" * 80_000)
    logs.bound(tmp_path)
    assert (tmp_path / logs.LOG).read_bytes() == b"a\n" * 80_000
    (tmp_path / logs.LOG).write_bytes(b"\xff" * 10**6)
    logs.bound(tmp_path)
    held = (tmp_path / logs.LOG).read_bytes()
    assert held == b"\xff" * 40_000 + b"\n[920000 bytes were left out here]\n" + b"\xff" * 40_000
    (tmp_path / logs.LOG).write_bytes(held + b"\xff" * 10**6)
    logs.bound(tmp_path)
    assert b"\n[1920000 bytes were left out here]\n" in (tmp_path / logs.LOG).read_bytes()


def test_nothing_is_cut_through_a_link(tmp_path, small):
    (tmp_path / "mine").write_bytes(b"a\n" * 10**6)
    (tmp_path / logs.LOG).symlink_to("mine")
    logs.bound(tmp_path)
    assert (tmp_path / "mine").stat().st_size == 2 * 10**6
