"""How a framework gets onto this machine: the command that works for this very installation and Python.

The package is on no index: an editable checkout is installed again with the extra; what a wheel has brought knows
what its extras need.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

US = "layerwise-lr"


def advice(extra: str, pythons: tuple[str, ...] = ()) -> str:
    """The pip line that installs what extra `extra` of pyproject.toml names.

    Args:
        extra: "torch", say.
        pythons: ("3.10",) where wheels are published for no other; empty: for any.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if pythons and here not in pythons:
        other = f"python{pythons[-1]}"
        return f"has no wheels for Python {here}; in an environment of {other}: {_pip('python', extra)}"
    return _pip(_shown(Path(sys.executable)), extra)


def _pip(python: str, extra: str) -> str:
    checkout = _checkout()
    wanted = ["-e", f"{'.' if checkout == Path.cwd() else checkout}[{extra}]"] if checkout else list(_needs(extra))
    return shlex.join([python, "-m", "pip", "install", *wanted])


def _checkout() -> Path | None:
    """Where the source of an editable installation is; None for any other."""
    try:
        facts = json.loads(distribution(US).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return None
    editable = facts.get("dir_info", {}).get("editable", False)
    return Path(unquote(urlparse(facts["url"]).path)) if editable else None


def _needs(extra: str) -> Iterator[str]:
    """What the installed package's metadata say that `extra` needs, without the Python that each is for."""
    for line in distribution(US).requires or ():
        requirement, _, marker = line.partition(";")
        if re.search(rf"""extra == ["']{extra}["']""", marker):
            yield requirement.strip()


def _shown(path: Path) -> str:
    """Below the current folder as such, any other whole."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
