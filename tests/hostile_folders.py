"""Run folders as somebody else may have made them: each file of a folder in each bad way, asked by each command.

A case runs in a forked process beside things that are not its own; what it did to them is counted. By hand, all of them,
or those that a regex ONLY finds, or one of PART (about): [ONLY=...] [PART=...] python tests/hostile_folders.py [REPORT]
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

LIMIT = 10  # seconds: more is a hang
TRAIN = (
    "framework=reference,torch",
    "model=mlp",
    "weights=none",
    "model.width=8",
    "model.depth=1",
    "data.image_size=8",
    "data.train_size=50",
    "data.val_size=20",
    "data.test_size=20",
    "grouping=flat",
    "batch_size=25",
    "epochs=2",
    "eval_every=1 epoch",
)
ONE = tuple(word.replace("reference,torch", "reference") for word in TRAIN)
FILES = (
    "config.resolved.yaml",
    "status.json",
    "summary.json",
    "command.json",
    "env.json",
    "git.json",
    "data.json",
    "plan.json",
    "params.csv",
    "test.csv",
    "wrong.png",
    "metrics.jsonl",
    "lr_check.jsonl",
    "checkpoints",
    "checkpoints/latest",
    "checkpoints/best",
    "checkpoints/step_4/model.safetensors",
    "lrs.csv",
    "log.txt",
    "git.diff",
    "seed.json",
    "requirements.lock.txt",
)
SWEEPS = "sweep.json"
POINT = "checkpoints/resume/step_3"
POINTS = (
    "checkpoints/resume",
    POINT,
    f"{POINT}/state.json",
    f"{POINT}/model.safetensors",
    f"{POINT}/optim.safetensors",
    ".lock",
)
"""Of an interrupted run, which is resumed."""
FOLDERS = ("checkpoints", "checkpoints/resume", POINT)
RESUMES = ("resume", "resume of a sweep")
SECRET, VARIABLE = "content-of-another-file", "value-of-a-variable"


def commands(run: str) -> dict[str, tuple[str, ...]]:
    """Every command that reads folders; `run` is the bad one."""
    return {
        "report": ("report", "sweep"),
        "run": ("run", run),
        "compare": ("compare", *TRAIN, "hydra.sweep.dir=sweep"),
        "predict": ("predict", run, "picture.png"),
        "evaluate": ("evaluate", run),
        "reproduce": ("reproduce", run, "--to", "new"),
        "export": ("export", run, "--to", "safetensors"),
        "verify": ("verify", *ONE, "weights=file", f'weights.path="{run}"'),
        "train into it": ("train", *ONE, f'hydra.run.dir="{run}"'),
        "train from it": ("train", *ONE, "weights=file", f'weights.path="{run}"', "hydra.run.dir=new"),
        "sweep into it": ("train", "-m", *TRAIN, "hydra.sweep.dir=sweep"),
        "watch": ("watch", "sweep", "--once"),
        "watch a run": ("watch", run, "--once"),
        "predict of a sweep": ("predict", "sweep", "picture.png"),
        "resume": ("resume", run),
        "resume of a sweep": ("resume", "sweep", "--jobs", "1"),
    }


def make(home: Path, program: Callable[[list[str]], object]) -> Path:
    """home/sweep, of two finished jobs."""
    home.mkdir(parents=True, exist_ok=True)
    done = forked(lambda: program(["compare", *TRAIN, "hydra.sweep.dir=sweep"]), home, home / "made", 120)
    assert done == 0, (home / "made").read_text()
    forked(lambda: interrupted(bad_run(home / "sweep"), home / "stopped"), home, home / "made", 60)
    assert (home / "stopped" / POINT).is_dir(), (home / "made").read_text()
    return home


def interrupted(like: Path, path: Path) -> None:
    """A run of the same config, asked to stop in its third step."""
    from layerwise_lr.run import CONFIG, RunFolder, page

    def track(steps: Iterable[int], total: int) -> Iterator[int]:
        for step in steps:
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    folder = RunFolder.claim(path)
    for name in ("command.json", "git.json", CONFIG):
        folder.write_text(name, (like / name).read_text())
    with suppress(KeyboardInterrupt):
        page.run(path, print, track)


def _replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """Every leaf changed."""
    if isinstance(value, dict):
        return {key: _replaced(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, change) for inner in value]
    return change(value)


def _leaves(text: str, change: Callable[[Any], Any]) -> str:
    """Every leaf of a JSON file, of each JSON line, or every last word of a line of another."""
    out = []
    for part in [text] if text.lstrip()[:1] in "[{" and text.count("\n{") == 0 else text.splitlines():
        try:
            out.append(json.dumps(_replaced(json.loads(part), change)))
        except ValueError:
            head, mark, last = part.rpartition(": " if ": " in part else ",")
            out.append(f"{head}{mark}{change(last)}")
    return "\n".join(out) + "\n"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
EVIL = "!!python/object/apply:os.system ['touch ../pwned']\n"
TEXTS: Mapping[str, Callable[[str], str | bytes]] = {
    "empty": lambda _: "",
    "torn": lambda held: held[: len(held) // 2],
    "null": lambda _: "null\n",
    "a list for a mapping": lambda _: "[1, 2, 3]\n",
    "a number": lambda _: "7\n",
    "an empty mapping": lambda _: "{}\n",
    "deep": lambda _: "[" * 100_000,
    "deep mappings": lambda _: '{"a":' * 50_000,
    "deep and whole": lambda _: '{"a":' * 900 + "1" + "}" * 900,
    "not UTF-8": lambda _: b"\xff\xfe\x00\x80" * 100,
    "NUL": lambda _: "\0" * 100,
    "an alias bomb": lambda _: BOMB,
    "a tag": lambda _: EVIL,
    "no numbers": lambda held: _leaves(held, lambda v: float("nan") if _number(v) else v),
    "infinite": lambda held: _leaves(held, lambda v: 1e999 if _number(v) else v),
    "huge": lambda held: _leaves(held, lambda v: int("9" * 400) if _number(v) else v),
    "many digits": lambda held: _leaves(held, lambda v: v) + "9" * 1_000_000,
    "below zero": lambda held: _leaves(held, lambda v: -5 if _number(v) else v),
    "texts": lambda held: _leaves(held, lambda _: "x"),
    "nulls": lambda held: _leaves(held, lambda _: None),
    "lists": lambda held: _leaves(held, lambda _: []),
    "mappings": lambda held: _leaves(held, lambda _: {}),
    "true": lambda held: _leaves(held, lambda _: True),
    "escapes": lambda held: _leaves(held, lambda v: "\x1b]0;owned\x07\x1b[2J" if isinstance(v, str) else v),
    "variables": lambda held: _leaves(held, lambda v: "${oc.env:CANARY}" if isinstance(v, str) else v),
    "climbing": lambda held: _leaves(held, lambda v: "../../victim" if isinstance(v, str) else v),
    "markup": lambda held: _leaves(held, lambda v: "<script>[bold]{{7*7}}" if isinstance(v, str) else v),
    "long": lambda held: _leaves(held, lambda v: "x" * 100_000 if isinstance(v, str) else v),
}


def _number(value: object) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"-?[\d.e+-]+", value.strip()))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _nothing(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _linked(path: Path, target: str) -> None:
    _nothing(path)
    path.symlink_to(target)


def _hard(path: Path) -> None:
    _nothing(path)
    path.hardlink_to(_home(path) / "victim" / "notes.txt")


def _home(path: Path) -> Path:
    return next(p.parent for p in path.parents if p.name == "sweep")


def _large(path: Path, line: bytes) -> None:
    """200 MB."""
    with path.open("wb") as file:
        for _ in range(200):
            file.write(line * (1_000_000 // len(line)))


def _outside(path: Path) -> str:
    return str(_home(path) / "victim" / ("kept" if path.is_dir() else "notes.txt"))


SHAPES: Mapping[str, Callable[[Path], object]] = {
    "missing": _nothing,
    "a folder": lambda path: (_nothing(path), path.mkdir()),
    "a FIFO": lambda path: (_nothing(path), os.mkfifo(path)),
    "a socket": lambda path: (_nothing(path), _socket(path)),
    "a link out": lambda path: _linked(path, _outside(path)),
    "a link to its twin": lambda path: _linked(path, str(_home(path) / "victim" / "twin" / path.name)),
    "a link to nothing": lambda path: _linked(path, str(_home(path) / "victim" / "nothing")),
    "a loop": lambda path: _linked(path, path.name),
    "a link to /dev/zero": lambda path: _linked(path, "/dev/zero"),
    "200 MB of text": lambda path: _large(path, b"a"),
    "200 MB of lines": lambda path: _large(path, b'{"step":1}\n'),
    "not to be read": lambda path: path.chmod(0),
}
FILES_ONLY = ("a hard link", "200 MB of text", "200 MB of lines")
JOBS = (
    "../victim",
    "/",
    "..",
    ".",
    "",
    "a/../../victim",
    "x" * 300,
    "\x1b[31mred",
    "a\0b",
    "victim\n",
    "link",
    "~",
    "-rf",
)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)
        made.bind(path.name)
        os.chdir(here)


class Case(NamedTuple):
    """A file, what is wrong with it, and how it is made so."""

    file: str
    kind: str
    spoil: Callable[[Path], object]


def _job(name: str) -> Callable[[Path], object]:
    """sweep.json whose first job is called `name`; its folder is a failed one if it can be."""

    def spoil(sweep: Path) -> None:
        held = json.loads((sweep / SWEEPS).read_text())
        if name == "link":
            (sweep / "link").symlink_to("../victim")
        first = next(iter(held["jobs"]))
        named = str(sweep.parent / "victim") if name == "/" else name
        (sweep / SWEEPS).write_text(json.dumps({"jobs": {named: held["jobs"].pop(first), **held["jobs"]}}))

    return spoil


def cases() -> Iterator[Case]:
    """All of them; `spoil` is given the sweep's folder."""

    def of_text(at: str, change: Callable[[str], str | bytes]) -> Callable[[Path], object]:
        def spoil(sweep: Path) -> None:
            path = at_of(sweep, at)
            made = change(path.read_bytes().decode("latin-1") if path.exists() else "")
            path.write_bytes(made if isinstance(made, bytes) else made.encode("utf-8", "surrogatepass"))

        return spoil

    def of_shape(at: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda sweep: change(at_of(sweep, at))

    for at in (*FILES, SWEEPS, *POINTS):
        for kind, shape in {**SHAPES, "a hard link": _hard}.items():
            if at not in FOLDERS or kind not in FILES_ONLY:
                yield Case(at, kind, of_shape(at, shape))
        for kind, change in TEXTS.items() if at not in FOLDERS else ():
            yield Case(at, kind, of_text(at, change))
    for name in JOBS:
        yield Case(SWEEPS, f"a job named {name[:20]!r}", _job(name))


def every() -> Iterator[tuple[str, Case]]:
    """All of them under each command that they concern."""
    for case in cases():
        for command in commands("x"):
            if case.file not in POINTS or command in RESUMES:
                yield command, case


def at_of(sweep: Path, at: str) -> Path:
    """The file that a case is about; made where the run wrote none."""
    if at == SWEEPS:
        return sweep / at
    path = bad_run(sweep) / at
    if not os.path.lexists(path):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x\n")
    return path


def bad_run(sweep: Path) -> Path:
    """The first job."""
    return min(p for p in sweep.iterdir() if p.is_dir() and (p / "lrs.csv").exists())


class Found(NamedTuple):
    """What a command did with a case."""

    case: Case
    command: str
    code: int | None
    faults: tuple[str, ...]
    said: str
    seconds: float


def forked(act: Callable[[], object], cwd: Path, told: Path, limit: float) -> int | None:
    """The exit code of `act` in a process of its own; None: it took longer than `limit` seconds."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setsid()
            os.chdir(cwd)
            out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout, sys.stderr = (open(fd, "w", errors="backslashreplace", closefd=False) for fd in (1, 2))  # noqa: SIM115
            os.environ["CANARY"] = VARIABLE
            try:
                act()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 0
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode("utf-8", "replace"))
        os._exit(code)
    until = time.monotonic() + limit
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _outer(home: Path) -> dict[str, str]:
    """A digest of all that is not the case's own."""
    found = {}
    for path in sorted(home.rglob("*")):
        if path.is_relative_to(home / "sweep") or path.is_relative_to(home / "new"):
            continue
        if path.is_relative_to(home / "outputs"):
            continue
        kind = "folder" if path.is_dir() else "file"
        found[str(path)] = kind if kind == "folder" else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def ask(case: Case, command: str, base: Path, home: Path, program: Callable[[list[str]], object]) -> Found:
    """One case under one command, in an empty `home`."""
    shutil.copytree(base / "sweep", home / "sweep")
    (home / "victim" / "kept" / "step_3").mkdir(parents=True)
    (home / "victim" / "notes.txt").write_text(f"{SECRET}\n" * 3)
    (home / "victim" / "kept" / "step_3" / "mine.txt").write_text(SECRET)
    shutil.copytree(bad_run(home / "sweep"), home / "victim" / "twin")
    (home / "victim" / "twin" / "status.json").write_text('{"state": "failed"}')
    shutil.copy(base / "picture.png", home / "picture.png")
    run = bad_run(home / "sweep")
    if command in RESUMES:
        shutil.rmtree(run)
        shutil.copytree(base / "stopped", run)
    words = commands(str(run.relative_to(home)))[command]
    case.spoil(home / "sweep")
    if command in ("run", "sweep into it"):  # else they say that it is finished
        with suppress(OSError):
            (run / "summary.json").unlink() if case.file != "summary.json" else None
    before, began = _outer(home), time.monotonic()
    told = home.parent / f"{home.name}.said"
    code = forked(lambda: program(list(words)), home, told, LIMIT)
    seconds = time.monotonic() - began
    said = told.read_bytes().decode("utf-8", "replace")
    faults = {
        "hang": code is None,
        "traceback": "Traceback" in said or code == 99 or (code is not None and code < 0),
        "written outside": _outer(home) != before,
        "executed": (home / "pwned").exists() or (home.parent / "pwned").exists(),
        "leaked": any(word in said or _in_new_files(home, word, before) for word in (SECRET, VARIABLE)),
        "escape": "\x1b" in said or "\x07" in said,
    }
    told.unlink()
    return Found(case, command, code, tuple(name for name, is_so in faults.items() if is_so), said[-600:], seconds)


def _in_new_files(home: Path, word: str, before: Mapping[str, str]) -> bool:
    for path in home.rglob("*"):
        if str(path) in before or path.is_symlink() or not path.is_file() or path.stat().st_nlink > 1:
            continue
        if path.stat().st_size < 10_000_000 and os.access(path, os.R_OK) and word.encode() in path.read_bytes():
            return True
    return False


def prepared(home: Path) -> tuple[Path, Callable[[list[str]], object]]:
    """(a folder with a sweep to spoil, the command line)."""
    from PIL import Image

    from layerwise_lr.cli import asking, evaluating, exports, hydra_app, program, reproducing, results, watching  # noqa: F401 (forks have them)

    base = make(home / "base", program.main)
    Image.new("L", (8, 8), 90).save(base / "picture.png")
    return base, program.main


def main(report: str = "") -> int:
    """All cases under all commands, counted."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as made:
        base, program = prepared(Path(made))
        lines = []
        wanted, part = os.environ.get("ONLY", ""), int(os.environ.get("PART", "1"))
        for command, case in every():
            name = f"{command}|{case.file}|{case.kind}"
            if not re.search(wanted, name) or int(hashlib.sha256(name.encode()).hexdigest(), 16) % part:
                continue
            home = Path(made) / "case"
            home.mkdir()
            found = ask(case, command, base, home, program)
            for path in home.rglob("*"):
                if not path.is_symlink():
                    path.chmod(0o700)
            shutil.rmtree(home)
            counts.update(found.faults or ("kept",))
            counts["tried"] += 1
            if found.faults:
                lines.append(f"{command} | {case.file} | {case.kind} | {found.code} | {found.faults} | {found.said!r}")
                print(lines[-1][:700], flush=True)
        print(dict(counts))
        if report:
            Path(report).write_text("\n".join(lines))
    return 1 if set(counts) - {"tried", "kept"} else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
