"""Many runs: what the launcher does with the configs that Hydra has composed for -m."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..planning import UserError
from ..run import Config, FrameworkSpec, RunFolder
from ..sweep import jobs, planning
from . import console
from .runs import claim, outcome, preflight, tell


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
    todo = planning.to_run(planned, console.text)
    for job in todo:
        claim(job.path, job.config, job.overrides)
    if len(todo) < len(planned):
        console.say(f"{len(planned) - len(todo)} of {len(planned)} jobs are done or running already")
    if todo:
        names = " ".join(dict.fromkeys(job.config.framework.name for job in todo))
        console.say(f"{len(todo)} jobs in {console.relative(folder)}; loading {names} ...")
    with console.progress(len(todo), "jobs") as advance:

        def done(path: Path) -> None:
            advance()
            console.say(f"{_ended(RunFolder(path))}  {path.name}")

        jobs.run_jobs({job.path: job.config for job in todo}, options, done)
    console.say(f"report: layerwise-lr report {console.relative(folder)}")
    by_hash = {job.config.sha256(): RunFolder(job.path) for job in planned}
    return [outcome(by_hash[config.sha256()], config.metric) for config, _ in composed]


def refuse_incomparable(configs: Sequence[Config]) -> None:
    """What `compare` takes: one experiment, in two frameworks or more.

    Raises:
        UserError: it is another; says how to look at that.
    """
    if len({config.sha256() for config in configs}) < 2:
        raise UserError("compare needs two frameworks or more: framework=torch,reference")
    if len({replace(config, framework=FrameworkSpec()).sha256() for config in configs}) > 1:
        raise UserError(
            "compare takes one experiment in several frameworks, framework=torch,reference; "
            "several values of any other key are a sweep's: layerwise-lr train -m, then layerwise-lr report"
        )


def _ended(folder: RunFolder) -> str:
    summary, status = folder.read_json("summary.json"), folder.read_json("status.json")
    if summary:
        return f"{summary['metric']} {summary['val'][summary['metric']]:.4f}  {summary['seconds']:5.1f} s"
    error = status.get("error") or {"message": ""}
    return f"{status['state']}: {error['message']} (log: {console.relative(folder.path / 'log.txt')})"
