"""Pictures that stay files: the same batches whoever makes them and when, and nothing left behind."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerwise_lr.data import AugmentSpec, DataSpec, batches, caching, loading
from layerwise_lr.planning.errors import UserError
from layerwise_lr.run import CONFIG, RunFolder, page, reading, resolve

ALL = AugmentSpec(
    hflip=0.5,
    vflip=0.5,
    crop_scale=[0.1, 1.0],
    color_jitter=0.4,
    randaugment_ops=2,
    mixup=0.8,
    cutmix=1.0,
    random_erasing=0.5,
)
HELD = AugmentSpec(hflip=0.5, color_jitter=0.4, mixup=0.8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERWISE_LR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(caching, "_recent", {})


@pytest.fixture
def root(tmp_path):
    """30 pictures a class in two classes, of many sizes, PNG and JPEG."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
            picture = coarse.resize((40 + i, 60 - i + label), Image.Resampling.BICUBIC)
            picture.save(tmp_path / "pictures" / name / f"{i}.{'jpg' if i % 2 else 'png'}")
    return tmp_path / "pictures"


def spec_of(root, **options):
    given = {"image_size": 16, "channels": 3, "train_size": None, "val_size": 10, "test_size": 10, "mean": [0.4]}
    return DataSpec("image_folder", str(root), **{**given, "memory": 0.0, **options})


def bytes_of(batch):
    return [(a.dtype.str, a.shape, a.tobytes()) for a in batch]


# --- the same batches


@pytest.mark.parametrize("memory", [0.0, 2.0])
@pytest.mark.parametrize("augment", [AugmentSpec(), HELD, ALL], ids=["none", "some", "all"])
def test_batches_are_equal_whatever_the_workers(root, augment, memory):
    seen = []
    for workers in (0, 1, 3):
        with closing(batches.load(spec_of(root, workers=workers, memory=memory), 0, augment)) as data:
            seen.append([bytes_of(data.batch(step, 7, 5)) for step in range(12)])
    assert seen[0] == seen[1] == seen[2]
    assert len({x[0][2] for x in seen[0]}) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_resumes_within_an_epoch_sees_the_same(root, workers):
    with closing(batches.load(spec_of(root, workers=workers), 0, ALL)) as whole:
        expected = [bytes_of(whole.batch(step, 7, 5)) for step in range(9)]
    with closing(batches.load(spec_of(root, workers=workers), 0, ALL)) as resumed:
        assert [bytes_of(resumed.batch(step, 7, 5)) for step in range(4, 9)] == expected[4:]
        assert bytes_of(resumed.batch(1, 7, 5)) == expected[1], "and one that goes back"
        assert bytes_of(resumed.batch(1, 7, 6)) != expected[1]


@pytest.mark.parametrize("augment", [AugmentSpec(), HELD], ids=["none", "some"])
def test_what_stays_files_gives_what_is_held(root, augment):
    with (
        closing(batches.load(spec_of(root, workers=2), 0, augment)) as lazy,
        closing(batches.load(spec_of(root, workers=0, memory=2.0), 0, augment)) as held,
    ):
        assert isinstance(lazy.train.x, loading.Files) and isinstance(held.train.x, np.ndarray)
        for step in range(8):
            assert bytes_of(lazy.batch(step, 6, 1)) == bytes_of(held.batch(step, 6, 1))
        for part in ("train", "val", "test"):
            one, two = (list(d.batches(getattr(d, part), 4)) for d in (lazy, held))
            assert [len(x) for x in one] == [len(x) for x in two]
            assert np.array_equal(np.concatenate(one), np.concatenate(two))
            split = getattr(held, part)
            assert np.array_equal(np.concatenate(two), held.normalise(split.x))
            assert np.array_equal(getattr(lazy, part).x[2:5], split.x[2:5])


