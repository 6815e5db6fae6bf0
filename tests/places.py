"""Places that fail as they really do: disks that fill at any page or file, that cannot be written, that go away; files of
others; names; outputs. Each under each command, in a process with mounts of its own.

By hand, all of them, or those that a regex ONLY finds: [ONLY=...] python tests/places.py
"""

import ctypes
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from hostile_folders import ONE, forked, interrupted
from killing import unlike

PAGE = 4096
NEWNS, NEWUSER, PRIVATE, REMOUNT, READ_ONLY = 0x20000, 0x10000000, 0x40000, 32, 1
NOT_RUN = "NOT RUN: this process may not mount a tmpfs: run as root, or allow user namespaces (unshare -Urm true)"


def own_mounts() -> None:
    """What this process mounts from now on is its own, and gone with it.

    Raises:
        OSError: that is not allowed here.
    """
    user, group = os.getuid(), os.getgid()
    _ask("unshare", NEWNS | (NEWUSER if user else 0))
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    _ask("mount", b"none", b"/", None, 0x4000 | PRIVATE, None)


def disk(at: Path, **options: int) -> None:
    """A tmpfs of its own at `at`: size, nr_inodes."""
    at.mkdir(exist_ok=True)
    _ask("mount", b"tmpfs", os.fsencode(at), b"tmpfs", 0, _options(options))


def change(at: Path, flags: int = 0, **options: int) -> None:
    """Other options for it; flags: READ_ONLY."""
    _ask("mount", b"tmpfs", os.fsencode(at), b"tmpfs", REMOUNT | flags, _options(options))


def unprivileged() -> None:
    """From now on the permissions of files are true for this process too."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _ask("capset", header, none)


def _options(given: dict[str, int]) -> bytes:
    return ",".join(f"{key}={value}" for key, value in given.items()).encode()


def _ask(name: str, *words: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*words):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def apart(act: Callable[[], Any]) -> Any:
    """What `act` gives, as JSON can hold it, from a process with mounts of its own.

    Raises:
        PermissionError: no mounts here. RuntimeError: what it raised.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        told: dict[str, Any] = {}
        try:
            own_mounts()
            told = {"gives": None}
            told = {"gives": act()}
        except BaseException as error:
            told = {"raised": traceback.format_exc()} if told else {"forbidden": str(error)}
        with os.fdopen(write, "w") as out:
            json.dump(told, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as held:
        told = json.load(held)
    os.waitpid(pid, 0)
    if "forbidden" in told:
        raise PermissionError(told["forbidden"])
    if "raised" in told:
        raise RuntimeError(told["raised"])
    return told["gives"]


# --- what is there before, and what is asked

RUN = (*ONE, "checkpoint.every=1", "checkpoint.keep=2", "ema.decay=0.9", "optimizer=adamw")
LONG = (
    *(w for w in RUN if not w.startswith(("epochs", "eval_", "checkpoint.every"))),
    "steps=400",
    "eval_every=50",
    "checkpoint.every=25",
)
SWEEP = ("train", "-m", *RUN, "seed=0,1", "hydra.launcher.n_jobs=1")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", *RUN, "hydra.run.dir=run"),
    "train, deep": ("train", *RUN, "hydra.run.dir=a/b/run"),
    "train, on": ("train", *RUN, "hydra.run.dir=stopped", "resume=auto"),
    "sweep": (*SWEEP, "hydra.sweep.dir=new"),
    "sweep, not forked": (*SWEEP, "hydra.sweep.dir=new", "hydra.launcher.fork=never"),
    "sweep, on": (*SWEEP, "hydra.sweep.dir=half"),
    "run": ("run", "claimed"),
    "resume": ("resume", "stopped"),
    "resume of a sweep": ("resume", "half"),
    "report": ("report", "sweep"),
    "predict": ("predict", "whole", "picture.png"),
    "evaluate": ("evaluate", "whole"),
    "export": ("export", "whole", "--to", "safetensors"),
    "export, out": ("export", "whole", "--to", "safetensors", "--out", "x/y.safetensors"),
    "plan": ("plan", *RUN, "hydra.run.dir=plan"),
    "plan, compared": ("plan", "--compare", "mae,timm", "model=vit_tiny", "hydra.run.dir=plan"),
    "verify": ("verify", *RUN, "hydra.run.dir=proof"),
}
ROOMY = {"size": 20_000_000, "nr_inodes": 100_000}


