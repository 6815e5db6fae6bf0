"""A finished run, opened to be asked: its config, the names of its classes, the weights that it kept.

The folder may be anybody's. What it says is data: read by `files` alone, checked, never run.
"""

import math
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..framework import Weights
from ..models import kept_checkpoint
from ..planning import ParamTable, Plan, UserError, plain
from . import answered, files, ranges, reading
from .folder import CONFIG, RunFolder
from .schema import Config
from .shapes import LINES, SHAPES

MOST_CLASSES = 10**6
RUNS_CODE = ("auto_map", "checkpoint_path", "code_revision", "trust_remote_code")
"""Options of models that would run or unpickle what a folder names."""


class Finished(NamedTuple):
    """A finished run.

    Args:
        path: its folder.
        config: final.
        classes: their names, by number.
        weights_file: of the kept checkpoint.
        summary: summary.json.
    """

    path: Path
    config: Config
    classes: tuple[str, ...]
    weights_file: Path
    summary: dict[str, Any]

    @property
    def step(self) -> int:
        """After which the kept weights were."""
        return int(self.weights_file.parent.name[5:])

    @property
    def kept(self) -> str:
        """Which weights these are, for people: "step 60", or "the average at step 60" (ema)."""
        return f"{'the average at ' if self.weights_file.stem == 'ema' else ''}step {self.step}"

    def weights(self, table: ParamTable) -> Weights:
        """The kept weights, which must be the model's: every name and shape of `table`, and no other.

        Raises:
            UserError: they are not, or cannot be read.
        """
        where = f"{self.weights_file}"
        most = 16 * sum(row.numel for row in table) + 100_000_000  # with the header that safetensors allows
        if self.weights_file.stat().st_size > most:
            raise UserError(
                f"{where}: larger than the model that {CONFIG} names; restore the folder as the run left it"
            )
        found = weights_in(self.weights_file)
        shapes = {row.name: row.shape for row in table}
        lacking = [name for name in shapes if name not in found]
        other = [name for name in found if name not in shapes]
        unlike = [name for name in shapes if name in found and found[name].shape != shapes[name]]
        for fault, names in (("missing", lacking), ("not the model's", other), ("of another shape", unlike)):
            if names:
                raise UserError(
                    f"{where}: does not fit the model that {CONFIG} names: {len(names)} {fault}: "
                    f"{plain(', '.join(names[:3]))}; restore the folder as the run left it"
                )
        return found


def open_run(path: Path) -> Finished:
    """The finished run in `path`.

    Raises:
        UserError: there is none, it is not finished, or its files do not go together.
    """
    _check_folder(path)
    config = _config(path)
    summary = files.read_json(path, "summary.json")
    if summary is None:
        raise UserError(_unfinished(path))
    _check_sizes(path, config)
    _check_options(path, config)
    assert config.model.num_classes
    return Finished(path, config, _classes(path, config.model.num_classes), kept_checkpoint(path), summary)


def open_result(path: Path) -> tuple[Config, dict[str, Any]]:
    """Config and summary of the finished run in `path`, whose weights may be gone.

    Raises:
        UserError: likewise.
    """
    _check_folder(path)
    config, summary = looked_through(path)
    if summary is None:
        raise UserError(_unfinished(path))
    _check_options(path, config)
    return config, summary


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run's, such as layerwise-lr train prints when it ends")


def _check_options(path: Path, config: Config) -> None:
    if bad := [name for name in config.model.options if name in RUNS_CODE or not name.isidentifier()]:
        raise UserError(
            f"{path / CONFIG}: model.options.{plain(bad[0])} is no option, or would run code that the folder names: "
            "never done here"
        )


def _config(path: Path) -> Config:
    config = reading.read(path / CONFIG, needed=False)
    try:
        ranges.check(config)
    except UserError as error:
        raise UserError(f"{path / CONFIG}: {plain(error, 600)}") from None
    return config


def _check_sizes(path: Path, config: Config) -> None:
    model, sizes = config.model, (config.data.channels, config.data.image_size)
    if not 1 <= (model.num_classes or 0) <= MOST_CLASSES or (model.in_channels, model.image_size) != sizes:
        raise UserError(f"{path / CONFIG}: the model's sizes are not those of its data; restore it as the run left it")


def looked_through(path: Path) -> tuple[Config, dict[str, Any] | None]:
    """A run's config and summary (None: not finished), all that a report reads of its folder having been looked at.

    Raises:
        UserError: names the first file that is not as a run writes it.
    """
    held = {name: files.read_json(path, name) for name in SHAPES if name != "sweep.json"}
    config = _config(path)
    files.rows(path, "params.csv")
    for name in LINES:
        next(files.records(path, name), None)
    if held["plan.json"] is not None:
        _plan(path, held["plan.json"])
    summary = held["summary.json"]
    if summary is not None:
        _check_sizes(path, config)
        answered.read(path, config.model.num_classes or 0)
        answered.pictures(path, 0)
    told = {} if summary is None else {"": summary, "last.": summary.get("last", {"val": {}, "test": {}})}
    for at, part in told.items():
        for name in ("val", "test"):
            if lacking := {"loss", "accuracy", "balanced_accuracy"} - set(part[name]) if part[name] else set():
                raise UserError(f"{path / 'summary.json'}: {at}{name}.{min(lacking)} is missing; {files.READABLE}")
    return config, summary


def plan_in(path: Path) -> Plan | None:
    """The plan in plan.json; None where there is no such file.

    Raises:
        UserError: it is none.
    """
    held = files.read_json(path, "plan.json")
    return None if held is None else _plan(path, held)


def _plan(path: Path, held: dict[str, Any]) -> Plan:
    try:
        plan = Plan.from_dict(held)
        if not 1 <= plan.total_steps <= ranges.MOST_STEPS:
            raise ValueError(f"total_steps={plan.total_steps}")
        for step in {0, plan.total_steps // 2, plan.total_steps - 1}:
            if not all(math.isfinite(lr) for lr in plan.lrs(step)):
                raise ValueError("an lr is no number")
    except (UserError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{path / 'plan.json'}: not a plan ({plain(error, 120)}); {files.READABLE}") from None
    return plan


def weights_in(path: Path) -> Weights:
    """The arrays of a checkpoint's file.

    Raises:
        UserError: they cannot be read.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable weights ({plain(error)}); run it again") from None


def _classes(path: Path, count: int) -> tuple[str, ...]:
    """Their names; of a run that kept none, their numbers."""
    numbers = [str(number) for number in range(count)]
    told = (files.read_json(path, "data.json") or {}).get("classes") or dict(zip(numbers, numbers, strict=True))
    if not isinstance(told, dict) or set(told) != set(numbers) or not all(isinstance(n, str) for n in told.values()):
        raise UserError(
            f"{path / 'data.json'}: does not name the model's {count} classes; restore it as the run left it"
        )
    names = tuple(told[number] for number in numbers)
    if len(set(names)) < count:
        raise UserError(f"{path / 'data.json'}: names two classes alike; restore it as the run left it")
    return names


def _unfinished(path: Path) -> str:
    """What became of a run without a result, and the way on."""
    status = files.read_json(path, "status.json") or {}
    state = RunFolder(path).state()
    if state == "running":
        return f"{path}: the run is not finished yet; wait for its end, or stop it"
    error = status.get("error")
    why = f": {plain(error.get('message', ''), 160)}" if isinstance(error, dict) else ""
    again = shlex.join(["layerwise-lr", "resume", str(path)])
    return f"{path}: the run was not finished ({state}{why}); this goes on with it: {again}"
