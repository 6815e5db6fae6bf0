import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from layerwise_lr.data import batches, cifar10, sources
from layerwise_lr.data.files import read_pickle
from layerwise_lr.data.pictures import DataSpec, _read, facts, load_pool
from layerwise_lr.planning.errors import Absent, UserError

NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
FORMS = {"python": cifar10.PYTHON, "binary": cifar10.BINARY}


@pytest.fixture(scope="module")
def pictures():
    """120 real pictures (digits, each plane of another brightness), 12 of each class: x uint8 [120, 3, 32, 32], y."""
    pool = load_pool(DataSpec(image_size=32, channels=3))
    chosen = np.concatenate([np.flatnonzero(pool.y == c)[:12] for c in range(10)])
    chosen = chosen.reshape(10, 12).T.ravel()  # each batch of 20 holds every class
    x = (pool.x[chosen] * np.array([1.0, 0.7, 0.4])[:, None, None]).astype(np.uint8)
    return x, pool.y[chosen]


def python2(value):
    """Opcodes as Python 2's cPickle (protocol 2) wrote the published batches: texts and bytes are both STRING."""
    if isinstance(value, str):
        value = value.encode("latin1")
    if isinstance(value, bytes):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    assert value.dtype == np.uint8
    shape = b"(" + b"".join(map(python2, value.shape)) + b"t"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    return made + b"(K\x01" + shape + dtype + b"\x89" + python2(value.tobytes()) + b"tb"


def batch_python(x, y, number=1):
    held = {"batch_label": f"training batch {number} of 5", "labels": y.tolist(), "data": x.reshape(len(x), 3072)}
    return b"\x80\x02" + python2({**held, "filenames": [f"{i}.png" for i in range(len(x))]}) + b"."


def batch_binary(x, y):
    return b"".join(bytes([label]) + picture.tobytes() for picture, label in zip(x, y.tolist(), strict=True))


def batch_files(form, x, y):
    """File name -> content; 20 pictures each."""
    make = batch_python if form is cifar10.PYTHON else batch_binary
    suffix = "" if form is cifar10.PYTHON else ".bin"
    return {f"{n}{suffix}": make(x[20 * i : 20 * i + 20], y[20 * i : 20 * i + 20]) for i, n in enumerate(NAMES)}