def test_an_epoch_s_pictures_do_not_hang_on_the_batch_size(root):
    """A picture's chance comes from its place in the epoch; mirroring and mixing are the batch's."""
    changed = AugmentSpec(crop_scale=[0.1, 1.0], color_jitter=0.4, random_erasing=0.5)
    with closing(batches.load(spec_of(root), 0, changed)) as data:
        four = np.concatenate([data.batch(step, 4, 1)[0] for step in range(10)])
        ten = np.concatenate([data.batch(step, 10, 1)[0] for step in range(4)])
    assert np.array_equal(four, ten)


@pytest.mark.parametrize(
    ("flip", "sha256"),
    [
        (False, "a2b2361dcf8f200c5207817fb0e0fb2892cac1b95f9998c8dc7e31bd35e99478"),
        (True, "9e842e711b09c5597de71ccb598cf838cbb39a1bf80e262338dec2f5657eb33f"),
    ],
)
def test_batches_without_anything_new_are_as_they_were(flip, sha256):
    """The digits' batches 0, 5 and 17 as version 0.1 made them; mirrored by either name."""
    spec = DataSpec(train_size=100, val_size=200, test_size=300, flip=flip)
    other = batches.load(DataSpec(train_size=100, val_size=200, test_size=300), 3, AugmentSpec(hflip=0.5 * flip))
    for data in (batches.load(spec, 3), other):
        digest = hashlib.sha256()
        for step in (0, 5, 17):
            x, y = data.batch(step, 16, 5)
            assert (x.dtype, y.dtype) == (np.float32, np.int64)
            digest.update(x.tobytes() + y.tobytes())
        assert digest.hexdigest() == sha256


# --- shapes


def thirds(wide, size=(30, 90)):
    """Red, green and blue thirds; uint8 [H, W, 3], lying or standing."""
    array = np.zeros((*size, 3), np.uint8)
    for i in range(3):
        array[:, 30 * i : 30 * (i + 1), i] = 200
    return array if wide else array.transpose(1, 0, 2)


@pytest.mark.parametrize("name", ["image_folder", "npz"])
@pytest.mark.parametrize("wide", [True, False])
def test_crop_squash_and_pad(tmp_path, name, wide):
    picture = thirds(wide)
    if name == "npz":
        np.savez(tmp_path / "a.npz", x=np.stack([picture.transpose(2, 0, 1)] * 12), y=np.arange(12) % 2)
    for i in range(12) if name == "image_folder" else ():
        (tmp_path / "p" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "p" / str(i % 2) / f"{i}.png")

    def first(**options):
        place = tmp_path / ("a.npz" if name == "npz" else "p")
        sizes = {"train_size": 4, "val_size": 4, "test_size": 4, "image_size": 30, "channels": 3}
        x = batches.load(DataSpec(name, str(place), **sizes, **options), 0).train.x[0]
        return x if wide else x.transpose(0, 2, 1)

    assert (first() == first(resize="crop")).all()
    assert (first(resize="crop") == np.array([0, 200, 0])[:, None, None]).all(), "the middle, and nothing else"
    squashed = first(resize="squash")
    assert [squashed[:, 15, at].argmax() for at in (3, 15, 27)] == [0, 1, 2]
    padded = first(resize="pad", mean=[0.2, 0.4, 0.6])
    assert (padded[:, :9] == np.array([51, 102, 153])[:, None, None]).all()
    assert (padded[:, 21:] == np.array([51, 102, 153])[:, None, None]).all()
    assert [padded[:, 15, at].argmax() for at in (3, 15, 27)] == [0, 1, 2]


