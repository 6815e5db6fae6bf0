"""The Hydra door: the one room that knows Hydra. Words in; a composed config goes to the command (or, for -m, to the
launcher), or to the help page. What Hydra and OmegaConf complain of leaves as a UserError of one line.
"""

import errno
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging.version import Version

from ..framework import registry
from ..planning import UserError, did_you_mean
from ..run import ComposedConfig, Config, files, hints, options, reading, several
from ..sweep import LAUNCHERS, Launch, Search
from . import extras
from .words import Given

HERE = Path(__file__).resolve().parent.parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # a wheel, else a checkout
Act = Callable[[Config, Path, Given], None]

HINTS = {
    "does not support sweep type": "a grid takes values: key=a,b,c; hydra/sweeper=optuna searches an interval",
    "Multiple values for": "leave out the '+'",
    "File name too long": "choose a shorter name or folder",
    "Interpolation key": "${...} is Hydra's; a variable of the shell is ${oc.env:NAME}",
    "mismatched input": "write key=value",
    "Error parsing override": "write key=value, in quotes where the shell needs them",
    "Config group override must be": "write group=option; layerwise-lr train --help shows both",
}
"""What to do, by a part of Hydra's own message that does not say so."""
NOISE = ("Config search path", "provider=", "Set the env", "full_key", "object_type", "See https", "See also", "Use --")
"""Beginnings of the lines that a person can do without."""

sweep_folder: Path | None = None
"""Where Hydra's sweeper has put multirun.yaml: to clean up when no job could begin, to name it on Ctrl-C."""
made_folder: Path | None = None
"""The run folder that Hydra has made, likewise."""
new_places: set[Path] = set()
"""Those of its folders, and the multirun.yaml, that were not there before."""


class Places(Callback):
    """Told by Hydra where it is about to make folders."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """One run's."""
        self._note(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """A sweep's."""
        self._note(f"{config.hydra.sweep.dir}/multirun.yaml")

    def _note(self, place: str) -> None:
        folder = Path.cwd() / place
        new_places.update(
            path
            for path in (folder, *folder.parents)
            if not os.path.exists(path)  # noqa: PTH110 (a name too long is absent)
        )


def run(command: str, words: Sequence[str], act: Act) -> None:
    """Compose the config from `words` and call act(config, folder, given), or the launcher for -m.

    Args:
        command: decides where the results go and whether -m is allowed.
        words: after the command.
        act: the command; its config is typed, but not resolved yet.

    Raises:
        UserError: also for all that Hydra complains of.
    """
    raised: list[Exception] = []

    def task(cfg: DictConfig) -> None:
        """Hydra prints a line of its own about whatever a task raises: keep it."""
        global made_folder
        made_folder = Path.cwd() / HydraConfig.get().run.dir
        try:
            with _complaints():
                typed_words = OmegaConf.to_container(HydraConfig.get().overrides, resolve=False)
                words = given(typed_words["task"])  # type: ignore[call-overload,index]
                config = typed(cfg, words)
            act(config, made_folder, words)
        except Exception as error:
            raised.append(error)

    task.sweeps = command if command in ("train", "compare") else ""  # type: ignore[attr-defined]
    with _complaints():
        _register()
        many = command == "compare" or bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words))
        refuse_places(_overrides(command, words), many)
        sys.argv = ["layerwise-lr", *_placed(command, words)]
        hydra.main(config_path=str(CONF), config_name="config", **_options())(task)()
    if raised:
        if isinstance(raised[0], UserError | OSError):
            clean_up()
        raise raised[0]


def composed(words: Sequence[str]) -> tuple[Mapping[str, Any], dict[str, list[str]]]:
    """For the help page: the config that `words` make, as plain data, and the options of every group."""
    with _complaints():
        _register()
        overrides = [
            o for o in _overrides("train", words) if not OverridesParser.create().parse_override(o).is_sweep_override()
        ]
        with hydra.initialize_config_dir(str(CONF), job_name="layerwise-lr", version_base="1.3"):
            config = hydra.compose("config", overrides)
            loader = GlobalHydra.instance().config_loader()
            groups = [group for group in loader.list_groups("") if group != "hydra"]
            options = {group: loader.get_group_options(group) for group in groups}
    return OmegaConf.to_container(config), {group: known for group, known in options.items() if known}  # type: ignore[return-value]


