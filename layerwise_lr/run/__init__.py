"""One run: its config, its folder, the page that trains what the config says.

Uses planning, data, models and framework. `page.run(folder)` reads the resolved config and writes everything else beside it.
"""

from . import asking, exporting, hints, options, page, provenance, reading
from .checkpoints import resumable
from .finished import Finished, open_run
from .folder import CONFIG, RunFolder, read_lines, read_metrics
from .resolving import resolve
from .schema import ComposedConfig, Config, FrameworkSpec

__all__ = [
    "CONFIG",
    "ComposedConfig",
    "Config",
    "Finished",
    "FrameworkSpec",
    "RunFolder",
    "asking",
    "exporting",
    "hints",
    "open_run",
    "options",
    "page",
    "provenance",
    "read_lines",
    "read_metrics",
    "reading",
    "resolve",
    "resumable",
]
