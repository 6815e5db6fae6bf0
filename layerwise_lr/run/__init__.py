"""One run: its config, its folder, the page that trains what the config says.

Uses planning, data, models and framework. `page.run(folder)` reads the resolved config and writes everything else beside it.
"""

from . import (
    answered,
    asking,
    exporting,
    files,
    hints,
    options,
    page,
    provenance,
    range_test,
    ranges,
    reading,
    reproducing,
    several,
    stopping,
    trackers,
    watching,
)
from .checkpoints import resumable
from .finished import Finished, looked_through, open_result, open_run, plan_in, weights_in
from .folder import CONFIG, RunFolder, read_lines, read_metrics
from .measured import Measured, measured
from .resolving import resolve
from .schema import ComposedConfig, Config, FrameworkSpec
from .stopping import Pruned

__all__ = [
    "CONFIG",
    "ComposedConfig",
    "Config",
    "Finished",
    "FrameworkSpec",
    "Measured",
    "Pruned",
    "RunFolder",
    "answered",
    "asking",
    "exporting",
    "files",
    "hints",
    "looked_through",
    "measured",
    "open_result",
    "open_run",
    "options",
    "page",
    "plan_in",
    "provenance",
    "range_test",
    "ranges",
    "read_lines",
    "read_metrics",
    "reading",
    "reproducing",
    "resolve",
    "resumable",
    "several",
    "stopping",
    "trackers",
    "watching",
    "weights_in",
]
