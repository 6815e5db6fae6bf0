"""The reference framework, whose jobs misbehave as their mode says, at their fourth step, for as long as the file that
UNRULY names is there."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework


def segfaults() -> None:
    """And leaves a child behind."""
    subprocess.Popen(["sleep", "1000"])
    ctypes.string_at(0)


def exits() -> None:
    os._exit(3)


def calls_exit() -> None:
    sys.exit(4)


def raises() -> None:
    raise RuntimeError("a layer's name\n" * 5000)


def hangs() -> None:
    """Deaf, as C code is that never returns to Python; with a child, and one that has left its session."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    for leaves in (False, True):
        subprocess.Popen(["sleep", "1000"], start_new_session=leaves)
    time.sleep(1000)


def floods() -> None:
    """60 MiB, past Python's own streams."""
    for number in range(60 * 16):
        os.write(1, b"line %06d\n" % number * 5461)


def eats() -> None:
    """A little itself, more in a child."""
    held = [bytearray(b"1" * 2**20) for _ in range(20)]
    subprocess.run([sys.executable, "-c", "import time; held = b'1' * (300 * 2**20); time.sleep(1000)"])
    del held


class Unruly(ReferenceFramework):
    """Its modes."""

    modes = ("eager", "graph", "segfaults", "exits", "calls_exit", "raises", "hangs", "floods", "eats")

    def __init__(self, device: str, mode: str, *rest: Any) -> None:
        super().__init__(device, mode, *rest)
        self.fault, self.steps = mode, 0

    def train_step(self, *given: Any) -> Any:
        self.steps += 1
        if self.fault not in ("eager", "graph") and self.steps == 12 and Path(os.environ["UNRULY"]).exists():
            globals()[self.fault]()
        return super().train_step(*given)


class Spawned(Unruly):
    """Where every job is an interpreter of its own."""

    fork_safe = False
