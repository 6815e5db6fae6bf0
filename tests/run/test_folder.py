import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from layerwise_lr.planning.errors import UserError
from layerwise_lr.run.folder import METRICS_VERSION, RunFolder, read_metrics

CLAIMER = """
import sys, time
from pathlib import Path
from layerwise_lr.planning.errors import UserError
from layerwise_lr.run.folder import RunFolder
path, begin = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
while not begin.exists():
    time.sleep(0.0005)
try:
    RunFolder.claim(path)
    print("won")
except UserError as error:
    assert "holds a run already" in str(error)
    print("lost")
"""


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def test_of_20_processes_exactly_one_claims(tmp_path):
    processes = [python(CLAIMER, tmp_path / "run", tmp_path / "begin") for _ in range(20)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "begin").touch()
    answers = sorted(process.communicate()[0].strip() for process in processes)
    assert answers == ["lost"] * 19 + ["won"]


def test_a_claim_is_refused_when_taken_and_keeps_what_is_there(tmp_path):
    RunFolder.claim(tmp_path / "a").write_text("x", "mine")
    with pytest.raises(UserError, match="holds a run already"):
        RunFolder.claim(tmp_path / "a")
    assert (tmp_path / "a" / "x").read_text() == "mine"


KILLED_CLAIMER = """
import os, sys
from pathlib import Path
from layerwise_lr.run.folder import RunFolder
path, left = Path(sys.argv[1]), int(sys.argv[2])
def hook(event, _):
    global left
    if armed:
        left -= 1
        if left < 0:
            os._exit(9)
armed = False
sys.addaudithook(hook)
armed = True
RunFolder.claim(path)
os._exit(0)
"""


def test_a_claim_is_seen_whole_or_not_at_all(tmp_path):
    """Killed at every event that Python audits (open, rename, host name, ...), it leaves all or nothing."""
    code, count, states = 9, 0, []
    while code == 9 and count < 30:
        code = python(KILLED_CLAIMER, tmp_path / str(count), count).wait()
        states.append(RunFolder(tmp_path / str(count)).state())
        count += 1
    assert code == 0
    assert len(states) > 3
    assert set(states) <= {"missing", "crashed"}
    RunFolder.claim(tmp_path / "last")
    assert [p.name for p in (tmp_path / "last").iterdir()] == ["status.json"]


WRITER = """
import sys
from pathlib import Path
from layerwise_lr.run.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
print("ready", flush=True)
n = 0
while True:
    n += 1
    folder.write_json("numbers.json", {"n": n, "filler": [n] * 20000})
"""


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.05, 0.11])
def test_a_killed_writer_leaves_whole_content(tmp_path, delay):
    folder = RunFolder(tmp_path)
    folder.write_json("numbers.json", {"n": 0, "filler": [0] * 20000})
    writer = python(WRITER, tmp_path)
    assert writer.stdout.readline() == "ready\n"
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    held = folder.read_json("numbers.json")
    assert held["filler"] == [held["n"]] * 20000


