"""Words in, text out: the commands. The only wing that knows Hydra; uses all others."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read once, when NumPy is imported: its idle threads spin, and in
# a sweep's forked jobs one sum took 200 times as long; the order of a sum hangs on their number besides

from .program import main

__all__ = ["main"]
