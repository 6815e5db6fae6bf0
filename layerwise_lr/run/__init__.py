"""One run: its config, its folder, the page that trains what the config says.

Uses planning, data, models and framework. `page.run(folder)` reads the resolved config and writes everything else beside it.
"""

from . import asking, exporting, files, hints, options, page, provenance, ranges, reading, stopping, trackers, watching
from .checkpoints import resumable
from .finished import Finished, looked_through, open_run, plan_in, weights_in
from .folder import CONFIG, RunFolder, read_lines, read_metrics
from .measured import Measured, measured
from .resolving import resolve
from .schema import ComposedConfig, Config, FrameworkSpec

__all__ = [
    "CONFIG",
    "ComposedConfig",
    "Config",
    "Finished",
    "FrameworkSpec",
    "Measured",
    "RunFolder",
    "asking",
    "exporting",
    "files",
    "hints",
    "looked_through",
    "measured",
    "open_run",
    "options",
    "page",
    "plan_in",
    "provenance",
    "ranges",
    "read_lines",
    "read_metrics",
    "reading",
    "resolve",
    "resumable",
    "stopping",
    "trackers",
    "watching",
    "weights_in",
]
