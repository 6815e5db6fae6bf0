"""A run that was killed or asked to stop goes on, and nothing tells it from one that was not but its times."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from killing import RICH, prepared, survived, unlike

from layerwise_lr.planning import UserError
from layerwise_lr.run import CONFIG, RunFolder, checkpoints, page, reading, stopping
from layerwise_lr.run.checkpoints import Damaged, check, resumable

REFERENCE = {"framework": {"name": "reference"}, "steps": 20}
"""Steps 2, 4, ... are resume points (checkpoint.every)."""
FREEZE = {"strategy": "after", "match": ["conv1", "bn1"], "at": 3}
RESNET = {**REFERENCE, "model": {"name": "resnet18", "width": 4, "drop_path": 0.2}, "steps": 8, "freeze": FREEZE}


def stopped(path: Path, step: int, number: int = signal.SIGTERM) -> RunFolder:
    """A run that hears a signal within step `step`, counted from 0."""

    def track(steps: Iterable[int], total: int) -> Iterator[int]:
        for now in steps:
            if now == step:
                os.kill(os.getpid(), number)
            yield now

    for heard in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # under nohup too
        signal.signal(heard, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            page.run(path, lambda line: None, track)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    return RunFolder(path)


def run(path: Path) -> list[str]:
    """To its end; what it said."""
    said: list[str] = []
    page.run(path, said.append)
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = prepared(tmp_path_factory.mktemp("whole") / "run", **REFERENCE)
    run(path)
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_asked_to_stop_it_writes_a_checkpoint_and_goes_on_from_it(tmp_path: Path, whole: Path, number: int) -> None:
    folder = stopped(prepared(tmp_path / "run", **REFERENCE), 6, number)
    assert folder.state() == "interrupted"
    assert resumable(folder.path) == [6, 7]
    assert "goes on after step 7 of 20" in run(folder.path)
    assert json.loads((folder.path / "summary.json").read_text())["resumed"] == [7]
    assert unlike(whole, folder.path) == []


@pytest.mark.parametrize("steps", [(0,), (4,), (19,), (1, 2, 3, 9, 12, 19)], ids=str)
def test_it_does_not_matter_where_or_how_often(tmp_path: Path, whole: Path, steps: tuple[int, ...]) -> None:
    path = prepared(tmp_path / "run", **REFERENCE)
    for step in steps:
        stopped(path, step)
    run(path)
    assert unlike(whole, path) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "momentum", "lr": 0.05, "nesterov": True}, "ema": {}},
        {"early_stop": {"patience": 1}, "optimizer": {"lr": 1e-12}},
        {"verify": {"start": False, "training": False}, "checkpoint": {}},
        {"checkpoint": {"keep_best": 0}, "eval_every": 3},
        RESNET,
    ],
    ids=["momentum", "early stop", "no proof", "no best", "resnet"],
)
def test_whatever_it_has_to_remember(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {**REFERENCE, **changes}
    one, other = (prepared(tmp_path / name, **changes) for name in ("one", "other"))
    run(one)
    stopped(other, 5)
    run(other)
    assert unlike(one, other) == []


def test_a_comparison_that_can_fail(tmp_path: Path, whole: Path) -> None:
    path = prepared(tmp_path / "run", **{**REFERENCE, "seed": 1})
    run(path)
    assert {"metrics.jsonl", "lr_check.jsonl", "test"} <= set(unlike(whole, path))


def test_once_finished_nothing_of_it_is_left(whole: Path) -> None:
    assert {p.name for p in (whole / "checkpoints").iterdir()} > {"best", "latest", "step_20"}
    assert not resumable(whole) and not list(whole.rglob("*.part"))


# --- damage


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


FILES = ("model.safetensors", "optim.safetensors", "ema.safetensors", "state.json")


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    tmp_path: Path, whole: Path, name: str, harm: Callable[[Path], None]
) -> None:
    folder = stopped(prepared(tmp_path / "run", **REFERENCE), 8)
    assert resumable(folder.path) == [8, 9]
    harm(folder.path / f"checkpoints/resume/step_9/{name}")
    said = run(folder.path)
    (told,) = [line for line in said if "cannot be used" in line]
    assert name in told and "the one of step 8 is used" in told
    assert "goes on after step 8 of 20" in said
    assert unlike(whole, folder.path) == []


def test_where_all_are_damaged_it_begins_anew(tmp_path: Path, whole: Path) -> None:
    folder = stopped(prepared(tmp_path / "run", **REFERENCE), 8)
    for step in (8, 9):
        flip(folder.path / f"checkpoints/resume/step_{step}/model.safetensors")
    said = run(folder.path)
    assert sum("cannot be used" in line for line in said) == 2 and any("from step 0" in line for line in said)
    assert unlike(whole, folder.path) == []
    assert json.loads((folder.path / "summary.json").read_text())["resumed"] == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "lr_check.jsonl"])
def test_a_log_that_is_not_what_was_written_is_not_continued(tmp_path: Path, whole: Path, name: str) -> None:
    folder = stopped(prepared(tmp_path / "run", **REFERENCE), 8)
    held = (folder.path / name).read_bytes()
    (folder.path / name).write_bytes(held.replace(b"1", b"2", 1))
    assert any(f"{name} is not what was written" in line for line in run(folder.path))
    assert unlike(whole, folder.path) == []


def test_what_was_written_behind_the_checkpoint_comes_again(tmp_path: Path, whole: Path) -> None:
    folder = stopped(prepared(tmp_path / "run", **REFERENCE), 8)
    with (folder.path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9, "loss": 0.1}\n{"ste')
    checkpoints.write(folder.path / "checkpoints", 15, {}, {})
    (folder.path / "checkpoints/.step_9.part").mkdir()
    (folder.path / ".summary.json.17.part").write_text("{")
    run(folder.path)
    assert unlike(whole, folder.path) == []
    assert not list(folder.path.rglob("*.part"))


@pytest.mark.parametrize("target", ["checkpoints/resume/step_9", "metrics.jsonl"])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, target: str) -> None:
    folder = stopped(prepared(tmp_path / "run", **REFERENCE), 8)
    (folder.path / target).rename(tmp_path / "outside")
    (folder.path / target).symlink_to(tmp_path / "outside")
    before = (tmp_path / "outside").read_bytes() if target == "metrics.jsonl" else b""
    assert any("cannot be used" in line for line in run(folder.path))
    assert not before or (tmp_path / "outside").read_bytes() == before


def test_only_its_own_files_are_a_checkpoint(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, 3, {}, {"x": 1})
    state, files = check(tmp_path / "step_3")
    assert (state["step"], state["x"], files) == (3, 1, {})
    for text in ("[]", "{}", "[" * 5000, '{"step": 3, "sha256": {}, "state_sha256": 1}', "\xff"):
        (tmp_path / "step_3/state.json").write_text(text, encoding="latin-1")
        with pytest.raises(Damaged):
            check(tmp_path / "step_3")


# --- what may not change meanwhile


def test_another_config_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = stopped(prepared(tmp_path / "run", **REFERENCE), 8)
    before = (folder.path / "metrics.jsonl").read_bytes()
    config = reading.read(folder.path / CONFIG)
    folder.write_text(CONFIG, config.to_yaml().replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match="had another config"):
        run(folder.path)
    assert (folder.path / "metrics.jsonl").read_bytes() == before and resumable(folder.path) == [8, 9]


@pytest.mark.parametrize(
    "changes", [{"checkpoint": {"optimizer": False}}, {"framework": {"name": "torch", "precision": "fp64"}}]
)
def test_what_cannot_go_on_bit_by_bit_begins_anew(changes: dict[str, Any]) -> None:
    config = reading.from_data({**REFERENCE, **changes})
    assert not config.can_resume() and reading.from_data(REFERENCE).can_resume()


def test_a_fresh_start_clears_old_results_and_nothing_else(tmp_path: Path, whole: Path) -> None:
    path = prepared(tmp_path / "run", **REFERENCE)
    checkpoints.write(path / "checkpoints", 999, {}, {})
    for name in ("metrics.jsonl", "lr_check.jsonl", "error.txt", "summary.json", "notes.md"):
        (path / name).write_text("old")
    run(path)
    assert unlike(whole, path) == []
    assert (path / "notes.md").read_text() == "old" and not (path / "error.txt").exists()


# --- signals


def test_ctrl_c_again_ends_at_once_and_so_does_the_time() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup too
    with stopping.listening() as stop, stop.after_a_step():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= stopping.GRACE
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGALRM)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_an_ignored_signal_stays_ignored_and_a_thread_hears_none() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    heard: list[bool] = []

    def listen() -> None:
        with stopping.listening() as stop:
            heard.append(stop.asked)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [False]


def test_killed_at_random_it_survives(tmp_path: Path) -> None:
    told = survived(tmp_path, 4, **REFERENCE)
    assert (told["kills"], told["damaged"], told["unlike"]) == (4, 0, [])


def test_the_config_that_is_killed_has_everything_to_remember() -> None:
    config = reading.from_data({**RICH, **REFERENCE})
    assert config.ema.decay and config.model.dropout and config.augment.mixup and config.freeze.strategy != "none"
