"""A file of weights into a model that is not declared: strictly by its own names."""

import numpy as np

from ..planning import ParamTable, UserError, plain
from . import fitting, reading
from .weights import Weights, WeightsSpec, locate


def for_table(table: ParamTable, model: str, spec: WeightsSpec) -> tuple[Weights, list[str]]:
    """What a file holds of a model that is not declared: strictly by its names, behind one prefix, but for the head.

    Args:
        table: the model's parameters and buffers.
        model: for people.
        spec: none, file, or pretrained, which is the package's own to load.

    Raises:
        UserError: the file is unreadable or of another model.
    """
    if spec.name in ("none", "pretrained"):
        whose = "the package's own" if spec.name == "pretrained" else "no"
        return {}, [f"{whose} pretrained weights"]
    path = locate(spec)
    assert path is not None
    file = reading.read(path)
    rows = {row.name: row for row in table}
    body = [name for name in rows if not table.is_head(name)]
    places = [
        (sum(f"{prefix}{name}" in state for name in body), at, prefix)
        for at, state in file.states.items()
        for prefix in {"", *(held.removesuffix(body[0]) for held in state if held.endswith(f".{body[0]}"))}
        if spec.key in (None, at, f"{at}.{prefix}".strip("."))
    ]
    _, at, prefix = max(places, default=(0, "", ""))
    state = file.states.get(at, {})
    missing = [name for name in body if f"{prefix}{name}" not in state]
    other = [name for name in body if name not in missing and np.shape(state[f"{prefix}{name}"]) != rows[name].shape]
    for fault, names in (("missing from the file", missing), ("of another shape", other)):
        if names:
            shown = f"{', '.join(names[:4])}{', ...' if names[4:] else ''}"
            raise UserError(
                f"{file.name} does not fit model {model}: {len(names)} {fault}: {shown}; give weights of this very "
                "model by its own names, or weights=none"
            )
    head = [name for name in rows if table.is_head(name)]
    kept = not spec.renew_head and all(
        f"{prefix}{name}" in state and np.shape(state[f"{prefix}{name}"]) == rows[name].shape for name in head
    )
    taken = {name: fitting.float32(file.name, name, state[f"{prefix}{name}"]) for name in body + head * kept}
    notes = [f"{len(taken)} arrays loaded from {file.name}", *file.notes]
    notes += [f"prefix {plain(prefix)} taken off the names of {file.name}"] if prefix else []
    notes += [] if kept or not head else [f"head {table.head} starts from initial values"]
    left = [
        name for name in state if name.removeprefix(prefix) not in rows and not name.endswith("num_batches_tracked")
    ]
    notes += (
        [f"{len(left)} arrays of {file.name} left out, not the model's: {plain(', '.join(left[:4]))}"] if left else []
    )
    return taken, notes
