"""Many runs: the sweep's plan on disk, and its jobs, each in a process of its own.

Uses run, and data and framework to load them once for forked jobs.
"""

from . import jobs, planning, searching
from .jobs import Options
from .logs import LOG
from .searching import Search

__all__ = ["LOG", "Options", "Search", "jobs", "planning", "searching"]
