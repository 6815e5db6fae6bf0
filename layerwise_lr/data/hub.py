"""Sets of Hugging Face's `datasets`: a folder that save_to_disk wrote, parquet files, or a name on the hub.

The library hands out the pictures' bytes; they are decoded here, by the formats and rules of decoding.py.
"""

import io
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..planning import Absent, UserError, plain
from .broken import without
from .decoding import read_picture, why
from .folders import PARTS, natural
from .spec import TRAIN, DataSpec, Pool, resize
from .tables import LABEL

SCRIPTS = 4  # the first version that runs no code of a set's own


class Part(NamedTuple):
    """One split: its rows with a label, in which column their pictures are, and the labels as words."""

    name: str
    held: Any
    image: str
    rows: list[int]
    words: list[str]
    order: tuple[str, ...]

    def pictures(self) -> Iterator[tuple[str, bytes | None, str | None]]:
        """(what it is called, its bytes, or else the file they are in)."""
        for row in self.rows:
            entry = self.held[row][self.image] or {}
            yield f"{self.name} {row}", entry.get("bytes"), entry.get("path")


class HubSet(NamedTuple):
    """All splits: labels, parts and names as a pool without pictures, and where these are."""

    labels: Pool
    parts: tuple[Part, ...]


def find(path: str) -> None:
    """Whether it may be there: as a file or a folder, or by its looks on the hub.

    Raises:
        Absent: it is neither.
    """
    named = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not ("/" in path and Path(path).parent.exists())
    if not Path(path).expanduser().exists() and not named:
        raise Absent(f"data.path={plain(path, 400)}: no such file or folder, and no name of a set on the hub")


def read(path: str, label: str | None) -> HubSet:
    """The set's labels, and where its pictures are.

    Args:
        path: a folder or a .parquet file; where there is none, a name on the hub.
        label: the column of the labels; None: the one that is of classes, or is called so.

    Raises:
        UserError: `datasets` is missing or cannot load it; it has no pictures with labels.
    """
    of = f"data.path={plain(path, 400)}"
    loaded = _loaded(path, of)
    known = {name: part for name in loaded if (part := PARTS.get(name.lower())) is not None}
    known = known or {name: TRAIN for name in loaded if len(loaded) == 1}
    if not known:
        raise UserError(f"{of}: has splits {plain(', '.join(loaded), 200)}, none of which is train, validation or test")
    parts = [_part(name, loaded[name], label, of) for name in known]
    left = [f"{len(held)} of split {plain(name)}" for name, held in loaded.items() if name not in known]
    left += [f"{n} of {plain(p.name)} without a label" for p in parts if (n := len(p.held) - len(p.rows))]
    words = [word for part in parts for word in part.words]
    names = parts[0].order or tuple(sorted(set(words), key=natural))
    if set(words) - set(names) or len(names) < 2:
        raise UserError(f"{of}: needs at least two classes, the same in every split; it has {plain(names, 200)}")
    number = {name: n for n, name in enumerate(names)}
    labels = Pool(
        None,
        np.array([number[word] for word in words], np.int64),
        np.repeat(np.array([*known.values()], np.int8), [len(p.rows) for p in parts]) if len(known) > 1 else None,
        names,
        notes=(f"left out of {plain(path, 160)}: {', '.join(left)}",) if left else (),
    )
    return HubSet(labels, tuple(parts))


def pool(found: HubSet, spec: DataSpec) -> Pool:
    """Its pictures."""
    held, names, faults = found.labels, list[str](), list[str]()
    x = np.zeros((len(held.y), spec.channels, spec.image_size, spec.image_size), np.uint8)
    for number, (name, packed, file) in enumerate(entry for part in found.parts for entry in part.pictures()):
        names.append(name)
        try:
            packed = Path(file or "").read_bytes() if packed is None else packed
            x[number] = resize(read_picture(io.BytesIO(packed), spec.channels), spec)
            faults.append("")
        except Exception as error:  # Pillow promises no list of what a faulty one raises
            faults.append(why(error))
    whole = Pool(x, held.y, held.parts, held.names, notes=held.notes)
    return without(whole, names, faults, f"data.path={spec.path}", spec.skip_broken)


def _loaded(path: str, of: str) -> Mapping[str, Any]:
    """Its splits by name."""
    if find_spec("datasets") is None:
        raise UserError("data=hf_dataset needs Hugging Face's datasets: pip install 'layerwise-lr[datasets]'")
    import datasets

    if int(datasets.__version__.partition(".")[0]) < SCRIPTS:
        raise UserError(
            f"data=hf_dataset: datasets {datasets.__version__} can run a set's own code: pip install -U datasets"
        )
    place = Path(path).expanduser()
    if place.exists():
        datasets.disable_progress_bars()  # nothing is on its way
    try:
        if not place.exists():
            held = datasets.load_dataset(path)
        elif (place / "dataset_dict.json").exists() or (place / "state.json").exists():
            held = datasets.load_from_disk(str(place))
        else:
            held = datasets.load_dataset("parquet", data_files=_parquet(place, of))
    except UserError:
        raise
    except Exception as error:  # whatever of the library's, of a file's or of the network's
        where = "cannot be read" if place.exists() else "not a folder here, and not to be had from the hub"
        raise UserError(f"{of}: {where} ({plain(error, 160)})") from None
    return held if isinstance(held, dict) else {"train": held}


def _parquet(place: Path, of: str) -> dict[str, list[str]]:
    """The files by split, as their names begin: data/train-00000-of-00002.parquet; train where a name says nothing."""
    files = [place] if place.is_file() else sorted(place.rglob("*.parquet"))
    if not files or (place.is_file() and place.suffix != ".parquet"):
        raise UserError(f"{of}: neither what save_to_disk wrote nor parquet files")
    found = dict[str, list[str]]()
    for file in files:
        word = re.split(r"[^a-z]", file.name.lower())[0]
        found.setdefault(word if word in PARTS else "train", []).append(str(file))
    return found


def _part(name: str, held: Any, label: str | None, of: str) -> Part:
    """One split."""
    import datasets

    features = held.features
    packed = [c for c, kind in features.items() if isinstance(kind, dict) and {"bytes", "path"} == set(kind)]
    images = [c for c, kind in features.items() if isinstance(kind, datasets.Image)] or packed
    classes = [c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    asked = [label] if label else [c for c in LABEL if c in features][:1] or classes
    if not images or len(asked) != 1 or asked[0] not in features:
        columns = plain(", ".join(f"{c} ({type(kind).__name__})" for c, kind in features.items()), 300)
        way = "the labels' is not known: data.label=..." if images else "none of them holds pictures"
        raise UserError(f"{of}: {way}; its columns are: {columns}")
    column = asked[0]
    order = tuple(getattr(features[column], "names", None) or ())
    known = held.select_columns([column]).to_dict()[column]
    rows = [row for row, word in enumerate(known) if word is not None and word != -1]  # -1: what the hub calls no label
    words = [order[known[row]] if order else str(known[row]) for row in rows]
    undecoded = held.cast_column(images[0], datasets.Image(decode=False)).select_columns([images[0]])
    return Part(name, undecoded, images[0], rows, words, order)
