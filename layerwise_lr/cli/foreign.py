"""`verify --script` and `verify --factory`: the same proof on code that is not ours, which the user names."""

import argparse
import ast
import importlib
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any

from ..framework import native, registry
from ..planning import UserError
from . import console
from .words import Parser

DOORS = ("--script", "--factory")


def asked(words: Sequence[str]) -> bool:
    """Whether verify is meant for code that is not ours."""
    return any(word.partition("=")[0] in DOORS for word in words)


def verify(words: Sequence[str]) -> int:
    """Exit codes: 0 nothing is wrong, 1 something is."""
    parser = Parser(
        "layerwise-lr verify",
        description=(
            "Measure how far each parameter really moves, in code that is not ours.\n"
            "--script runs a script until its first optimizer step, verifies there on the\n"
            "gradients that it has, and ends it. --factory calls a function of a module in\n"
            "this folder that gives (model, optimizer) and, as it likes, scheduler, plan and\n"
            "batch; or a mapping of these names. Exit code 0: nothing is wrong; 1: a table\n"
            "says what is; 2: it could not be measured.\n\n"
            "  layerwise-lr verify --script train.py --epochs 1\n"
            "  layerwise-lr verify --steps 1000 --factory mymodule:make"
        ),
    )
    parser.add_argument("--steps", type=int, help="scheduler steps to look ahead; default: to the scheduler's end")
    told = "default: the one that the script, or the factory's module, imports"
    parser.add_argument("--framework", choices=registry.names(), metavar="NAME", help=told)
    door = parser.add_mutually_exclusive_group(required=True)
    door.add_argument("--factory", metavar="MODULE:FUNCTION")
    door.add_argument(
        "--script", nargs=argparse.REMAINDER, metavar="FILE [WORD ...]", help="all that follows is its own"
    )
    given = parser.parse_args([part for word in words for part in _parted(word)])
    report = (
        _factory(given.factory, given.steps, given.framework)
        if given.factory
        else _script(given.script, given.steps, given.framework)
    )
    console.say(str(report))
    if report.faults:
        print(f"layerwise-lr: {native.ModelLrMismatch(report).line}", file=sys.stderr)
    return 0 if report.ok else 1


def _parted(word: str) -> list[str]:
    """--script=FILE as two words: argparse does not part what takes the rest."""
    door, equals, value = word.partition("=")
    return [door, value] if equals and door == "--script" else [word]


def _script(words: Sequence[str], steps: int | None, framework: str | None) -> native.Report:
    if not words:
        raise UserError("--script needs a file: layerwise-lr verify --script train.py")
    path = Path(words[0])
    if not path.is_file():
        raise UserError(f"--script {path}: there is no such file in {Path.cwd()}")
    framework = framework or _imported(path, f"--script {path}") or "torch"
    adapter = registry.load(framework).native()
    if adapter is None:
        raise UserError(f"--framework {framework} takes no models of others")
    found: list[native.Report] = []

    def act(model: Any, optimizer: Any, schedulers: Sequence[Any], batch: Any) -> None:
        found.append(native.examine(model, optimizer, scheduler=schedulers, batch=batch, steps=steps))

    with _at_home(path.resolve().parent, [str(path), *words[1:]]), _told(str(path)):
        adapter.first_step(lambda: runpy.run_path(str(path), run_name="__main__"), act)
    return found[0]


def _imported(path: Path, what: str) -> str | None:
    """The framework that a script imports, or a module beside it that it imports; None where it imports none.

    Raises:
        UserError: there are several.
    """
    found, left, seen = dict[str, None](), [path], set[Path]()
    while left:
        file = left.pop()
        seen.add(file)
        named = list(_imports(file))
        found |= dict.fromkeys(registry.needing(named))
        beside = (path.parent / f"{name.replace('.', '/')}{end}" for name in named for end in (".py", "/__init__.py"))
        left += [other for other in beside if other not in seen and other.is_file()]
    if len(found) > 1:
        raise UserError(
            f"{what}: it imports {' and '.join(found)}: say whose optimizer steps, --framework {[*found][-1]}"
        )
    return next(iter(found), None)


def _imports(file: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports; a file that is no Python is told of when it runs."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _factory(named: str, steps: int | None, framework: str | None) -> native.Report:
    module, _, function = named.partition(":")
    if not module or not function:
        raise UserError(f"--factory {named}: write MODULE:FUNCTION, mymodule:make for make() in mymodule.py")
    file = Path.cwd() / f"{module.replace('.', '/')}.py"
    if framework := framework or (_imported(file, f"--factory {named}") if file.is_file() else None):
        registry.load(framework)  # before the module's own import: OneFlow's wheel needs the plugin's help
    with _at_home(Path.cwd(), sys.argv), _told(f"--factory {named}"):
        try:
            make = getattr(importlib.import_module(module), function, None)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise UserError(f"--factory {named}: there is no module {module} in {Path.cwd()}") from None
        if not callable(make):
            raise UserError(f"--factory {named}: {module} has no function {function}")
        made = make()
    if isinstance(made, Mapping) and {"model", "optimizer"} <= set(made) <= {"model", "optimizer", *GIVEN}:
        return native.examine(**made, steps=steps)
    if isinstance(made, tuple | list) and len(made) > 1:
        return native.examine(*made, steps=steps)
    raise UserError(
        f"--factory {named}: it gave a {type(made).__name__}, not (model, optimizer, ...) or a mapping of model, "
        f"optimizer, {', '.join(GIVEN)}"
    )


GIVEN = ("scheduler", "plan", "batch")


@contextmanager
def _at_home(folder: Path, argv: Sequence[str]) -> Iterator[None]:
    """Modules are found in `folder`, and the command line is the script's own."""
    before = sys.argv, list(sys.path)
    sys.argv, sys.path[:0] = list(argv), [str(folder)]
    full = os.environ.pop("HYDRA_FULL_ERROR", None)  # ours, not the script's
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before
        os.environ |= {"HYDRA_FULL_ERROR": full} if full is not None else {}


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What the user's own code raises is told in one line, with its place."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}" if not str(error).startswith(what) else str(error)) from None
    except SystemExit as end:
        raise UserError(f"{what}: it ended with {end.code!r} before its first optimizer step") from None
    except Exception as error:
        frames = [
            f for f in extract_tb(error.__traceback__) if "layerwise_lr" not in f.filename and "runpy" not in f.filename
        ]
        place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        told = (str(error).splitlines() or [""])[0]
        raise UserError(f"{what}: {type(error).__name__}{place}: {told}") from error
