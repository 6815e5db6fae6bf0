"""The command line: which command, and what its end is called: exit code, one line of error, Ctrl-C.

A user's mistake is one line and exit code 2; a traceback comes with HYDRA_FULL_ERROR=1. Every command's room is
imported when it is asked for, because a person waits for it: Hydra, matplotlib, above all a framework.
"""

import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from ..data import fetch
from ..framework import proof
from ..planning import CONVENTIONS, ProcessDied, UserError, did_you_mean, printable
from ..run import RunFolder, files, resumable, several, stopping
from . import console, foreign, runs, show
from .first import HELP_FLAGS, said

HYDRA_COMMANDS = ("train", "plan", "verify", "compare", "lr-find")
COMMANDS = (
    *HYDRA_COMMANDS,
    "tune",
    "report",
    "predict",
    "evaluate",
    "export",
    "check",
    "new-plugin",
    "frameworks",
    "fetch",
    "run",
    "resume",
    "reproduce",
    "watch",
)
TOGETHER = ("train", "verify", "run")
"""What several processes do together, where a launcher has started them."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script. Exit codes: 0, 1 (something failed), 2 (the user's mistake), 3 (not reproduced), 130 (Ctrl-C).

    Called without words, as a script is, it ends the process at once: everything is written, and threads of a
    framework may hang in Python's own exit (OneFlow's Graphs do, once in a while).
    """
    with stopping.listening(always=(signal.SIGTERM,)):  # which stops as Ctrl-C does, also under nohup
        try:
            _main(list(sys.argv[1:] if argv is None else argv))
        except SystemExit as end:
            if argv is not None or isinstance(end.code, str):
                raise
            os._exit(_flushed(end.code or 0))


def _flushed(code: int) -> int:
    """The exit code, once all is written: 1 where it cannot be (a full disk), as with all that fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has had enough
        code = code or 1
    except (OSError, ValueError) as error:
        code = code or 1
        with suppress(OSError, ValueError):
            print(f"layerwise-lr: standard output: {getattr(error, 'strerror', error)}", file=sys.stderr)
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    return code


def _spell_out() -> None:
    """A character that the terminal has no code for is spelled out, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _main(words: list[str]) -> NoReturn:
    files.open_streams()
    _spell_out()
    full_error = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall raise, not print
    try:
        sys.exit(_dispatch(words))
    except KeyboardInterrupt:
        if (team := several.launched()) and team.rank:
            sys.exit(130)  # the first says what is kept
        _fail(f"interrupted{_what_is_kept(words)}", 130)
    except BrokenPipeError:  # `layerwise-lr plan | head`: the reader has had enough
        os._exit(1)  # nobody reads: nothing is left to flush
    except proof.LrMismatch as mismatch:
        show.show_mismatch(proof.table(mismatch.records[-1:]))
        _fail(f"{mismatch}; the run was stopped (verify=warn trains all the same)", 1)
    except runs.JobsFailed as failed:
        _fail(str(failed), failed.code)
    except ProcessDied as error:
        _fail(str(error), 1)
    except UserError as error:
        if full_error:
            raise
        _fail(str(error), 2)
    except OSError as error:  # a place: full, read-only, not permitted, gone
        if full_error or not error.errno:
            raise
        _fail(f"{'' if error.filename else 'standard output: '}{files.told(error)}", 1)  # files are named


def _dispatch(words: list[str]) -> int:
    if (text := said(words)) is not None:
        print(text)
        return 0
    if words[0] in HYDRA_COMMANDS and "--version" in words:
        return _dispatch(["--version"])
    command, rest = words[0], words[1:]
    _refuse_many(command, rest)
    if command in ("-sc", "--shell-completion"):
        return _complete(words)
    if command == "verify" and foreign.asked(rest):
        return foreign.verify(rest)
    if command == "tune" and not HELP_FLAGS & set(rest):
        from . import finding

        return finding.tune(rest)
    if command in (*HYDRA_COMMANDS, "tune"):
        return _hydra(command, rest)
    if command == "report":
        from . import results

        return results.report(rest)
    if command == "predict":
        from . import asking

        return asking.predict(rest)
    if command == "evaluate":
        from . import evaluating

        return evaluating.evaluate(rest)
    if command == "export":
        from . import exports

        return exports.export(rest)
    if command == "run":
        return runs.run_folder(rest)
    if command == "resume":
        from . import resuming

        return resuming.resume(rest)
    if command == "reproduce":
        from . import reproducing

        return reproducing.reproduce(rest)
    if command == "watch":
        from . import watching

        return watching.watch(rest)
    if command in COMMANDS:
        from . import checking, machine, skeleton

        rest_of = {"frameworks": machine.frameworks, "fetch": machine.fetch_all, "check": checking.check}
        return {**rest_of, "new-plugin": skeleton.new_plugin}[command](rest)
    hint = "; key=value goes after a command: layerwise-lr train ..." if "=" in command else ""
    raise UserError(
        f"{command!r} is no command; there are: {', '.join(COMMANDS)}{hint or did_you_mean(command, list(COMMANDS))}"
    )


def _refuse_many(command: str, words: Sequence[str]) -> None:
    """In each of several processes that a launcher has started, only what one run does.

    Raises:
        UserError: in the first.
    """
    team = several.launched()
    if team is None or team.size == 1 or (command in TOGETHER and not {"-m", "--multirun"} & set(words)):
        return
    if team.rank:
        several.leave()
    what = (
        "a sweep starts its jobs' processes itself (framework.processes)"
        if command in TOGETHER
        else f"{command} is one process's"
    )
    raise UserError(f"a launcher has started {team.size} processes, and {what}: start it without the launcher")


