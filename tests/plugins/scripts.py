"""Training scripts, run by `layerwise-lr verify --script` as a user does it."""

import os
import subprocess
import sys
from textwrap import dedent


def verified(folder, code, *words, factory=False):
    """(exit code, stdout, stderr) of verify on a script, or on make() of a module."""
    (folder / "mine.py").write_text(dedent(code))
    asked = ("--factory", "mine:make") if factory else ("--script", "mine.py")
    command = [sys.executable, "-m", "layerwise_lr", "verify", *words, *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=dict(os.environ))
    return done.returncode, done.stdout, done.stderr
