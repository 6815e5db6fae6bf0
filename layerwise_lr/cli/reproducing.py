"""`reproduce`: a finished run, or each one of a sweep, runs again into a new folder; differences first, then the verdict."""

import json
import os
import shlex
import subprocess
import sys
from argparse import SUPPRESS
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from ..planning import UserError, plain
from ..run import CONFIG, Config, RunFolder, files, open_result, page, provenance, reading, reproducing
from ..sweep import jobs
from . import console, runs
from .words import Parser

NOT_REPRODUCED = 3
SAME, OTHER = "reproduced", "not reproduced"
going: tuple[Path, Path] | None = None
"""The run and its new folder, for the last words after Ctrl-C."""


def reproduce(words: list[str]) -> int:
    """`layerwise-lr reproduce DIR`: 0 reproduced, 3 not.

    Raises:
        UserError: DIR is no finished run, what it was made from is gone, or the new folder is taken.
    """
    parser = Parser(
        "layerwise-lr reproduce",
        description=(
            "Run the finished run in DIR again, into a new folder, and say whether it is the\n"
            "same: the plan to the last bit; all that was measured to the last bit too where\n"
            f"environment and data are the same, within {reproducing.TOLERANCE:g} elsewhere. What differs of\n"
            "environment, data and code is named before it trains. Of a sweep's folder, each\n"
            "finished run.\n\n"
            "Exit codes: 0 reproduced, 3 not (which number, both values), 2 it cannot run."
        ),
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--to", type=Path, metavar="NEW", help="the new folder; default: beside DIR, DIR_reproduced")
    parser.add_argument("--json", action="store_true", help="the verdict as one object; all else goes to stderr")
    parser.add_argument("--parent", type=int, help=SUPPRESS)
    asked = parser.parse_args(words)
    if asked.parent is not None:
        jobs.follow(asked.parent)
    with redirect_stdout(sys.stderr) if asked.json else nullcontext():
        sweep = (asked.folder / "sweep.json").exists()
        verdict = (_sweep if sweep else _one)(asked.folder, asked.to)
    if asked.json:
        print(json.dumps(verdict))
    return 0 if verdict["verdict"] == SAME else NOT_REPRODUCED


def goes_on() -> str:
    """After Ctrl-C: the command that goes on."""
    if going is None or not going[1].exists():
        return " before anything was trained"
    again = shlex.join(["layerwise-lr", "reproduce", *(console.relative(path) for path in (going[0],)), "--to"])
    return f"; this goes on: {again} {shlex.quote(console.relative(going[1]))}"


def _place(path: Path, to: Path | None) -> Path:
    """Where it runs: `to`, or the first free name beside the run; of a sweep's job, in a folder beside the sweep."""
    own = Path(os.path.abspath(path))  # noqa: PTH100 (a link is beside itself)
    if to is not None:
        if to.resolve() == path.resolve() or path.resolve() in to.resolve().parents:
            raise UserError(f"--to {to}: lies in the run itself; choose a folder of its own")
        return to
    job = own.name if (own.parent / "sweep.json").is_file() else ""
    home = own.parent if job else own
    names = (f"{home.name}_reproduced{'' if n == 1 else f'_{n}'}" for n in range(1, 10_000))
    places = (home.with_name(name) / job for name in names)
    return Path(console.relative(next(place for place in places if not os.path.lexists(place))))


def _one(path: Path, to: Path | None) -> dict[str, Any]:
    global going
    _, summary = open_result(path)
    config = reading.read(path / CONFIG)
    runs.refuse_unresolved(path, config)
    new = _place(path, to)
    _refuse_other(path, new, config)
    console.text(runs.intent(config))
    runs.preflight(config, device=True)
    facts = _differences(path, config)
    same_version = not any(fact.what == "layerwise_lr" for fact in facts)
    was = str(summary.get("config_sha256", "")) if same_version else ""  # another release's config has other keys
    if was not in ("", config.sha256()):
        facts.insert(0, reproducing.Fact("config sha256", plain(was[:12]), config.sha256()[:12]))
    exact = not any(fact.decides for fact in facts) and _has_order(config)
    _tell(facts, exact)
    going = (path, new)
    if not (new / "summary.json").is_file():
        _train(path, new, config)
    found = reproducing.compare(path, new, config, exact, was)
    _show(path, new, found, exact)
    return {
        "verdict": OTHER if any(one.first for one in found) else SAME,
        "run": str(path),
        "new": str(new),
        "exact": exact,
        "tolerance": None if exact else {"loss": reproducing.TOLERANCE, "accuracy": reproducing.SHARE},
        "differences": [fact._asdict() for fact in facts],
        "compared": [one._asdict() for one in found],
    }


def _refuse_other(path: Path, new: Path, config: Config) -> None:
    """A folder that is there already holds an earlier reproduction of this very run, which goes on, or nothing.

    Raises:
        UserError: it holds something else.
    """
    folder = RunFolder(new)
    if folder.state() == "missing":
        files.refuse_foreign(new)
        return
    told = folder.read_json("command.json") or {"argv": []}
    if told["argv"][1:2] != ["reproduce"] or reading.read(new / CONFIG).to_dict() != config.to_dict():
        raise UserError(f"{new} holds another run, nothing is written over it: --to chooses a new folder")
    files.only_plain(new)
    folder.refuse_live()


def _train(path: Path, new: Path, config: Config) -> None:
    if RunFolder(new).state() == "missing":
        told = RunFolder(path).read_json("command.json") or {"overrides": []}
        words = ["reproduce", str(path), "--to", str(new)]
        runs.prepare(RunFolder.claim(new), config, told["overrides"], words)
    runs.finish(new, config)


def _has_order(config: Config) -> bool:
    """Whether sums have a fixed order there: on a processor, or where that was asked for."""
    return page.make_framework(config).device.startswith("cpu") or config.framework.deterministic


def _differences(path: Path, config: Config) -> list[reproducing.Fact]:
    """What is not as it was when the run in `path` was made: environment, data, code."""
    env = RunFolder(path).read_json("env.json") or {}
    lock = files.read_text(path, "requirements.lock.txt") or ""
    then = reproducing.environment_of(env, lock)
    now = reproducing.environment_of(page.environment(config, page.make_framework(config)), provenance.requirements())
    streams = page.seed_streams(config.seed)
    dataset = page.load(config, streams)
    dataset.close()
    found = reproducing.other_environment(then, now)
    found += reproducing.other_data(RunFolder(path).read_json("data.json"), dataset.fingerprint())
    if not (path / "git.json").exists():  # of a run that was claimed by hand, nobody knows
        return found
    held = RunFolder(path).read_json("git.json"), files.read_text(path, "git.diff") or ""
    return found + reproducing.other_code(held, provenance.git(Path.cwd()))


def _tell(facts: list[reproducing.Fact], exact: bool) -> None:
    if facts:
        rows = [[fact.what, fact.then, fact.now, "yes" if fact.decides else ""] for fact in facts]
        console.table(["differs", "then", "now", "decides"], rows)
    else:
        console.say("environment, data and code are those of the run")
    if not exact:
        why = (
            "another environment" if any(fact.decides for fact in facts) else "sums have no fixed order on this device"
        )
        console.text(
            f"{why}: losses may differ by {reproducing.TOLERANCE:.0%}, accuracies by {reproducing.SHARE:.0%} of the "
            "pictures; what was planned must be equal"
        )


def _show(path: Path, new: Path, found: list[reproducing.Compared], exact: bool) -> None:
    rows = [
        [one.file, f"{one.numbers:,}", f"{one.largest:.0e}" if one.largest else "0", OTHER if one.first else SAME]
        for one in found
    ]
    console.table(["file", "numbers", "largest difference", "verdict"], rows, right=(1, 2))
    for one in found:
        if one.first:
            where, then, now = one.first
            console.text(f"{one.file}: first at {where.rstrip(', ')}: {then} then, {now} now")
    how = "to the last bit" if exact else "within the tolerance, in another environment"
    shown = f"{console.relative(path)} {{}} in {console.relative(new)}"
    bad = any(one.first for one in found)
    console.text(shown.format("is NOT reproduced") if bad else f"{shown.format('is reproduced')}, {how}", strong=True)


def _sweep(path: Path, to: Path | None) -> dict[str, Any]:
    """Each finished job, in a process of its own, as it was trained."""
    global going
    held = RunFolder(path).jobs()
    done = {name: job for name, job in held.items() if (files.inside(path, name) / "summary.json").exists()}
    left = {name: RunFolder(files.inside(path, name)).state() for name in held if name not in done}
    if not done:
        raise UserError(f"{path}: no run of the sweep is finished; layerwise-lr resume {path} goes on with them")
    new = _place(path, to)
    files.refuse_foreign(new)
    if new.exists() and any(new.iterdir()) and RunFolder(new).jobs() != done:
        raise UserError(f"{new} holds other runs, nothing is written over them: --to chooses a new folder")
    new.mkdir(parents=True, exist_ok=True)
    RunFolder(new).write_json("sweep.json", {"jobs": done})
    going = (path, new)
    verdicts = {name: _in_its_process(path / name, new / name) for name in done}
    console.table(["run", "verdict", "first difference"], [[name, *_shortly(one)] for name, one in verdicts.items()])
    for name, state in left.items():
        console.say(f"left out, it was not finished ({state}): {name}")
    same = sum(one["verdict"] == SAME for one in verdicts.values())
    console.text(f"{same} of {len(done)} runs are reproduced in {console.relative(new)}", strong=True)
    return {
        "verdict": SAME if same == len(done) else OTHER,
        "sweep": str(path),
        "new": str(new),
        "runs": verdicts,
        "left_out": left,
    }


def _in_its_process(path: Path, new: Path) -> dict[str, Any]:
    """The verdict on one job; "failed" where there is none, with what was said last."""
    console.say(f"{path.name} ...")
    words = [sys.executable, "-m", "layerwise_lr", "reproduce", str(path), "--to", str(new), "--json"]
    threads = jobs.thread_environment(reading.read(path / CONFIG).framework.threads)
    process = subprocess.Popen(
        [*words, "--parent", str(os.getpid())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **threads},
    )
    try:
        told, said = process.communicate()
    except KeyboardInterrupt:
        jobs.end([process], patience=20.0)
        raise
    if process.returncode == 130:
        raise KeyboardInterrupt
    if process.returncode in (0, NOT_REPRODUCED):
        verdict: dict[str, Any] = json.loads(told.splitlines()[-1])
        return verdict
    last = (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return {"verdict": "failed", "error": plain(last.removeprefix("layerwise-lr: "), 400)}


def _shortly(verdict: Mapping[str, Any]) -> list[str]:
    """Verdict and first difference of one run."""
    first = next((one for one in verdict.get("compared", ()) if one["first"]), None)
    where = f"{first['file']}: {first['first'][0]}: {first['first'][1]}, {first['first'][2]}" if first else ""
    return [verdict["verdict"], verdict.get("error", where)]
