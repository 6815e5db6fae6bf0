"""Each tracker for real: what it has written is read back by its own package, and compared with metrics.jsonl."""

import csv
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import RICH, prepared, started, unlike

from layerwise_lr.cli import hydra_app, results, runs
from layerwise_lr.cli.words import Given
from layerwise_lr.planning import UserError
from layerwise_lr.report import factors
from layerwise_lr.run import page, read_metrics, reading, resolve, trackers
from layerwise_lr.run.trackers import telling

LACKING = [name for name, needs in telling.NEEDS.items() if not all(map(telling.installed, needs))]
pytestmark = pytest.mark.skipif(
    bool(LACKING), reason=f"NOT RUN: {', '.join(LACKING)} not installed: pip install -e '.[trackers]'"
)
ALL = dict.fromkeys(trackers.NAMES, True)
STEPS = 20
SMALL = {"framework": {"name": "reference"}, "steps": STEPS}
SECRET = "https://me:password@place.example/weights"


def run(path: Path, **changes: Any) -> list[str]:
    """A run of `STEPS` steps; what it said."""
    said: list[str] = []
    page.run(prepared(path, **{**SMALL, **changes}), said.append)
    return said


def again(path: Path) -> list[str]:
    said: list[str] = []
    page.run(path, said.append)
    return said