def test_an_idx_set_of_oblong_pictures_is_cropped_too(tmp_path):
    for part in ("train", "t10k"):
        x, y = np.tile(thirds(True)[..., 1], (8, 1, 1)), (np.arange(8) % 2).astype(np.uint8)
        for what, array in (("images-idx3", x), ("labels-idx1", y)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (tmp_path / f"{part}-{what}-ubyte").write_bytes(head + array.tobytes())
    spec = DataSpec("idx", str(tmp_path), 30, train_size=4, val_size=2, test_size=2)
    assert (batches.load(spec, 0).train.x == 200).all()


def test_a_large_jpeg_is_read_at_a_part_of_its_size_and_looks_the_same(tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    coarse.resize((1500, 1000), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    spec = DataSpec("image_folder", "-", 64, channels=3)
    assert min(loading.open_picture(tmp_path / "a.jpg", 3, least=128).size) == 250
    with Image.open(tmp_path / "a.jpg") as image:
        whole = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR, box=(250, 0, 1250, 1000)))
    read = loading.read_resized(tmp_path / "a.jpg", spec).transpose(1, 2, 0)
    difference = np.abs(read.astype(int) - whole.astype(int))
    assert 0 < difference.mean() < 1 and difference.max() <= 8


def test_a_random_crop_is_cut_from_the_whole_picture(tmp_path):
    """Of 400 x 300: a crop of at least a quarter needs a short side of 32 for 16 pixels, of 1 % the whole."""
    Image.new("RGB", (400, 300)).save(tmp_path / "a.png")
    files = loading.Files([tmp_path / "a.png"], DataSpec(image_size=16, channels=3))
    assert files.uncut(0, AugmentSpec(crop_scale=[0.25, 1]).least(16)).size == (45, 34)
    assert files.uncut(0, AugmentSpec(crop_scale=[0.002, 1]).least(16)).size == (400, 300)
    small = AugmentSpec(crop_scale=[32**2 / 120_000] * 2, crop_ratio=[1, 1])
    checks = np.indices((300, 400)).sum(axis=0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "p" / "b").mkdir(parents=True)
    (tmp_path / "p" / "a").mkdir()
    for name in ("a", "b"):
        for i in range(4):
            shutil.copy(tmp_path / "a.png", tmp_path / "p" / name / f"{i}.png")
    spec = spec_of(tmp_path / "p", image_size=32, channels=1, val_size=2, test_size=2)
    with closing(batches.load(spec, 0, small)) as data:
        x, _ = data.batch(0, 4, 0)
    assert x.std() > 0.5, "single pixels are seen: a picture resized first would be grey"
    assert batches.load(spec, 0).batch(0, 4, 0)[0].std() < 0.1


# --- memory


def test_no_more_than_the_room_is_kept(root):
    spec = spec_of(root)
    paths = sorted(root.rglob("*.png"))
    files = loading.Files(paths, spec, room=40_000)
    for index in range(len(paths)):
        files.uncut(index, 16)
    kept = sum(array.nbytes for array in files._kept.values())
    assert 30_000 < kept <= 40_000 and kept + files.room == 40_000
    for index in files._kept:
        again = loading.Files(paths, spec).uncut(index, 16)
        assert np.array_equal(np.asarray(files.uncut(index, 16)), np.asarray(again))


def test_what_does_not_fit_stays_files(root):
    """10 + 10 + 40 pictures of 768 bytes: val and test come first."""
    kinds = {}
    for pictures_held in (0, 10, 20, 60):
        data = batches.load(spec_of(root, memory=pictures_held * 768 / 2**30), 0)
        kinds[pictures_held] = [type(getattr(data, part).x).__name__ for part in ("train", "val", "test")]
    assert kinds == {
        0: ["Files"] * 3,
        10: ["Files", "ndarray", "Files"],
        20: ["Files", "ndarray", "ndarray"],
        60: ["ndarray"] * 3,
    }


FLAT = """
import os, sys
from pathlib import Path
from layerwise_lr.data import DataSpec, batches
spec = DataSpec("image_folder", sys.argv[1], 160, channels=3, train_size=None, val_size=20, test_size=20,
                workers=2, memory=0.0)
data = batches.load(spec, 0)
seen = []
for step in range(60):
    data.batch(step, 32, 0)
    seen.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
data.close()
print(max(seen[10:]) - max(seen[:10]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell a process's memory")
def test_memory_is_flat_over_an_epoch(tmp_path):
    """1920 pictures of 77 KB, decoded 147 MB: what is held at its end is what was after ten batches."""
    for name in ("a", "b"):
        (tmp_path / "p" / name).mkdir(parents=True)
        Image.effect_noise((320, 240), 50).convert("RGB").save(tmp_path / f"{name}.jpg")
        for i in range(980):
            os.link(tmp_path / f"{name}.jpg", tmp_path / "p" / name / f"{i}.jpg")
    done = subprocess.run([sys.executable, "-c", FLAT, str(tmp_path / "p")], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 25


# --- errors, threads, file handles


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["gone", "torn"])
def test_a_picture_that_cannot_be_read_is_named_at_its_step(root, workers, fault):
    with closing(batches.load(spec_of(root, workers=workers), 0)) as data:
        order = np.random.default_rng([5, 0]).permutation(40)
        bad = data.train.x.files[order[23]]  # batch 3 of 7
        whole = bad.read_bytes()
        bad.unlink() if fault == "gone" else bad.write_bytes(whole[: len(whole) // 3])
        for step in (0, 1, 2):
            data.batch(step, 7, 5)
        with pytest.raises(UserError, match=bad.name) as told:
            data.batch(3, 7, 5)
        assert "\n" not in str(told.value)
        data.batch(4, 7, 5)


def names():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pictures")]


def handles():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_thread_and_no_file_is_left(root):
    held_before = handles()
    with closing(batches.load(spec_of(root, workers=3), 0, ALL)) as data:
        for step in range(6):
            data.batch(step, 7, 5)
        list(data.batches(data.val, 3))
        assert 1 <= len(names()) <= 3
    assert not names()
    assert handles() == held_before
    forgotten = batches.load(spec_of(root, workers=3), 0, ALL)
    forgotten.batch(0, 7, 5)
    del forgotten
    until = time.monotonic() + 10
    while names() and time.monotonic() < until:
        time.sleep(0.01)
    assert not names(), "nor where nobody closed it"


def test_pictures_in_memory_need_no_thread():
    data = batches.load(DataSpec(workers=3), 0)
    data.batch(0, 5, 0)
    assert not names()


def test_workers_by_themselves_are_few():
    assert 1 <= loading.workers_of(DataSpec()) <= loading.MOST_WORKERS
    assert loading.workers_of(DataSpec(workers=0)) == 0


def test_what_was_begun_for_another_step_is_given_up():
    begun, calls = threading.Event(), []

    def make(key):
        calls.append(key)
        begun.wait(5)
        return key

    ahead = loading.Ahead(1)
    ahead._submit(make, "first")
    later = [ahead._submit(make, key) for key in range(3)]
    ahead._waiting = dict(enumerate(later))
    begun.set()
    assert ahead.get(make, 2, [3]) == 2
    assert set(ahead._waiting) == {3}
    ahead.close()


# --- the cache of what was decoded


def never(*_):
    raise AssertionError("decoded")


def load_again(root, monkeypatch, **options):
    """As another process would."""
    monkeypatch.setattr(caching, "_recent", {})
    return batches.load(spec_of(root, memory=2.0, **options), 0)


def test_what_took_long_to_decode_is_decoded_once(root, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "WORTH_SECONDS", -1.0)
    one = load_again(root, monkeypatch)
    entries = sorted((tmp_path / "cache" / "decoded").iterdir())
    assert len(entries) == 3 and all(path.suffix == ".npy" for path in entries)
    with monkeypatch.context() as patched:
        patched.setattr(loading, "read_resized", never)
        two = load_again(root, patched)
        assert all(np.array_equal(getattr(one, p).x, getattr(two, p).x) for p in ("train", "val", "test"))
        assert one.fingerprint() == two.fingerprint()
        for other in ({"image_size": 17}, {"resize": "pad"}, {"channels": 1}):
            with pytest.raises(AssertionError, match="decoded"):
                load_again(root, patched, **other)
    changed = next(root.rglob("*.png"))
    stamp = changed.stat()
    Image.new("RGB", (50, 50), (9, 9, 9)).save(changed)
    os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    three = load_again(root, monkeypatch)
    assert one.fingerprint() != three.fingerprint()


def test_a_torn_entry_is_made_anew_and_a_cache_that_cannot_be_written_is_none(root, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "WORTH_SECONDS", -1.0)
    one = load_again(root, monkeypatch)
    for entry in (tmp_path / "cache" / "decoded").iterdir():
        entry.write_bytes(entry.read_bytes()[:200])
    assert load_again(root, monkeypatch).fingerprint() == one.fingerprint()
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("LAYERWISE_LR_CACHE", str(tmp_path / "a file"))
    assert load_again(root, monkeypatch).fingerprint() == one.fingerprint()


def test_the_cache_is_bounded(root, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "WORTH_SECONDS", -1.0)
    monkeypatch.setattr(caching, "MOST_BYTES", 100_000)
    for size in range(10, 22):
        load_again(root, monkeypatch, image_size=size)
        assert sum(path.stat().st_size for path in (tmp_path / "cache" / "decoded").iterdir()) <= 100_000
    monkeypatch.setattr(loading, "read_resized", never)
    load_again(root, monkeypatch, image_size=21)


def test_what_is_decoded_fast_leaves_no_entry(root, tmp_path, monkeypatch):
    load_again(root, monkeypatch)
    assert not (tmp_path / "cache").exists()


# --- fingerprints


def test_the_fingerprint_of_files_needs_no_decoding(root, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "open_picture", never)
    one = batches.load(spec_of(root), 0).fingerprint()
    assert one["train"]["sha256_of"] == "names and sizes of the files"
    assert [one[part]["n"] for part in ("train", "val", "test")] == [40, 10, 10]
    elsewhere = shutil.copytree(root, tmp_path / "elsewhere")
    assert batches.load(spec_of(elsewhere), 0).fingerprint() == one
    for path in elsewhere.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    other = batches.load(spec_of(elsewhere), 0).fingerprint()
    assert all(one[part]["sha256"] != other[part]["sha256"] for part in ("train", "val", "test"))


def test_the_fingerprint_of_what_is_held_is_the_pixels(root):
    data = batches.load(spec_of(root, memory=2.0), 0)
    digest = hashlib.sha256(data.val.x.tobytes() + data.val.y.tobytes()).hexdigest()
    assert data.fingerprint()["val"] == {"n": 10, "class_counts": [5, 5], "sha256": digest}


# --- a whole run


def trained(root, place, **data):
    """The final weights of a run with the reference plugin."""
    given = {
        "framework": {"name": "reference"},
        "model": {"name": "mlp", "width": 4, "depth": 1},
        "data": {**asdict(spec_of(root)), **data},
        "augment": {"hflip": 0.5, "crop_scale": [0.1, 1.0]},
        "batch_size": 8,
        "epochs": 2,
    }
    folder = RunFolder.claim(place)
    folder.write_text(CONFIG, resolve(reading.from_data(given)).to_yaml())
    page.run(folder.path, say=lambda line: None)
    return [path.read_bytes() for path in sorted(place.rglob("model.safetensors"))]


def test_a_run_ends_in_the_same_weights_whatever_the_workers_and_leaves_no_thread(root, tmp_path):
    one = trained(root, tmp_path / "one", workers=0)
    assert one == trained(root, tmp_path / "two", workers=3)
    assert one == trained(root, tmp_path / "three", workers=1, memory=2.0)
    assert not names()


@pytest.mark.parametrize("when", ["load", "fingerprint"])
def test_a_picture_that_goes_during_a_run_ends_it_in_one_line_and_leaves_no_thread(root, tmp_path, monkeypatch, when):
    owner = batches if when == "load" else batches.Dataset
    kept = getattr(owner, when)

    def then_gone(*given):
        made = kept(*given)
        data = made if when == "load" else given[0]
        data.train.x.files[-1].unlink()
        return made

    monkeypatch.setattr(owner, when, then_gone)
    with pytest.raises(UserError, match=r"(?i)\.(jpg|png): not a readable picture \(.*no such file") as told:
        trained(root, tmp_path / "run", workers=2)
    assert "\n" not in str(told.value)
    assert not names()
