"""Hydra sweeper "optuna": Hydra's sweep syntax as a space that optuna searches; the jobs are the launcher's.

No `from __future__ import annotations` here: Hydra 1.3 scans this module before it is in sys.modules.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional  # noqa: UP035

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from layerwise_lr.cli import sweeps
from layerwise_lr.planning import UserError
from layerwise_lr.sweep import Search, searching

Suggest = Callable[[Any], str]


@dataclass
class OptunaConf:
    """hydra.sweeper: how many trials, which sampler, which pruner; params as Hydra's own sweeper has them."""

    _target_: str = "hydra_plugins.layerwise_lr.sweeper.OptunaSweeper"
    n_trials: int = 20
    sampler: str = "tpe"
    sampler_seed: int = 0
    pruner: str = "median"
    startup_trials: int = 5
    params: Optional[Dict[str, Any]] = field(default_factory=dict)  # noqa: UP006, UP045


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaConf, provider="layerwise_lr")


class OptunaSweeper(Sweeper):
    """Asks for trials, as many at a time as jobs run side by side, and tells what came of them."""

    def __init__(self, params: Optional[Dict[str, Any]], **how: Any) -> None:  # noqa: UP006, UP045
        self.params, self.how = params or {}, how

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Keep what `sweep` needs.

        Raises:
            UserError: optuna is not here.
        """
        searching.check_installed()
        self.search, self.composed = Search(**self.how), config
        self.loader = hydra_context.config_loader
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: List[str]) -> Any:  # noqa: UP006
        """All trials that are still to be made; the best is told."""
        words = [*(f"{key}={value}" for key, value in flat(self.params)), *arguments]
        space: dict[str, Suggest] = {}
        fixed, seeds = [], [""]
        for override in OverridesParser.create(config_loader=self.loader).parse_overrides(words):
            key = override.get_key_element()
            if not override.is_sweep_override():
                fixed.append(f"{key}={override.get_value_element_as_str()}")
            elif key == "seed" and override.is_discrete_sweep():
                seeds = [f"seed={value}" for value in override.sweep_string_iterator()]
            else:
                space[key] = suggestion(override, OmegaConf.select(self.composed, key))
        if not space:
            raise UserError(
                "hydra/sweeper=optuna has nothing to search: 'optimizer.lr=tag(log, interval(1e-5, 1e-2))', "
                "'grouping.layer_decay=interval(0.6, 1)', or values: key=a,b,c"
            )
        folder = Path(self.composed.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.composed, folder / "multirun.yaml")
        study = searching.Study(folder, self.search, space, words)
        at_once = max(1, self.launcher.at_once() // len(seeds))
        done = 0
        while trials := list(study.next(at_once)):
            self._try(study, trials, fixed, seeds, done)
            done += len(trials) * len(seeds)
        sweeps.tell_search(folder, study)
        return study.best()

    def _try(self, study: Any, trials: List[Any], fixed: List[str], seeds: List[str], first: int) -> None:  # noqa: UP006
        jobs = [[*fixed, *trial.words, *filter(None, [seed])] for trial in trials for seed in seeds]
        self.launcher.watch = searching.Watch(trials, len(seeds), self.composed.metric, fixed)
        try:
            returns = self.launcher.launch(jobs, first)
        except Exception as error:  # nothing ran: these settings cannot be made
            for trial in trials:
                study.tell(trial, [error])
            raise
        ends = [result._return_value for result in returns]
        for index, trial in enumerate(trials):
            study.tell(trial, ends[index * len(seeds) : (index + 1) * len(seeds)])


def flat(params: Mapping[str, Any], at: str = "") -> List[Any]:  # noqa: UP006
    """(key, value) of hydra.sweeper.params; the command line makes mappings of dotted keys."""
    found: List[Any] = []  # noqa: UP006
    for key, value in params.items():
        found += flat(value, f"{at}{key}.") if isinstance(value, Mapping) else [(f"{at}{key}", value)]
    return found


def suggestion(override: Override, usual: Any) -> Suggest:
    """A function from an optuna trial to the override that it suggests.

    Args:
        override: key=interval(...), key=range(...), key=choice(...), tagged log or not.
        usual: the key's value in the config: one that is whole stays so.
    """
    key, sweep = override.get_key_element(), override.value()
    log = "log" in getattr(sweep, "tags", ())
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if low is None or high is None or not low < high or (log and low <= 0):
            raise UserError(f"{override.input_line}: an interval goes from a lower to a higher number, log above 0")
        if isinstance(usual, int) and not isinstance(usual, bool):
            return lambda trial: f"{key}={trial.suggest_int(key, int(low), int(high), log=log)}"
        return lambda trial: f"{key}={rounded(trial.suggest_float(key, low, high, log=log), low, high)}"
    if isinstance(sweep, RangeSweep) and all(isinstance(end, int) for end in (sweep.start, sweep.stop, sweep.step)):
        values = range(sweep.start, sweep.stop, sweep.step)  # type: ignore[arg-type]
        if values and values.step > 0:
            return lambda trial: f"{key}={trial.suggest_int(key, values[0], values[-1], step=values.step)}"
    choices = list(override.sweep_string_iterator())
    if not choices:
        raise UserError(f"{override.input_line}: there is nothing to choose from")
    return lambda trial: f"{key}={trial.suggest_categorical(key, choices)}"


def rounded(value: float, low: float, high: float) -> float:
    """To 4 digits, which are in the name of the job's folder, and no further."""
    return min(max(float(f"{value:.4g}"), low), high)