def pack(form, held):
    """The archive's bytes, in an order and with strangers as the published ones have."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as made:
        for name, content in [("readme.html", b"hello"), *reversed(held.items()), ("../data_batch_1", b"evil")]:
            info = tarfile.TarInfo(f"{form.folder}/{name}")
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def place(how, form, held, folder):
    """Lay the set down as a user might have it; returns data.path."""
    if how in ("archive", "archive itself"):
        (folder / form.archive).write_bytes(pack(form, held))
        return folder / form.archive if how == "archive itself" else folder
    (folder / form.folder).mkdir()
    for name, content in held.items():
        (folder / form.folder / name).write_bytes(content)
    return folder / form.folder if how == "unpacked itself" else folder


def spec_of(path, **options):
    sizes = {"train_size": 50, "val_size": 20, "test_size": 20, "image_size": 32, "channels": 3, "checksum": False}
    return DataSpec(**{"name": "cifar10", "path": str(path), **sizes, **options})


# --- CIFAR-10


@pytest.mark.parametrize("how", ["archive", "archive itself", "unpacked", "unpacked itself"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_each_form_gives_the_very_pictures(form, how, pictures, tmp_path):
    x, y = pictures
    path = place(how, form, batch_files(form, x, y), tmp_path)
    before = sorted(tmp_path.rglob("*"))
    spec = spec_of(path)
    pool = load_pool(spec)
    assert (pool.x.dtype, pool.y.dtype) == (np.uint8, np.int64)
    assert np.array_equal(pool.x, x)
    assert np.array_equal(pool.y, y)
    assert facts(spec)[:3] == (120, 10, 20)
    assert sorted(tmp_path.rglob("*")) == before, "nothing may be unpacked"


def test_the_set_s_own_test_part_is_the_test_part(pictures, tmp_path):
    x, y = pictures
    held = batches.load(spec_of(place("archive", cifar10.BINARY, batch_files(cifar10.BINARY, x, y), tmp_path)), 0)
    assert {p.tobytes() for p in held.test.x} == {p.tobytes() for p in x[100:]}
    assert not {p.tobytes() for p in held.train.x} & {p.tobytes() for p in x[100:]}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("key", [str, str.encode])
def test_batches_pickled_by_python_3_are_read_too(protocol, key, pictures, tmp_path):
    x, y = pictures
    content = {key("data"): x[:20].reshape(20, 3072), key("labels"): y[:20].tolist()}
    held = dict.fromkeys(NAMES, pickle.dumps(content, protocol))
    pool = load_pool(spec_of(place("archive", cifar10.PYTHON, held, tmp_path)))
    assert np.array_equal(pool.x[:20], x[:20])
    assert np.array_equal(pool.y[100:], y[:20])


def test_the_published_set_is_known_without_a_look_at_it(tmp_path):
    """A plan needs no data; that they are not here is said by what reads them."""
    spec = spec_of(tmp_path / "nowhere", checksum=True)
    assert facts(spec)[:3] == (60000, 10, 10000)
    with pytest.raises(Absent) as caught:
        load_pool(spec)
    for part in (str(tmp_path / "nowhere"), "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "data.path="):
        assert part in str(caught.value)


def test_no_path_is_the_cache_folder(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERWISE_LR_CACHE", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    place("archive", cifar10.BINARY, batch_files(cifar10.BINARY, *pictures), tmp_path / "cifar10")
    _read.cache_clear()
    assert facts(replace(spec_of("unused"), path=None)).pictures == 120
    _read.cache_clear()


@pytest.mark.parametrize("how", ["archive", "unpacked"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_another_set_is_refused_unless_the_user_says_so(form, how, pictures, tmp_path):
    path = place(how, form, batch_files(form, *pictures), tmp_path)
    with pytest.raises(UserError, match=r"the published one .*kriz/cifar-10-.*data\.checksum=false"):
        load_pool(spec_of(path, checksum=True))
    assert len(load_pool(spec_of(path)).y) == 120


@pytest.mark.parametrize("how", ["archive", "unpacked"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_set_of_the_published_checksum_is_accepted(form, how, pictures, tmp_path):
    """The control of the above, with this set's own checksums (computed by hashlib) as the published ones."""
    held = batch_files(form, *pictures)
    path = place(how, form, held, tmp_path)
    kind = hashlib.md5 if form is cifar10.PYTHON else hashlib.sha256
    own = form._replace(
        sha256=hashlib.sha256((tmp_path / form.archive).read_bytes()).hexdigest() if how == "archive" else "0" * 64,
        files={name: kind(content).hexdigest() for name, content in held.items()},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "PYTHON" if form is cifar10.PYTHON else "BINARY", own)
        assert np.array_equal(cifar10.read(path, checksum=True).x, pictures[0])


def test_the_published_checksums_are_whole():
    """A slip of the pen would refuse everyone's download."""
    for form, length in ((cifar10.PYTHON, 32), (cifar10.BINARY, 64)):
        assert len(form.sha256) == 64
        assert {len(digest) for digest in form.files.values()} == {length}
        assert len(set(form.files.values())) == 6
        assert all(set(digest) <= set("0123456789abcdef") for digest in (form.sha256, *form.files.values()))
        assert [name.removesuffix(".bin") for name in form.files] == NAMES


