"""Searches with optuna: real studies, real jobs, killed and gone on with; optuna's own reader tells what is in them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="NOT RUN: searches (pip install optuna)")
import optuna
from killing import prepared

from layerwise_lr.cli import runs
from layerwise_lr.planning import UserError
from layerwise_lr.run import Pruned, RunFolder, page
from layerwise_lr.sweep import Search, searching

STATES = optuna.trial.TrialState
WORDS = ("framework=reference", "model=mlp", "weights=none", "optimizer=sgd", "verify=off", "+size=test")
SPACE = {"lr": lambda trial: f"optimizer.lr={trial.suggest_float('lr', 0.0, 1.0)}"}


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")


def started(*words: str) -> "subprocess.Popen[str]":
    start = [sys.executable, "-m", "layerwise_lr", "train", "-m", "hydra/sweeper=optuna", *words, *WORDS]
    return subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_killed_search_goes_on_and_what_diverges_is_a_bad_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space = ("optimizer.lr=0.05,1e6", "grouping.layer_decay=interval(0.6,1)", "batch_size=range(8,12,2)", "seed=0,1")
    how = ("hydra.sweeper.n_trials=6", "hydra.sweeper.pruner=none", "hydra.sweep.dir=s", "hydra.launcher.n_jobs=2")
    process, until = started(*space, *how), time.monotonic() + 60
    while len(list(tmp_path.glob("s/*/summary.json"))) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {t.number: t.params for t in study_of(tmp_path / "s").trials}
    assert 1 <= len(before) < 6

    out, _ = started(*space, *how).communicate(timeout=200)
    trials = study_of(tmp_path / "s").trials
    assert len(trials) == 6 and {t.number: t.params for t in trials if t.number in before} == before
    assert len({json.dumps(t.params) for t in trials}) == 6, "gone on with, it draws no setting twice"
    jobs = json.loads((tmp_path / "s/sweep.json").read_text())["jobs"]
    assert len(jobs) == 12
    for trial in trials:
        decay = f"grouping.layer_decay={float(format(trial.params['grouping.layer_decay'], '.4g'))}"
        own = [name for name, job in jobs.items() if decay in job["overrides"]]
        assert len(own) == 2
        ends = [RunFolder(tmp_path / "s" / name).read_json("summary.json") for name in own]
        if float(trial.params["optimizer.lr"]) > 1:
            assert trial.state == STATES.PRUNED and ends == [None, None]
        else:
            assert trial.state == STATES.COMPLETE
            assert trial.value == pytest.approx(sum(end["val"]["accuracy"] for end in ends) / 2)
    assert {t.state for t in trials} == {STATES.PRUNED, STATES.COMPLETE}
    assert "best on validation" in out and "optimizer.lr=0.05" in out.rpartition("best on validation")[2]

    other, _ = started("optimizer.lr=0.05,0.1", *how).communicate(timeout=60)
    assert "holds the search of another command" in other


def test_a_hopeless_run_is_given_up_and_is_no_result(tmp_path: Path) -> None:
    """The fifth trial is as bad as a trial can be; four good ones were before it."""
    study = searching.Study(tmp_path, Search(startup_trials=1), SPACE, [])
    for _ in range(4):
        (good,) = study.next(1)
        for number in (1, 2, 3):
            good.asked.report(2.0, number)
        study.tell(good, [2.0])
    (trial,) = study.next(1)
    path = prepared(tmp_path / "run", framework={"name": "reference"}, steps=20)
    watch = searching.Watch([trial], 1, "accuracy")

    def say(line: str) -> None:
        watch._next = 0.0
        watch([path])

    with pytest.raises(Pruned, match="hopeless at evaluation 1"):
        page.run(path, say)
    folder = RunFolder(path)
    assert folder.state() == "pruned"
    assert not (path / "summary.json").exists() and not (path / "checkpoints/resume").exists()
    evaluations = [line for line in (path / "metrics.jsonl").read_text().splitlines() if '"val"' in line]
    assert 1 <= len(evaluations) <= 2
    end = runs.outcome(folder, "accuracy")
    assert end != end
    study.tell(trial, [end])
    assert study_of(tmp_path).trials[4].state == STATES.PRUNED
    assert study.counts() == {"completed": 4, "given up or diverged": 1}

    page.run(path, lambda line: None)  # asked for by hand, it is trained to its end
    assert folder.state() == "completed"


def test_evaluations_are_read_as_they_come_and_none_twice(tmp_path: Path) -> None:
    told, log = searching.Evaluations(tmp_path, "accuracy"), tmp_path / "metrics.jsonl"
    told.read()
    assert told.values == []
    lines = [json.dumps({"step": step, "val": {"accuracy": step / 10}}) for step in (1, 2, 3)]
    log.write_text('{"metrics_version": 1}\n{"step": 0, "loss": 1}\n' + lines[0] + "\n" + lines[1][:9])
    told.read()
    assert told.values == [0.1]
    with log.open("a") as file:
        file.write(lines[1][9:] + "\n")
    told.read()
    told.read()
    assert told.values == [0.1, 0.2]
    log.write_text("\n".join(["{}", *lines[:2]]) + "\n")  # begun again
    told.read()
    with log.open("a") as file:
        file.write(lines[2] + "\n")
    told.read()
    assert told.values == [0.1, 0.2, 0.3]


def test_seeds_are_judged_by_their_mean(tmp_path: Path) -> None:
    study = searching.Study(tmp_path, Search(pruner="asha"), SPACE, [])
    (trial,) = study.next(1)
    paths = [tmp_path / name for name in "ab"]
    for path, values in zip(paths, ([0.5, 0.7], [0.3]), strict=True):
        path.mkdir()
        lines = [json.dumps({"step": step, "val": {"accuracy": value}}) for step, value in enumerate(values)]
        (path / "metrics.jsonl").write_text("\n".join(["{}", *lines]) + "\n")
    searching.Watch([trial], 2, "accuracy")(paths)
    assert study_of(tmp_path).trials[0].intermediate_values == {1: 0.4}
    study.tell(trial, [0.5, 0.7])
    assert study.best() is not None and study.best()[0] == pytest.approx(0.6)


def test_what_failed_for_another_reason_says_nothing_of_the_setting(tmp_path: Path) -> None:
    study = searching.Study(tmp_path, Search(), SPACE, [])
    diverged, killed = runs.JobsFailed("", 2), runs.JobsFailed("", 1)
    for ends in ([diverged, 0.5], [killed, 0.5]):
        (trial,) = study.next(1)
        study.tell(trial, ends)
    assert [t.state for t in study_of(tmp_path).trials] == [STATES.PRUNED, STATES.FAIL]
    assert study.best() is None


@pytest.mark.parametrize(
    "options",
    [{"n_trials": 0}, {"sampler": "grid"}, {"pruner": "hyperband"}, {"startup_trials": 0}, {"sampler_seed": -1}],
)
def test_nonsense(options: dict[str, object]) -> None:
    (key,) = options
    with pytest.raises(UserError, match=f"hydra.sweeper.{key}"):
        Search(**options)  # type: ignore[arg-type]
