"""Who else is told what a run measures: csv, tensorboard, mlflow, wandb.

They hear the records of metrics.jsonl and summary.json, nothing else, and give nothing back. A tracker that fails, or takes
more time than it is worth, is switched off in one line; the run goes on. Each is imported when it is asked for.
"""

from .telling import NAMES, Trackers, check
from .verdict import tell_verdict

__all__ = ["NAMES", "Trackers", "check", "tell_verdict"]
