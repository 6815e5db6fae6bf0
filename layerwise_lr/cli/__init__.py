"""Words in, text out: the commands. The only wing that knows Hydra; uses all others."""

from .program import main

__all__ = ["main"]
