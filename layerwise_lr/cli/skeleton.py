"""`new-plugin`: a package that installs, is listed, and fails only what is still to be written."""

import ast
import inspect
import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..framework import CONTRACT, Framework, registry
from ..planning import UserError
from ..run import RunFolder
from . import console
from .words import Parser

VERBS = (
    *("make_model", "get_weights", "set_weights", "predict", "make_groups", "make_optimizer", "make_scheduler"),
    *("train_step", "get_optimizer_state", "set_optimizer_state"),
)
"""In the order of writing."""
PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "layerwise-lr-{name}"
version = "0.1.0"
description = "{title} for layerwise-lr"
requires-python = ">=3.10"
dependencies = ["layerwise-lr>={version}"]  # and the framework itself

[project.entry-points."layerwise_lr.frameworks"]
{name} = "layerwise_lr_{name}.framework:{title}Framework"

[tool.setuptools]
packages = ["layerwise_lr_{name}"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""
MODULE = '''\
"""{title} behind layerwise-lr's contract. layerwise-lr check {name} says what comes next."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from layerwise_lr.framework import Framework, Plan, Scheduler, Step, StepResult, TrainState, Tree, Weights


class {title}Framework(Framework):
    """In one mode on one device."""

    contract = {contract}
    kinds = ("linear", "relu", "flatten")
    optimizers = ("sgd",)

    @staticmethod
    def version() -> str:
        """Name, version and build, in one line."""
        return f"{name} plugin {{version('layerwise-lr-{name}')}}"

{verbs}
'''
CONFTEST = '''\
"""The kit's tests, of layerwise-lr."""

pytest_plugins = ["layerwise_lr.framework.conformance.suite"]
'''
TESTS = '''\
"""pytest --framework {name}"""

from layerwise_lr.framework.conformance.suite import test_promise

__all__ = ["test_promise"]
'''


def new_plugin(words: Sequence[str]) -> int:
    """Write the package."""
    parser = Parser(
        "layerwise-lr new-plugin",
        description=(
            "Begin a framework plugin: a package with the entry point, every verb of the\n"
            "contract still to be written, and its tests. docs/plugins.md goes on from there.\n\n"
            "  layerwise-lr new-plugin foo layerwise-lr-foo\n"
            "  pip install -e layerwise-lr-foo && layerwise-lr check foo"
        ),
    )
    parser.add_argument("name", help="of the framework: framework=NAME; small letters, digits, _")
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty")
    given = parser.parse_args(words)
    name, folder = given.name, given.folder
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise UserError(f"{name!r} is no name of a framework: small letters, digits and _, a letter first")
    if name in registry.names():
        raise UserError(f"framework={name} is there already: choose another name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: holds something already; name a new or an empty folder")
    title = "".join(part.capitalize() for part in name.split("_"))
    facts = {"name": name, "title": title, "version": __version__, "contract": CONTRACT, "verbs": _verbs()}
    folder.mkdir(parents=True, exist_ok=True)
    package, tests = f"layerwise_lr_{name}", "tests"
    for path, text in {
        "pyproject.toml": PROJECT,
        f"{package}/__init__.py": '"""{title} for layerwise-lr."""\n',
        f"{package}/framework.py": MODULE,
        f"{tests}/conftest.py": CONFTEST,
        f"{tests}/test_conformance.py": TESTS,
    }.items():
        RunFolder(folder).write_text(path, text.format(**facts))
    console.say(f"{folder}: write {package}/framework.py, from make_model on")
    console.say(f"  pip install -e {shlex.quote(str(folder))}\n  layerwise-lr check {name} --until predict")
    return 0


def _verbs() -> str:
    """Every verb as the contract declares it, unwritten."""
    return textwrap.indent("\n\n".join(_verb(getattr(Framework, verb)) for verb in VERBS), "    ")


def _verb(function: object) -> str:
    made = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]  # type: ignore[arg-type]
    assert isinstance(made, ast.FunctionDef)
    made.decorator_list = []
    head = ast.unparse(made).splitlines()[0]
    said = inspect.cleandoc(ast.get_docstring(made) or "")
    lines = said.splitlines()
    told = f'"""{said}"""' if len(lines) == 1 else f'"""{said}\n"""'
    return head + "\n" + textwrap.indent(f"{told}\nraise NotImplementedError", "    ")
