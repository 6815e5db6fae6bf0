"""Pictures in, batches out: where data sets are, how they are read, what a run draws of them; the fetched cache.

Uses planning (its errors). Files are read as plain arrays; no code in them can run.
"""

from . import batches, fetch, pictures
from .batches import Dataset, Split, available, train_count
from .files import cache_folder, read_npz, read_torch_file
from .huggingface import as_timm
from .pictures import READERS, facts
from .spec import DataSpec

__all__ = [
    "READERS",
    "DataSpec",
    "Dataset",
    "Split",
    "as_timm",
    "available",
    "batches",
    "cache_folder",
    "facts",
    "fetch",
    "pictures",
    "read_npz",
    "read_torch_file",
    "train_count",
]
