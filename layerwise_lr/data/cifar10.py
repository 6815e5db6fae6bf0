"""CIFAR-10 as published: either archive, or what was unpacked of it.

All is read in memory: nothing is unpacked to disk, no code in a file can run. Pictures are uint8 [N, 3, 32, 32],
labels int64 [N]; the set's own test part is last.
"""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..planning import Absent, UserError
from .files import TORN, read_pickle
from .spec import Pictures


class Form(NamedTuple):
    """One of the two forms in which CIFAR-10 is published; files by name with their md5 or sha256, test last."""

    archive: str
    sha256: str
    folder: str
    files: Mapping[str, str]
    read: Callable[[bytes], tuple[Any, Any]]

    @property
    def address(self) -> str:
        """Where it is published."""
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"


def _batch(packed: bytes) -> tuple[Any, Any]:
    """A pickled batch: data uint8 [N, 3072], labels a list."""
    held = read_pickle(packed)
    if not isinstance(held, dict):
        raise ValueError(f"a {type(held).__name__}, not a mapping with data and labels")
    held = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in held.items()}
    if not {"data", "labels"} <= set(held):
        raise ValueError(f"has no data and labels, but {', '.join(map(str, held)) or 'nothing'}")
    return held["data"], held["labels"]


def _records(packed: bytes) -> tuple[Any, Any]:
    """A binary batch: per picture a byte of label and 3072 of red, green and blue planes."""
    if len(packed) % 3073:
        raise ValueError(f"{len(packed)} bytes are no whole number of pictures (3073 each)")
    rows = np.frombuffer(packed, np.uint8).reshape(-1, 3073)
    return rows[:, 1:], rows[:, 0]


PYTHON = Form(  # sha256 as in keras' cifar10.py, md5 as in torchvision's cifar.py
    "cifar-10-python.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "cifar-10-batches-py",
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    _batch,
)
BINARY = Form(  # sha256 as in torchvision-ruby's cifar10.rb
    "cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-batches-bin",
    {
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    },
    _records,
)


def find(path: Path) -> tuple[Form, Path]:
    """The form that is in (or is) `path`, and its archive or unpacked folder.

    Raises:
        Absent: neither is there.
    """
    for form in (PYTHON, BINARY):
        for place in (path / form.archive, path / form.folder, path):
            named = place.name == form.archive and place.is_file()
            if named or any((place / name).is_file() for name in form.files):
                return form, place
    raise Absent(
        f"data 'cifar10' is not on this machine (looked in {path} for {PYTHON.archive}, {BINARY.archive} or "
        f"either unpacked): download {PYTHON.address} into that folder, or give data.path=..."
    )


def read(path: Path, checksum: bool) -> Pictures:
    """All batches that are in `path`, in their order.

    Args:
        path: see find.
        checksum: refuse what is not the published set; else any number of pictures is accepted.

    Raises:
        UserError: absent, altered, cut short, a member missing, no such pictures or labels.
    """
    form, place = find(path)
    held = _unpacked(form, place, checksum) if place.is_dir() else _members(form, place, checksum)
    parts = []
    for name in form.files:
        if name not in held:
            raise UserError(f"{place}: lacks {name}; get it whole from {form.address}")
        try:
            parts.append(_checked(*form.read(held[name])))
        except ValueError as error:
            raise UserError(f"{place}: {name}: {error}; get it whole from {form.address}") from None
    return Pictures(np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]), len(parts[-1][1]))


def _checked(data: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 3, 32, 32] and int64 [N], if they are that."""
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        what = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"data must be uint8 [N, 3072], it is {what}")
    if len(data) == 0:
        raise ValueError("holds no pictures")
    y = np.asarray(labels)
    if y.shape != data.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(f"labels must be {len(data)} whole numbers, they are {y.dtype} {list(y.shape)}")
    if y.min() < 0 or y.max() > 9:
        raise ValueError(f"label {y.min() if y.min() < 0 else y.max()} is not from 0 to 9")
    return data.reshape(-1, 3, 32, 32), y.astype(np.int64)


def _unpacked(form: Form, folder: Path, checksum: bool) -> dict[str, bytes]:
    held = {name: (folder / name).read_bytes() for name in form.files if (folder / name).is_file()}
    for name, packed in held.items():
        if checksum:
            _compare(folder / name, packed, form.files[name], form)
    return held


def _members(form: Form, archive: Path, checksum: bool) -> dict[str, bytes]:
    """The batches in the archive, by exact name and in one pass."""
    packed, held = archive.read_bytes(), {}
    if checksum:
        _compare(archive, packed, form.sha256, form)
    wanted = {f"{form.folder}/{name}": name for name in form.files}
    try:
        with gzip.open(io.BytesIO(packed)) as stream, tarfile.open(fileobj=stream, mode="r:") as opened:
            for member in opened:
                file = opened.extractfile(member) if member.name in wanted and member.isreg() else None
                if file is not None:
                    held[wanted[member.name]] = file.read()
            while stream.read(1 << 20):  # to the end, where gzip's own checksum is
                pass
    except TORN as error:
        raise UserError(f"{archive}: cut short, or no .tar.gz ({error}); get it whole from {form.address}") from None
    return held


def _compare(path: Path, packed: bytes, published: str, form: Form) -> None:
    kind = "md5" if len(published) == 32 else "sha256"
    found = hashlib.new(kind, packed, usedforsecurity=False).hexdigest()
    if found != published:
        raise UserError(
            f"{path}: its {kind} is {found[:12]}..., the published one {published[:12]}...; get it whole from "
            f"{form.address}, or take it as it is: data.checksum=false"
        )