@pytest.mark.parametrize("share", [0, 0.0001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_truncated_archive_is_said(form, share, pictures, tmp_path):
    whole = pack(form, batch_files(form, *pictures))
    (tmp_path / form.archive).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(
        UserError, match=rf"{form.archive}: cut short, or no \.tar\.gz .*get it whole from https"
    ) as caught:
        load_pool(spec_of(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_and_no_archive_are_said(pictures, tmp_path):
    whole = bytearray(pack(cifar10.BINARY, batch_files(cifar10.BINARY, *pictures)))
    whole[-8] ^= 1  # in gzip's own checksum
    (tmp_path / cifar10.BINARY.archive).write_bytes(whole)
    with pytest.raises(UserError, match=r"cut short, or no \.tar\.gz"):
        load_pool(spec_of(tmp_path))
    (tmp_path / cifar10.BINARY.archive).write_bytes(gzip.compress(b"hello " * 1000))
    with pytest.raises(UserError, match=r"cut short, or no \.tar\.gz"):
        load_pool(spec_of(tmp_path))


@pytest.mark.parametrize("how", ["archive", "unpacked"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_missing_member_is_named(form, how, pictures, tmp_path):
    held = batch_files(form, *pictures)
    gone = list(held)[2]
    del held[gone]
    with pytest.raises(UserError, match=f"lacks {gone}; get it whole"):
        load_pool(spec_of(place(how, form, held, tmp_path)))


def test_a_link_is_no_member(pictures, tmp_path):
    """Exact names, plain files: a link in an archive is not followed."""
    held = batch_files(cifar10.BINARY, *pictures)
    del held["test_batch.bin"]
    with tarfile.open(tmp_path / cifar10.BINARY.archive, "w:gz") as made:
        for name, content in held.items():
            info = tarfile.TarInfo(f"{cifar10.BINARY.folder}/{name}")
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo(f"{cifar10.BINARY.folder}/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "data_batch_1.bin"
        made.addfile(link)
    with pytest.raises(UserError, match=r"lacks test_batch\.bin"):
        load_pool(spec_of(tmp_path))


GOOD = {"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 20}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({**GOOD, "labels": [0] * 19 + [10]}, "label 10 is not from 0 to 9"),
        ({**GOOD, "labels": [0] * 19 + [-1]}, "label -1 is not from 0 to 9"),
        ({**GOOD, "labels": [0] * 19}, r"labels must be 20 .*\[19\]"),
        ({**GOOD, "labels": [0.5] * 20}, "labels must be 20 .*float64"),
        ({**GOOD, "labels": None}, "labels must be 20 .*object"),
        ({**GOOD, "data": np.zeros((20, 3071), np.uint8)}, r"data must be uint8 \[N, 3072\], it is uint8 \[20, 3071\]"),
        ({**GOOD, "data": np.zeros((20, 3072), np.float32)}, "it is float32"),
        ({**GOOD, "data": [1, 2]}, "it is list"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "holds no pictures"),
        ({"x": 1}, "has no data and labels, but x"),
        ([1], "a list, not a mapping"),
    ],
)
def test_a_faulty_batch_is_refused(content, word, pictures, tmp_path):
    held = {**batch_files(cifar10.PYTHON, *pictures), "data_batch_4": pickle.dumps(content, 4)}
    with pytest.raises(UserError, match=f"data_batch_4: .*{word}"):
        load_pool(spec_of(place("archive", cifar10.PYTHON, held, tmp_path)))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\0" * 3072, "3072 bytes are no whole number of pictures"),
        (b"", "holds no pictures"),
        (b"\x0a" + b"\0" * 3072, "label 10 is not from 0 to 9"),
    ],
)
def test_a_faulty_binary_batch_is_refused(content, word, pictures, tmp_path):
    held = {**batch_files(cifar10.BINARY, *pictures), "test_batch.bin": content}
    with pytest.raises(UserError, match=rf"test_batch\.bin: .*{word}"):
        load_pool(spec_of(place("unpacked", cifar10.BINARY, held, tmp_path)))


# --- pickles


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


class EvilEncoder:
    """The one admitted call that takes a name: it must not become a way to others."""

    def __reduce__(self):
        import codecs

        return codecs.encode, (b"x", "zip")


def test_a_malicious_pickle_is_refused_and_not_run(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps({**GOOD, "labels": Evil()}, 2)
    held = {**batch_files(cifar10.PYTHON, *pictures), "data_batch_2": evil}
    with pytest.raises(UserError, match=r"data_batch_2: .*system is no array"):
        load_pool(spec_of(place("archive", cifar10.PYTHON, held, tmp_path)))
    assert not Path("pwned").exists()
    pickle.loads(evil)  # the control: this file is dangerous
    assert Path("pwned").exists()


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b".",
        b"\x80\x02",
        b"cos\nsystem\n.",
        b"\x80\x04\x8c\x02\n\n\x8c\x01\n\x93.",
        b"(lp0\n" * 9,
        b"\xff\n\xfe",
        pickle.dumps(EvilEncoder()),
        b"\x80\x05N0.",
    ],
)
def test_what_is_no_pickle_of_arrays_is_a_value_error_of_one_line(packed):
    with pytest.raises(ValueError) as caught:
        read_pickle(packed)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_fetch_reads_pickles_by_the_same_door():
    assert sources.read_pickle is read_pickle
    assert "pickle" not in vars(sources)
