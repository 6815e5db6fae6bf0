"""A finished run, opened to be asked: its config, the names of its classes, the weights that it kept.

The folder may be anybody's. What it says is data: checked, never run, and no link in it leads out of it.
"""

import shlex
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..framework import Weights
from ..models import inside, kept_checkpoint
from ..planning import ParamTable, UserError, plain
from . import ranges, reading
from .folder import CONFIG, RunFolder
from .schema import Config

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
        try:
            found = load_file(self.weights_file)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: not readable weights ({plain(error)}); run it again") from None
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
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run's, such as layerwise-lr train prints when it ends")
    config = reading.read(inside(path, CONFIG))
    ranges.check(config)
    summary = _json(path, "summary.json")
    if summary is None:
        raise UserError(_unfinished(path))
    model = config.model
    sizes = (config.data.channels, config.data.image_size)
    if not 1 <= (model.num_classes or 0) <= MOST_CLASSES or (model.in_channels, model.image_size) != sizes:
        raise UserError(f"{path / CONFIG}: the model's sizes are not those of its data; restore it as the run left it")
    assert model.num_classes
    if bad := [name for name in model.options if name in RUNS_CODE or not name.isidentifier()]:
        raise UserError(
            f"{path / CONFIG}: model.options.{plain(bad[0])} is no option, or would run code that the folder names: "
            "never done here"
        )
    return Finished(path, config, _classes(path, model.num_classes), kept_checkpoint(path), summary)


def _json(path: Path, name: str) -> dict[str, Any] | None:
    found = RunFolder(path).read_json(inside(path, name).name)
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{path / name}: holds no facts by name, not a run's; restore it as the run left it")
    return found


def _classes(path: Path, count: int) -> tuple[str, ...]:
    """Their names; of a run that kept none, their numbers."""
    numbers = [str(number) for number in range(count)]
    told = (_json(path, "data.json") or {}).get("classes") or dict(zip(numbers, numbers, strict=True))
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
    status = _json(path, "status.json") or {}
    try:
        state = plain(RunFolder(path).state())
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(
            f"{path / 'status.json'}: does not tell how the run ended; run it again in a new folder"
        ) from None
    if state == "running":
        return f"{path}: the run is not finished yet; wait for its end, or stop it"
    error = status.get("error")
    why = f": {plain(error.get('message', ''), 160)}" if isinstance(error, dict) else ""
    again = shlex.join(["layerwise-lr", "resume", str(path)])
    return f"{path}: the run was not finished ({state}{why}); this goes on with it: {again}"
