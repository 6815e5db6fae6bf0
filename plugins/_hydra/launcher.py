"""Hydra launchers: validate every job, write the sweep's plan, then have each job run in its own process, by our own pool or
by an engine that others keep.

No `from __future__ import annotations` here: Hydra 1.3 scans this module before it is in sys.modules.
"""

from dataclasses import fields, make_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Dict, List, Sequence, get_args  # noqa: UP035

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from layerwise_lr.cli import hydra_app, sweeps
from layerwise_lr.planning import UserError
from layerwise_lr.run import files, options, resolve
from layerwise_lr.sweep import LAUNCHERS


class Outcome(JobReturn):
    """A JobReturn that raises what a failed job raised without a line of its own on stderr."""

    @property  # type: ignore[misc]
    def return_value(self) -> Any:
        """The job's value."""
        if isinstance(self._return_value, Exception):
            raise self._return_value
        return self._return_value


class JobsLauncher(Launcher):
    """One process per job; see layerwise_lr.sweep."""

    name = "jobs"
    """Of layerwise_lr.sweep.LAUNCHERS."""

    watch: Any = None
    """A search's: told the folders of the jobs while they run."""

    def __init__(self, **options: Any) -> None:
        self.said: Dict[str, Any] = {  # noqa: UP006
            key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for key, value in options.items()
        }

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Keep what `launch` needs."""
        if not getattr(task_function, "sweeps", ""):
            raise UserError("only 'layerwise-lr train' and 'compare' take -m")
        self.options = LAUNCHERS[self.name](**self.said)
        self.options.check(self.name)
        own = ("multirun.yaml", "study.db", "lr_find")  # Hydra's, or of an equal sweep; a search's; of tune
        files.refuse_foreign(Path(config.hydra.sweep.dir), *own)
        self.loader, self.config = hydra_context.config_loader, config
        self.compares = task_function.sweeps == "compare"
        hydra_app.sweep_folder = Path(config.hydra.sweep.dir)

    def at_once(self) -> int:
        """How many jobs of the config as it stands run side by side."""
        threads = self.config.framework.threads
        return self.options.at_once(threads if isinstance(threads, int) else 1)

    def typed(self, cfg: DictConfig, words: Any) -> Any:
        """The Config of a job, which can be resolved.

        Raises:
            UserError: it asks for what only the machine that trains can tell.
        """
        config = hydra_app.typed(cfg, words)
        if config.framework.threads == "auto" and not self.options.here:
            raise UserError(
                f"framework.threads=auto is a share of this machine's cores, and hydra/launcher={self.name} trains on others: "
                "say a number"
            )
        return config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> List[JobReturn]:  # noqa: UP006
        """Compose and check all, then run all; a job that fails is FAILED in its JobReturn, the others go on."""
        composed: List[Any] = []  # noqa: UP006
        ignored: List[Dict[str, str]] = []  # noqa: UP006
        keys: Dict[str, None] = {}  # noqa: UP006
        for index, overrides in enumerate(job_overrides, initial_job_idx):
            cfg = self.loader.load_sweep_config(self.config, list(overrides))
            cfg.hydra.job.num, cfg.hydra.job.id = index, str(index)
            words = hydra_app.given(overrides)
            config = resolve(self.typed(cfg, words), self.at_once())
            composed.append((config, list(overrides)))
            keys |= dict.fromkeys(words.keys)
            ignored.append(options.ignored(config))
        if not composed:
            raise UserError("the sweep has no jobs: some key has no value")
        if self.compares:
            sweeps.refuse_incomparable([config for config, _ in composed])
        in_all = set(ignored[0]).intersection(*ignored[1:])
        if not self.watch:  # of a search, other jobs may read it
            options.refuse_ignored(keys, {key: why for key, why in ignored[0].items() if key in in_all})
        results = sweeps.run_sweep(Path(self.config.hydra.sweep.dir), composed, self.options, self.watch)
        returns: List[JobReturn] = []  # noqa: UP006
        for (_, overrides), result in zip(composed, results, strict=True):
            failed = isinstance(result, Exception)
            status = JobStatus.FAILED if failed else JobStatus.COMPLETED
            returns.append(Outcome(overrides=overrides, status=status, _return_value=result))
        return returns


class JoblibLauncher(JobsLauncher):
    """The workers of joblib's loky hand out the jobs."""

    name = "joblib"


class SubmititLocalLauncher(JobsLauncher):
    """submitit does, on this machine."""

    name = "submitit_local"


class SubmititSlurmLauncher(JobsLauncher):
    """Slurm does, by submitit."""

    name = "submitit_slurm"


class RayLauncher(JobsLauncher):
    """Ray does."""

    name = "ray"


OURS = (JobsLauncher, JoblibLauncher, SubmititLocalLauncher, SubmititSlurmLauncher, RayLauncher)


def taken_as(kind: Any) -> Any:
    """A field's type for OmegaConf, which takes no 4 for a `str | float`: that is checked by the options themselves."""
    return Any if isinstance(kind, UnionType) and len(get_args(kind)) > 2 else kind


for launcher in OURS:
    told = [(each.name, taken_as(each.type), each) for each in fields(LAUNCHERS[launcher.name])]
    target = f"hydra_plugins.layerwise_lr.launcher.{launcher.__name__}"
    node = make_dataclass(f"{launcher.__name__}Conf", [("_target_", str, target), *told])
    ConfigStore.instance().store(group="hydra/launcher_schema", name=launcher.name, node=node, provider="layerwise_lr")
