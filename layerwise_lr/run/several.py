"""Several processes, one run: what a launcher (torchrun, msrun, OneFlow's) has said, and who may train so."""

import os
import time
from typing import NamedTuple, NoReturn

from ..framework import registry
from ..planning import UserError
from .schema import Config, FrameworkSpec

LAUNCHERS = (("RANK", "WORLD_SIZE"), ("RANK_ID", "MS_WORKER_NUM"))
"""Which variables tell a process its number and how many there are: torchrun's and OneFlow's, msrun's."""


PATIENCE = 20.0
"""Seconds that the first has to say why nothing is done; then the launcher ends the others anyway."""


class Launched(NamedTuple):
    """This process's number, from 0, and how many a launcher has started."""

    rank: int
    size: int


def launched() -> Launched | None:
    """What a launcher has said; None: there is none."""
    for rank, size in LAUNCHERS:
        told = os.environ.get(rank, ""), os.environ.get(size, "")
        if all(word.isdecimal() for word in told):
            return Launched(int(told[0]), int(told[1]))
    return None


def leave() -> NoReturn:
    """Ends this process, once the first has said why: a launcher ends the others as soon as one of them has ended."""
    time.sleep(PATIENCE)
    raise SystemExit(2)


def follows(config: Config) -> bool:
    """Whether this process does what another says, which holds the run.

    Raises:
        UserError: the config is of one process, or of another number, and a launcher has started several.
    """
    team, spec = launched(), config.framework
    if team is None or (team.size == 1 and spec.distributed == "none"):
        return False
    check(spec)
    if spec.distributed == "none":
        if team.rank:
            leave()
        has = registry.load(spec.name).distributions
        one, add = (
            ("framework.distributed=none", f"add framework.distributed={has[0]}, or ") if has else (spec.name, "")
        )
        raise UserError(
            f"a launcher has started {team.size} processes, and {one} trains in one: {add}start it without the launcher"
        )
    return team.rank > 0


def follow(config: Config) -> int:
    """Until the first process has done; the exit code."""
    return registry.load(config.framework.name).follow()


def check(spec: FrameworkSpec) -> None:
    """Whether the framework trains in several processes that way.

    Raises:
        UserError: it does not.
    """
    if spec.distributed == "none":
        return
    has = registry.load(spec.name).distributions
    if spec.distributed not in has:
        able = [name for name in registry.names() if registry.installed(name) and registry.load(name).distributions]
        there = (
            f"framework={able[0]} has {', '.join(registry.load(able[0]).distributions)}" if able else "none here has"
        )
        raise UserError(
            f"framework.distributed={spec.distributed}: framework {spec.name} trains in one process; {there}"
        )
