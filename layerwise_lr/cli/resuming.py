"""`resume`, and `train ... resume=auto`: a run, or what is left of a sweep, goes on from its last whole checkpoints."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..planning import UserError
from ..run import CONFIG, Config, RunFolder, reading
from ..sweep import Options, jobs, planning
from . import console, runs, sweeps
from .words import Given, Parser

LIMITS = ("timeout", "memory")


def resume(words: Sequence[str]) -> int:
    """`layerwise-lr resume DIR`: the exit code.

    Raises:
        UserError: there is nothing that could go on.
    """
    parser = Parser(
        "layerwise-lr resume",
        description=(
            "Go on with the run, or with the jobs of the sweep, in DIR: each from its last\n"
            "whole checkpoint, with the result of one that nobody interrupted."
        ),
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--jobs", type=int, help="of a sweep: at a time; default: cores / framework.threads")
    parser.add_argument("--timeout", type=float, help="of a sweep: seconds a job may take; default: as it began")
    parser.add_argument("--memory", help="of a sweep: what a job may take, as 4GiB; default: as it began")
    asked = parser.parse_args(words)
    path = asked.folder
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run's or a sweep's, such as layerwise-lr train has made")
    if (path / "sweep.json").exists():
        limits = {**_limits(path), **{k: v for k in LIMITS if (v := getattr(asked, k)) is not None}}
        return _sweep(path, Options(n_jobs=asked.jobs, **limits))
    for flag in ("jobs", *LIMITS):
        if getattr(asked, flag) is not None:
            raise UserError(f"--{flag} is a sweep's; {path} is one run's folder")
    if RunFolder(path).state() == "missing":
        raise UserError(f"{path}: holds no run; layerwise-lr train hydra.run.dir={path} begins one there")
    again(path, _config(path))
    return 0


def _limits(path: Path) -> dict[str, Any]:
    """What a job of the sweep may take, as it was told when the sweep began."""
    held = RunFolder(path).read_json("sweep.json").get("limits", {})
    return {key: held[key] for key in LIMITS if held.get(key) is not None}


def _config(path: Path) -> Config:
    if not os.path.lexists(path / CONFIG):
        raise UserError(
            f"{path}: the run ended before it had written its {CONFIG}; the command that began it, with "
            f"hydra.run.dir={path}, begins it again"
        )
    config = reading.read(path / CONFIG)
    runs.refuse_unresolved(path, config)
    return config


def train(config: Config, path: Path, given: Given) -> None:
    """`train ... resume=auto`: as `train` where nothing is yet, else on with what is there.

    Raises:
        UserError: what is there is of another config, or is being trained.
    """
    folder = RunFolder(path)
    if folder.state() == "missing" or not os.path.lexists(path / CONFIG):
        runs.train(config, path, given)
        return
    asked, held = runs.final(config, given), _config(path)
    if asked.to_dict() != held.to_dict():
        raise UserError(
            f"{path}: holds a run of another config ({', '.join(_differing(asked.to_dict(), held.to_dict())[:3])}); choose "
            "another folder, or take those as they are there"
        )
    again(path, held)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], at: str = "") -> list[str]:
    """Keys whose values differ."""
    found = []
    for key, value in one.items():
        if isinstance(value, dict) and isinstance(other.get(key), dict):
            found += _differing(value, other[key], f"{at}{key}.")
        elif value != other.get(key):
            found.append(f"{at}{key}: {value} is asked for, {other.get(key)} is there")
    return found or [f"{at}{key}" for key in other if key not in one]


def again(path: Path, config: Config) -> None:
    """The run in `path`, in this process, or what it came to where it is finished.

    Raises:
        UserError: it is being trained.
    """
    folder = RunFolder(path)
    if (path / "summary.json").is_file() and folder.state() == "completed":
        folder.drop_points()  # it may have ended before that
        console.say(f"{console.relative(path)} is finished: its result is in summary.json")
        return
    folder.refuse_live()
    console.text(runs.intent(config))
    runs.preflight(config, device=True)
    runs.finish(path, config)


def _sweep(path: Path, options: Options) -> int:
    planned = []
    for name, job in RunFolder(path).jobs().items():
        if Path(name).name != name:
            raise UserError(f"{path / 'sweep.json'}: a job's folder has a plain name; restore it as the sweep left it")
        if not (path / name / CONFIG).is_file():
            raise UserError(
                f"{path / name}: the sweep ended before it had written the job's {CONFIG}; the command that began it, "
                f"with hydra.sweep.dir={path}, begins the jobs that are missing"
            )
        words = job.get("overrides", []) if isinstance(job, dict) else []
        planned.append(planning.Job(_config(path / name), tuple(map(str, words)), path / name))
    for job in planned:
        runs.preflight(job.config, device=False)
    if limits := ", ".join(f"{key} {v}" for key in LIMITS if (v := getattr(options, key)) is not None):
        console.say(f"limits of each job: {limits}")
    jobs.ask_frameworks([job.config for job in planned])
    for ended in sweeps.work(path, planned, options):
        if isinstance(ended, Exception):
            raise ended
    return 0