def typed(cfg: DictConfig, words: Given) -> Config:
    """The Config of a composed one (Hydra's own node left out), with what the words imply."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    config = reading.from_omegaconf(own)
    return options.implied(config, words.keys)


def given(overrides: Sequence[str]) -> Given:
    """The user's words and every key that they set: "scheduler={gamma: 1}" sets scheduler.gamma."""
    keys: list[str] = []
    for word, override in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        value = None if override.is_delete() or override.is_sweep_override() else override.value()
        typed = word.partition("=")[2]
        if isinstance(value, int | float) and str(override.key_or_group).endswith(TEXTS) and str(value) != typed:
            raise UserError(_quoted(word))
        placed = f"{override.package}.name" if override.package else str(override.key_or_group)
        keys += _keys(placed, value)
    return Given(tuple(overrides), tuple(keys))


def _keys(at: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _keys(f"{at}.{key}", inner)
    else:
        yield at


IGNORED = {
    "hydra.job.chdir": "runs do not change the folder, so that relative paths mean what they say; leave it out",
    "hydra.sweep.subdir": "a sweep names its folders after what was varied; hydra.sweep.dir=... chooses where they are",
    "hydra.sweep.dir": "it is a sweep's: -m, or hydra.run.dir=...",
    "hydra.launcher": "it is a sweep's: -m",
    "hydra.run.dir": "it is a single run's; a sweep's is hydra.sweep.dir=...",
    "hydra/launcher": f"a sweep's (-m) is one of {', '.join(LAUNCHERS)}",
}
"""Hydra's own keys that this program does not follow, and what to do."""
FOLLOWED = ("hydra.mode", "hydra.searchpath", "hydra.sweeper", "hydra/sweeper", "hydra.callbacks", "hydra/callbacks")


def refuse_places(overrides: Sequence[str], sweep: bool) -> None:
    """Hydra's own keys that this program does not follow.

    Raises:
        UserError: names the first.
    """
    places = ("hydra.sweep.dir", "hydra.launcher") if sweep else ("hydra.run.dir",)
    for override in (override.lstrip("+~") for override in overrides):
        key, _, value = override.partition("=")
        if (
            not key.startswith(("hydra.", "hydra/"))
            or override.startswith((*places, *FOLLOWED))
            or (sweep and key == "hydra/launcher" and value != "basic")
            or (key == "hydra.job.chdir" and value.lower() == "false")
        ):
            continue
        why = next((why for known, why in IGNORED.items() if key.startswith(known)), "this program does not follow it")
        raise UserError(f"{key} would be ignored: {why}")


def _register() -> None:
    """What Hydra does not find by itself: our schema, callback and launcher, the conf/ folders of third-party plugins."""
    OmegaConf.register_new_resolver("last", reading.last, replace=True)
    ConfigStore.instance().store(name="base_config", node=ComposedConfig, provider="layerwise_lr")
    shipped = {path.stem for home in (CONF, *registry.config_paths()) for path in home.glob("framework/*.yaml")}
    for name in sorted({*registry.names()} - shipped):  # a plugin that ships no YAML is an option too
        node = {"name": name, "mode": ""}
        ConfigStore.instance().store(group="framework", name=name, node=node, provider="layerwise_lr")
    places = {"places": {"_target_": f"{__name__}.Places"}}
    ConfigStore.instance().store(group="hydra/callbacks", name="places", node=places, provider="layerwise_lr")

    class PluginConfigs(SearchPathPlugin):
        """conf/ folders of third-party framework plugins, for this app only."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            """Append them."""
            for path in registry.config_paths():
                search_path.append(provider="layerwise_lr.frameworks", path=str(path))

    plugins = Plugins.instance()
    plugins.register(PluginConfigs)
    from hydra_plugins.layerwise_lr.launcher import OURS  # they import this module
    from hydra_plugins.layerwise_lr.sweeper import OptunaSweeper

    for plugin in (*OURS, OptunaSweeper):
        plugins.register(plugin)  # Hydra does not scan editable installs


def _options() -> dict[str, Any]:
    if Version(hydra.__version__) < Version("1.4.dev0"):
        return {"version_base": "1.3"}
    return {"execution_whitelist": ("layerwise_lr.*", "hydra_plugins.layerwise_lr.*", "hydra._internal.*")}


def _placed(command: str, words: Sequence[str]) -> list[str]:
    """`words` with the place where a command other than train writes, before the user's own, so that those win."""
    overrides = _overrides(command, words)
    at = list(words).index(overrides[0]) if overrides else 0
    words = [*words[:at], *_places(command), *words[at:]]
    if (team := several.launched()) and team.rank:
        words.append(f"hydra.run.dir={tempfile.gettempdir()}")  # the first alone makes a folder
    if command == "compare" and not {"--cfg", "-m", "--multirun"} & set(words):
        words = ["-m", *words]
    return words


def _places(command: str) -> list[str]:
    """Where a command other than train writes, unless the user says."""
    now = "${now:%Y-%m-%d_%H-%M-%S-%f}"
    return {"train": [], "compare": [f"hydra.sweep.dir=outputs/${{name}}/compare_{now}"]}.get(
        command, [f"hydra.run.dir=outputs/${{name}}/{command}_{now}"]
    )


def _overrides(command: str, words: Sequence[str]) -> list[str]:
    """The key=value among the words, by Hydra's own parser: its complaint is its usage, many lines long."""
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            flags = get_args_parser().parse_args(words)
    except SystemExit as end:
        if end.code:
            last = told.getvalue().strip().splitlines()[-1].partition("error: ")[2]
            raise UserError(
                f"{last}; flags such as -m come first: layerwise-lr {command} -m key=a,b "
                f"(layerwise-lr {command} --help)"
            ) from None
        raise
    for flag, given, why in (
        ("--info", flags.info == "all", "say of what: config, defaults, defaults-tree, plugins or searchpath"),
        ("--package", flags.package and not flags.cfg, "it is read with --cfg"),
        ("--experimental-rerun", flags.experimental_rerun, "a run folder is run again by layerwise-lr run"),
        ("--config-path", flags.config_path, "--config-dir adds a folder with more options"),
        ("--config-name", flags.config_name, "experiment=... chooses a config of one's own, --config-dir its folder"),
    ):
        if given:
            raise UserError(f"{flag} is not followed here: {why}")
    return list(flags.overrides)


@contextmanager
def _complaints() -> Iterator[None]:
    """Whatever goes wrong with the input is a UserError, and leaves no empty folder behind."""
    try:
        yield
    except BrokenPipeError:
        raise
    except UserError:
        clean_up()
        raise
    except (HydraException, OmegaConfBaseException) as error:
        clean_up()
        raise UserError(_one_line(error)) from error
    except OSError as error:  # a folder that cannot be made, or written
        clean_up()
        error.filename = error.filename or str(sweep_folder or made_folder or Path.cwd())
        if error.errno in (
            errno.ENAMETOOLONG,
            errno.EEXIST,
            errno.ENOTDIR,
            errno.EISDIR,
        ):  # what was typed is no folder
            raise UserError(files.told(error)) from error
        raise
    except ValueError as error:  # Hydra's others
        clean_up()
        raise UserError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    """A Hydra or OmegaConf error as one line: what, where, and what there is instead."""
    if isinstance(error, OmegaConfBaseException):
        return reading.explain(error) + _what_to_do(str(error))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        known = [option for option in error.options if f"{group}/{option}" != "hydra/launcher/basic"]
        near = did_you_mean(option, known)
        return f"{group}={option} is unknown; there are: {', '.join(known)}{near}{extras.missing(*known)}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and (key := getattr(cause, "full_key", None)):
        word, known = key.rpartition(".")[2], _known_keys(key)
        hint = _plus(lines[0]) or (
            "" if word in known else hints.meant(_fuller(key, _named(lines[0]))) or did_you_mean(word, known)
        )
        return f"{lines[0].rstrip('.:')}: {reading.explain(cause)}{hint or _what_to_do(str(cause))}"
    keep = [line for line in lines if not line.startswith(NOISE)]
    if ("parsing" in lines[0] or "Ambiguous" in lines[0] or "LexerNo" in lines[0] or "input" in lines[0]) and (
        told := _unreadable()
    ):
        return told
    hint = _plus(lines[0]) or hints.meant(_named(lines[0]))
    return " ".join(keep)[:600] + (hint or _option() or _what_to_do(lines[0]))


def _what_to_do(message: str) -> str:
    hint = next((f"; {hint}" for part, hint in HINTS.items() if part in message), "")
    return hint + (extras.missing("optuna") if "optuna" in hint else "")


def _option() -> str:
    """A group given a bool: "verify=true" was a key once; "": there is none."""
    for word in sys.argv[1:]:
        group, _, value = word.partition("=")
        if value.lower() in ("true", "false") and (CONF / group).is_dir() and group:
            return f"; {word}: there are: {', '.join(sorted(path.stem for path in (CONF / group).glob('*.yaml')))}"
    return ""


def _named(line: str) -> str:
    """The override that Hydra complains of."""
    found = re.search(r"override[s]? '(.*)'", line) or re.search(r"parameters '(.*)' requires", line)
    return found[1] if found else ""


def _fuller(key: str, override: str) -> str:
    """The key that OmegaConf stumbled at, or the whole of what was typed: of "trainer.max_epochs=3" it names "trainer"."""
    typed = override.partition("=")[0].lstrip("+~")
    return typed if typed.startswith(f"{key}.") else key


TEXTS = ("path", "dir", "name")
"""Last words of the keys whose value is text whatever it looks like."""


def _unreadable() -> str:
    """The first of the user's words that Hydra's grammar cannot read, with the quoting that works; "": there is none."""
    for word in sys.argv[1:]:
        key, equals, value = word.partition("=")
        is_text = key.endswith(TEXTS)
        try:
            parsed = OverridesParser.create().parse_override(word) if equals else None
            if parsed is None or not (is_text and parsed.is_sweep_override()):
                continue
        except HydraException:
            if value[:1] in ("[", "{", "'", '"') and not is_text:
                continue
        if told := _quoted(word):
            return told
    return ""


def _quoted(word: str) -> str:
    """What to type instead of key=value, so that Hydra takes the value as it stands; "": no quotes help."""
    key, _, value = word.partition("=")
    value = str(Path(value).expanduser()) if value.startswith("~/") else value
    # Hydra unescapes a backslash only where a quote follows it
    inner = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    try:
        OverridesParser.create().parse_override(f'{key}="{inner}"')
    except HydraException:
        return ""
    quoted = shlex.quote(f'{key}="{inner}"')
    return f"{word}: Hydra takes some of these signs for its own; quote the value: {quoted}"


def _plus(line: str) -> str:
    """A named group, schedule or optimizer that is new needs a plus."""
    key = _named(line).partition("=")[0]
    if key == "grouping.depths" or key.startswith("grouping.depths."):
        return "; rules are new, so with a plus: '+grouping.depths={REGEX: DEPTH}'"
    if key.startswith("hydra.launcher."):
        return f"; a new name needs a plus: +{key}.NAME=VALUE" if key.endswith(("resources", "_parameters")) else ""
    if key in ("grouping.groups", "schedules", "optimizers"):
        return f"; a new name needs a plus: '+{key}.NAME={{KEY: VALUE}}'"
    if not key.startswith(("grouping.groups.", "schedules.", "optimizers.")):
        return ""
    typed = next((word for word in sys.argv[1:] if word.startswith((f"{key}=", f"{key}."))), f"{key}=...")
    return "; a new name needs a plus: " + shlex.quote(f"+{typed}")


def _known_keys(key: str) -> list[str]:
    """The keys beside `key` in the schema."""
    name = next((word.partition("=")[2] for word in sys.argv[1:] if word.startswith("hydra/launcher=")), "jobs")
    for at, schema in (("hydra.launcher.", LAUNCHERS.get(name, Launch)), ("hydra.sweeper.", Search)):
        if key.startswith(at):
            return [f.name for f in fields(schema)]
    node: Any = OmegaConf.structured(Config)
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, DictConfig) and part in node else None
    return [str(k) for k in node] if isinstance(node, DictConfig) else []


def clean_up() -> None:
    """Hydra makes folders before anything is checked: take back those that nothing was written to."""
    planned = sweep_folder and Path.cwd() / sweep_folder / "multirun.yaml"
    if planned in new_places and not planned.with_name("sweep.json").exists():
        with suppress(OSError):
            planned.unlink()
    for path in sorted(new_places, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):  # it holds something, was never made, or is called ".."
            path.rmdir()
