"""Reading run folders: statistics, verdict, advice, plots, the page. Writes the page and its pictures, nothing else.

Uses planning and run. Importing it imports matplotlib (half a second): only who draws does.
"""

from .advice import counts, notes, resume, short
from .choosing import Choice, choose
from .compare import LEGEND, LEGEND_NOISE, Comparison
from .report import HOW, Report, answers, compare_plot, lr_heatmap, run_log, table
from .study import Study

__all__ = [
    "HOW",
    "LEGEND",
    "LEGEND_NOISE",
    "Choice",
    "Comparison",
    "Report",
    "Study",
    "answers",
    "choose",
    "compare_plot",
    "counts",
    "lr_heatmap",
    "notes",
    "resume",
    "run_log",
    "short",
    "table",
]
