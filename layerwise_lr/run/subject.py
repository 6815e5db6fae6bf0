"""What a run trains: a declared tree, or a model of somebody else's package. Both have a table, a start and a native form."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..framework import Framework, ZooModel, native, registry
from ..models import Tree, Weights, param_table, walk, weights
from ..planning import ParamTable, UserError
from .schema import Config


class Subject(ABC):
    """One model before any framework holds it.

    Args:
        name: for people.
        table: its parameters, with their depths.
        notes: what to tell of these.
    """

    name: str
    table: ParamTable
    notes: Sequence[str] = ()

    @abstractmethod
    def check(self, config: Config) -> None:
        """What can be known before a folder is claimed.

        Raises:
            UserError: the framework has no such model, or the weights do not fit.
        """

    @abstractmethod
    def start(self, framework: Framework, config: Config, seed: int) -> tuple[Any, Weights, list[str]]:
        """The native model under its start weights, these, and what to tell of them."""


class Declared(Subject):
    """A tree: the same in every framework, its weights born in NumPy."""

    def __init__(self, tree: Tree) -> None:
        self.tree, self.name, self.table = tree, tree.name, param_table(tree)
        self.kinds = dict.fromkeys(layer.kind for _, layer, _ in walk(tree.root))

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
        described = adapter(self._native(framework, sketch=True)).describe()
        self.table, counted, confidence, reasons = native.placed(described, convention)
        self.notes = [f"depths: {counted}, confidence {confidence:.2f}: {'; '.join(reasons)}"] if reasons else []

    def _native(self, framework: type[Framework], sketch: bool = False) -> Any:
        if self.asked.source == "own":
            return registry.model_factory(self.asked.name)(**_sizes(self.asked))
        return framework.build(self.asked, sketch)

    def check(self, config: Config) -> None:
        """The file fits."""
        weights.for_table(self.table, self.name, config.weights)

    def start(self, framework: Framework, config: Config, seed: int) -> tuple[Any, Weights, list[str]]:
        """As its package makes it, with a file's arrays over it where there is one."""
        framework.seed(seed)
        model = framework.adopt(self._native(type(framework)))
        start = framework.get_weights(model)
        found, notes = weights.for_table(self.table, self.name, config.weights)
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
        return Declared(config.tree())
    framework = registry.load(config.framework.name)
    if spec.source not in (*framework.sources, "own"):
        able = [name for name in registry.names() if registry.installed(name) and spec.source in registry.load(name).sources]
        there = f"framework={able[0]} has" if able else "no installed framework has"
        raise UserError(f"model={spec.source}: framework {config.framework.name} has none of its models, {there}")
    assert spec.num_classes and spec.in_channels and spec.image_size
    sizes = (spec.num_classes, spec.in_channels, spec.image_size)
    asked = ZooModel(spec.source, spec.name, *sizes, config.weights.name == "pretrained", tuple(sorted(spec.options.items())))
    return _from_zoo(asked, framework, config.grouping.convention)


@lru_cache(maxsize=4)
def _from_zoo(asked: ZooModel, framework: type[Framework], convention: str) -> FromZoo:
    return FromZoo(asked, framework, convention)


def _sizes(asked: ZooModel) -> dict[str, Any]:
    return {
        "num_classes": asked.num_classes,
        "in_channels": asked.in_channels,
        "image_size": asked.image_size,
        "pretrained": asked.pretrained,
        **dict(asked.options),
    }
