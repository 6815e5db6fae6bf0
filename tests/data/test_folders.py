"""Folders of pictures as people have them."""

import inspect
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerwise_lr.data import DataSpec, batches, facts, pictures, read_resized
from layerwise_lr.planning import Absent, UserError


def put(path, value=0):
    """A grey picture of one value, whatever its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)
    return path


def tree(root, n=6, classes=("cat", "dog"), suffix=".png"):
    for label, name in enumerate(classes):
        for i in range(n):
            put(root / name / f"{i}{suffix}", 100 * label + i)
    return root


def spec(root, name="image_folder", **options):
    sizes = dict.fromkeys(("train_size", "val_size", "test_size"))
    return DataSpec(**{"name": name, "path": str(root), "image_size": 8, "channels": 1, **sizes, **options})


def values(part):
    return sorted(part.x[:, 0, 0, 0].tolist())


def held(root, **options):
    """The values of all pictures by class name."""
    pool = pictures.load_pool(spec(root, **options))
    corners = np.array([read_resized(path, spec(root, **options))[0, 0, 0] for path in pool.files])
    return {name: sorted(corners[pool.y == label].tolist()) for label, name in enumerate(pool.names)}


WHOLE = {"cat": [0, 1, 2, 3, 4, 5], "dog": [100, 101, 102, 103, 104, 105]}


# --- what is data and what is not


def test_what_is_left_out_is_counted_and_told_in_one_line(tmp_path):
    root = tree(tmp_path / "pictures")
    put(root / ".ipynb_checkpoints" / "0.png")
    put(root / "__MACOSX" / "cat" / "0.png")
    (root / "cat" / "._0.png").write_bytes(b"\0\5\26\7")
    put(root / "cat" / ".trash" / "9.png")
    for name in ("Thumbs.db", "desktop.ini", "notes.txt", "x.xml", "noend"):
        (root / "dog" / name).write_bytes(b"x")
    put(root / "dog" / "@eaDir" / "0.png")
    put(root / "stray.png")
    (root / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    assert held(root) == WHOLE
    (told,) = batches.notes(spec(root))
    assert told.startswith(f"left out of {root}: 3 with a dot in front (.ipynb_checkpoints, ...)")
    for part in (
        "4 of the operating system's own (__MACOSX, ...)",
        "3 of no picture format (dog/noend, ...)",
        "1 in no class's folder (stray.png)",
        "1 leading nowhere or in a circle (dog/gone.png)",
    ):
        assert part in told
    assert batches.load(spec(root), 0).notes() == [told]


def test_nothing_left_out_is_not_told(tmp_path):
    assert batches.notes(spec(tree(tmp_path / "pictures"))) == []


def test_nested_folders_belong_to_the_class_above(tmp_path):
    root = tree(tmp_path / "pictures", n=5)
    put(root / "cat" / "siamese" / "old" / "5.JPG", 5)
    put(root / "dog" / "x.jpg" / "5.png", 105)  # a folder that is called as a picture
    found = held(root)
    assert found == WHOLE


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".Png", ".webp", ".TIF", ".bmp", ".gif", ".jfif", ".avif", ".ppm"])
def test_names_of_pictures_in_any_case(suffix, tmp_path):
    assert facts(spec(tree(tmp_path / "pictures", suffix=suffix))).pictures == 12


def test_links_to_folders_are_followed_and_circles_are_not(tmp_path):
    store = tree(tmp_path / "store")
    root = tmp_path / "pictures"
    root.mkdir()
    (root / "cat").symlink_to(store / "cat")
    put(root / "dog" / "0.png", 100)
    (root / "dog" / "more").symlink_to(store / "dog")
    (root / "dog" / "self").symlink_to(root / "dog")
    (root / "dog" / "up").symlink_to(root)
    (root / "dog" / "far").symlink_to(tmp_path)
    assert held(root) == {"cat": WHOLE["cat"], "dog": sorted([100, *WHOLE["dog"]])}
    (told,) = batches.notes(spec(root))
    assert "3 leading nowhere or in a circle" in told


def test_a_pipe_is_not_waited_for(tmp_path):
    root = tree(tmp_path / "pictures")
    os.mkfifo(root / "cat" / "x.png")
    assert held(root) == WHOLE
    assert "1 of no picture format (cat/x.png)" in batches.notes(spec(root))[0]


@pytest.mark.parametrize("name", ["näme", "名前", "a b", "line\nbreak", "\x1b[31mred", "-rf", "it's", "%s", "\udcff"])
def test_any_name_that_a_file_system_takes(name, tmp_path):
    root = tree(tmp_path / "pictures", classes=("a", f"z{name}"))
    put(root / "a" / f"x{name}.png", 77)
    (root / "a" / f"y{name}.txt").write_text("")
    assert 77 in held(root)["a"]
    (root / "a" / f"broken{name}.png").write_bytes(b"junk")
    pictures._sound_at.cache_clear(), pictures._listed_at.cache_clear(), pictures._read.cache_clear()
    with pytest.raises(UserError) as refused:
        batches.load(spec(root), 0)
    for line in (str(refused.value), *batches.notes(spec(root))):
        assert line.isprintable()
    dataset = batches.load(spec(root, skip_broken=True), 0)
    assert all(line.isprintable() for line in dataset.notes())
    assert dataset.fingerprint()["classes"][1] == f"z{name}"


@pytest.mark.parametrize("path", [".", "../pictures", "../pictures/", "../pictures/cat/.."])
def test_any_way_to_say_the_folder(path, tmp_path, monkeypatch):
    root = tree(tmp_path / "pictures")
    put(root / "cat" / ".x.png")
    monkeypatch.chdir(root)
    assert held(path) == WHOLE
    assert "1 with a dot in front (cat/.x.png)" in batches.notes(spec(path))[0]


def test_a_folder_deeper_than_a_program_may_call_itself(tmp_path):
    root = tree(tmp_path / "pictures", n=5)
    put(root / "dog" / "5.png", 105)
    put(root / "cat" / "/".join("d" * 300) / "5.png", 5)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 150)
    try:
        assert facts(spec(root)).pictures == 12
    finally:
        sys.setrecursionlimit(limit)
    assert held(root) == WHOLE


def test_thousands_of_files(tmp_path):
    root = tmp_path / "pictures"
    packed = put(root / "a" / "0.png").read_bytes()
    for i in range(5000):
        place = root / "ab"[i % 2] / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(packed)
    assert facts(spec(root)).pictures == 5000
    assert batches.load(spec(root), 0).test.x.shape == (750, 1, 8, 8)


# --- train, val, test


@pytest.mark.parametrize(
    "words", [("train", "val", "test"), ("Training", "valid", "TEST"), ("train", "dev", "testing")]
)
def test_a_set_that_comes_split_is_read_as_it_is(words, tmp_path):
    for part, word in enumerate(words):
        tree(tmp_path / "set" / word, n=(6, 4, 3)[part])
        put(tmp_path / "set" / word / "dog" / "mark.png", 200 + part)
    put(tmp_path / "set" / "extra" / "cat" / "0.png")
    dataset = batches.load(spec(tmp_path / "set"), 0)
    assert [values(p)[-1] for p in (dataset.train, dataset.val, dataset.test)] == [200, 201, 202]
    assert [len(p.y) for p in (dataset.train, dataset.val, dataset.test)] == [13, 9, 7]
    assert facts(spec(tmp_path / "set"))[:4] == (29, 2, 7, 9)
    assert batches.notes(spec(tmp_path / "set")) == [
        f"left out of {tmp_path / 'set'}: 1 beside train, val and test (extra)"
    ]
    assert dataset.names == ("cat", "dog")


@pytest.mark.parametrize(("there", "drawn"), [("val", "test"), ("test", "validation")])
def test_a_part_that_is_not_there_is_drawn_from_train_and_told(there, drawn, tmp_path):
    tree(tmp_path / "set" / "train", n=20)
    tree(tmp_path / "set" / there, n=2)
    dataset = batches.load(spec(tmp_path / "set"), 0)
    sizes = {"val": 4 if there == "val" else 6, "test": 4 if there == "test" else 6}
    assert (len(dataset.val.y), len(dataset.test.y)) == (sizes["val"], sizes["test"])
    assert len(dataset.train.y) == 34
    assert f"no folder with classes for {drawn}: drawn from train" in batches.notes(spec(tmp_path / "set"))


def test_pictures_to_be_guessed_are_left_out(tmp_path):
    """A competition's: test/ without classes."""
    tree(tmp_path / "set" / "train", n=20)
    for i in range(5):
        put(tmp_path / "set" / "test" / f"{i}.png")
    told = batches.notes(spec(tmp_path / "set"))
    assert "5 in no class's folder (test/0.png, ...)" in told[0]
    assert facts(spec(tmp_path / "set"))[:4] == (40, 2, 0, 0)


