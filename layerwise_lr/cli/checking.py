"""`check`: how far a plugin is, and whether it keeps the contract."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..framework import CONTRACT, conformance, registry
from ..planning import UserError, plain, printable
from ..sweep import jobs
from . import console
from .words import Parser

GUIDE = "docs/plugins.md"


def check(words: Sequence[str]) -> int:
    """Every check in every mode, in the order in which a plugin is written; exit code 1 where one fails or is not yet."""
    parser = Parser(
        "layerwise-lr check",
        description=(
            "Run the conformance kit on a framework: what implementing\n"
            "layerwise_lr.framework.Framework means, as measured numbers. Each mode runs in a\n"
            "process of its own. A plugin may be checked from its first verb on: what it has\n"
            "not yet is named, in the order in which one writes it."
        ),
    )
    checks = list(conformance.CHECKS)
    parser.add_argument("framework", nargs="?", choices=registry.names())
    parser.add_argument("--mode", help="one mode only")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=checks, metavar="CHECK", help="some checks only")
    parser.add_argument(
        "--until", choices=[*checks, *conformance.RUNGS], metavar="CHECK", help="up to this check, or rung"
    )
    parser.add_argument("--traceback", action="store_true", help="of every failure")
    parser.add_argument("--json", action="store_true", help="one object, for CI")
    parser.add_argument("--list", action="store_true", help="what each check specifies, by rung")
    given = parser.parse_args(words)
    if given.list:
        rows = [[conformance.rung_of(n), n, conformance.specification(n)] for n in checks]
        console.table(["rung", "check", "specifies"], rows)
        return 0
    if not given.framework:
        parser.error("the following arguments are required: framework")
    modes = _modes(given.framework)
    if given.mode and given.mode not in modes:
        raise UserError(f"--mode {given.mode}: {given.framework} has {', '.join(modes)}")
    if given.mode or len(modes) == 1:
        return _one_mode(given, given.mode or modes[0])
    again = [sys.executable, "-m", "layerwise_lr", "check", *words]
    environment = {**os.environ, **jobs.thread_environment(1)}
    ended = [
        subprocess.run([*again, "--mode", mode], env=environment, stdout=subprocess.PIPE if given.json else None)
        for mode in modes
    ]
    if given.json:
        told = [json.loads(one.stdout) for one in ended if one.stdout]
        print(
            json.dumps({**told[0], "modes": [mode for one in told for mode in one["modes"]]} if told else {}, indent=1)
        )
    return max((one.returncode for one in ended), key=abs)


def _modes(name: str) -> Sequence[str]:
    found = registry.load(name, whole=False)
    if lacking := [fact for fact in ("kinds", "optimizers") if not hasattr(found, fact)]:
        raise UserError(
            f'framework={name} lacks {" and ".join(lacking)}: begin with kinds = ("linear", "relu", "flatten") and '
            f'optimizers = ("sgd",); see {GUIDE}'
        )
    return found.modes


def _one_mode(given: Any, mode: str) -> int:
    kit = conformance.Kit(given.framework, registry.load(given.framework, whole=False), mode, given.device)
    outcomes: list[conformance.Outcome] = []
    if not given.json:
        console.say(f"{given.framework} {mode} on {given.device}")
    for name in _asked(given):
        outcomes.append(conformance.run_check(kit, name))
        if not given.json:
            _show(outcomes[-1], given.traceback)
    if given.json:
        of = {"mode": mode, "device": given.device, "summary": conformance.summary(outcomes)}
        rows = [{"rung": conformance.rung_of(one.check), **one._asdict()} for one in outcomes]
        print(
            json.dumps(
                {"framework": given.framework, "contract": CONTRACT, "modes": [{**of, "checks": rows}]}, indent=1
            )
        )
    else:
        _end(f"{given.framework} {mode}", outcomes)
    return int(any(one.result in ("failed", "not yet") for one in outcomes))


def _asked(given: Any) -> Iterator[str]:
    """The checks, in order, as far as they are asked for."""
    for name in conformance.CHECKS:
        rung = given.until in conformance.RUNGS
        if rung and _after(conformance.rung_of(name), given.until):
            return
        if not given.only or name in given.only:
            yield name
        if name == given.until and not rung:
            return


def _after(rung: str, last: str) -> bool:
    order = list(conformance.RUNGS)
    return order.index(rung) > order.index(last)


def _show(outcome: conformance.Outcome, trace: bool) -> None:
    message = plain(outcome.message, 400)
    told = f"not yet: {message}" if outcome.result == "not yet" else outcome.result
    rest = "" if outcome.result == "not yet" else message
    console.say(f"  {told:<15} {outcome.check:<26} {rest}".rstrip())
    if trace and outcome.result == "failed" and outcome.trace:
        console.say(printable(outcome.trace))


def _end(of: str, outcomes: Sequence[conformance.Outcome]) -> None:
    """The summary, and what comes next: the first check that does not pass."""
    console.say(f"{of}: {conformance.summary(outcomes)}")
    for one in outcomes:
        if one.result in ("failed", "not yet"):
            rung = conformance.rung_of(one.check)
            what = f"write {one.message}, for" if one.result == "not yet" else "mend"
            console.say(f"next: {what} {one.check}: {conformance.specification(one.check)} ({GUIDE}#{rung})")
            return
