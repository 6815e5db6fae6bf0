"""What a run trains: a declared tree, or a model of somebody else's package. Both have a table, a start and a native form."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..framework import Framework, ZooModel, native, registry
from ..models import Tree, Weights, foreign, param_table, walk, weights
from ..planning import ParamTable, UserError
from .schema import Config


class Subject(ABC):
    """One model before any framework holds it.

    Args:
        name: for people.
        table: its parameters, with their depths.
        convention: of the depths that are still to be counted; "tree": none.
        kinds: of its layers, where the framework must have them.
        notes: what to tell of the depths.
    """

    name: str
    table: ParamTable
    convention: str
    kinds: Sequence[str] = ()
    notes: Sequence[str] = ()

    @abstractmethod
    def check(self, config: Config) -> None:
        """What can be known before a folder is claimed.

        Raises:
            UserError: the framework has no such model, or the weights do not fit.
        """

    def check_with(self, framework: Framework) -> None:  # noqa: B027 (a declared model's kinds are read off the class)
        """What the framework itself refuses of the model, in this mode and precision.

        Raises:
            UserError: with the way out.
        """

    @abstractmethod
    def start(self, framework: Framework, config: Config, seed: int) -> tuple[Any, Weights, list[str]]:
        """The native model under its start weights, these, and what to tell of them."""


class Declared(Subject):
    """A tree: the same in every framework, its weights born in NumPy."""

    def __init__(self, tree: Tree, convention: str) -> None:
        self.tree, self.name, self.table, self.convention = tree, tree.name, param_table(tree), convention
        self.kinds = list(dict.fromkeys(layer.kind for _, layer, _ in walk(tree.root)))

    def check(self, config: Config) -> None:
        """The weights fit."""
        weights.start_weights(self.tree, config.weights, 0)

    def start(self, framework: Framework, config: Config, seed: int) -> tuple[Any, Weights, list[str]]:
        """Initial or pretrained weights by canonical name."""
        start, notes = weights.start_weights(self.tree, config.weights, seed)
        model = framework.make_model(self.tree)
        framework.set_weights(model, start)
        return model, start, notes


class FromZoo(Subject):
    """A model of a package: planned on a sketch of it, initial values from its own code under the run's seed."""

    def __init__(self, asked: ZooModel, framework: type[Framework], convention: str) -> None:
        self.asked, self.name = asked, f"{asked.source} {asked.name}"
        adapter = framework.native()
        assert adapter is not None, "a framework that builds models describes them"
        described = adapter(self._native(framework)).describe()
        found = native.placed(described, None if convention == "tree" else convention)
        self.table, self.convention = found.table, found.convention
        why = f": {'; '.join(found.reasons)}" if found.reasons else ""
        self.notes = [f"depths by {found.counted}, confidence {found.confidence:.2f}{why}"]

    def _native(self, framework: type[Framework], seed: int | None = None) -> Any:
        """Without numbers where no seed is given and the framework can."""
        make = registry.model_factory(self.asked.name) if self.asked.source == "own" else None
        return framework.build(self.asked, seed, make)

    def check(self, config: Config) -> None:
        """The file fits."""
        foreign.for_table(self.table, self.name, config.weights)

    def check_with(self, framework: Framework) -> None:
        """Asked of a sketch."""
        framework.check_native(self._native(type(framework)))

    def start(self, framework: Framework, config: Config, seed: int) -> tuple[Any, Weights, list[str]]:
        """As its package makes it, with a file's arrays over it where there is one."""
        model = framework.adopt(self._native(type(framework), seed=seed))
        start = framework.get_weights(model)
        found, notes = foreign.for_table(self.table, self.name, config.weights)
        start |= found
        framework.set_weights(model, start)
        return model, start, [*notes, *self.notes]


def subject(config: Config) -> Subject:
    """Of a config whose sizes are filled in.

    Raises:
        UserError: there is no such model, or the chosen framework has none of that package.
    """
    spec = config.model
    if spec.source == "declared":
        return Declared(config.tree(), config.grouping.convention)
    if not spec.name:
        raise UserError(f"model.name is missing: model={spec.source} needs model.name=...")
    framework = registry.load(config.framework.name)
    if spec.source not in (*framework.sources, "own"):
        able = [name for name, found in registry.loadable() if spec.source in found.sources]
        there = f"framework={able[0]} has" if able else "no installed framework has"
        raise UserError(f"model={spec.source}: framework {config.framework.name} has none of its models, {there}")
    assert spec.num_classes and spec.in_channels and spec.image_size
    sizes = (spec.num_classes, spec.in_channels, spec.image_size)
    asked = ZooModel(spec.source, spec.name, *sizes, config.weights.name == "pretrained", dict(spec.options))
    key = json.dumps([asdict(asked), config.framework.name, config.grouping.convention], sort_keys=True)
    if key not in _sketched:
        if framework.starts_first:
            at = config.framework
            framework(at.device, at.mode, at.precision, at.threads, at.deterministic)
        _sketched.clear()
        _sketched[key] = FromZoo(asked, framework, config.grouping.convention)
    return _sketched[key]


_sketched: dict[str, FromZoo] = {}
"""The last one: a config is asked for its model many times."""
