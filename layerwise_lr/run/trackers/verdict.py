"""What a report found, as a note of the sweep's experiment in MLflow."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ...planning import UserError, plain
from .. import files
from .telling import NEEDS, installed
from .tracked import DATABASE

NOTE, TAG = "mlflow.note.content", "layerwise_lr.verdict"


def tell_verdict(folder: Path, sentences: Sequence[str], say: Callable[[str], None]) -> None:
    """Nothing where the folder has no mlflow.db of its own, or MLflow is not installed; its failure is one line.

    Args:
        folder: a sweep's.
        sentences: the verdicts, in words.
        say: told that one line.
    """
    try:
        file = files.opened(folder, DATABASE, 10**11)
    except UserError:
        return
    if file is None or not all(map(installed, NEEDS["mlflow"])):
        return
    with file:
        alone = os.fstat(file.fileno()).st_nlink == 1
    if not alone:  # it is another folder's as well
        return
    try:
        from .database import client, own

        mlflow = client(own(folder))
        for experiment in mlflow.search_experiments():
            if experiment.name != "Default":
                for tag in (NOTE, TAG):
                    mlflow.set_experiment_tag(experiment.experiment_id, tag, "\n\n".join(sentences)[:5000])
    except Exception as error:
        say(f"WARNING: the verdict is not in {folder / DATABASE}: {plain(error, 300)}")
