"""Many runs: what the launcher does with the configs that Hydra has composed for -m."""

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..planning import UserError, plain
from ..run import Config, FrameworkSpec, RunFolder
from ..sweep import LOG, Launch, engines, jobs, planning, searching
from . import console, watching
from .runs import JobsFailed, outcome, preflight, prepare, tell, why

_POLL = 0.5  # seconds
_MOST_LINES = 12


def run_sweep(
    folder: Path,
    composed: Sequence[tuple[Config, Sequence[str]]],
    options: Launch,
    search: searching.Watch | None = None,
) -> list[float | Exception]:
    """All jobs of a sweep, each in its own process; per entry the validation metric (NaN: pruned), or what went wrong.

    Args:
        folder: the sweep's.
        composed: configs, with what the user gave.
        options: how jobs are run.
        search: of which these are the next jobs: told now and then the folder of every entry. What came of them is said at
            its end.

    Jobs that finished in this folder before are not run again.
    """
    for config, _ in composed:
        preflight(config, device=False)
    tell(config for config, _ in composed)
    if options.here:
        jobs.ask_frameworks([config for config, _ in composed])
    planned = planning.plan_jobs(folder, composed, search.fixed if search else None)
    planning.write_sweep(folder, planned, {"timeout": options.timeout, "memory": options.memory})
    at = {job.config.sha256(): job.path for job in planned}
    paths = [at[config.sha256()] for config, _ in composed]
    ends = work(folder, planned, options, partial(search, paths) if search else None)
    by_path = dict(zip((job.path for job in planned), ends, strict=True))
    return [by_path[path] for path in paths]


def work(
    folder: Path, planned: Sequence[planning.Job], options: Launch, watch: Callable[[], None] | None = None
) -> list[float | Exception]:
    """The jobs that are not finished, each from its last whole checkpoint; per job its metric, or what went wrong.

    Those that another process trains are waited for, and taken over should it die.
    """
    tried = set[Path]()
    todo = _claimed(planning.to_run(planned), tried)
    if len(todo) < len(planned):
        console.say(f"{len(planned) - len(todo)} of {len(planned)} jobs are done or running already")
    watched = watch or (lambda: None)
    while todo:
        _train(folder, todo, options, watched)
        todo = _claimed(planning.to_run(planned, again=False), tried)
    if others := _elsewhere(planned, tried):
        who = RunFolder(others[0].path).read_json("status.json")
        console.text(
            f"waiting for {len(others)} jobs that another process trains (process {who['pid']} of {who['host']}); "
            "Ctrl-C ends the waiting alone"
        )
    while others:
        time.sleep(_POLL)
        if todo := _claimed(planning.to_run(planned, again=False), tried):
            _train(folder, todo, options, watched)
        others = _elsewhere(planned, tried)
    ends = [outcome(RunFolder(job.path), job.config.metric) for job in planned]
    return ends if watch else _told(folder, planned, ends)


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


def tell_search(folder: Path, study: searching.Study) -> None:
    """What a search came to.

    Raises:
        JobsFailed: no trial was completed.
    """
    place, best = console.relative(folder), study.best()
    told = ", ".join(f"{count} {what}" for what, count in study.counts().items())
    if best is None:
        raise JobsFailed(f"no trial of {place} was completed ({told}): layerwise-lr report {place} says why", 1)
    console.say(f"trials: {told}; study: {place}/{searching.STUDY}")
    console.say(f"best on validation, {best[0]:.4f}: {shlex.join(best[1])}")
    console.say(f"report: {shlex.join(['layerwise-lr', 'report', place])}")


def _elsewhere(planned: Sequence[planning.Job], tried: set[Path]) -> list[planning.Job]:
    return [job for job in planning.elsewhere(planned) if job.path not in tried]


def _claimed(todo: Sequence[planning.Job], tried: set[Path]) -> list[planning.Job]:
    """Those that are ours now: nobody was faster, and it is no job of `tried`, which we have seen end without a word (its
    folder is gone, or the disk is full)."""
    ours = []
    for job in todo:
        with suppress(UserError):
            if job.path not in tried and planning.claim(job):
                tried.add(job.path)
                prepare(RunFolder(job.path), job.config, job.overrides)
                ours.append(job)
    return ours


def _train(folder: Path, todo: Sequence[planning.Job], options: Launch, watch: Callable[[], None]) -> None:
    names = " ".join(dict.fromkeys(job.config.framework.name for job in todo))
    console.say(f"{len(todo)} jobs in {console.relative(folder)}; loading {names} ...")
    with watching.shown([job.path for job in todo]):

        def done(path: Path) -> None:
            console.say(f"{_ended(RunFolder(path))}  {path.name}")

        engines.run_jobs({job.path: job.config for job in todo}, options, done, watch)


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
        if folder.state() == "pruned":
            return f"pruned: {why(folder)}"
        if summary := folder.read_json("summary.json"):
            metric = summary["metric"]
            return f"validation {metric} {summary['val'][metric]:.4f}  {summary['seconds']:5.1f} s"
    return f"failed: {why(folder)} (log: {console.relative(folder.path / LOG)})"