class Home(NamedTuple):
    """A folder with finished, interrupted and claimed runs to copy from, and the command line."""

    path: Path
    program: Callable[[list[str]], object]

    def ask(self, words: Sequence[str], cwd: Path, limit: float = 60) -> tuple[int | None, str]:
        """(exit code, None: it hangs; what was said) of a command in a process of its own."""
        told = self.path / "told"
        code = forked(lambda: self.program(list(words)), cwd, told, limit)
        return code, told.read_bytes().decode("utf-8", "replace")

    def lay(self, at: Path) -> Path:
        """Copies of all of them in `at`."""
        for name in ("whole", "stopped", "sweep"):
            shutil.copytree(self.path / name, at / name)
        shutil.copytree(self.path / "sweep", at / "half")
        first = job(at / "half")
        (first / "summary.json").unlink()
        status = json.loads((first / "status.json").read_text())
        (first / "status.json").write_text(json.dumps({**status, "state": "failed"}))
        (first / "notes.txt").write_text("mine")
        shutil.copytree(self.path / "stopped", at / "claimed")
        shutil.rmtree(at / "claimed" / "checkpoints")
        shutil.copy(self.path / "picture.png", at / "picture.png")
        return at


def job(sweep: Path) -> Path:
    """The first of its jobs."""
    return min(path for path in sweep.iterdir() if path.is_dir())


def prepared(path: Path) -> Home:
    """Made once, for all cases."""
    from PIL import Image

    from layerwise_lr.cli import asking, evaluating, exports, hydra_app, program, results, resuming  # noqa: F401

    home = Home(path, program.main)
    for words in (("train", *RUN, "hydra.run.dir=whole"), (*SWEEP, "hydra.sweep.dir=sweep")):
        code, said = home.ask(words, path)
        assert code == 0, said
    forked(lambda: interrupted(path / "whole", path / "stopped"), path, path / "told", 60)
    Image.new("L", (8, 8), 90).save(path / "picture.png")
    return home


# --- what may be wrong with an answer


def wrong(code: int | None, said: str) -> list[str]:
    """With how a command ended: one line, an exit code, nothing else."""
    lines = [line for line in said.splitlines() if line.startswith(("layerwise-lr: ", "error: "))]
    faults = {
        "hangs": code is None,
        "a traceback": "Traceback" in said or code == 99 or (code or 0) < 0,
        f"exit code {code}": code not in (0, 1, 2),
        f"{len(lines)} lines": bool(code) and not lines,
        "no remedy": bool(code) and not all(";" in line or ": " in line[14:] for line in lines),
    }
    return [f"{name}: {said[-700:]}" for name, is_so in faults.items() if is_so]


def mended(home: Home, at: Path) -> list[str]:
    """There is room again: `run` in `at` can be read and reported, and goes on to what an unbroken run has."""
    if not (at / "run").exists():
        return []
    found = wrong(*home.ask(("report", "run", "--out", str(home.path / "page.html")), at))
    code, said = home.ask(("train", *RUN, "hydra.run.dir=run", "resume=auto"), at)
    return found + ([f"does not go on: {said[-700:]}"] if code else unlike(home.path / "whole", at / "run"))


# --- the faults


def _used(at: Path) -> dict[str, int]:
    held = os.statvfs(at)
    return {"size": (held.f_blocks - held.f_bfree) * PAGE, "nr_inodes": held.f_files - held.f_ffree}


def _closed(at: Path, folders: int, names: int) -> None:
    for path in (at, *at.rglob("*")):
        path.chmod(folders if path.is_dir() else names)
    unprivileged()


def _filled(at: Path) -> None:
    change(at, **{**ROOMY, "size": _used(at)["size"]})


AT_REST: Mapping[str, Callable[[Path], object]] = {
    "full": _filled,
    "no more files": lambda at: change(at, **{**ROOMY, "nr_inodes": _used(at)["nr_inodes"]}),
    "read-only": lambda at: change(at, READ_ONLY, **ROOMY),
    "not to be written": lambda at: _closed(at, 0o555, 0o444),
    "not to be read": lambda at: _closed(at, 0o777, 0),
    "closed": lambda at: [path.chmod(0) for path in at.iterdir()] + [unprivileged()],  # type: ignore[func-returns-value]
}


