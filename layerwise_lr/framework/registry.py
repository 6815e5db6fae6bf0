"""A framework is a name: the built-ins' table, then the entry points `layerwise_lr.frameworks`.

Only the chosen plugin is imported. A config never names a dotted path.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, NamedTuple

from ..planning import UserError, did_you_mean, plain
from .admission import admitted, imported, owner
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


def _third_party() -> dict[str, list[EntryPoint]]:
    """By name, the offers of it: more than one where packages clash."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group="layerwise_lr.frameworks"):
        if point.name not in BUILT_INS:
            found.setdefault(point.name, {})[point.value] = point  # a package may be listed twice
    return {name: list(offers.values()) for name, offers in found.items()}


def shadowed() -> dict[str, str]:
    """Built-in names that a package offers too, and which; ours stands."""
    return {
        point.name: owner(point)
        for point in entry_points(group="layerwise_lr.frameworks")
        if point.name in BUILT_INS and point.value != "{0.module}:{0.attribute}".format(BUILT_INS[point.name])
    }


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
        dist = _third_party()[name][0].dist
        return dist.version if dist else None
    try:
        return version(BUILT_INS[name].needs)
    except PackageNotFoundError:
        return None


def load(name: str, whole: bool = True) -> type[Framework]:
    """The plugin's class, checked against the contract.

    Args:
        name: of `names()`.
        whole: whether it must have all verbs.

    Raises:
        UserError: unknown name, framework not installed, or a plugin that cannot be had or lacks part of the contract.
    """
    if name in BUILT_INS:
        return admitted(f"framework={name}", _built_in(name, BUILT_INS[name]), whole)
    offers = _third_party().get(name)
    if not offers:
        raise UserError(
            f"framework.name={name!r} is unknown; there are: {', '.join(names())}" + did_you_mean(name, names())
        )
    if len(offers) > 1:
        owners = ", ".join(map(owner, offers))
        raise UserError(f"framework={name} is offered by more than one package ({owners}): uninstall one")
    return admitted(f"framework={name} of {owner(offers[0])}", imported(name, offers[0]), whole)


def _built_in(name: str, built_in: BuiltIn) -> Any:
    try:
        return getattr(importlib.import_module(built_in.module), built_in.attribute)
    except ModuleNotFoundError as error:
        if error.name != built_in.needs:
            raise
        told = f"framework={name} needs {built_in.needs}, which is not installed: {built_in.install}"
        raise UserError(told) from None
    except ImportError as error:
        told = f"framework={name}: {built_in.needs} does not import ({plain(error, 200)})"
        raise UserError(f"{told}; install it again: {built_in.install}") from error


def loadable(among: Iterable[str] | None = None) -> Iterator[tuple[str, type[Framework]]]:
    """Those of all, or of `among`, that can be had: what is wrong with one is told to whoever asks for that one."""
    for name in filter(installed, names() if among is None else among):
        with suppress(UserError):
            yield name, load(name)


def native(model: Any) -> Native:
    """The framework's side of a native model; its type decides.

    Raises:
        UserError: no framework that takes such models knows it.
    """
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    ours = [load(name) for name, built_in in BUILT_INS.items() if built_in.needs in packages]
    for found in (*ours, *(theirs for _, theirs in loadable(_third_party()))):
        adapter = found.native()
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
        ("framework.mode={}", (mode or found.modes[0],), found.modes),
        ("framework.precision={}", (precision,), found.precisions),
        ("model: layers of kind {}", kinds, found.kinds),
        ("optimizer.name={}", optimizers, found.optimizers),
    ):
        lacking = [one for one in asked if one not in has]
        if lacking:
            raise UserError(f"{key.format(repr(lacking[0]))}: {name} has {', '.join(has)}")


def config_paths() -> list[Path]:
    """The conf/ folders of third-party plugins, each beside the top module of its entry point; nothing is imported."""
    found = []
    for point in (point for offers in _third_party().values() for point in offers):
        top = point.value.partition(":")[0].partition(".")[0]
        with suppress(ImportError, ValueError):  # whoever asks for that plugin is told
            spec = importlib.util.find_spec(top)
            found += [Path(place) / "conf" for place in (spec and spec.submodule_search_locations) or ()]
    return [path for path in found if path.is_dir()]
