"""make test: every stage in processes of its own, two at a time, the longest first; then what ran and what did not.

A stage is pytest on one framework in one environment (frameworks fight when they share a process); what a stage says is
kept in build/test/STAGE.log. The last lines name what this machine cannot run, with the command that would change it:
not a failure, unless REQUIRE=all.
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "test"
FRAMEWORK = ("-m", "framework", "tests/framework/test_conformance.py", "tests/plugins", "tests/seeds")
SEEN_IN_310 = ("tests/planning", "tests/models", "tests/run", "tests/framework")
TWICE = ("-m", "framework", "tests/framework/test_conformance.py", "tests/plugins/test_devices.py")
COMMANDS = ("tests/cli", "tests/report", "tests/test_documented_commands.py", "tests/test_packaging.py")
SLOWEST = re.compile(r"^(\d+\.\d+)s (?:call|setup|teardown) +\S+", re.MULTILINE)
COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?|deselected)")
SKIPPED = re.compile(r"^SKIPPED \[(\d+)\] (?:\S+: )(.*)$", re.MULTILINE)
GET_310 = "install Python 3.10 (pyenv install 3.10, or uv python install 3.10), then make test"


class Stage(NamedTuple):
    """Words for the pytest of one environment."""

    name: str
    environment: str
    words: tuple[str, ...]


class Ended(NamedTuple):
    """What a stage came to: exit code, seconds of wall clock and of CPU, what it wrote."""

    stage: Stage
    code: int
    wall: float
    cpu: float
    log: str


def stages(mindspore: bool, python310: bool, zoo: bool) -> list[Stage]:
    """The longest first. MindSpore's claims are all checked in the newest release, and once more those of conformance
    and devices in the one that runs beside OneFlow; the core's in one Python, and what imports no plugin in 3.10 too."""
    core = tuple(f"--ignore={path}" for path in COMMANDS)
    found = [Stage("oneflow", ".venv310", ("--framework", "oneflow", *FRAMEWORK))] if python310 else []
    if mindspore:
        found.append(Stage("mindspore", ".venvms", ("--framework", "mindspore", *FRAMEWORK)))
    if python310:
        found.append(Stage("megengine", ".venv310", ("--framework", "megengine", *FRAMEWORK)))
        words = TWICE if mindspore else FRAMEWORK
        found.append(Stage("mindspore in 3.10", ".venv310", ("--framework", "mindspore", *words)))
    if zoo:
        found.append(Stage("zoo", ".venvzoo", ("--framework", "torch", "tests/zoo")))
    found.append(Stage("commands", ".venv", ("-m", "not framework", *COMMANDS)))
    found.append(Stage("torch", ".venv", ("--framework", "torch", *FRAMEWORK)))
    found.append(Stage("core", ".venv", ("-m", "not framework", "tests", *core)))
    if python310:
        found.append(Stage("core in 3.10", ".venv310", ("--framework", "none", *SEEN_IN_310)))
    return found


def run_all(todo: Sequence[Stage], at_once: int) -> list[Ended]:
    """Each ended stage is told of in a line."""
    waiting, running, ended = list(todo), {}, []
    while waiting or running:
        while waiting and len(running) < at_once:
            stage = waiting.pop(0)
            with log_of(stage).open("w") as log:
                command = [ROOT / stage.environment / "bin" / "python", "-m", "pytest", "--durations=50", *stage.words]
                process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            running[process.pid] = (stage, process, time.monotonic())
        pid, status, used = os.wait3(0)
        stage, process, began = running.pop(pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
        ended.append(Ended(stage, process.returncode, wall, cpu, log_of(stage).read_text()))
        print(line(ended[-1]), flush=True)
    return ended


def log_of(stage: Stage) -> Path:
    """Where its output goes."""
    return LOGS / f"{stage.name.replace(' ', '_')}.log"


def line(end: Ended) -> str:
    """One stage: outcome, times, counts."""
    counts = ", ".join(f"{n} {what}" for n, what in COUNTS.findall(end.log.rstrip().rpartition("\n")[2]))
    word = "ok" if end.code == 0 else f"FAILED ({end.code})"
    return f"{end.stage.name:<18} {word:<12} {end.wall:5.0f} s, CPU {end.cpu:5.0f} s   {counts}"


def slowest(ended: Iterable[Ended]) -> str:
    """The 50 slowest tests of all stages."""
    rows = [(float(hit[1]), f"{hit[0]}  ({end.stage.name})") for end in ended for hit in SLOWEST.finditer(end.log)]
    return "".join(f"{row}\n" for _, row in sorted(rows, reverse=True)[:50])


def not_run(ended: Iterable[Ended], missing: Iterable[str]) -> tuple[list[str], list[str]]:
    """What would need a device that is not here, and what would need a tool: lines, the latter with its command."""
    skips: Counter[str] = Counter()
    for end in ended:
        for count, reason in SKIPPED.findall(end.log):
            skips[reason] += int(count)
    devices = [f"skipped {n:3}: {reason}" for reason, n in skips.items() if not reason.startswith("NOT RUN")]
    return devices, [*(f"{r} ({n} tests)" for r, n in skips.items() if r.startswith("NOT RUN")), *missing]


def main(present: Sequence[str]) -> int:
    """`present`: those of mindspore, python310, zoo whose environment has been made."""
    LOGS.mkdir(parents=True, exist_ok=True)
    missing = [] if "python310" in present else [f"NOT RUN: OneFlow, MegEngine (no Python 3.10): {GET_310}"]
    if "mindspore" not in present and "python310" not in present:
        missing.append(f"NOT RUN: MindSpore (no release for this Python): {GET_310}")
    if "zoo" not in present:
        missing.append("NOT RUN: timm, torchvision, transformers (5 GB, not installed): make zoo, then make test")
    began = time.monotonic()
    ended = run_all(
        stages(*(name in present for name in ("mindspore", "python310", "zoo"))), min(os.cpu_count() or 1, 2)
    )
    for end in ended:
        if end.code:
            print(f"\n===== {end.stage.name}: {log_of(end.stage).relative_to(ROOT)}\n{end.log}")
    (LOGS / "slowest.txt").write_text(slowest(ended))
    devices, tools = not_run(ended, missing)
    cpu = sum(end.cpu for end in ended)
    print(
        f"\nall stages: {(time.monotonic() - began) / 60:.1f} min, CPU {cpu / 60:.1f} min; slowest: build/test/slowest.txt"
    )
    print("\n".join([*map(line, ended), *devices, *tools]))
    strict = bool(tools) and os.environ.get("REQUIRE") == "all"
    if strict:
        print("REQUIRE=all: what was NOT RUN is a failure")
    return 1 if strict or any(end.code for end in ended) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