def test_a_reader_beside_a_writer_sees_whole_content(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("numbers.json", {"n": 0, "filler": [0] * 20000})
    writer = python(WRITER, tmp_path)
    seen = set()
    try:
        assert writer.stdout.readline() == "ready\n"
        for _ in range(40):
            held = folder.read_json("numbers.json")
            assert held["filler"] == [held["n"]] * 20000
            seen.add(held["n"])
    finally:
        writer.kill()
        writer.communicate()
    assert len(seen) > 1


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunFolder(tmp_path).write_json("a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_read_json_of_nothing_is_none(tmp_path):
    assert RunFolder(tmp_path).read_json("a.json") is None
    assert RunFolder(tmp_path / "nowhere").state() == "missing"


# --- states


def test_states_of_a_run_that_goes_well(tmp_path):
    folder = RunFolder.claim(tmp_path / "a")
    assert folder.state() == "claimed"
    with folder.running():
        assert folder.state() == "running"
    assert folder.state() == "completed"


def test_states_of_a_run_that_fails_or_is_stopped(tmp_path):
    folder = RunFolder.claim(tmp_path / "a")
    with pytest.raises(UserError), folder.running():
        raise UserError("no such thing")
    status = folder.read_json("status.json")
    assert folder.state() == "failed"
    assert status["error"] == {"type": "UserError", "message": "no such thing"}
    assert "no such thing" in (tmp_path / "a" / "error.txt").read_text()
    with pytest.raises(KeyboardInterrupt), folder.running():
        raise KeyboardInterrupt
    assert folder.state() == "interrupted"
    folder.fail("died of SIGKILL")
    assert folder.state() == "failed"
    assert folder.read_json("status.json")["error"]["message"] == "died of SIGKILL"


@pytest.mark.parametrize("state", ["running", "claimed"])
def test_a_run_whose_process_is_gone_is_crashed(tmp_path, state):
    code = """
    import os, sys
    from pathlib import Path
    from layerwise_lr.run.folder import RunFolder
    folder = RunFolder.claim(Path(sys.argv[1]))
    if sys.argv[2] == "running":
        entered = folder.running()
        entered.__enter__()
    os._exit(9)
    """
    assert python(code, tmp_path / "a", state).wait() == 9
    assert RunFolder(tmp_path / "a").state() == "crashed"


def test_a_run_lives_by_its_lock_not_by_a_pid_or_a_name(tmp_path):
    folder = RunFolder.claim(tmp_path / "a")
    status = folder.read_json("status.json")
    with folder.running():
        assert folder.state() == "running"
    for stranger in ({"host": "elsewhere"}, {"pid": os.getpid()}, {"pid": 1}):
        folder.write_json("status.json", {**status, "state": "running", **stranger})
        assert folder.state() == "crashed"


def test_a_claim_lives_by_pid_and_start_time(tmp_path):
    folder = RunFolder.claim(tmp_path / "a")
    status = folder.read_json("status.json")
    for changed, state in (
        ({}, "claimed"),
        ({"process": "another boot/123"}, "crashed"),
        ({"pid": 2**22 + 1}, "crashed"),
        ({"pid": 2**22 + 1, "host": "elsewhere"}, "claimed"),
    ):
        folder.write_json("status.json", {**status, **changed})
        assert folder.state() == state, changed


def test_a_second_process_is_refused_and_changes_nothing(tmp_path):
    path = RunFolder.claim(tmp_path / "a").path
    holding = """
    import sys
    from pathlib import Path
    from layerwise_lr.run.folder import RunFolder
    with RunFolder(Path(sys.argv[1])).running():
        print("in", flush=True)
        sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(holding), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "in\n"
    status = (path / "status.json").read_text()
    with pytest.raises(UserError, match=f"is being trained by process {process.pid} of"), RunFolder(path).running():
        raise AssertionError("two in one folder")
    assert (path / "status.json").read_text() == status
    with pytest.raises(UserError, match="is being trained"):
        RunFolder(path).reclaim()
    with pytest.raises(UserError, match="is being trained"):
        RunFolder(path).refuse_live()
    process.kill()
    process.communicate()
    assert RunFolder(path).state() == "crashed"
    assert RunFolder(path).reclaim() and not RunFolder(path).reclaim()
    assert RunFolder(path).state() == "claimed"


def test_a_run_that_died_after_its_result_is_completed(tmp_path):
    folder = RunFolder.claim(tmp_path / "a")
    status = folder.read_json("status.json")
    folder.write_json("status.json", {**status, "state": "running", "pid": 2**22 + 1})
    folder.write_json("summary.json", {})
    assert folder.state() == "completed"


# --- checkpoints


def save(folder, step, keep, optimizer=None, value=0.0):
    """As the run does: `keep` of the checkpoints so far stay."""
    folder.save_checkpoint(step, {"w": np.full(2, value, np.float32)}, optimizer, {"plan_sha256": "abc"}, None)
    there = sorted(int(p.name[5:]) for p in (folder.path / "checkpoints").glob("step_*"))
    folder.keep_checkpoints(there[-keep:], [])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_k_are_kept_by_step_not_by_name(tmp_path, keep):
    folder = RunFolder(tmp_path)
    for step in (2, 9, 10, 100, 1000):
        save(folder, step, keep, value=step)
        assert (tmp_path / "checkpoints" / "latest").read_text() == f"step_{step}\n"
    kept = {p.name for p in (tmp_path / "checkpoints").iterdir()} - {"latest"}
    assert kept == {f"step_{s}" for s in (2, 9, 10, 100, 1000)[-keep:]}
    held = load_file(tmp_path / "checkpoints" / "step_1000" / "model.safetensors")
    assert held["w"].tolist() == [1000, 1000]
    state = json.loads((tmp_path / "checkpoints" / "step_1000" / "state.json").read_text())
    model = tmp_path / "checkpoints" / "step_1000" / "model.safetensors"
    assert (state["step"], state["plan_sha256"]) == (1000, "abc")
    assert state["sha256"] == {"model.safetensors": hashlib.sha256(model.read_bytes()).hexdigest()}


def test_the_optimizer_is_optional(tmp_path):
    save(RunFolder(tmp_path), 1, 1)
    assert not (tmp_path / "checkpoints" / "step_1" / "optim.safetensors").exists()
    save(RunFolder(tmp_path), 1, 1, {"w/m": np.ones(2, np.float32)})
    assert (tmp_path / "checkpoints" / "step_1" / "optim.safetensors").exists()


def test_the_best_stay_beside_the_last_and_are_named(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3, 4):
        save(folder, step, 9, value=step)
    folder.keep_checkpoints([4], [(2, "model"), (3, "ema")])
    assert {p.name for p in (tmp_path / "checkpoints").glob("step_*")} == {"step_2", "step_3", "step_4"}
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_4\n"
    assert (tmp_path / "checkpoints" / "best").read_text() == "step_2/model.safetensors\n"
    assert folder.checkpoint(2, "model")["w"].tolist() == [2, 2]


def test_strange_memory_layouts_and_scalars_survive(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {
        "fortran": np.asfortranarray(base),
        "transposed": base.transpose(2, 0, 1),
        "strided": base[:, ::2, 1:],
        "reversed": base[::-1],
        "scalar": np.array(7.0, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "int": np.arange(3),
        "double": np.arange(3) / 7,
    }
    RunFolder(tmp_path).save_checkpoint(1, arrays, arrays, {}, arrays)
    for file in ("model", "ema", "optim"):
        held = load_file(tmp_path / "checkpoints" / "step_1" / f"{file}.safetensors")
        assert set(held) == set(arrays)
        for name, array in arrays.items():
            assert held[name].shape == array.shape, name
            assert held[name].dtype == array.dtype, name
            assert np.array_equal(held[name], array), name


def test_what_a_killed_save_left_does_not_disturb_the_next(tmp_path):
    part = tmp_path / "checkpoints" / ".step_5.part"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(b"torn")
    save(RunFolder(tmp_path), 5, 1, value=3.0)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_5"]


# --- metrics


def test_metrics_read_back_line_by_line_while_open(tmp_path):
    metrics = RunFolder(tmp_path).metrics()
    for step in range(3):
        metrics.write({"step": step, "loss": 0.1})
        assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == list(range(step + 1))
    metrics.close()
    first = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(first) == {"metrics_version": METRICS_VERSION}


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_torn_last_line_is_left_out(tmp_path, cut):
    metrics = RunFolder(tmp_path).metrics()
    for step in range(3):
        metrics.write({"step": step})
    metrics.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text().rstrip("\n")
    path.write_text(whole[:-cut] if cut < 12 else whole[:-11])
    assert [r["step"] for r in read_metrics(path)] == [0, 1]


def test_no_metrics_is_an_empty_list(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_metrics_refuse_nan(tmp_path):
    metrics = RunFolder(tmp_path).metrics()
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics.write({"loss": float("inf")})
    metrics.close()
