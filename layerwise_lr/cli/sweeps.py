"""Many runs: what the launcher does with the configs that Hydra has composed for -m."""

import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..planning import UserError, plain
from ..run import Config, FrameworkSpec, RunFolder
from ..sweep import LOG, jobs, planning
from . import console, watching
from .runs import JobsFailed, outcome, preflight, prepare, tell, why

_POLL = 0.5  # seconds
_MOST_LINES = 12


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
    planning.write_sweep(folder, planned, {"timeout": options.timeout, "memory": options.memory})
    by_hash = dict(zip((job.config.sha256() for job in planned), work(folder, planned, options), strict=True))
    return [by_hash[config.sha256()] for config, _ in composed]


def work(folder: Path, planned: Sequence[planning.Job], options: jobs.Options) -> list[float | Exception]:
    """The jobs that are not finished, each from its last whole checkpoint; per job its metric, or what went wrong.

    Those that another process trains are waited for, and taken over should it die.
    """
    todo = _claimed(planning.to_run(planned))
    if len(todo) < len(planned):
        console.say(f"{len(planned) - len(todo)} of {len(planned)} jobs are done or running already")
    while todo:
        _train(folder, todo, options)
        todo = _claimed(planning.to_run(planned, again=False))
    if others := planning.elsewhere(planned):
        who = RunFolder(others[0].path).read_json("status.json")
        console.text(
            f"waiting for {len(others)} jobs that another process trains (process {who['pid']} of {who['host']}); "
            "Ctrl-C ends the waiting alone"
        )
    while others:
        time.sleep(_POLL)
        if todo := _claimed(planning.to_run(planned, again=False)):
            _train(folder, todo, options)
        others = planning.elsewhere(planned)
    return _told(folder, planned, [outcome(RunFolder(job.path), job.config.metric) for job in planned])


def _told(folder: Path, planned: Sequence[planning.Job], ends: Sequence[float | Exception]) -> list[float | Exception]:
    """Says at last which jobs failed and why, a line each, and what comes next; the ends, all errors as one."""
    failed = [(job.path, end) for job, end in zip(planned, ends, strict=True) if isinstance(end, JobsFailed)]
    place = console.relative(folder)
    again = shlex.join(["layerwise-lr", "resume", place])
    if failed:
        console.say(f"{len(failed)} of {len(planned)} jobs failed, the others are finished and kept:")
        for path, end in failed[:_MOST_LINES]:
            name = path.name if len(path.name) <= 32 else f"{path.name[:18]}...{path.name[-11:]}"
            console.say(f"  {name}  {plain(end.why.partition('; ')[0], 76 - len(name))}")
        if len(failed) > _MOST_LINES:
            console.say(f"  and {len(failed) - _MOST_LINES} more, which the report names")
        console.say(f"these alone again: {again}")
    console.say(f"report: {shlex.join(['layerwise-lr', 'report', place])}")
    if not failed:
        return list(ends)
    path, first = failed[0]
    count = "a job failed" if len(failed) == 1 else f"{len(failed)} of {len(planned)} jobs failed"
    told = f"{count}, the others were not touched: {first.why} (log: {console.relative(path / LOG)}); again: {again}"
    error = JobsFailed(told, max((end.code for _, end in failed), key=lambda code: code == 1))
    return [error if isinstance(end, Exception) else end for end in ends]


def _claimed(todo: Sequence[planning.Job]) -> list[planning.Job]:
    """Those that are ours now: nobody was faster."""
    ours = []
    for job in todo:
        with suppress(UserError):
            if planning.claim(job):
                prepare(RunFolder(job.path), job.config, job.overrides)
                ours.append(job)
    return ours


def _train(folder: Path, todo: Sequence[planning.Job], options: jobs.Options) -> None:
    names = " ".join(dict.fromkeys(job.config.framework.name for job in todo))
    console.say(f"{len(todo)} jobs in {console.relative(folder)}; loading {names} ...")
    with watching.shown([job.path for job in todo]):

        def done(path: Path) -> None:
            console.say(f"{_ended(RunFolder(path))}  {path.name}")

        jobs.run_jobs({job.path: job.config for job in todo}, options, done)


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
    with suppress(UserError):
        if summary := folder.read_json("summary.json"):
            metric = summary["metric"]
            return f"validation {metric} {summary['val'][metric]:.4f}  {summary['seconds']:5.1f} s"
    return f"failed: {why(folder)} (log: {console.relative(folder.path / LOG)})"
