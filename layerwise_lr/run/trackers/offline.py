"""wandb: a run that is written to the run's folder and sent by `wandb sync`; WANDB_MODE=online sends it at once."""

import os
from collections.abc import Mapping
from typing import Any

from .. import checkpoints, files
from .tracked import Record, Tracked

FOLDER, STEPS = "wandb", 10_000
PLAIN: Mapping[str, Any] = {
    "silent": True,
    "console": "off",
    "symlink": False,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "init_timeout": 30,
}
"""The numbers of the run and its config; nothing of the machine, the command line or the code."""


class Offline:
    """Written anew, under the same id, where the run goes on: what an earlier attempt wrote is in metrics.jsonl as well."""

    def __init__(self, run: Tracked) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        folder = files.inside(run.path, FOLDER)
        for old in folder.glob(f"offline-run-*-{run.id}") if mode == "offline" else ():
            checkpoints.remove(old)
        folder.mkdir(exist_ok=True)
        self._run = run
        self._wandb = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.config.name),
            group=run.home.name if run.home != run.path else None,
            id=run.id,
            name=run.path.name,
            config=run.settings(),
            dir=str(run.path),
            mode=mode,
            resume=None if mode == "offline" else "allow",
            settings=wandb.Settings(**PLAIN),
        )
        for link in folder.glob("*run-*/logs/*"):
            if link.is_symlink():  # to its own log elsewhere; no command of ours goes on in a folder with links
                link.unlink()
        for record in run.kept():
            self.write(record)

    def write(self, record: Record) -> None:
        """Of a step or an evaluation."""
        if self._run.told(record, STEPS):
            self._wandb.log(self._run.numbers(record), step=record["step"])

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """The run's result, and whether it came to one."""
        if summary is not None:
            self._wandb.summary.update(self._run.result(summary))
        self._wandb.finish(exit_code=int(summary is None))
