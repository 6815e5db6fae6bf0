"""Pictures that cannot be read: all of them told at once, or left out where that is asked for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..planning import UserError, plain
from .decoding import look
from .spec import Pool

SHOWN = 10


def sound(pool: Pool, root: Path, of: str, skip: bool) -> Pool:
    """The pool of files without those that cannot be read, with notes of what was found in them; see `without`.

    Their names are told as they are below `root`.
    """
    looks = [look(path) for path in pool.files]
    framed = sum(framed for _, framed in looks)
    notes = [f"of several frames or pages the first is taken: {framed} of {len(looks)} pictures"] if framed else []
    pool = replace(pool, notes=(*pool.notes, *notes))
    shown = [plain(path.relative_to(root) if path.is_relative_to(root) else path, 160) for path in pool.files]
    return without(pool, shown, [fault for fault, _ in looks], of, skip)


def without(pool: Pool, pictures: Sequence[str], faults: Sequence[str], of: str, skip: bool) -> Pool:
    """The pool without the pictures that have a fault, and a note of them.

    Args:
        pool: of files or of arrays.
        pictures: what each is called.
        faults: what is wrong with each; empty: nothing.
        of: where they come from.
        skip: data.skip_broken.

    Raises:
        UserError: some have one, and are not to be skipped or are all that a class has.
    """
    broken = [f"{picture} ({fault})" for picture, fault in zip(pictures, faults, strict=True) if fault]
    if not broken:
        return pool
    listed = ", ".join(broken[:SHOWN]) + (f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else "")
    said = f"{len(broken)} of {len(faults)} pictures cannot be read: {listed}"
    if not skip:
        raise UserError(f"{of}: {said}; mend or remove them, or leave them out: data.skip_broken=true")
    keep = np.array([not fault for fault in faults])
    for label, name in enumerate(pool.names):
        if not keep[pool.y == label].any():
            raise UserError(f"{of}: {said}; of class {plain(name)} none is left: mend them")
    return Pool(
        None if pool.x is None else pool.x[keep],
        pool.y[keep],
        None if pool.parts is None else pool.parts[keep],
        pool.names,
        tuple(path for path, kept in zip(pool.files, keep, strict=False) if kept),
        (*pool.notes, f"left out: {said}"),
    )
