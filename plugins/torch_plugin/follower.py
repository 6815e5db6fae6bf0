"""A process that does its part of a run whose first process another is: `python -m`, by that one or by a launcher."""

import os
import signal
from collections.abc import Sequence
from typing import Any

from layerwise_lr import framework as core

from . import distributed
from .team import Head, Team, join


class Follower:
    """What the first process's verbs are here: the same calls, on this process's own models and optimizers, which go by
    the numbers that the first has given them."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.held: dict[int, Any] = {}
        self.of: dict[int, distributed.Distributed] = {}
        """The framework of each."""

    def drop(self, numbers: Sequence[int]) -> None:
        """The first has them no more."""
        for number in numbers:
            self.held.pop(number, None)
            self.of.pop(number, None)

    def framework(self, number: int, how: str, spec: Sequence[Any]) -> None:
        """As the first has been asked for it."""
        self.of[number] = distributed.CLASSES[how](*spec, team=self.team)

    def make_model(self, number: int, framework: int, tree: core.Tree) -> None:
        """Of a declared tree."""
        self.of[number] = self.of[framework]
        self.held[number] = self.of[number].make_model(tree)

    def adopt(self, number: int, framework: int, *built: Any) -> None:
        """Made here as it was made there."""
        self.of[number] = self.of[framework]
        self.held[number] = self.of[number].adopt(self.of[number].build(*built))

    def make_optimizer(self, number: int, model: int, plan: core.Plan) -> None:
        """With its groups; their lrs come with every step."""
        framework, native = self.of[model], self.held[model]
        groups = framework.make_groups(native, plan)
        optimizer = framework.make_optimizer(native, groups, plan)
        self.of[number] = framework
        self.held[number] = core.TrainState(native, groups, optimizer, core.GroupScheduler([], plan))

    def set_weights(self, model: int) -> None:
        """They come."""
        self.of[model].set_weights(self.held[model], {})

    def get_weights(self, model: int) -> None:
        """Our shards of them go."""
        self.of[model].get_weights(self.held[model])

    def train_step(self, state: int, step: core.Step, lrs: Sequence[float], x: Head, y: Head) -> None:
        """At the lrs that the first process's scheduler has written."""
        for group, lr in zip(self.held[state].groups, lrs, strict=True):
            group["lr"] = lr
        self.of[state].follow_step(self.held[state], x, y, step)

    def predict(self, state: int, x: Head) -> None:
        """Our rows."""
        self.of[state].follow_predict(self.held[state], x)

    def get_optimizer_state(self, state: int) -> None:
        """Our shards of it go."""
        self.of[state].get_optimizer_state(self.held[state])

    def set_optimizer_state(self, state: int, heads: dict[str, Head]) -> None:
        """It comes."""
        self.of[state].follow_state(self.held[state], heads)


def follow() -> int:
    """Until the first process says that it is over; the exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the first may have ended before it began a team
    team = join()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the first is asked too, and says when we end
        signal.signal(number, signal.SIG_IGN)
    try:
        follower = Follower(team)
        while (told := team.hear())[0] != "end":
            verb, words, dropped = told
            follower.drop(dropped)
            getattr(follower, verb)(*words)
    except Exception as error:
        team.fail(error)
        return 1
    team.end()
    return 0


if __name__ == "__main__":
    os._exit(follow())  # the store's own end waits for a first process that may be gone
