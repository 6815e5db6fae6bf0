"""The corpus of bad folders under every command: a share of it here, all of it by hand (tests/hostile_folders.py)."""

import hashlib
import shutil

import pytest
from hostile_folders import POINT, ask, every, prepared

SHARE = 60
TELLING = {
    ("report", "metrics.jsonl", "a FIFO"),
    ("report", "plan.json", "a list for a mapping"),
    ("report", "metrics.jsonl", "200 MB of lines"),
    ("report", "config.resolved.yaml", "an alias bomb"),
    ("report", "status.json", "escapes"),
    ("run", "checkpoints", "a link out"),
    ("run", "metrics.jsonl", "a link out"),
    ("run", "config.resolved.yaml", "variables"),
    ("compare", "checkpoints/latest", "a FIFO"),
    ("export", "summary.json", "a FIFO"),
    ("train from it", "checkpoints/step_4/model.safetensors", "a link to /dev/zero"),
    ("sweep into it", "sweep.json", "a job named '../victim'"),
    ("sweep into it", "sweep.json", "a job named '/'"),
    ("sweep into it", "sweep.json", "a job named 'link'"),
    ("resume", f"{POINT}/state.json", "deep"),
    ("resume", f"{POINT}/optim.safetensors", "a FIFO"),
    ("resume", POINT, "a link to its twin"),
    ("resume", "metrics.jsonl", "a link out"),
    ("resume of a sweep", "sweep.json", "a job named '../victim'"),
}
"""What went wrong once: (command, file, kind)."""
ALL = list(every())
CHOSEN = [
    (command, case)
    for command, case in ALL
    if (command, case.file, case.kind) in TELLING
    or int(hashlib.sha256(f"{command}{case.file}{case.kind}".encode()).hexdigest(), 16) % SHARE == 0
]


def test_what_went_wrong_once_is_still_asked():
    assert {(command, case.file, case.kind) for command, case in ALL} >= TELLING
    assert len(ALL) > 8000


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("hostile"))


@pytest.mark.torch
@pytest.mark.parametrize(("command", "case"), CHOSEN, ids=[f"{c}-{x.file}-{x.kind!a}" for c, x in CHOSEN])
def test_a_bad_folder_harms_nobody(command, case, base, tmp_path):
    made, program = base
    home = tmp_path / "case"
    home.mkdir()
    found = ask(case, command, made, home, program)
    shutil.rmtree(home)  # some hold 200 MB
    assert found.faults == (), found.said
