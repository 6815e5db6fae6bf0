"""`lr-find`: the lr range test of a run; `tune`: it, then a small grid around what it suggests, then the report."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ..planning import UserError
from ..run import Config, RunFolder, files, range_test
from . import console, runs
from .words import Given, Parser

FLAGS = ("--from", "--to", "--steps")
FOUND = "lr_find.json"
GRID = {"grouping.layer_decay": "0.65,0.75,0.9,1.0", "seed": "0,1,2"}
"""Of `tune`, unless the user says: besides the lrs, a third of what was found, that, and three times that."""


def split(words: Sequence[str]) -> tuple[list[str], range_test.RangeSpec]:
    """The words without those of the range test, and what these say."""
    mine, rest = [], list(words)
    for flag in FLAGS:
        at = next((i for i, word in enumerate(rest) if word.partition("=")[0] == flag), None)
        if at is not None:
            mine += rest[at : at + 1 + ("=" not in rest[at])]
            del rest[at : at + 1 + ("=" not in rest[at])]
    usual = range_test.RangeSpec()
    parser = Parser("layerwise-lr lr-find", description="")
    parser.add_argument("--from", type=float, default=usual.low, dest="low")
    parser.add_argument("--to", type=float, default=usual.high, dest="high")
    parser.add_argument("--steps", type=int, default=usual.steps)
    return rest, range_test.RangeSpec(**vars(parser.parse_args(mine)))


def lr_find(spec: range_test.RangeSpec, config: Config, path: Path, given: Given) -> None:
    """The range test, into a folder of its own."""
    if "optimizer.lr" in given.keys:
        raise UserError("optimizer.lr would be ignored: lr-find tries --from to --to")
    config = runs.final(config, given)
    runs.refuse_run(path)
    console.say(f"loading {config.framework.name} ...")
    runs.preflight(config, device=True)
    runs.tell([config])
    folder = RunFolder(path)
    found = range_test.range_test(config, spec, folder, console.text, console.track)
    from ..report import lr_find_plot

    lr_find_plot(found, path / "lr_find.png")
    last = f"step {len(found.lrs)} of {spec.steps}, lr {found.lrs[-1]:.2g}"
    ended = "the loss diverged" if found.ended(found.smoothed) else "all were tried"
    console.say(f"{ended} at {last}")
    console.table(
        ["base lr", "is where"],
        [
            [f"{found.lowest():.2g}", "the validation loss, smoothed, is lowest"],
            [f"{found.steepest():.2g}", "it falls fastest"],
            [f"{found.suggestion():.2g}", "a tenth of the lowest: the suggestion"],
        ],
        right=[0],
    )
    console.text(
        "It is where a grid may begin, not where it ends: one seed, each lr for one step, no schedule; "
        "of layer_decay it says nothing (the layers' shares of the lr were kept)."
    )
    for doubt in found.doubts():
        console.text(f"doubt: {doubt}")
    console.say(f"lr_find.json lr_find.png params.csv plan.json lrs.csv in\n{console.relative(path)}")


def tune(words: Sequence[str]) -> int:
    """`layerwise-lr tune KEYS...`: the exit code of its report."""
    words, spec = split(words)
    keys = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if refused := next((key for key in keys if key in ("optimizer.lr", "hydra.run.dir") or key.startswith("-")), None):
        raise UserError(f"{refused} is not tune's: it finds the lr, and runs a grid into hydra.sweep.dir")
    now = datetime.now()
    place = Path(keys.get("hydra.sweep.dir") or f"outputs/tune_{now:%Y-%m-%d_%H-%M-%S-%f}")
    own = [word for word in words if not word.startswith(("hydra.", *(f"{key}=" for key in GRID)))]
    lr = _found(place / "lr_find", own, spec)
    grid = [f"{key}={keys.get(key, values)}" for key, values in GRID.items()]
    lrs = ",".join(f"{lr * times:.2g}" for times in (1 / 3, 1, 3))
    launcher = [word for word in words if word.startswith("hydra.launcher.")]
    sweep = ["train", "-m", *own, f"optimizer.lr={lrs}", *grid, *launcher, f"hydra.sweep.dir={place}"]
    for command in (sweep, ["report", str(place)]):
        console.say(f"\n{shlex.join(['layerwise-lr', *command])}")
        if code := _run(command):
            return code
    return 0


def _found(place: Path, own: Sequence[str], spec: range_test.RangeSpec) -> float:
    """The lr that the range test suggests; one that was made before is not made again."""
    if not (place / FOUND).exists():
        flags = ["--from", f"{spec.low:g}", "--to", f"{spec.high:g}", "--steps", str(spec.steps)]
        command = ["lr-find", *flags, *own, f"hydra.run.dir={place}"]
        console.say(shlex.join(["layerwise-lr", *command]))
        if code := _run(command):
            raise SystemExit(code)
    held = files.read_json(place, FOUND)
    return float(held["suggestion"])


def _run(command: Sequence[str]) -> int:
    """A command in a process of its own: what has loaded a framework cannot fork jobs any more."""
    sys.stdout.flush()
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}  # program.py's own
    return subprocess.run([sys.executable, "-m", "layerwise_lr", *command], env=environment).returncode
