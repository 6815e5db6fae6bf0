"""Engines that others keep hand the jobs out: joblib's loky, submitit (here or on Slurm), Ray.

What they hand out is a Task: a job's process, its limits, its log and what its folder says at last are the same wherever it
runs, and no job can harm the engine's worker, let alone another job.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ..planning import UserError, plain
from ..run import Config, RunFolder
from . import jobs, logs, placing
from .options import Joblib, Launch, Options, Ray, SubmititLocal, SubmititSlurm
from .pool import PATIENCE, Done, conclude
from .tasks import Task

PLACE = ".launcher_"
"""Begins the name of the folder in the sweep's that an engine needs meanwhile."""
_POLL = 0.05  # seconds
_LATE = 60.0  # seconds that a shared file system may take to show here what was written there
_ASK_SLURM = 1.0  # seconds between questions
_TAKEN_ALONG = ("PYTHONPATH", "LAYERWISE_LR_CACHE")
_DEVICES = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")  # submitit's local executor hides them


class Handle(Protocol):
    """What an engine gives for a task: a Future of loky's or Ray's, a Job of submitit's."""

    def done(self) -> bool:
        """Whether the task has ended, or is lost."""

    def exception(self) -> BaseException | None:
        """What went wrong outside of the job itself."""


Submit = Callable[[Sequence[Task]], Sequence[Handle]]


@contextmanager
def _joblib(at_once: int) -> Iterator[Submit]:
    from joblib.externals.loky import get_reusable_executor

    # asked for each time: where a worker was killed, it is a new one
    executor = partial(get_reusable_executor, max_workers=at_once)
    try:
        yield lambda tasks: [executor().submit(task) for task in tasks]
    finally:
        executor().shutdown(kill_workers=True)


@contextmanager
def _submitit(place: Path, cluster: str, max_num_timeout: int = 0, **parameters: Any) -> Iterator[Submit]:
    import submitit

    own = {"slurm_max_num_timeout": max_num_timeout} if cluster == "slurm" else {}
    executor = submitit.AutoExecutor(place, cluster=cluster, **own)
    executor.update_parameters(name="layerwise-lr", **parameters)
    made: list[Any] = []

    def submit(tasks: Sequence[Task]) -> Sequence[Handle]:
        try:
            with executor.batch():
                new = [executor.submit(task) for task in tasks]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"hydra/launcher=submitit_{cluster}: {plain(error, 400)}") from error
        made.extend(new)
        return new

    try:
        yield submit
    finally:
        for job in made:
            if not job.done():
                job.cancel(check=False)


@contextmanager
def _ray(options: Ray, threads: int) -> Iterator[Submit]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own tells nobody
    import ray

    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(options.address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"hydra/launcher=ray: {plain(error, 400)}") from error
    finally:
        signal.signal(signal.SIGTERM, ours)  # Ray has one of its own
    _tell_of_too_little(options, threads)
    takes = {"num_gpus": options.num_gpus, "resources": dict(options.resources)}
    # once and no more: a job that is begun again goes on from its own resume point, and that is asked for
    run = ray.remote(max_retries=0)(_called)
    try:
        yield lambda tasks: [
            run.options(
                num_cpus=task.threads if options.num_cpus is None else options.num_cpus, name=task.path.name, **takes
            )
            .remote(task)
            .future()
            for task in tasks
        ]
    finally:
        ray.shutdown()


def _tell_of_too_little(options: Ray, threads: int) -> None:
    """Where no node has what a job takes, Ray waits for one that does, and says nothing."""
    import ray

    needed = {"CPU": options.num_cpus or threads, "GPU": options.num_gpus, **options.resources}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(key, 0) >= count for key, count in needed.items()) for node in nodes):
        told = ", ".join(f"{key} {count:g}" for key, count in needed.items() if count)
        print(f"no node of the cluster has {told}: the jobs wait for one that does", file=sys.stderr, flush=True)


def _called(task: Task) -> str:
    return task()


@contextmanager
def _begun(options: Launch, place: Path, at_once: int, threads: int) -> Iterator[Submit]:
    """How tasks are handed to the engine; at the end it has none left."""
    if isinstance(options, Joblib):
        with _joblib(at_once) as submit:
            yield submit
    elif isinstance(options, SubmititLocal):
        for_ever = 60 * 24 * 3650  # minutes: hydra.launcher.timeout is ours
        with _submitit(place, "local", timeout_min=for_ever) as submit:
            yield submit
    elif isinstance(options, SubmititSlurm):
        with _submitit(place, "slurm", options.max_num_timeout, **slurm_parameters(options, threads)) as submit:
            yield submit
    else:
        assert isinstance(options, Ray)
        with _ray(options, threads) as submit:
            yield submit


