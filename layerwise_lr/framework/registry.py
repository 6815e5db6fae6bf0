"""A framework is a name: the built-ins' table, then the entry points `layerwise_lr.frameworks`.

Only the chosen plugin is imported. A config never names a dotted path.
"""

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any, NamedTuple

from ..planning import UserError, did_you_mean
from .contract import Framework
from .describing import Native
from .install import advice


class BuiltIn(NamedTuple):
    """A plugin of this package: where it is, the distribution it needs, the Pythons that has wheels for (empty: any),
    whether it can be told how many threads to use."""

    module: str
    attribute: str
    needs: str
    pythons: tuple[str, ...] = ()
    threaded: bool = True

    @property
    def install(self) -> str:
        """How to get what it needs."""
        return advice(self.needs, self.pythons)


BUILT_INS: Mapping[str, BuiltIn] = {
    "torch": BuiltIn("layerwise_lr.plugins.torch_plugin.plugin", "TorchFramework", "torch"),
    "oneflow": BuiltIn("layerwise_lr.plugins.oneflow_plugin.plugin", "OneflowFramework", "oneflow", ("3.10",)),
    "mindspore": BuiltIn(
        "layerwise_lr.plugins.mindspore_plugin.plugin", "MindSporeFramework", "mindspore", ("3.10", "3.11", "3.12")
    ),
    "megengine": BuiltIn("layerwise_lr.plugins.megengine_plugin.plugin", "MegEngineFramework", "megengine", ("3.10",)),
    "reference": BuiltIn("layerwise_lr.plugins.reference_plugin.plugin", "ReferenceFramework", "numpy", threaded=False),
}


def _third_party() -> dict[str, EntryPoint]:
    points = [p for p in entry_points(group="layerwise_lr.frameworks") if p.name not in BUILT_INS]
    offers = Counter(name for name, _ in {(p.name, p.value) for p in points})
    clash = [name for name, n in offers.items() if n > 1]
    if clash:
        owners = ", ".join(sorted(p.dist.name for p in points if p.dist and p.name in clash))
        raise UserError(f"framework {clash[0]!r} is offered by more than one package ({owners}): uninstall one")
    return {p.name: p for p in points}


def names() -> list[str]:
    """Every framework name that a config may use, installed or not."""
    return [*BUILT_INS, *sorted(_third_party())]


def needing(modules: Iterable[str]) -> list[str]:
    """Built-in frameworks to whose packages these dotted names belong."""
    tops = {module.partition(".")[0] for module in modules}
    return [name for name, built_in in BUILT_INS.items() if built_in.needs in tops - {"numpy"}]


def threaded(name: str) -> bool:
    """Whether the framework reads framework.threads; nothing is imported."""
    return name not in BUILT_INS or BUILT_INS[name].threaded


def installed(name: str) -> str | None:
    """Version of the framework's distribution, None where it is not installed; nothing is imported."""
    if name not in BUILT_INS:
        dist = _third_party()[name].dist
        return dist.version if dist else None
    try:
        return version(BUILT_INS[name].needs)
    except PackageNotFoundError:
        return None


def load(name: str) -> type[Framework]:
    """The plugin's class, checked against the contract.

    Raises:
        UserError: unknown name, framework not installed, or a plugin that lacks part of the contract.
    """
    if name in BUILT_INS:
        built_in = BUILT_INS[name]
        try:
            found = getattr(importlib.import_module(built_in.module), built_in.attribute)
        except ModuleNotFoundError as error:
            if error.name != built_in.needs:
                raise
            told = f"framework={name} needs {built_in.needs}, which is not installed: {built_in.install}"
            raise UserError(told) from None
    elif name in (third := _third_party()):
        found = third[name].load()
    else:
        raise UserError(
            f"framework.name={name!r} is unknown; there are: {', '.join(names())}" + did_you_mean(name, names())
        )
    return _checked(name, found)


def _checked(name: str, found: Any) -> type[Framework]:
    """`found`, where it is a plugin's class with all that the contract asks for."""
    if not (isinstance(found, type) and issubclass(found, Framework)):
        raise UserError(f"the plugin of framework {name!r} is no layerwise_lr.framework.Framework; see docs/plugins.md")
    missing = [
        *sorted(found.__abstractmethods__),
        *(fact for fact in ("kinds", "optimizers") if not hasattr(found, fact)),
    ]
    if missing:
        raise UserError(f"the plugin of framework {name!r} lacks {', '.join(missing)}; see docs/plugins.md")
    return found


def native(model: Any) -> Native:
    """The framework's side of a native model; its type decides.

    Raises:
        UserError: no framework that takes such models knows it.
    """
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    for name in names():
        if name not in BUILT_INS or BUILT_INS[name].needs in packages:
            adapter = load(name).native()
            if adapter is not None and adapter.package in packages:
                return adapter(model)
    raise UserError(
        f"{type(model).__module__}.{type(model).__qualname__} is no model of {', '.join(BUILT_INS)}: give a module of "
        "an installed framework"
    )


def model_factory(name: str) -> Callable[..., Any]:
    """What the entry point `name` of the group layerwise_lr.models makes a model with.

    Raises:
        UserError: nobody offers it.
    """
    points = {point.name: point for point in entry_points(group="layerwise_lr.models")}
    if name not in points:
        there = f"there are: {', '.join(points)}" if points else "no installed package offers a model"
        raise UserError(
            f"model.name={name!r} is no entry point of layerwise_lr.models; {there}" + did_you_mean(name, list(points))
        )
    factory: Callable[..., Any] = points[name].load()
    return factory


def check_abilities(name: str, mode: str, precision: str, kinds: Iterable[str], optimizers: Iterable[str]) -> None:
    """Whether the framework says that it can do this; nothing native is made.

    Args:
        name, mode, precision: as in FrameworkSpec.
        kinds: of the model's layers.
        optimizers: by name.

    Raises:
        UserError: the first that it lacks, and what it has.
    """
    found = load(name)
    for key, asked, has in (
        ("framework.mode={}", (mode,), found.modes),
        ("framework.precision={}", (precision,), found.precisions),
        ("model: layers of kind {}", kinds, found.kinds),
        ("optimizer.name={}", optimizers, found.optimizers),
    ):
        lacking = [one for one in asked if one not in has]
        if lacking:
            raise UserError(f"{key.format(repr(lacking[0]))}: {name} has {', '.join(has)}")


def config_paths() -> list[str]:
    """Where third-party plugins keep their conf/: package `conf` beside the top module of their entry point."""
    return [f"pkg://{point.value.partition(':')[0].partition('.')[0]}.conf" for point in _third_party().values()]