def test_train_alone_is_entered(tmp_path):
    tree(tmp_path / "set" / "train")
    assert held(tmp_path / "set") == WHOLE


def test_train_may_be_a_class(tmp_path):
    root = tree(tmp_path / "vehicles", classes=("plane", "train"))
    put(root / "train" / "steam" / "9.png", 9)
    assert list(held(root)) == ["plane", "train"]


def test_a_class_that_no_picture_trains_is_refused_by_name(tmp_path):
    tree(tmp_path / "set" / "train")
    tree(tmp_path / "set" / "val", classes=("cat", "dog", "fox"))
    with pytest.raises(UserError, match=r"found 3, without pictures to train on: fox"):
        facts(spec(tmp_path / "set"))


# --- what is said where it is not such a folder


def test_a_missing_path_says_what_was_looked_for(tmp_path):
    tree(tmp_path / "pictures")
    with pytest.raises(
        Absent, match=r"no such file or folder; data=image_folder looks for a folder with a sub-folder"
    ) as it:
        facts(spec(tmp_path / "picturse"))
    assert "did you mean 'pictures'" in str(it.value)


def archive(path):
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("a", "b")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: (p / "labels.csv").write_text("path,label"), "data=csv data.path={p}/labels.csv"),
        (lambda p: np.savez(p / "mine.npz", x=1), "data=npz data.path={p}/mine.npz"),
        (lambda p: archive(p / "pictures.zip"), "unpack the archive"),
        (lambda p: put(p / "one.png"), "give the folder that holds these"),
    ],
)
def test_a_file_is_told_what_it_may_be_meant_for(make, says, tmp_path):
    make(tmp_path)
    (file,) = tmp_path.iterdir()
    with pytest.raises(UserError) as refused:
        facts(spec(file))
    assert "is a file" in str(refused.value) and says.format(p=tmp_path) in str(refused.value)
    assert "at least two" in str(refused.value)


