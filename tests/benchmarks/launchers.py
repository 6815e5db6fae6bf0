"""What a sweep costs and survives with each launcher, and with joblib and submitit as they are, without our pool of one job.

python tests/benchmarks/launchers.py [FRAMEWORK] [JOBS]     seconds of wall clock and CPU of so many short jobs, two at a time;
                                              then which of four good jobs finish beside four that misbehave
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from killing import prepared
from misbehaving import WORDS, surroundings

from layerwise_lr.run import RunFolder
from layerwise_lr.sweep import jobs

WAYS = {
    "jobs": ("hydra/launcher=jobs",),
    "jobs, fork=never": ("hydra/launcher=jobs", "hydra.launcher.fork=never"),
    "joblib": ("hydra/launcher=joblib",),
    "submitit_local": ("hydra/launcher=submitit_local",),
    "ray": ("hydra/launcher=ray",),
}
FAULTS = ("raises", "exits", "segfaults", "hangs")
GOOD = ("eager", "graph", "eager", "graph")
TIMEOUT = 12


def cpu() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(act: Callable[[], object]) -> str:
    wall, used = time.monotonic(), cpu()
    act()
    return f"{time.monotonic() - wall:6.1f} s, CPU {cpu() - used:6.1f} s"


def swept(home: Path, environment: dict[str, str], *words: str) -> int:
    start = [sys.executable, "-m", "layerwise_lr", "train", "-m", "hydra.launcher.n_jobs=2", *words, *WORDS]
    return subprocess.run(start, cwd=home, env=environment, capture_output=True).returncode


def bare(path: Path) -> int:
    """A job in an engine's own worker."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return jobs.run_and_tell(path)


def bare_joblib(paths: Sequence[Path]) -> None:
    from joblib import Parallel, delayed

    with suppress(Exception):
        Parallel(n_jobs=2, timeout=TIMEOUT)(delayed(bare)(path) for path in paths)


def bare_submitit(paths: Sequence[Path], place: Path) -> None:
    import submitit

    executor = submitit.LocalExecutor(place)
    executor.update_parameters(timeout_min=(TIMEOUT + 1) / 60, signal_delay_s=1)
    for job in [executor.submit(bare, path) for path in paths]:  # all at once: it has no limit
        with suppress(Exception):
            job.result()


def survivors(folder: Path) -> str:
    states = {path.name: RunFolder(path).state() for path in sorted(folder.glob("[!.]*/"))}
    good = [state for name, state in states.items() if not any(fault in name for fault in FAULTS)]
    told = [
        RunFolder(folder / name).read_json("status.json")["state"] for name in states if any(f in name for f in FAULTS)
    ]
    return f"{good.count('completed')} of {len(good)} good jobs finished; the faulty say {', '.join(told)}"


def cleared(home: Path) -> int:
    """How many processes were left, which are ended."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(process.name) != os.getpid() and f"UNRULY={home}".encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
                count += 1
    return count


def bare_jobs(folder: Path, modes: Sequence[str], steps: int = 20) -> list[Path]:
    small = {"model": {"name": "mlp"}, "augment": {}, "freeze": {}, "ema": {}, "steps": steps}
    return [
        prepared(folder / f"{index}_{mode}", framework={"name": "unruly", "mode": mode}, seed=index, **small)
        for index, mode in enumerate(modes)
    ]


def main(framework: str = "torch", count: int = 12) -> None:
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        environment = surroundings(home)
        os.environ |= environment
        sys.path.insert(0, str(home / "site"))
        seeds = f"seed={','.join(map(str, range(count)))}"
        for name, way in WAYS.items():
            folder = f"hydra.sweep.dir=timed_{name.partition(',')[0]}_{len(way)}"
            print(
                f"{name:<18} {timed(partial(swept, home, environment, *way, folder, seeds, f'framework={framework}'))}",
                flush=True,
            )
        modes = f"framework.mode={','.join((*FAULTS, *GOOD[:2]))}"
        for name, way in WAYS.items():
            folder = f"faults_{name.partition(',')[0]}_{len(way)}"
            words = (
                *way,
                f"hydra.sweep.dir={folder}",
                "framework.name=unruly",
                modes,
                "seed=0",
                f"hydra.launcher.timeout={TIMEOUT}",
            )
            took = timed(partial(swept, home, environment, *words))
            print(f"{name:<18} {took}: {survivors(home / folder)}", flush=True)
        for name, act in (
            ("joblib as it is", bare_joblib),
            ("submitit as it is", partial(bare_submitit, place=home / "place")),
        ):
            paths = bare_jobs(home / name, (*FAULTS, *GOOD[:2]))
            print(
                f"{name:<18} {timed(partial(act, paths))}: {survivors(home / name)}; {cleared(home)} processes left",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
