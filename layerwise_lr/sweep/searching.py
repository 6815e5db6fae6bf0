"""A search: optuna asks for trials, the jobs of each run as any sweep's, hopeless ones are given up.

The study is a file of the sweep's folder, study.db (SQLite, which optuna-dashboard reads): the same search into the same
folder goes on with it. A trial is one setting, run once for every seed; its value is the mean of `metric` on validation.
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..framework import advice
from ..planning import UserError
from ..run import RunFolder, files

STUDY = "study.db"
_LOOK = 0.1  # seconds between looks at the running jobs
SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "asha", "none")


@dataclass(frozen=True)
class Search:
    """How settings are searched (hydra/sweeper=optuna).

    Args:
        n_trials: settings to try, those of an earlier start in the same folder included.
        sampler: tpe | random: which come next.
        sampler_seed: of the sampler.
        pruner: median | asha | none: which run is given up after an evaluation. median: worse than half of the earlier ones
            at that evaluation; asha: not among the best fourth at the 1st, 4th, 16th ... evaluation.
        startup_trials: so many come at random, and median gives none of them up.
    """

    n_trials: int = 20
    sampler: str = "tpe"
    sampler_seed: int = 0
    pruner: str = "median"
    startup_trials: int = 5

    def __post_init__(self) -> None:
        for key, low in (("n_trials", 1), ("startup_trials", 1), ("sampler_seed", 0)):
            if getattr(self, key) < low:
                raise UserError(f"hydra.sweeper.{key}={getattr(self, key)} must be at least {low}")
        for key, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            if getattr(self, key) not in known:
                raise UserError(f"hydra.sweeper.{key}={getattr(self, key)!r} must be one of {', '.join(known)}")


def check_installed() -> None:
    """Whether there is optuna.

    Raises:
        UserError: there is none; how to get it.
    """
    if find_spec("optuna") is None:
        raise UserError(f"hydra/sweeper=optuna needs optuna, which is not installed: {advice('optuna')}")


class Study:
    """optuna's, in the sweep's folder.

    Args:
        folder: of the sweep; it is there.
        search: how to search.
        space: key -> how optuna is to suggest its value (`suggest` of a trial), and how the command line spells that.
        fixed: all else that the user said, which must be the same when the search goes on.

    Raises:
        UserError: what is there is another search's.
    """

    def __init__(
        self, folder: Path, search: Search, space: Mapping[str, Callable[[Any], str]], fixed: Sequence[str]
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self._optuna, self.search, self.space = optuna, search, space
        storage = f"sqlite:///{folder.resolve() / STUDY}"
        pruners = {
            "median": optuna.pruners.MedianPruner(n_startup_trials=search.startup_trials),
            "asha": optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
            "none": optuna.pruners.NopPruner(),
        }
        self._study = optuna.create_study(
            storage=storage,
            study_name="search",
            load_if_exists=True,
            direction="maximize",
            pruner=pruners[search.pruner],
        )
        told = json.dumps(sorted(fixed))
        if self._study.user_attrs.setdefault("of", told) != told:
            raise UserError(f"{folder}: holds the search of another command ({STUDY}); choose another hydra.sweep.dir")
        self._study.set_user_attr("of", told)
        seed = search.sampler_seed + len(self._study.trials)  # gone on with, it shall not draw the same again
        self._study.sampler = (
            optuna.samplers.RandomSampler(seed)
            if search.sampler == "random"
            else optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=search.startup_trials, multivariate=True, constant_liar=True
            )
        )
        self._begun = [t for t in self._study.trials if t.state == optuna.trial.TrialState.RUNNING]

    def next(self, count: int) -> Iterator["Trial"]:
        """Up to so many more, those first that an earlier start had begun."""
        for _ in range(count):
            if self._begun:
                found = self._optuna.trial.Trial(self._study, self._begun.pop(0)._trial_id)
            elif len(self._study.trials) < self.search.n_trials:
                found = self._study.ask()
            else:
                return
            yield Trial(found, [suggest(found) for suggest in self.space.values()])

    def tell(self, trial: "Trial", ends: Sequence[float | Exception]) -> None:
        """What came of a trial: a metric per seed, NaN where it was given up, an error that has a `code` (2: training was at
        fault: a bad trial, else nothing is known of the setting)."""
        states, errors = self._optuna.trial.TrialState, [end for end in ends if isinstance(end, Exception)]
        if errors:
            state = states.PRUNED if all(getattr(error, "code", 1) == 2 for error in errors) else states.FAIL
        else:
            state = states.PRUNED if any(map(math.isnan, ends)) else states.COMPLETE  # type: ignore[arg-type]
        value = sum(ends) / len(ends) if state == states.COMPLETE else None  # type: ignore[arg-type]
        self._study.tell(trial.asked.number, value, state, skip_if_finished=True)

    def counts(self) -> dict[str, int]:
        """Trials by what came of them."""
        states = [trial.state.name for trial in self._study.trials]
        names = {"COMPLETE": "completed", "PRUNED": "given up or diverged", "FAIL": "failed", "RUNNING": "running"}
        return {word: states.count(name) for name, word in names.items() if name in states}

    def best(self) -> tuple[float, list[str]] | None:
        """The highest value, and the words that say the setting; None: no trial was completed."""
        done = self._study.get_trials(states=(self._optuna.trial.TrialState.COMPLETE,))
        if not done:
            return None
        value, first = max(((trial.value or 0.0, trial) for trial in done), key=lambda pair: pair[0])
        found = self._optuna.trial.Trial(self._study, first._trial_id)
        return value, [suggest(found) for suggest in self.space.values()]


@dataclass
class Trial:
    """One setting.

    Args:
        asked: optuna's.
        words: that say it on the command line.
    """

    asked: Any
    words: list[str]


class Watch:
    """Looks at running jobs, tells optuna of their evaluations, and gives hopeless trials up.

    Args:
        trials: whose jobs run.
        seeds: jobs of each, one behind the other.
        metric: that counts.
        fixed: words that all jobs of the search have in common.
    """

    def __init__(self, trials: Sequence[Trial], seeds: int, metric: str, fixed: Sequence[str] = ()) -> None:
        self.trials, self.seeds, self.metric, self.fixed = trials, seeds, metric, fixed
        self._evaluations: list[Evaluations] = []
        self._reported, self._given_up = [0] * len(trials), [False] * len(trials)
        self._next = 0.0

    def __call__(self, paths: Sequence[Path]) -> None:
        """Look, unless that was just done.

        Args:
            paths: the jobs' folders.
        """
        if time.monotonic() < self._next:
            return
        self._evaluations = self._evaluations or [Evaluations(path, self.metric) for path in paths]
        for index, trial in enumerate(self.trials):
            if not self._given_up[index]:
                self._look(index, trial, self._evaluations[index * self.seeds : (index + 1) * self.seeds])
        self._next = time.monotonic() + _LOOK

    def _look(self, index: int, trial: Trial, jobs: Sequence["Evaluations"]) -> None:
        for job in jobs:
            job.read()
        for number in range(self._reported[index], min(len(job.values) for job in jobs)):
            self._reported[index] = number + 1
            trial.asked.report(sum(job.values[number] for job in jobs) / len(jobs), number + 1)
            if trial.asked.should_prune():
                self._given_up[index] = True
                for job in jobs:
                    job.give_up(
                        f"hopeless at evaluation {number + 1}, where its {self.metric} was {job.values[number]:.4f}"
                    )
                return


class Evaluations:
    """A job's evaluations, read as they come: what is read once is not read again."""

    def __init__(self, path: Path, metric: str) -> None:
        self.path, self.metric = path, metric
        self.values: list[float] = []
        self._read, self._steps = 0, set[int]()

    def read(self) -> None:
        """Those that are new. A job that begins again brings some of them again."""
        with suppress(UserError, OSError):  # its own matter, which it will be told
            file = files.opened(self.path, "metrics.jsonl", files.MOST_OF_LINES)
            if file is None:
                return
            with file:
                if file.seek(0, 2) < self._read:
                    self._read = 0
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read += len(whole + newline)
            for line in whole.split(b"\n"):
                if b'"val"' in line:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            if record["step"] not in self._steps:
                self.values.append(float(record["val"][self.metric]))
                self._steps.add(record["step"])

    def give_up(self, why: str) -> None:
        """The job shall end."""
        if not (self.path / "summary.json").exists():
            RunFolder(self.path).give_up(why)