def one_down(p):
    tree(p / "archive" / "animals")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: tree(p, classes=("cat",)), "found 1 (cat); one class is nothing to tell apart"),
        (lambda p: tree(p / "animals"), "found 1; the classes are one level down? data.path={p}/animals"),
        (lambda p: put(p / "0.png"), "found 0; sort the pictures into such folders, or list path and label in a table"),
        (
            lambda p: ((p / "y.csv").write_text("path,label"), put(p / "0.png")),
            "in a table? data=csv data.path={p}/y.csv",
        ),
        (lambda p: (tree(p), (p / "fox").mkdir()), "found 3, without pictures: fox; fill or remove"),
        (lambda p: (tree(p), (p / "fox").mkdir(), (p / "fox" / "._a.png").touch()), "(left out of {p}: 1 with a dot"),
    ],
)
def test_fewer_than_two_classes_with_the_remedy(make, says, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError) as refused:
        facts(spec(tmp_path))
    assert says.format(p=tmp_path) in str(refused.value) and str(refused.value).isprintable()


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    root = tree(tmp_path / "pictures")
    real = Path.iterdir

    def closed(path):
        if path.name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", closed)  # root may read anything
    with pytest.raises(UserError, match=r"pictures/dog: Permission denied"):
        facts(spec(root))


# --- pictures that cannot be read


def broken_tree(root, n=14):
    tree(root, n=20)
    for i in range(n):
        (root / "cat" / f"bad{i:02}.png").write_bytes(b"" if i % 2 else b"junk")
    return root


def test_all_that_cannot_be_read_are_listed_at_once(tmp_path):
    root = broken_tree(tmp_path / "pictures")
    with pytest.raises(UserError) as refused:
        batches.load(spec(root), 0)
    said = str(refused.value)
    assert said.startswith(f"data.path={root}: 14 of 54 pictures cannot be read: cat/bad00.png (of no format")
    assert "cat/bad09.png (an empty file) and 4 more; " in said and "bad10" not in said
    assert "data.skip_broken=true" in said and said.isprintable()


def test_they_are_left_out_where_that_is_asked_for(tmp_path):
    root = broken_tree(tmp_path / "pictures")
    asked = spec(root, skip_broken=True)
    assert facts(asked).pictures == 40
    dataset = batches.load(asked, 0)
    assert sum(len(p.y) for p in (dataset.train, dataset.val, dataset.test)) == 40
    (told,) = dataset.notes()
    assert told.startswith("left out: 14 of 54 pictures cannot be read: cat/bad00.png") and "and 4 more" in told
    assert batches.notes(asked) == [told]


def test_a_class_of_which_none_can_be_read_is_refused_by_name(tmp_path):
    root = tree(tmp_path / "pictures")
    for path in (root / "dog").iterdir():
        path.write_bytes(b"junk")
    with pytest.raises(UserError, match="of class dog none is left"):
        facts(spec(root, skip_broken=True))


def test_frames_are_told(tmp_path):
    root = tree(tmp_path / "pictures")
    frames = [Image.new("L", (8, 8), v) for v in (50, 60)]
    frames[0].save(root / "cat" / "x.gif", save_all=True, append_images=frames[1:])
    assert 50 in held(root)["cat"]
    assert batches.load(spec(root), 0).notes() == ["of several frames or pages the first is taken: 1 of 13 pictures"]
