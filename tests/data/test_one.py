"""One picture file is read as its data set reads it; no file starts a program."""

import os

import numpy as np
import pytest
from finished_runs import pictures
from PIL import Image

from layerwise_lr.data import DataSpec, batches, normalise, picture_files, read_picture
from layerwise_lr.planning import UserError


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_is_read_as_the_set_reads_it(tmp_path, channels):
    home = pictures(tmp_path / "set", 3)
    spec = DataSpec(name="image_folder", path=str(home), image_size=12, channels=channels)
    held = batches.asked(spec)[1].x
    files, others = picture_files(home)
    assert others == 0 and len(files) == 9
    assert np.array_equal(np.stack([read_picture(path, spec) for path in files]), held[:])


def test_normalising_is_the_formula():
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), np.uint8)
    spec = DataSpec(channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2.0])
    wanted = (x / 255 - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(spec.std, (3, 1, 1))
    assert normalise(x, spec).dtype == np.float32
    assert np.allclose(normalise(x, spec), wanted, atol=1e-6)


def test_what_is_no_picture_is_left_out_and_counted(tmp_path):
    for name in ("a.png", "b/c.JPG", "b/.hidden.png", ".cache/d.png", "__MACOSX/e.png", "Thumbs.db", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    files, others = picture_files(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in files] == ["a.png", "b/c.JPG"]
    assert others == 5, "hidden twice, the system's twice, and a text"


@pytest.mark.parametrize("kind", ["postscript", "torn", "empty", "absent", "pipe", "folder"])
def test_what_is_broken_is_one_line(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "postscript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) print\n")
    elif kind == "torn":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "empty":
        path.touch()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UserError, match="not a readable picture") as caught:
        read_picture(path, DataSpec())
    assert str(caught.value).isprintable()
