"""Starting jobs: each in a process of its own, none able to harm another; the pool waits for them.

Jobs of one framework are forked from a parent that has imported it and read the data, where the plugin says that
this is safe; else each starts a fresh interpreter. Either way the job is `run(folder)`, and its folder is the answer.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from ..framework import registry
from ..planning import ProcessDied, UserError, printable
from ..run import Config, FrameworkSpec, Pruned, RunFolder, files, page
from . import placing
from .logs import LOG
from .options import Options
from .pool import PATIENCE, Done, Process, conclude, end, how, work_off

_PDEATHSIG = 1  # prctl's PR_SET_PDEATHSIG
_FIRST_TO_GO = (
    "500"  # of 1000: where memory is full, the kernel ends the largest job, and neither the pool nor a stranger
)
_WATCH = 0.1  # seconds


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


def run_jobs(
    jobs: Mapping[Path, Config], options: Options, done: Done, watch: Callable[[], None] = lambda: None
) -> None:
    """Run every claimed folder; returns when all have ended. `done(folder)` is called after each.

    Args:
        jobs: folder to config.
        options: how.
        done: called with the folder of each that has ended.
        watch: called now and then meanwhile, at least ten times a second.

    Raises:
        KeyboardInterrupt: after all jobs have been told and have ended.
    """
    for own in placing.alike(jobs):
        threads = max(c.framework.threads for c in own.values())
        if options.fork == "auto" and _can_fork():
            _in_forked_parent(own, threads, options, done, watch)
        else:
            devices = placing.spread_over(own, "fork" if _can_fork() else "spawn")
            start = placing.Places(devices, partial(spawn, threads=threads))
            work_off(list(own), start, _at_once(own, options, threads, devices), options.limits(), done, watch)


def _at_once(jobs: Mapping[Path, Config], options: Options, threads: int, devices: Sequence[str]) -> int:
    """How many of these run at a time; of jobs that have several processes each, one, unless more are asked for."""
    if all(config.framework.distributed == "none" for config in jobs.values()):
        return options.at_once(threads, devices)
    return options.n_jobs or 1


def _in_forked_parent(
    jobs: Mapping[Path, Config], threads: int, options: Options, done: Done, watch: Callable[[], None]
) -> None:
    """A forked parent imports the framework and reads the data; we only listen to the folders it has finished."""
    read, write = os.pipe()
    mine, pid = os.getpid(), os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            code = _parent(jobs, threads, options, write, mine)
        finally:
            os._exit(code)
    os.close(write)
    parent = _Forked(pid)
    try:
        for line in _told(read, watch):
            done(Path(line))
    except BaseException:
        end([parent], 2 * PATIENCE)  # it ends its own jobs first
        raise
    finally:
        os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 130:
        raise KeyboardInterrupt
    for path in jobs:  # where it died: those that it could not tell of
        conclude(RunFolder(path), code, f"not finished: the process that starts the jobs {how(code)}" if code else "")


def _told(read: int, watch: Callable[[], None]) -> Iterator[str]:
    """Lines of a pipe, until nobody writes into it any more."""
    held = b""
    while True:
        if select.select([read], [], [], _WATCH)[0]:
            if not (more := os.read(read, 65536)):
                return
            *lines, held = (held + more).split(b"\n")
            yield from map(os.fsdecode, lines)
        watch()


def _parent(jobs: Mapping[Path, Config], threads: int, options: Options, write: int, parent: int) -> int:
    def tell(path: Path) -> None:
        os.write(write, os.fsencode(f"{path}\n"))

    os.environ |= thread_environment(threads)
    try:
        follow(parent)
        start, devices = _preload(jobs, threads, write)
        work_off(list(jobs), start, _at_once(jobs, options, threads, devices), options.limits(), tell)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _preload(jobs: Mapping[Path, Config], threads: int, write: int) -> tuple[Callable[[Path], Process], list[str]]:
    """Import the framework and read the data once; a failure here is each job's own to meet and to report.

    How a job is started, and the accelerators that they are spread over.
    """
    begin: placing.Start = partial(_fork, write=write)
    try:
        framework = registry.load(next(iter(jobs.values())).framework.name)
        for config in {repr((c.data, c.augment)): c for c in jobs.values()}.values():
            page.load(config, page.seed_streams(config.seed)).close()
        if not framework.fork_safe:
            begin = partial(spawn, threads=threads)
    except UserError:
        return placing.Places([], begin), []
    # whoever has asked a GPU cannot be forked any more
    devices = placing.spread_over(jobs, "fork" if framework.fork_safe else "")
    return placing.Places(devices, begin), devices


@dataclass
class _Forked:
    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code


def _fork(path: Path, device: str | None, write: int) -> Process:
    """A child that runs the folder, its output in log.txt; `write` is the parent's, and nothing to it."""
    mine, pid = os.getpid(), os.fork()
    if pid:
        return _Forked(pid)
    code = 1
    try:
        os.setsid()
        os.close(write)  # whatever it leaves behind, nobody waits for the end of that
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)  # the pool's
        log, nothing = files.appended(path / LOG), os.open(os.devnull, os.O_RDONLY)
        for stream, own in enumerate((nothing, log, log)):
            os.dup2(own, stream)
        code = run_and_tell(path, mine, device)
    except OSError as error:  # a full disk has no room for a log
        print(f"error: {files.told(error)}", file=sys.stderr, flush=True)
    finally:  # nothing of this child returns into the pool
        os._exit(code)


def spawn(path: Path, device: str | None, threads: int) -> Process:
    """A fresh interpreter that runs the folder, its output in log.txt."""
    on = ["--device", device] if device else []
    with os.fdopen(files.appended(path / LOG), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "layerwise_lr", "run", str(path), "--parent", str(os.getpid()), *on],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **thread_environment(threads)},
        )


def run_and_tell(path: Path, parent: int | None = None, device: str | None = None) -> int:
    """run(folder), told line by line; returns the exit code: 0, 2 (user's mistake), 130 (interrupted), 1.

    Args:
        path: of the folder.
        parent: the process to follow, where there is one.
        device: that the config leaves open.
    """
    code = 0
    try:
        if parent is not None:
            follow(parent)
            with suppress(OSError):  # Linux
                Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
        page.run(path, say=lambda line: print(printable(line), flush=True), device=device)
    except Pruned as why:
        print(f"pruned: {printable(str(why))}", flush=True)
    except KeyboardInterrupt:
        code = 130
    except UserError as error:
        print(f"error: {printable(str(error))}", flush=True)
        code = 2
    except ProcessDied as error:
        print(f"error: {printable(str(error))}", flush=True)
        code = 1
    except OSError as error:
        print(f"error: {files.told(error)}", flush=True)
        code = 1
    except BaseException:
        print(printable(_traceback(path)), flush=True)
        code = 1
    sys.stdout.flush()
    return code


def _traceback(path: Path) -> str:
    try:
        return files.read_text(path, "error.txt") or "failed"
    except UserError as error:
        return f"failed; {error}"
