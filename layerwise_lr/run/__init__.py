"""One run: its config, its folder, the page that trains what the config says.

Uses plan, data, models and framework. `page.run(folder)` reads the resolved config and writes everything else beside it.
"""

from . import config, page, provenance
from .config import Config, FrameworkSpec
from .folder import CONFIG, RunFolder, read_metrics

__all__ = ["CONFIG", "Config", "FrameworkSpec", "RunFolder", "config", "page", "provenance", "read_metrics"]
