"""Pictures in, batches out: where data sets are, how they are read, what a run draws of them; the fetched cache.

Uses planning (its errors). Files are read as plain arrays; no code in them can run.
"""

from . import batches, fetch, pictures
from .augmenting import AugmentSpec
from .batches import Dataset, Split, available
from .files import cache_folder, read_npz, read_torch_file
from .huggingface import as_timm
from .loading import read_resized
from .one import picture_files, read_picture
from .pictures import READERS, facts
from .spec import DataSpec, normalise
from .splitting import is_size, sized, train_count
from .strips import read_strip, strip
from .targets import check as check_class_weights

__all__ = [
    "READERS",
    "AugmentSpec",
    "DataSpec",
    "Dataset",
    "Split",
    "as_timm",
    "available",
    "batches",
    "cache_folder",
    "check_class_weights",
    "facts",
    "fetch",
    "is_size",
    "normalise",
    "picture_files",
    "pictures",
    "read_npz",
    "read_picture",
    "read_resized",
    "read_strip",
    "read_torch_file",
    "sized",
    "strip",
    "train_count",
]
