"""tensorboard: event files, by the package's own record writer; no thread of its own, and no TensorFlow."""

import os
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from .. import files
from .tracked import Record, Tracked

FOLDER, STEPS = "tensorboard", 10_000


class Events:
    """A file per attempt: where the run goes on, the new file tells TensorBoard to drop the points behind its beginning."""

    def __init__(self, run: Tracked) -> None:
        folder = files.inside(run.path, FOLDER)
        folder.mkdir(exist_ok=True)
        old = [path for path in folder.iterdir() if re.fullmatch(r"events\.out\.tfevents\.[\w.-]+", path.name)]
        for path in old if not run.step else ():
            path.unlink()
        self._run = run
        name = f"events.out.tfevents.{time.time_ns() // 1000:017}.{socket.gethostname()}.{os.getpid()}"
        self._file = os.fdopen(files.appended(folder / name), "ab")
        self._records = RecordWriter(self._file)
        self._put(file_version="brain.Event:2")
        if run.step and old:
            self._put(step=run.step, session_log=SessionLog(status=SessionLog.START))
        for record in run.kept():
            if not old or ("val" in record and record["step"] == run.step):  # dropped with the points of that step
                self.write(record)
        self._put(summary=hparams_pb(run.settings(), trial_id=run.id))
        self._file.flush()

    def write(self, record: Record) -> None:
        """Scalars of a step or an evaluation; an evaluation's step counts from 1, as in metrics.jsonl."""
        if self._run.told(record, STEPS):
            self._scalars(self._run.numbers(record), record["step"])
        if "val" in record:
            self._file.flush()

    def end(self, result: Mapping[str, Any] | None) -> None:
        """The run's result; one that has none yet may go on, and has not ended for TensorBoard."""
        if result is not None:
            self._scalars(self._run.result(result), result["last"]["step"])
            ended = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
            told = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=ended))
            value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=told, tensor=metadata.NULL_TENSOR)
            self._put(summary=Summary(value=[value]))
        self._file.close()

    def _scalars(self, numbers: Mapping[str, float], step: int) -> None:
        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._put(step=step, summary=Summary(value=values))

    def _put(self, **facts: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **facts).SerializeToString())
