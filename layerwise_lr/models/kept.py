"""Which of its checkpoints a run kept as its result: asked of a finished run, and of one whose weights another starts from.

The folder may be anybody's: no link in it leads out of it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from ..planning import UserError, plain


def kept_checkpoint(path: Path, marks: Sequence[str] = ("best", "latest")) -> Path:
    """The weights that the run in `path` kept: those that checkpoints/best names; without it, of checkpoints/latest's step.

    Args:
        path: the run's folder.
        marks: what is looked at, in this order.

    Raises:
        UserError: there are none.
    """
    again = "layerwise-lr run on a copy of its config.resolved.yaml trains it again"
    for name in marks:
        mark = inside(path, f"checkpoints/{name}")
        if not mark.is_file():
            continue
        named = mark.read_bytes()[:100].decode(errors="replace").strip()
        if not re.fullmatch(r"step_[0-9]{1,9}(/(model|ema)\.safetensors)?", named):
            raise UserError(f"{mark}: names no checkpoint ({plain(named, 40)}); {again}")
        weights = inside(path, f"checkpoints/{named}" + ("" if "/" in named else "/model.safetensors"))
        if not weights.is_file():
            raise UserError(f"{mark}: names {named}, and {weights} is not there; {again}")
        return weights
    raise UserError(f"{path}: keeps no checkpoint; {again}")


def inside(path: Path, name: str) -> Path:
    """`name` in the folder `path`.

    Raises:
        UserError: a link leads out of the folder.
    """
    try:
        real, home = (path / name).resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path / plain(name)}: {plain(error)}") from None
    if not real.is_relative_to(home):
        raise UserError(f"{path / name}: leads out of the run's folder; put the file itself there")
    return path / name
