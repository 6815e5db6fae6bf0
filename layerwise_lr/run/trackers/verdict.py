"""What a report found, as a note of the sweep's experiment in MLflow."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ...planning import plain
from .telling import NEEDS, installed
from .tracked import DATABASE, own_database

NOTE, TAG = "mlflow.note.content", "layerwise_lr.verdict"


def tell_verdict(folder: Path, sentences: Sequence[str], say: Callable[[str], None]) -> None:
    """Nothing where the folder has no mlflow.db, or MLflow is not installed; its failure is one line.

    Args:
        folder: a sweep's.
        sentences: the verdicts, in words.
        say: told that one line.
    """
    if not (folder / DATABASE).is_file() or not all(map(installed, NEEDS["mlflow"])):
        return
    try:
        address = own_database(folder)
        from .database import client

        mlflow = client(address)
        for experiment in mlflow.search_experiments():
            if experiment.name != "Default":
                for tag in (NOTE, TAG):
                    mlflow.set_experiment_tag(experiment.experiment_id, tag, "\n\n".join(sentences)[:5000])
    except Exception as error:
        say(f"WARNING: the verdict is not in {folder / DATABASE}: {plain(error, 300)}")