def job(home: Path, name: str = "job") -> Path:
    """A folder for the job of a sweep."""
    home.mkdir(exist_ok=True)
    (home / "sweep.json").write_text('{"jobs": {}}')
    return home / name


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "run"
    run(path)
    return path


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's job, told to all."""
    path = job(tmp_path_factory.mktemp("tracked") / "sweep")
    assert not [line for line in run(path, logger=ALL) if "WARNING" in line]
    return path


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise, stopped after step 9; its last resume point is damaged, so that step 8 comes again."""
    path = prepared(job(tmp_path_factory.mktemp("resumed") / "sweep"), **SMALL, logger=ALL)

    def stop(steps: Any, total: int) -> Iterator[int]:
        for step in steps:
            if step == 8:
                os.kill(os.getpid(), 2)
            yield step

    with pytest.raises(KeyboardInterrupt):
        page.run(path, lambda line: None, stop)
    weights = path / "checkpoints/resume/step_9/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    said = again(path)
    assert "goes on after step 8 of 20" in said and not [line for line in said if "WARNING" in line]
    return path


# --- what the run measured: name -> [(step, number)], by another route than the trackers'


def measured(path: Path) -> dict[str, list[tuple[int, float]]]:
    groups = (path / "lrs.csv").read_text().splitlines()[0].split(",")[1:]
    found: dict[str, list[tuple[int, float]]] = {}
    for record in read_metrics(path / "metrics.jsonl"):
        named = {}
        if "loss" in record:
            named = {"train/loss": record["loss"]} | {f"lr/{g}": record["lrs"][i] for i, g in enumerate(groups)}
        for part in ("val", "val_ema", "test"):
            for key in record.get(part, {}):
                named[f"{part}/{key}"] = record[part][key]
        for group in record.get("groups", {}):
            for what in ("gradient_norm", "update_ratio", "distance"):
                named[f"{what}/{group}"] = record["groups"][group][what]
        for key, number in named.items():
            found.setdefault(key, []).append((record["step"], number))
    return found


def result(path: Path) -> dict[str, float]:
    summary = json.loads((path / "summary.json").read_text())
    assert summary["proof"]["max_relative_error"] > 0
    return {
        "kept/step": summary["kept"]["step"],
        "kept/val/accuracy": summary["val"]["accuracy"],
        "kept/test/balanced_accuracy": summary["test"]["balanced_accuracy"],
        "proof/max_relative_error": summary["proof"]["max_relative_error"],
    }


BOTH = pytest.mark.parametrize("which", ["tracked", "resumed"])


@BOTH
def test_the_run_is_the_same_bit_for_bit(which: str, plain: Path, request: pytest.FixtureRequest) -> None:
    assert unlike(plain, request.getfixturevalue(which)) == []


@BOTH
def test_csv_is_what_metrics_jsonl_says(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    found: dict[str, list[tuple[int, float]]] = {}
    with (path / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if value and key != "step":
                    found.setdefault(key, []).append((int(row["step"]), float(value)))
    assert found == measured(path)
    assert len(found["train/loss"]) == STEPS and "val_ema/accuracy" in found


@BOTH
def test_tensorboard_reads_it(which: str, request: pytest.FixtureRequest) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    path = request.getfixturevalue(which)
    assert len(list((path / "tensorboard").iterdir())) == (2 if which == "resumed" else 1)
    read = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    known, ends = measured(path), result(path)
    assert set(read.Tags()["scalars"]) > set(known) | set(ends)
    for key, points in known.items():
        assert [(e.step, e.value) for e in read.Scalars(key)] == [(s, float(np.float32(n))) for s, n in points], key
    for key, number in ends.items():
        assert [e.value for e in read.Scalars(key)] == [pytest.approx(number)]
    begun = read.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    told = metadata.parse_session_start_info_plugin_data(begun).hparams
    assert told["optimizer.lr"].number_value == RICH["optimizer"]["lr"] and told["ema.warmup"].bool_value
    over = read.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(over).status == 1


@BOTH
def test_mlflow_answers_queries(which: str, request: pytest.FixtureRequest) -> None:
    from mlflow import MlflowClient

    path = request.getfixturevalue(which)
    assert not (path / "mlflow.db").exists(), "one for the whole sweep"
    client = MlflowClient(f"sqlite:///{path.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sweep")
    assert experiment
    (found,) = client.search_runs([experiment.experiment_id], "metrics.`kept/step` >= 0")
    assert (found.info.run_name, found.info.status) == ("job", "FINISHED")
    assert found.data.params["optimizer.lr"] == "0.003"
    for key, points in measured(path).items():
        history = client.get_metric_history(found.info.run_id, key)
        assert sorted((m.step, m.value) for m in history) == points, key
    for key, number in result(path).items():
        assert found.data.metrics[key] == number


def records(path: Path) -> Iterator[Any]:
    """Of a .wandb file: LevelDB's log format, each record a protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    held, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(held):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", held[at : at + 7])
        whole += held[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its end
            yield Record.FromString(whole)
            whole = b""


@BOTH
def test_wandb_left_an_offline_run(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    (file,) = path.glob("wandb/offline-run-*/run-*.wandb")
    found: dict[str, list[tuple[int, float]]] = {}
    config, summary, code = {}, {}, None
    for record in records(file):
        values = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for key, value in values.items():
            if not key.startswith("_"):
                found.setdefault(key, []).append((values["_step"], value))
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        for item in record.summary.update:
            summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        code = record.exit.exit_code if record.HasField("exit") else code
    assert found == measured(path)
    assert config["optimizer.lr"] == 0.003 and code == 0
    assert {key: summary[key] for key in result(path)} == result(path)
    assert not [p for p in path.rglob("*") if p.is_symlink()], "a folder with links would not go on"


def test_nobody_is_told_a_secret(tmp_path: Path) -> None:
    config = resolve(reading.from_data({**RICH, **SMALL, "model": {**RICH["model"]}}))
    config = replace(config, weights=replace(config.weights, path=SECRET))
    settings = telling.Tracked(tmp_path, config, [], 0).settings()
    assert settings["weights.path"] == "https://***@place.example/weights"
    assert settings["optimizer.lr"] == 0.003 and settings["clip_grad_norm"] == "null"


@pytest.mark.parametrize("steps", [1, 1000, 1001, 10_000, 10_001, 25_000, 1_000_000])
@pytest.mark.parametrize("most", [1000, 10_000])
def test_of_a_long_run_some_steps_are_told_evenly(steps: int, most: int, tmp_path: Path) -> None:
    config = resolve(reading.from_data({"steps": steps, "eval_every": steps, "batch_size": 25}))
    lrs = set(page.plan_of(config)[2].shown())
    run = telling.Tracked(tmp_path, config, [], 0)
    told = [step for step in range(steps) if run.told({"step": step, "loss": 1.0}, most)]
    assert len(set(np.diff(told))) <= 1 and told[0] == 0 and min(steps, most) / 2 <= len(told) <= most
    assert steps > most or len(told) == steps
    assert set(told) <= lrs and run.told({"step": 1, "val": {}}, most)


# --- failures


class Unruly:
    """Fails, or takes its time, where it is told to."""

    def __init__(self, where: str) -> None:
        self.where, self.count = where, 0
        self.act("begin")

    def act(self, now: str) -> None:
        if self.where == now:
            raise SystemExit("no more")
        if self.where == "slow":
            time.sleep(0.02)

    def write(self, record: Any) -> None:
        self.count += 1
        self.act("write" if self.count > 3 else "")

    def end(self, summary: Any) -> None:
        self.act("end")


@pytest.mark.parametrize("where", ["begin", "write", "end", "slow"])
def test_one_that_fails_is_off_and_the_others_go_on(
    where: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(telling.MAKERS, "wandb", lambda run: Unruly(where))
    monkeypatch.setattr(telling, "SECONDS", 0.05)
    monkeypatch.setattr(telling, "SHARE", 1000)
    monkeypatch.setitem(telling.MAKERS, "tensorboard", lambda run: Unruly("nowhere"))
    said = run(tmp_path / "run", logger={"wandb": True, "tensorboard": True})
    (line,) = [line for line in said if "WARNING" in line]
    assert line.startswith("WARNING: logger=wandb is off from here on, the run is not affected: ")
    assert ("no more" in line) == (where != "slow") and ("seconds" in line) == (where == "slow")
    assert unlike(plain, tmp_path / "run") == []


def test_places_that_are_taken_and_a_server_that_is_silent(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepared(tmp_path / "run", **SMALL, logger={**ALL, "wandb": False})
    (path / "metrics.csv").mkdir()
    (path / "tensorboard").write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        since = time.monotonic()
        said = again(path)
        assert time.monotonic() - since < 20
    off = [line.split("=")[1].split()[0] for line in said if "WARNING" in line]
    assert off == ["csv", "tensorboard", "mlflow"]
    assert all(len(line.splitlines()) == 1 for line in said)
    assert unlike(plain, path) == [] and (path / "tensorboard").read_text() == "mine"


def test_two_jobs_at_once_make_one_database(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    home = tmp_path / "sweep"
    paths = [prepared(job(home, f"job_{seed}"), **SMALL, seed=seed, logger={"mlflow": True}) for seed in (0, 1)]
    for process in [started(path) for path in paths]:
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0 and "WARNING" not in said, said
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    assert {r.data.params["seed"] for r in client.search_runs([experiment.experiment_id])} == {"0", "1"}


def test_what_is_not_installed_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(telling.NEEDS, "wandb", ("no-such-distribution",))
    config = reading.from_data({**RICH, **SMALL, "logger": {"csv": True, "wandb": True}})
    with pytest.raises(UserError, match=r"logger=wandb needs no-such-distribution, .* not installed: .*pip install"):
        runs.train(config, tmp_path / "run", Given((), ()))
    assert not (tmp_path / "run").exists()


def test_a_database_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    path = job(tmp_path / "sweep")
    (tmp_path / "sweep/mlflow.db").symlink_to("../elsewhere.db")
    (line,) = [line for line in run(path, logger={"mlflow": True}) if "WARNING" in line]
    assert "mlflow.db: not a plain file of this folder alone" in line and not (tmp_path / "elsewhere.db").exists()


# --- the verdict


def test_a_verdict_is_a_note_of_the_experiment(tracked: Path) -> None:
    from mlflow import MlflowClient

    said: list[str] = []
    trackers.tell_verdict(tracked.parent, ["Too few seeds.", "And so on."], said.append)
    tags = MlflowClient(f"sqlite:///{tracked.parent / 'mlflow.db'}").get_experiment_by_name("sweep").tags
    assert tags["mlflow.note.content"] == tags["layerwise_lr.verdict"] == "Too few seeds.\n\nAnd so on."
    assert said == []


def test_a_report_tells_its_verdict(resumed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow import MlflowClient

    assert results.report([str(resumed.parent)]) == 0
    tags = MlflowClient(f"sqlite:///{resumed.parent / 'mlflow.db'}").get_experiment_by_name("sweep").tags
    told, verdict = capsys.readouterr().out, tags["layerwise_lr.verdict"]
    assert verdict and " ".join(verdict.split("\n\n")[0].split()) in " ".join(told.split())
    assert "WARNING" not in told


def test_a_bad_database_is_one_line_and_another_s_is_left_alone(tracked: Path, tmp_path: Path) -> None:
    said: list[str] = []
    trackers.tell_verdict(tmp_path, ["x"], said.append)
    assert said == [] and not list(tmp_path.iterdir())
    (tmp_path / "mlflow.db").hardlink_to(tracked.parent / "mlflow.db")
    before = (tmp_path / "mlflow.db").read_bytes()
    trackers.tell_verdict(tmp_path, ["x"], said.append)
    assert "not a plain file" in said.pop() and (tmp_path / "mlflow.db").read_bytes() == before
    (tmp_path / "mlflow.db").unlink()
    (tmp_path / "mlflow.db").write_text("no database\n" * 1000)
    trackers.tell_verdict(tmp_path, ["x"], said.append)
    assert len(said) == 1 and said[0].startswith("WARNING: the verdict is not in") and "\n" not in said[0]


# --- the config


def test_several_are_chosen_as_hydra_has_it() -> None:
    made, groups = hydra_app.composed(["logger=[csv,tensorboard]"])
    assert made["logger"] == {"csv": True, "tensorboard": True, "mlflow": False, "wandb": False}
    assert set(groups["logger"]) == {"none", *trackers.NAMES}
    assert not any(hydra_app.composed([])[0]["logger"].values())


def test_a_logger_makes_no_other_setting_and_no_other_job() -> None:
    one, other = (resolve(reading.from_data({**RICH, "logger": logger})) for logger in ({}, ALL))
    assert one != other and one.sha256() == other.sha256()
    assert dict(factors._items(asdict(one))) == dict(factors._items(asdict(other)))
