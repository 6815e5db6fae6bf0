"""make bench: every goal of speed, measured side by side in one run; a line each, ending in `met` or `NOT MET`.

    python tests/benchmarks/bench.py [--device cpu|cuda:0] [--only G1,G4] [--no-results]

A goal's cases come first, indented; its line last. Each module of goals/ runs in a process of its own, one thread, in the
first environment that has what it needs (.venv, .venvzoo, .venv310, .venvms); where none has, the line says so. RESULTS.md
is written: the machine, the table (of goals that were not asked for what stands there), and the notes, which are kept. To add goals, add a module that
has GOALS, NEEDS, DEVICES and measure(device), as goals/optimizer_step.py.
"""

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from goals.timing import Case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = HERE / "RESULTS.md"
ENVIRONMENTS = (".venv", ".venvzoo", ".venv310", ".venvms")
BETTER = ("timm", "torchvision")
"""An environment that has these too measures more."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
NOTES = "## Notes"


def modules() -> list[ModuleType]:
    """Of goals/; importing them imports no framework."""
    names = sorted(path.stem for path in (HERE / "goals").glob("*.py") if path.stem != "timing")
    return [importlib.import_module(f"goals.{name}") for name in names]


def python_with(needs: Sequence[str], wishes: Sequence[str] = ()) -> str | None:
    """The interpreter of an environment that has these packages, better one with the wishes too; None: there is none."""
    looks = "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) is None for n in sys.argv[1:]))"
    pythons = [sys.executable, *(str(ROOT / name / "bin" / "python") for name in ENVIRONMENTS)]
    for asked in ([*needs, *wishes], needs):
        for python in pythons:
            if Path(python).exists() and subprocess.run([python, "-c", looks, *asked]).returncode == 0:
                return python
    return None


def why_not(module: ModuleType, device: str, python: str | None) -> str:
    """Why it can't run here; "": it can."""
    if device.partition(":")[0] not in module.DEVICES:
        return f"not a goal of {device}"
    if python is None:
        return f"no environment has {' and '.join(module.NEEDS)}: make zoo, or make test"
    if device.startswith("cuda"):
        look = "import sys, torch; sys.exit(not torch.cuda.is_available())"
        if subprocess.run([python, "-c", look]).returncode:
            return f"no {device} here"
    return ""