def slurm_parameters(options: SubmititSlurm, threads: int) -> dict[str, Any]:
    """As submitit's AutoExecutor takes them; what is not said is the cluster's own."""
    told = {
        "timeout_min": options.timeout_min,
        "cpus_per_task": options.cpus_per_task or threads,
        "gpus_per_node": options.gpus_per_node,
        "mem_gb": options.mem_gb,
        "slurm_partition": options.partition,
        "slurm_account": options.account,
        "slurm_qos": options.qos,
        "slurm_constraint": options.constraint,
        "slurm_array_parallelism": options.n_jobs,
        "slurm_signal_delay_s": options.signal_delay_s,
        "slurm_setup": list(options.setup),
        "slurm_additional_parameters": dict(options.additional_parameters),
    }
    return {key: value for key, value in told.items() if value not in (None, [], {})}


def run_jobs(
    every: Mapping[Path, Config], options: Launch, done: Done, watch: Callable[[], None] = lambda: None
) -> None:
    """Run every claimed folder, with our own pool or an engine; returns when all have ended. `done(folder)` is called after
    each.

    Args:
        every: folder, all in that of one sweep, to config.
        options: of the launcher.
        done: called with the folder of each that has ended.
        watch: called now and then meanwhile, at least ten times a second.

    Raises:
        KeyboardInterrupt: after all jobs have been told and have ended.
        UserError: the engine cannot be reached, or does not take the jobs.
    """
    if isinstance(options, Options):
        jobs.run_jobs(every, options, done, watch)
        return
    for own in placing.alike(every) if options.here else [every]:
        devices = placing.spread_over(own, "spawn") if options.here else []
        threads = max(c.framework.threads for c in own.values())
        at_once = options.at_once(threads, devices) if options.here else len(own)
        if isinstance(options, Ray):
            at_once = options.n_jobs or at_once  # Slurm is told all, and how many of them at a time
        place = Path(tempfile.mkdtemp(prefix=PLACE, dir=next(iter(own)).parent)).absolute()
        try:
            with _begun(options, place, at_once, threads) as submit:
                _Jobs(own, options, devices, place, submit, done).work_off(at_once, watch)
        finally:
            shutil.rmtree(place, ignore_errors=True)


class _Jobs:
    """The jobs that an engine has, and those that it will get."""

    def __init__(
        self,
        every: Mapping[Path, Config],
        options: Launch,
        devices: Sequence[str],
        place: Path,
        submit: Submit,
        done: Done,
    ) -> None:
        self.every, self.submit, self.done = every, submit, done
        self.queued = isinstance(options, SubmititSlurm)
        self.look = _ASK_SLURM if self.queued else _POLL
        self.goes_on = place / "goes_on"
        self.running = dict[Path, tuple[Task, Handle]]()
        self.placed = Counter[str](dict.fromkeys(devices, 0))
        names = (*_TAKEN_ALONG, *(_DEVICES if options.here else ()))
        self.usual = Task(
            path=place,
            threads=1,
            limits=options.limits(),
            device=None,
            goes_on=self.goes_on,
            cwd=Path.cwd(),
            environment={name: os.environ.get(name) for name in names},
            parent=os.getpid() if options.here else None,
        )

    def work_off(self, at_once: int, watch: Callable[[], None]) -> None:
        """Until all have ended."""
        waiting, looked = deque(self.every), 0.0
        self.goes_on.touch()
        try:
            while waiting or self.running:
                free = min(at_once - len(self.running), len(waiting))
                if paths := [waiting.popleft() for _ in range(free)]:
                    tasks = [self.task(path) for path in paths]
                    handed = zip(tasks, self.submit(tasks), strict=True)
                    self.running |= dict(zip(paths, handed, strict=True))
                if time.monotonic() >= looked + self.look:
                    self.collect()
                    looked = time.monotonic()
                watch()
                time.sleep(_POLL)
        finally:
            self.goes_on.unlink(missing_ok=True)
            until = time.monotonic() + 1.5 * PATIENCE
            while time.monotonic() < until and any(
                RunFolder(path).state() == "running" or not (self.queued or handle.done())
                for path, (_, handle) in self.running.items()
            ):
                time.sleep(_POLL)

    def task(self, path: Path) -> Task:
        """The next, on the device that has fewest."""
        device = min(self.placed, key=self.placed.__getitem__, default=None)
        if device:
            self.placed[device] += 1
        threads = self.every[path].framework.threads
        return replace(self.usual, path=path.absolute(), threads=threads, device=device)

    def collect(self) -> None:
        """Those that have ended; where an engine lost one, its folder says so."""
        for path, (task, handle) in list(self.running.items()):
            if handle.done():
                del self.running[path]
                if task.device:
                    self.placed[task.device] -= 1
                _conclude(path, handle)
                self.done(path)


def _conclude(path: Path, handle: Handle) -> None:
    error = handle.exception()
    folder = RunFolder(path)
    with suppress(UserError, OSError):  # its folder is gone, or holds nonsense: the job's own doing
        if error is None:
            until = time.monotonic() + _LATE
            while folder.state() in ("claimed", "running") and time.monotonic() < until:
                time.sleep(_POLL)
        else:
            logs.append(path, str(error))
            conclude(folder, 1, f"the launcher lost it: {plain(error, 300)}")
