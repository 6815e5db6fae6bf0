"""Starting jobs: each in a process of its own, none able to harm another; the pool waits for them.

Jobs of one framework are forked from a parent that has imported it and read the data, where the plugin says that
this is safe; else each starts a fresh interpreter. Either way the job is `run(folder)`, and its folder is the answer.
"""

import ctypes
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from ..framework import registry
from ..planning import UserError, printable
from ..run import Config, FrameworkSpec, RunFolder, files, page
from .pool import Done, Process, conclude, end, work_off

_PDEATHSIG = 1  # prctl's PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Options:
    """How jobs are run.

    Args:
        n_jobs: jobs at a time; null: cores / framework.threads.
        timeout: seconds a job may take; null: any.
        fork: auto | never: whether jobs share one import of the framework, where the plugin allows it.
    """

    n_jobs: int | None = None
    timeout: float | None = None
    fork: str = "auto"

    def __post_init__(self) -> None:
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"hydra.launcher.n_jobs={self.n_jobs} must be at least 1")
        if self.timeout is not None and not self.timeout > 0:
            raise UserError(f"hydra.launcher.timeout={self.timeout} must be above 0 seconds")
        if self.fork not in ("auto", "never"):
            raise UserError(f"hydra.launcher.fork={self.fork!r} must be 'auto' or 'never'")


def thread_environment(threads: int) -> dict[str, str]:
    """To be set before a framework is imported: idle threads sleep instead of spinning (up to 18 times faster on
    a busy machine), and every library keeps to the job's share."""
    count = str(threads)
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
    }


def ask_frameworks(configs: Sequence[Config]) -> None:
    """Whether each framework has the device, mode and so on asked of it; the defaults are everywhere.

    Asked in a process of its own: a parent that has touched CUDA could not be forked any more.

    Raises:
        UserError: the first that is not there, and what is.
    """
    special = {
        repr((c.framework, c.optimizers_by_name())): c
        for c in configs
        if replace(c.framework, threads=1) not in [FrameworkSpec(c.framework.name, device=d) for d in ("auto", "cpu")]
    }
    for name in dict.fromkeys(c.framework.name for c in special.values()):
        own = [c for c in special.values() if c.framework.name == name]
        with ProcessPoolExecutor(1, mp_context=get_context("fork" if _can_fork() else "spawn")) as process:
            process.submit(_make_frameworks, own).result()


def _make_frameworks(configs: Sequence[Config]) -> None:
    for config in configs:
        os.environ |= thread_environment(config.framework.threads)
        page.make_framework(config)


def _can_fork() -> bool:
    return hasattr(os, "fork") and sys.platform != "darwin"


def follow(parent: int) -> None:
    """This process is asked to stop, as by SIGTERM, when `parent`, which has started it, dies: no job is left alone."""
    if hasattr(ctypes.CDLL(None), "prctl"):  # Linux
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            raise KeyboardInterrupt


def run_jobs(jobs: Mapping[Path, Config], options: Options, done: Done) -> None:
    """Run every claimed folder; returns when all have ended. `done(folder)` is called after each.

    Raises:
        KeyboardInterrupt: after all jobs have been told and have ended.
    """
    for name in dict.fromkeys(c.framework.name for c in jobs.values()):
        own = {path: c for path, c in jobs.items() if c.framework.name == name}
        threads = max(c.framework.threads for c in own.values())
        at_once = options.n_jobs or max((os.cpu_count() or 1) // threads, 1)
        if options.fork == "auto" and _can_fork():
            _in_forked_parent(own, at_once, threads, options, done)
        else:
            work_off(list(own), partial(_spawn, threads=threads), at_once, options.timeout, done)


def _in_forked_parent(jobs: Mapping[Path, Config], at_once: int, threads: int, options: Options, done: Done) -> None:
    """A forked parent imports the framework and reads the data; we only listen to the folders it has finished."""
    read, write = os.pipe()
    mine, pid = os.getpid(), os.fork()
    if pid == 0:
        os.close(read)
        os._exit(_parent(jobs, at_once, threads, options, write, mine))
    os.close(write)
    parent = _Forked(pid)
    try:
        with os.fdopen(read) as told:
            for line in told:
                done(Path(line.rstrip("\n")))
    except KeyboardInterrupt:
        end([parent], patience=40)  # it ends its own jobs first
        raise
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 130:
        raise KeyboardInterrupt
    for path in jobs:
        conclude(RunFolder(path), code, None)


def _parent(jobs: Mapping[Path, Config], at_once: int, threads: int, options: Options, write: int, parent: int) -> int:
    def tell(path: Path) -> None:
        os.write(write, f"{path}\n".encode())

    os.environ |= thread_environment(threads)
    try:
        follow(parent)
        start = _preload(jobs, threads)
        work_off(list(jobs), start, at_once, options.timeout, tell)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _preload(jobs: Mapping[Path, Config], threads: int) -> Callable[[Path], Process]:
    """Import the framework and read the data once; a failure here is each job's own to meet and to report."""
    try:
        framework = registry.load(next(iter(jobs.values())).framework.name)
        for config in {repr((c.data, c.augment)): c for c in jobs.values()}.values():
            page.load(config, page.seed_streams(config.seed)).close()
    except UserError:
        return _fork
    return _fork if framework.fork_safe else partial(_spawn, threads=threads)


@dataclass
class _Forked:
    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code


def _fork(path: Path) -> Process:
    """A child that runs the folder, its output in log.txt."""
    mine, pid = os.getpid(), os.fork()
    if pid:
        return _Forked(pid)
    code = 1
    try:
        log = files.appended(path / "log.txt")
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = run_and_tell(path, mine)
    except OSError as error:  # a full disk has no room for a log
        print(f"error: {files.told(error)}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _spawn(path: Path, threads: int) -> Process:
    """A fresh interpreter that runs the folder, its output in log.txt."""
    with os.fdopen(files.appended(path / "log.txt"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "layerwise_lr", "run", str(path), "--parent", str(os.getpid())],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **thread_environment(threads)},
        )


def run_and_tell(path: Path, parent: int | None = None) -> int:
    """run(folder), told line by line; returns the exit code: 0, 2 (user's mistake), 130 (interrupted), 1.

    Args:
        path: of the folder.
        parent: the process to follow, where there is one.
    """
    code = 0
    try:
        if parent is not None:
            follow(parent)
        page.run(path, say=lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        code = 130
    except UserError as error:
        print(f"error: {printable(str(error))}", flush=True)
        code = 2
    except OSError as error:
        print(f"error: {files.told(error)}", flush=True)
        code = 1
    except BaseException:
        print(printable(files.read_text(path, "error.txt") or "failed"), flush=True)
        code = 1
    sys.stdout.flush()
    return code