def at_rest(home: Home, fault: str, command: str) -> list[str]:
    """A place that is so before the command begins."""
    at = home.path / "disk"
    disk(at, **ROOMY)
    AT_REST[fault](home.lay(at))
    return wrong(*home.ask(COMMANDS[command], at))


def filling(home: Home, what: str, left: int, words: Sequence[str] = COMMANDS["train"]) -> list[str]:
    """A disk with room for so many pages, or files: it is full some time during the run."""
    at = home.path / "disk"
    disk(at, **ROOMY)
    change(at, **{**ROOMY, what: _used(at)[what] + left * (PAGE if what == "size" else 1) or 1})
    code, said = home.ask(words, at)
    found = wrong(code, said)
    change(at, **ROOMY)
    if "-m" not in words:
        return found + (mended(home, at) if code else unlike(home.path / "whole", at / "run"))
    code, said = home.ask(words, at)
    pairs = [(path, at / "new" / path.name) for path in (home.path / "sweep").iterdir() if path.is_dir()]
    return found + ([f"does not go on: {said[-700:]}"] if code else [u for pair in pairs for u in unlike(*pair)])


def _gone(path: Path) -> None:
    while path.exists():
        shutil.rmtree(path, ignore_errors=True)  # files come meanwhile


def _away(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.away"))


DURING: Mapping[str, Callable[[Path], object]] = {
    "removed": lambda run: _gone(run),
    "renamed": _away,
    "its parent removed": lambda run: _gone(run.parent),
    "a folder instead": lambda run: (_away(run), run.mkdir(), (run / "mine").write_text("mine")),
    "its copy instead": lambda run: (_away(run), shutil.copytree(run.with_name(f"{run.name}.away"), run)),
    "a file instead": lambda run: (_away(run), run.write_text("mine")),
    "a link instead": lambda run: (_away(run), run.symlink_to("victim")),
    "metrics.jsonl removed": lambda run: (run / "metrics.jsonl").unlink(),
    "metrics.jsonl a link": lambda run: (
        (run / "metrics.jsonl").unlink(),
        (run / "metrics.jsonl").symlink_to("../victim/mine"),
    ),
    "config.resolved.yaml removed": lambda run: (run / "config.resolved.yaml").unlink(),
    "params.csv removed": lambda run: (run / "params.csv").unlink(),
    "lr_check.jsonl removed": lambda run: (run / "lr_check.jsonl").unlink(),
    "status.json a folder": lambda run: ((run / "status.json").unlink(), (run / "status.json").mkdir()),
    "checkpoints removed": lambda run: _gone(run / "checkpoints"),
    "checkpoints a link": lambda run: (_away(run / "checkpoints"), (run / "checkpoints").symlink_to("../victim")),
    "full": lambda run: _filled(next(path for path in run.parents if path.is_mount())),
}
"""What is done to a run's folder while it trains; none of them may end as if nothing were."""


def during(home: Home, what: str, command: str) -> list[str]:
    """It happens when the best checkpoint is there, which stays the best; what is not the run's is untouched."""
    at = home.path / "disk"
    disk(at, **ROOMY)
    (at / "it" / "victim").mkdir(parents=True)
    (at / "it" / "victim" / "mine").write_text("mine")
    note = home.path / "note"
    note.unlink(missing_ok=True)

    def act() -> None:
        def watch() -> None:
            found: list[Path] = []
            while not found:
                time.sleep(0.002)
                with suppress(OSError):  # it changes meanwhile
                    found = sorted((at / "it").glob("run/**/checkpoints/best"))
            note.write_text("found")  # the run may end, and this thread with it, as soon as it happens
            DURING[what](found[0].parents[1])

        threading.Thread(target=watch, daemon=True).start()
        where = "hydra.sweep.dir=run" if command == "sweep" else "hydra.run.dir=run"
        many = ("-m", "seed=0,1", "hydra.launcher.n_jobs=1") if command == "sweep" else ()
        home.program(["train", *many, *LONG, "checkpoint.keep_best=1", "optimizer.lr=1e-12", where])

    told = home.path / "told"
    code = forked(act, at / "it", told, 90)
    said = told.read_text(errors="replace")
    found = wrong(code, said) + ([] if note.exists() else ["it did not happen"])
    victim = at / "it" / "victim"
    if victim.exists() and [(p.name, p.read_text()) for p in victim.rglob("*")] != [("mine", "mine")]:
        found.append("written where it led")
    instead = at / "it" / "run"
    if (
        instead.is_dir()
        and what == "a folder instead"
        and command == "train"
        and [p.name for p in instead.iterdir()] != ["mine"]
    ):
        found.append("written into another folder")
    return found + ([f"ends as if nothing were: {said[-300:]}"] if code == 0 else [])


MINE = ("params.csv", "plan.json", "lr_check.jsonl", "conventions.csv", "metrics.jsonl", "config.resolved.yaml")
OTHERS: Mapping[str, tuple[str, ...]] = {
    **{f"{name} alone": (name,) for name in MINE},
    "all of them": (*MINE, "report.html", "lrs.csv", "log.txt", "compare.json", "status.json", "sweep.json"),
    "checkpoints": ("checkpoints/step_4/model.safetensors",),
    "hidden": (".git/config",),
    "a part": ("thesis.1.part", "thesis.part"),
    "a claim": (".claim.notes",),
}
"""Files of somebody in the folder that is asked for."""
INTO: Mapping[str, tuple[str, ...]] = {
    "train": ("train", *RUN, "hydra.run.dir=u"),
    "train, on": ("train", *RUN, "hydra.run.dir=u", "resume=auto"),
    "sweep": (*SWEEP, "hydra.sweep.dir=u"),
    "compare": ("compare", *RUN, "framework=reference,torch", "hydra.sweep.dir=u"),
    "plan": ("plan", *RUN, "hydra.run.dir=u"),
    "plan, compared": ("plan", "--compare", "mae,timm", "model=vit_tiny", "hydra.run.dir=u"),
    "verify": ("verify", *RUN, "hydra.run.dir=u"),
    "run": ("run", "u"),
    "resume": ("resume", "u"),
}


def _written(at: Path, names: Sequence[str]) -> list[Path]:
    paths = [at / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    return paths


def foreign(home: Home, others: str, command: str) -> list[str]:
    """A folder with somebody's files in it is refused, and is as it was."""
    at = home.path / "disk"
    disk(at, **ROOMY)
    _written(at / "u", OTHERS[others])
    before = sorted(path.name for path in (at / "u").rglob("*"))
    code, said = home.ask(INTO[command], at)
    after = sorted(path.name for path in (at / "u").rglob("*"))
    same = before == after and all((at / "u" / name).read_text() == "mine" for name in OTHERS[others])
    return wrong(code, said) + ([] if same else [f"changed: {after}"]) + ([] if code == 2 else [f"not refused: {said}"])


OVER: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "the page": (("report", "sweep"), ("sweep/report.html",)),
    "a page": (("report", "sweep", "--out", "u.html"), ("u.html",)),
    "an export": (("export", "whole", "--to", "safetensors", "--out", "u.safetensors"), ("u.safetensors",)),
    "its facts": (("export", "whole", "--to", "safetensors", "--out", "u.safetensors"), ("u.safetensors.json",)),
    "in export/": (("export", "whole", "--to", "safetensors"), ("whole/export/model.safetensors",)),
    "a job's folder": ((*SWEEP, "hydra.sweep.dir=half"), ("half/JOB/notes.txt", "half/JOB/checkpoints/notes.txt")),
    "a run's": (("resume", "stopped"), ("stopped/a.txt", "stopped/checkpoints/a.txt", "stopped/checkpoints/resume/a")),
    "a checkpoint": (
        ("resume", "stopped"),
        ("stopped/checkpoints/step_mine/a.txt", "stopped/checkpoints/resume/step_x"),
    ),
    "a new beginning": (
        ("run", "claimed"),
        ("claimed/notes.txt", "claimed/checkpoints/a", "claimed/checkpoints/step_z/a"),
    ),
}
"""A command, and files of somebody where it writes or clears."""


def over(home: Home, what: str) -> list[str]:
    """They are there afterwards, as they were."""
    at = home.path / "disk"
    disk(at, **ROOMY)
    home.lay(at)
    words, names = OVER[what]
    paths = _written(at, [name.replace("JOB", job(at / "half").name) for name in names])
    code, said = home.ask(words, at)
    kept = all(path.is_file() and path.read_text() == "mine" for path in paths)
    return wrong(code, said) + ([] if kept else [f"lost: {said[-300:]}"])


NAMES = ("a\nb", "a b", "a=b", "\udcff", "\u00fc", "x" * 200, "-rf", "~x", "a'b", 'a"b', "a[bold]b", "\x1b[31m", "a,b")
LONGEST = ("x" * 300, "/".join(["y" * 200] * 25))


def named(home: Home, name: str, command: str) -> list[str]:
    """A run, or its report, in a folder of that name."""
    at = home.path / "disk"
    disk(at, **ROOMY)
    if command == "report" and name not in LONGEST:
        shutil.copytree(home.path / "sweep", at / name)
    quoted = name.replace('"', '\\"')
    words = ("train", *RUN, f'hydra.run.dir="{quoted}"') if command == "train" else ("report", f"./{name}")
    code, said = home.ask(words, at)
    good = (code != 0) if name in LONGEST else (code == 0 and (at / name).is_dir())
    return wrong(code, said) + ([] if good and "\x1b" not in said else [f"ends with {code}: {said[-300:]}"])


OUTPUTS: Mapping[str, str] = {
    "closed": ">&-",
    "full": ">/dev/full",
    "nobody reads": "| true",
    "one line is read": "| head -1",
    "no input": "<&-",
    "no error": "2>&-",
    "none at all": "<&- >&- 2>&-",
    "ASCII": "",
}
"""In the shell's words."""


def output(home: Home, what: str, command: str) -> list[str]:
    """What is said cannot be said: no traceback, and what was begun is whole or goes on."""
    at = home.path / "disk"
    disk(at, **ROOMY)
    home.lay(at)
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LANG": "C"} if what == "ASCII" else {}
    line = f"{shlex.join([sys.executable, '-m', 'layerwise_lr', *COMMANDS[command]])} {OUTPUTS[what]}"
    environment = {**os.environ, **ascii_only, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(["bash", "-c", line], cwd=at, env=environment, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    quiet = "error" in what or "none" in what
    found = [fault for fault in wrong(done.returncode, said) if not (quiet and fault.startswith("0 lines"))]
    return found + (mended(home, at) if command == "train" else [])


def cases() -> dict[str, Callable[[Home], list[str]]]:
    """All of them, by name."""
    found: dict[str, Callable[[Home], list[str]]] = {}
    for fault, command in product(AT_REST, COMMANDS):
        found[f"at rest|{fault}|{command}"] = partial(at_rest, fault=fault, command=command)
    for what, left in (*product(("size",), range(42)), *product(("nr_inodes",), range(46))):
        found[f"filling|{what}|{left}"] = partial(filling, what=what, left=left)
    for what, left in product(("size", "nr_inodes"), range(0, 78, 3)):
        found[f"filling, a sweep|{what}|{left}"] = partial(filling, what=what, left=left, words=COMMANDS["sweep"])
    for what, command in product(DURING, ("train", "sweep")):
        if (what, command) not in NO_SUCH:
            found[f"during|{what}|{command}"] = partial(during, what=what, command=command)
    for others, command in product(OTHERS, INTO):
        found[f"foreign|{others}|{command}"] = partial(foreign, others=others, command=command)
    for what in OVER:
        found[f"over|{what}"] = partial(over, what=what)
    for name, command in product((*NAMES, *LONGEST), ("train", "report")):
        found[f"named|{ascii(name)[1:-1][:20]}|{command}"] = partial(named, name=name, command=command)
    for what, command in product(OUTPUTS, ("train", "sweep", "run", "report", "predict", "plan")):
        found[f"output|{what}|{command}"] = partial(output, what=what, command=command)
    return found


NO_SUCH = {("a link instead", "sweep"), ("a file instead", "sweep"), ("its copy instead", "sweep")}
"""What a job's name leads to is another's: the sweep's outcome is read there."""


def main() -> int:
    """All cases, counted."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as made:
        home = prepared(Path(made))
        for name, case in cases().items():
            if not re.search(os.environ.get("ONLY", ""), name):
                continue
            faults = apart(partial(case, home))
            counts.update({name.partition("|")[0]: 1, "tried": 1, "kept": not faults})
            if faults:
                print(name, faults, flush=True)
    print(dict(counts))
    return int(counts["tried"] != counts["kept"])


if __name__ == "__main__":
    sys.exit(main())
