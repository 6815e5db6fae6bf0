"""Reading run folders: statistics, verdict, advice, plots, the page. Writes the page and its pictures, nothing else.

Uses planning and run. Importing it imports matplotlib (half a second): only who draws does.
"""

from .advice import counts, notes, resume, short
from .choosing import Choice, choose
from .claims import BETTER, FEW, SAME, WORSE
from .compare import LEGEND, LEGEND_NOISE, Comparison
from .report import HOW, Report, answers, compare_plot, compared_to, lr_find_plot, lr_heatmap, run_log, tables
from .study import Study

__all__ = [
    "BETTER",
    "FEW",
    "HOW",
    "LEGEND",
    "LEGEND_NOISE",
    "SAME",
    "WORSE",
    "Choice",
    "Comparison",
    "Report",
    "Study",
    "answers",
    "choose",
    "compare_plot",
    "compared_to",
    "counts",
    "lr_find_plot",
    "lr_heatmap",
    "notes",
    "resume",
    "run_log",
    "short",
    "tables",
]
