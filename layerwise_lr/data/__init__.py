"""Pictures in, batches out: where data sets are, how they are read, what a run draws of them; the fetched cache.

Uses planning (its errors). Files are read as plain arrays; no code in them can run.
"""

from . import batches, fetch, pictures
from .batches import Dataset, Split, available, train_count
from .files import cache_folder, read_npz, read_torch_file
from .one import picture_files, read_picture
from .pictures import READERS, facts
from .spec import DataSpec, normalise

__all__ = [
    "READERS",
    "DataSpec",
    "Dataset",
    "Split",
    "available",
    "batches",
    "cache_folder",
    "facts",
    "fetch",
    "normalise",
    "picture_files",
    "pictures",
    "read_npz",
    "read_picture",
    "read_torch_file",
    "train_count",
]
