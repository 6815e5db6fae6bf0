"""The trackers of one run: told together, each at its own risk."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...framework import advice
from ...planning import UserError, plain
from ..schema import Config
from .tracked import Record, Tracked, Tracker

SECONDS, SHARE = 60.0, 5
"""A tracker that has taken more than so many seconds, and more than one part in so many of the run's, is too slow."""


def _csv(run: Tracked) -> Tracker:
    from .table import Table

    return Table(run)


def _tensorboard(run: Tracked) -> Tracker:
    from .events import Events

    return Events(run)


def _mlflow(run: Tracked) -> Tracker:
    from .database import Database

    return Database(run)


def _wandb(run: Tracked) -> Tracker:
    from .offline import Offline

    return Offline(run)


MAKERS: dict[str, Callable[[Tracked], Tracker]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
NEEDS = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow-skinny", "sqlalchemy", "alembic"), "wandb": ("wandb",)}
"""Distributions, by tracker."""
NAMES = tuple(MAKERS)


def chosen(config: Config) -> list[str]:
    """The trackers that a config asks for."""
    return [name for name, asked in asdict(config.logger).items() if asked]


def check(config: Config) -> None:
    """Before the run: whether what it asks for is installed; nothing is imported.

    Raises:
        UserError: names the first that is not, and the pip line.
    """
    for name in chosen(config):
        for needed in NEEDS.get(name, ()):
            if not installed(needed):
                raise UserError(f"logger={name} needs {needed}, which is not installed: {advice(name)}")


def installed(distribution: str) -> bool:
    """Whether it is."""
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


class Trackers:
    """Those that the config asks for; none of them can end the run.

    Args:
        path: the run's folder.
        config: final.
        groups: names of the plan's groups, in order.
        say: told the one line of a tracker that is switched off.
    """

    def __init__(self, path: Path, config: Config, groups: Sequence[str], say: Callable[[str], None]) -> None:
        self._path, self._config, self._groups, self._say = path, config, groups, say
        self._live: dict[str, Tracker] = {}
        self._spent = dict.fromkeys(chosen(config), 0.0)
        self._began = time.monotonic()

    def begin(self, step: int) -> None:
        """Start them; `step`: steps that are done already."""
        run = Tracked(self._path, self._config, self._groups, step)
        for name in chosen(self._config):
            self._try(name, lambda name=name: self._live.update({name: MAKERS[name](run)}))  # type: ignore[misc]

    def write(self, record: Record) -> None:
        """A record of metrics.jsonl, to all."""
        for name, tracker in list(self._live.items()):
            self._try(name, lambda tracker=tracker: tracker.write(record))  # type: ignore[misc]

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """The run is over; None: before its end."""
        live, self._live = self._live, {}
        for name, tracker in live.items():
            self._try(name, lambda tracker=tracker: tracker.end(summary))  # type: ignore[misc]

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        self.end(None)

    def _try(self, name: str, act: Callable[[], None]) -> None:
        since = time.monotonic()
        try:
            act()
        except (Exception, SystemExit) as error:
            self._off(name, f"{type(error).__name__}: {plain(error, 300)}")
        now = time.monotonic()
        self._spent[name] += now - since
        if name in self._live and self._spent[name] > max(SECONDS, (now - self._began) / SHARE):
            self._off(name, f"it has taken {self._spent[name]:.0f} of {now - self._began:.0f} seconds")

    def _off(self, name: str, why: str) -> None:
        self._live.pop(name, None)
        self._say(f"WARNING: logger={name} is off from here on, the run is not affected: {why}")