def measured(module: ModuleType, device: str, python: str, asked: Iterable[str]) -> Iterator[Case]:
    """In a process of its own."""
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "OMP_WAIT_POLICY": "PASSIVE"}
    words = [python, __file__, "--device", device, "--run", module.__name__, "--only", ",".join(asked)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout
        for line in child.stdout:
            if line.startswith('["G'):
                yield Case(*json.loads(line))
    if child.returncode:
        raise RuntimeError(f"{module.__name__} failed ({child.returncode})")


def told(case: Case) -> str:
    """A number with its target."""
    spread = f" [{case.low:.2f}, {case.high:.2f}]" if case.low != case.high else ""
    target = "" if case.target is None else f" (<= {case.target:g}{case.unit})"
    return f"{case.value:.2f}{case.unit}{spread}{target}{'' if case.met else '  above'}"


def verdict(goal: str, what: str, cases: Sequence[Case], why: str) -> tuple[str, ...]:
    """Id, what, the range of its ratios, targets, met or not."""
    due = [case for case in cases if case.target is not None]
    if why or not due:
        return goal, what, "", "", f"did not run: {why or 'no case of it'}"
    units = sorted({case.unit for case in due})
    numbers = "; ".join(
        f"{min(c.value for c in due if c.unit == unit):.2f} to {max(c.value for c in due if c.unit == unit):.2f}{unit}"
        if sum(c.unit == unit for c in due) > 1
        else f"{next(c.value for c in due if c.unit == unit):.2f}{unit}"
        for unit in units
    )
    targets = ", ".join(dict.fromkeys(f"<= {case.target:g}{case.unit}" for case in due))
    missed = sum(not case.met for case in due)
    return goal, what, numbers, targets, "met" if not missed else f"{missed} of {len(due)} cases: NOT MET"


def machine(device: str) -> str:
    """What the numbers hang on; no name of a host, no path."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    told = [f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB", f"{platform.system()} {platform.machine()}"]
    code = (
        "import sys; from importlib.metadata import PackageNotFoundError, version as v\n"
        "for n in ('torch', 'torchvision', 'timm', 'numpy', 'hydra-core'):\n"
        "    try: print(n, v(n))\n"
        "    except PackageNotFoundError: pass\n"
        "if sys.argv[1] != 'cpu':\n    import torch; print(torch.cuda.get_device_name(sys.argv[1]))"
    )
    python = python_with(("torch",), BETTER) or sys.executable
    done = subprocess.run([python, "-c", code, device], capture_output=True, text=True)
    versions = subprocess.run([python, "--version"], capture_output=True, text=True).stdout.strip()
    load = os.getloadavg()[0]
    return ", ".join([*told, versions, *done.stdout.split("\n")[:-1]]) + f"; load {load:.1f} when it ended"


def results(device: str, rows: Sequence[tuple[str, ...]], cases: Mapping[str, Sequence[Case]]) -> None:
    """RESULTS.md: this device's rows of these goals are new, all else is kept."""
    old = RESULTS.read_text() if RESULTS.exists() else ""
    body, _, notes = old.partition(NOTES)
    parts = dict(re.findall(r"^## On (\S+)\n(.*?)(?=^## |\Z)", body, re.MULTILINE | re.DOTALL))
    kept = [line for line in parts.get(device, "").splitlines() if re.match(r"\| G\d", line)]
    kept = [line for line in kept if line.split()[1] not in {row[0] for row in rows}]
    table = [line for line in kept if line.count(" | ") == 4] + [f"| {' | '.join(row)} |" for row in rows]
    every = [line for line in kept if line.count(" | ") == 2]
    every += [f"| {c.goal} | {c.case} | {told(c)} |" for own in cases.values() for c in own]
    table = ["| goal | ours / reference | measured | target | |", "|---|---|---|---|---|", *sorted(table, key=number)]
    every = ["| goal | case | median [quartiles] (target) |", "|---|---|---|", *sorted(every, key=number)]
    parts[device] = "\n".join(["", machine(device), "", *table, "", *every, "", ""])
    head = "# What is measured\n\nWritten by `make bench`; how, says `tests/benchmarks/goals/timing.py`.\n\n"
    text = head + "".join(f"## On {name}\n{part}" for name, part in parts.items())
    RESULTS.write_text(f"{text}{NOTES}{notes or chr(10)}")


def number(line: str) -> int:
    """Of the goal that a line of a table begins with."""
    return int(line.split()[1][1:])


def run(name: str, device: str, asked: set[str]) -> None:
    """In the child: a JSON line per case."""
    module = importlib.import_module(name)
    for case in module.measure(device):
        if not asked or case.goal in asked:
            print(json.dumps(case), flush=True)


def main() -> int:
    """The lines; 1 where something failed, not where a goal is not met."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", type=lambda text: {word for word in text.split(",") if word})
    parser.add_argument("--run", default="")
    parser.add_argument("--no-results", action="store_true")
    given = parser.parse_args()
    if given.run:
        run(given.run, given.device, given.only)
        return 0
    goals = {goal: (module, what) for module in modules() for goal, what in module.GOALS.items()}
    cases: dict[str, list[Case]] = {}
    whys: dict[str, str] = {}
    failed = False
    for module in {id(m): m for m, _ in goals.values()}.values():
        own = [goal for goal in module.GOALS if not given.only or goal in given.only]
        if not own:
            continue
        python = python_with(module.NEEDS, BETTER)
        why = why_not(module, given.device, python)
        try:
            for case in measured(module, given.device, python or "", own) if not why else ():
                cases.setdefault(case.goal, []).append(case)
                print(f"  {case.goal:<4} {case.case:<60} {told(case)}", flush=True)
        except RuntimeError as error:
            why, failed = str(error), True
        whys |= dict.fromkeys(own, why)
    rows = [
        verdict(goal, what, cases.get(goal, []), whys[goal])
        for goal, (_, what) in sorted(goals.items(), key=lambda item: int(item[0][1:]))
        if goal in whys
    ]
    for row in rows:
        print("  ".join(word for word in row if word))
    if not given.no_results:
        results(given.device, rows, cases)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
