"""Words in, text out: the commands. The only wing that knows Hydra; uses all others."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import first

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read once, when NumPy is imported: its idle threads spin, and in
# a sweep's forked jobs one sum took 200 times as long; the order of a sum hangs on their number besides


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script: `program.main`, whose imports the first page and the version need not wait for."""
    text = first.said(sys.argv[1:] if argv is None else argv)
    if text is not None and first.written(text):
        sys.exit(0)
    from . import program

    program.main(argv)


__all__ = ["main"]