def _hydra(command: str, words: Sequence[str]) -> int:
    """train, plan, verify, compare: their config is composed."""
    from . import help, hydra_app

    if HELP_FLAGS & set(words):
        config, groups = hydra_app.composed([word for word in words if word not in HELP_FLAGS])
        print(help.page(command, config, groups))
        return 0
    if command == "lr-find":
        from . import finding

        words, spec = finding.split(words)
        hydra_app.run(command, words, partial(finding.lr_find, spec))
        return 0
    act = {"plan": runs.plan, "verify": runs.prove}.get(command, runs.train)
    words, conventions = _compared(words)
    words, goes_on = _resumed(command, words)
    if goes_on:
        from . import resuming

        act = resuming.train
    if conventions:
        if command != "plan":
            raise UserError(f"--compare is plan's: layerwise-lr plan --compare {','.join(conventions)} ...")
        act = partial(runs.compare_conventions, conventions)
    hydra_app.run(command, words, act)
    if command == "compare" and (folder := hydra_app.sweep_folder) and (folder / "sweep.json").exists():
        from . import results

        results.compare(folder)
    return 0


def _compared(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without `--compare a,b`, and the two conventions; none: it is not there."""
    words = list(words)
    at = next((i for i, word in enumerate(words) if word.partition("=")[0] == "--compare"), None)
    if at is None:
        return words, []
    value = words.pop(at).partition("=")[2] or (words.pop(at) if at < len(words) else "")
    names = value.split(",")
    if len(names) != 2 or names[0] == names[1] or not all(names):
        raise UserError(
            f"--compare takes two conventions, such as --compare mae,timm; there are: {', '.join(CONVENTIONS)}"
        )
    return words, names


def _resumed(command: str, words: Sequence[str]) -> tuple[list[str], bool]:
    """The words without resume=..., which says nothing of the run itself, and whether it was auto."""
    asked = [word for word in words if word.startswith("resume=")]
    rest = [word for word in words if word not in asked]
    if not asked:
        return rest, False
    if command != "train" or {"-m", "--multirun"} & set(words):
        raise UserError("resume=auto is a single run's; the same sweep into the same folder goes on by itself")
    if asked[-1] not in ("resume=auto", "resume=never"):
        raise UserError(f"{asked[-1]}: resume is auto or never")
    if asked[-1] == "resume=auto" and not any(word.startswith("hydra.run.dir=") for word in rest):
        raise UserError("resume=auto needs a folder of its own: hydra.run.dir=outputs/mine")
    return rest, asked[-1] == "resume=auto"


def _fail(message: str, code: int) -> NoReturn:
    with suppress(OSError, ValueError):  # nobody may be reading
        print(f"layerwise-lr: {printable(message)}", file=sys.stderr)
    sys.exit(code)


def _what_is_kept(words: Sequence[str]) -> str:
    """After Ctrl-C: what there is of the work, and the command that goes on."""
    if words[:1] in (["run"], ["resume"]):
        return _goes_on(next((Path(word) for word in words[1:] if Path(word).is_dir()), None))
    if words[:1] == ["reproduce"]:
        from . import reproducing

        return reproducing.goes_on()
    if not words or words[0] not in HYDRA_COMMANDS:
        return ""
    from . import hydra_app

    hydra_app.clean_up()
    return _goes_on(hydra_app.sweep_folder or hydra_app.made_folder, words)


def _goes_on(folder: Path | None, words: Sequence[str] = ()) -> str:
    if not folder:
        return " before anything was trained"
    place = console.relative(folder)
    again = shlex.join(["layerwise-lr", "resume", place])
    if jobs := RunFolder(folder).jobs():
        done = sum((folder / job / "summary.json").exists() for job in jobs)
        if words:  # it also begins what was not even claimed
            place = f"hydra.sweep.dir={place}"
            again = shlex.join(["layerwise-lr", *(w for w in words if not w.startswith("hydra.sweep.dir=")), place])
        return f": {done} of {len(jobs)} jobs are finished and kept; this continues: {again}"
    if not (folder / "status.json").exists():
        return " before anything was trained"
    steps = resumable(folder)
    kept = f"step {steps[-1]} is kept" if steps else "nothing is kept yet to go on from"
    return f": {kept} in {place}; this {'continues' if steps else 'trains it from step 0'}: {again}"


def _complete(words: Sequence[str]) -> int:
    """Shell completion: commands first, then Hydra's groups and keys as if the command word were not there."""
    line = os.environ.get("COMP_LINE", "")
    typed = line.split()[1:]
    if "query" in words[-1] and (not typed or (len(typed) == 1 and not line.endswith(" "))):
        print(" ".join(c for c in COMMANDS if c.startswith(typed[0] if typed else "")))
        return 0
    if typed and typed[0] in COMMANDS and typed[0] not in (*HYDRA_COMMANDS, "tune"):
        print(" ".join(fetch.SOURCES) if typed[0] == "fetch" else "")  # the shell offers files
        return 0
    if typed and typed[0] in COMMANDS:
        os.environ["COMP_LINE"] = line.replace(f" {typed[0]}", "", 1)
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    return _hydra("train", words)
