"""mlflow: an experiment per sweep, in an SQLite file of the sweep's folder, or where MLFLOW_TRACKING_URI says."""

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import files
from .tracked import Record, Tracked, own_database

LOCK, ELSEWHERE = ".mlflow.lock", "MLFLOW_TRACKING_URI"
MINE = "layerwise_lr.run"
"""The tag by which a run is known when it goes on."""
STEPS = 1000
"""That are told: a number costs MLflow up to a millisecond."""
MOST = 1000
"""Numbers that MLflow takes at once; so many parameters: a hundred."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
"""Of the environment, unless the user says otherwise."""


def client(uri: str) -> Any:
    """MLflow's client of a database or a server, that says little and waits no longer than half a minute."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    return MlflowClient(uri)


class Database:
    """Goes on with the same MLflow run where the run goes on, and leaves out the points that this has."""

    def __init__(self, run: Tracked) -> None:
        from mlflow.entities import Metric, Param

        self._run, self._metric = run, Metric
        with _alone(run.home):
            self._client = client(os.environ.get(ELSEWHERE) or own_database(run.home))
            self._experiment = self._made_experiment()
        self._buffer: list[Any] = []
        held = self._client.search_runs([self._experiment], f"tags.`{MINE}` = '{run.id}'")
        if held and run.step:
            self._id = held[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            for old in held:
                self._client.delete_run(old.info.run_id)
            made = self._client.create_run(self._experiment, run_name=run.path.name, tags={MINE: run.id})
            self._id = made.info.run_id
            params = [Param(_key(key), str(value)[:6000]) for key, value in run.settings().items()]
            for at in range(0, len(params), 100):
                self._client.log_batch(self._id, params=params[at : at + 100])
        self._behind = {name: self._last(name) for name in ("train/loss", "val/loss")}
        for record in run.kept():
            self.write(record)

    def write(self, record: Record) -> None:
        """Kept until an evaluation, or until there are many."""
        step, of = record["step"], "train/loss" if "loss" in record else "val/loss"
        if not self._run.told(record, STEPS) or step <= self._behind[of]:
            return
        now = int(time.time() * 1000)
        self._buffer += [self._metric(_key(k), n, now, step) for k, n in self._run.numbers(record).items()]
        if "val" in record or len(self._buffer) > MOST // 2:
            self._flush()

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """The run's result, and whether it came to one."""
        if summary is not None:
            now, last = int(time.time() * 1000), summary["last"]["step"]
            self._buffer += [self._metric(_key(k), n, now, last) for k, n in self._run.result(summary).items()]
        self._flush()
        self._client.set_terminated(self._id, "FAILED" if summary is None else "FINISHED")

    def _flush(self) -> None:
        while self._buffer:
            self._client.log_batch(self._id, metrics=self._buffer[:MOST])
            self._buffer = self._buffer[MOST:]

    def _last(self, key: str) -> int:
        """The last step of a number that MLflow has; -1: none."""
        return max((point.step for point in self._client.get_metric_history(self._id, key)), default=-1)

    def _made_experiment(self) -> str:
        home = self._run.home
        name = home.name if home != self._run.path else self._run.config.name
        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        elsewhere = os.environ.get(ELSEWHERE)
        place = None if elsewhere else (home.resolve() / "mlartifacts").as_uri()
        return str(self._client.create_experiment(name, artifact_location=place))


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """The jobs of a sweep make the database one after the other."""
    with os.fdopen(files.appended(home / LOCK), "ab") as file:
        for _ in range(600):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield


def _key(name: str) -> str:
    """As MLflow takes them."""
    return re.sub(r"[^\w\-./: ]", "_", name, flags=re.ASCII)[:250]
