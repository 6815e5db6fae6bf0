"""Many runs: the sweep's plan on disk, and its jobs, each in a process of its own.

Uses run, and data and framework to load them once for forked jobs.
"""

from . import engines, jobs, planning, searching
from .logs import LOG
from .options import LAUNCHERS, Here, Launch, Options
from .searching import Search

__all__ = ["LAUNCHERS", "LOG", "Here", "Launch", "Options", "Search", "engines", "jobs", "planning", "searching"]
