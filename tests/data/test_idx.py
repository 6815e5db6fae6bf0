import gzip
import struct

import numpy as np
import pytest

from layerwise_lr.data import batches
from layerwise_lr.data.idx import IDX
from layerwise_lr.data.pictures import DataSpec, facts, load_pool
from layerwise_lr.planning.errors import Absent, UserError


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def digits():
    """200 real digits 28x28; the last 50 will be the test part."""
    pool = load_pool(DataSpec())
    return pool.x[:200, 0], pool.y[:200].astype(np.uint8)


def write_idx(folder, x, y, packed=False):
    folder.mkdir(exist_ok=True)
    parts = zip(IDX, (x[:150], y[:150], x[150:], y[150:]), strict=True)
    for name, array in parts:
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return folder


def idx_spec(folder, **options):
    return DataSpec(name="idx", path=str(folder), train_size=100, val_size=40, test_size=50, **options)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_pictures_come_as_written(packed, digits, tmp_path):
    x, y = digits
    spec = idx_spec(write_idx(tmp_path, x, y, packed))
    pool = load_pool(spec)
    assert np.array_equal(pool.x[:, 0], x)
    assert np.array_equal(pool.y, y)
    assert facts(spec)[:3] == (200, 10, 50)
    assert {p.tobytes() for p in batches.load(spec, 0).test.x} == {p.tobytes() for p in x[150:]}


def test_facts_of_idx_need_no_pictures(digits, tmp_path):
    write_idx(tmp_path, *digits)
    for name in (IDX[0], IDX[2]):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:16])
    assert facts(idx_spec(tmp_path))[:3] == (200, 10, 50)
    with pytest.raises(UserError, match="117600 bytes, but it holds 0; get it again"):
        load_pool(idx_spec(tmp_path))


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        (0, lambda b: b"\0\0\x0d\x03" + b[4:], "begins with 00000d03, an IDX file of pictures with 00000803"),
        (0, lambda b: b[:9], "begins with 00000803"),
        (1, lambda b: b"", "begins with nothing, an IDX file of labels with 00000801"),
        (1, lambda b: b[:-1], r"its header says \[150\], 150 bytes, but it holds 149"),
        (1, lambda b: idx(np.zeros(151, np.uint8)), "151 labels for 150 pictures"),
        (2, lambda b: b[:-1], "39200 bytes, but it holds 39199"),
        (2, lambda b: b + b"\0", "but it holds more"),
        (2, lambda b: idx(np.zeros((50, 27, 28), np.uint8)), r"pictures are \[27, 28\], in train-images"),
        (3, lambda b: idx(np.zeros(0, np.uint8)), "holds 0"),
    ],
)
def test_a_faulty_idx_file_is_named(name, change, word, digits, tmp_path):
    path = write_idx(tmp_path, *digits) / IDX[name]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{IDX[name]}: .*{word}"):
        load_pool(idx_spec(tmp_path))


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_gz_is_named(share, digits, tmp_path):
    path = write_idx(tmp_path, *digits, packed=True) / f"{IDX[0]}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: (cut short, or no \.gz|begins with nothing)"):
        load_pool(idx_spec(tmp_path))


def test_a_missing_idx_file_is_an_error_and_none_are_absent_data(digits, tmp_path):
    with pytest.raises(Absent, match=r"no IDX files are here.*apt install dataset-fashion-mnist"):
        facts(idx_spec(tmp_path / "nowhere"))
    (write_idx(tmp_path, *digits) / IDX[3]).unlink()
    with pytest.raises(UserError, match=rf"lacks {IDX[3]}") as caught:
        facts(idx_spec(tmp_path))
    assert not isinstance(caught.value, Absent)


def test_idx_needs_a_path_and_classes_without_a_gap(digits, tmp_path):
    with pytest.raises(UserError, match=r"data\.path is missing"):
        facts(DataSpec(name="idx"))
    x, y = digits
    write_idx(tmp_path, x, np.where(y == 3, 4, y).astype(np.uint8))
    with pytest.raises(UserError, match="no picture is of class 3"):
        facts(idx_spec(tmp_path))
