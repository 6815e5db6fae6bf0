"""Tables of pictures: data=csv."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from layerwise_lr.data import DataSpec, batches, facts, pictures, read_resized
from layerwise_lr.planning import UserError

WORDS = ["cat", "dog", "cat", "dog", "fox", "fox"] * 4


def images(folder, n=24):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")


def spec(path, **options):
    sizes = dict.fromkeys(("train_size", "val_size", "test_size"))
    return DataSpec(**{"name": "csv", "path": str(path), "image_size": 8, "channels": 1, **sizes, **options})


def table(path, header, rows, delimiter=",", encoding="utf-8", end="\n"):
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([header, *rows])
    return path


def read(path, **options):
    """{picture's number: class name}"""
    pool = pictures.load_pool(spec(path, **options))
    values = [read_resized(file, spec(path, **options))[0, 0, 0] for file in pool.files]
    return {int(v): pool.names[label] for v, label in zip(values, pool.y, strict=True)}


EXPECTED = dict(enumerate(WORDS))


@pytest.mark.parametrize(
    "header", [("path", "label"), ("Filename", "CLASS"), (" image ", "Category"), ("FILE", "target")]
)
@pytest.mark.parametrize(
    ("delimiter", "encoding", "end"),
    [(",", "utf-8", "\n"), (";", "utf-8-sig", "\r\n"), ("\t", "utf-8", "\n"), ("|", "utf-8", "\n")],
)
def test_as_spreadsheets_write_it(header, delimiter, encoding, end, tmp_path):
    images(tmp_path / "my, pictures; all")
    rows = [(f"my, pictures; all/{i}.png", word) for i, word in enumerate(WORDS)]
    assert read(table(tmp_path / "t.csv", header, rows, delimiter, encoding, end)) == EXPECTED


def test_other_columns_and_order_are_no_matter_and_paths_are_the_table_s(tmp_path, monkeypatch):
    images(tmp_path / "in" / "pics")
    rows = [
        (i, word, "a\nb", f"pics\\{i}.png" if i % 2 else tmp_path / "in" / "pics" / f"{i}.png")
        for i, word in enumerate(WORDS)
    ]
    path = table(tmp_path / "in" / "t.csv", ("id", "label", "remark", "path"), rows)
    monkeypatch.chdir(tmp_path)
    assert read(path.relative_to(tmp_path)) == EXPECTED


def test_numbers_are_names_in_natural_order(tmp_path):
    images(tmp_path)
    path = table(tmp_path / "t.csv", ("path", "label"), [(f"{i}.png", (10, 2, 7)[i % 3]) for i in range(24)])
    assert pictures.load_pool(spec(path)).names == ("2", "7", "10")
    assert read(path) == {i: ("10", "2", "7")[i % 3] for i in range(24)}


def test_a_column_of_labels_can_be_named(tmp_path):
    images(tmp_path)
    rows = [(f"{i}.png", WORDS[i], WORDS[::-1][i]) for i in range(24)]
    path = table(tmp_path / "t.csv", ("path", "Coarse", "Fine"), rows)
    assert read(path, label="coarse") == EXPECTED
    assert read(path, label="Fine") == dict(enumerate(WORDS[::-1]))
    with pytest.raises(
        UserError, match=r"no column of labels .*its header is: path, coarse, fine; name it: data.label"
    ):
        facts(spec(path))


def test_a_split_of_its_own(tmp_path):
    images(tmp_path)
    parts = ["train"] * 12 + ["Valid"] * 6 + ["TEST"] * 6
    path = table(tmp_path / "t.csv", ("path", "label", "Split"), [(f"{i}.png", WORDS[i], parts[i]) for i in range(24)])
    dataset = batches.load(spec(path), 0)
    assert sorted(dataset.train.x[:, 0, 0, 0].tolist()) == list(range(12))
    assert sorted(dataset.val.x[:, 0, 0, 0].tolist()) == list(range(12, 18))
    assert sorted(dataset.test.x[:, 0, 0, 0].tolist()) == list(range(18, 24))


def test_repeated_lines_are_counted_and_contradictions_refused(tmp_path):
    images(tmp_path)
    rows = [(f"{i}.png", word) for i, word in enumerate(WORDS)]
    path = table(tmp_path / "t.csv", ("path", "label"), [*rows, *rows[:3]])
    assert read(path) == EXPECTED
    assert batches.notes(spec(path)) == [f"left out of {path}: 3 lines that repeat another's path"]
    path = table(tmp_path / "u.csv", ("path", "label"), [*rows, ("3.png", "cat")])
    with pytest.raises(UserError, match=r"line 26 gives 3\.png another label"):
        facts(spec(path))


def test_missing_and_broken_pictures_are_listed_at_once(tmp_path):
    images(tmp_path)
    (tmp_path / "3.png").write_bytes(b"junk")
    (tmp_path / "5.png").unlink()
    path = table(tmp_path / "t.csv", ("path", "label"), [(f"{i}.png", w) for i, w in enumerate(WORDS)])
    with pytest.raises(UserError, match=r"2 of 24 pictures cannot be read: 3\.png \(of no .*\), 5\.png \(no such file"):
        batches.load(spec(path), 0)
    asked = spec(path, skip_broken=True)
    assert facts(asked).pictures == 22
    assert read(path, skip_broken=True) == {i: w for i, w in EXPECTED.items() if i not in (3, 5)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no column of paths"),
        (b"path,label\n", "at least two classes; it has 0"),
        (b"path,label\na.png,cat\n", "at least two classes; it has 1"),
        (b"a.png,cat\nb.png,dog\n", "no column of paths .*its header is: a.png, cat"),
        (b"path,label\na.png\n", "line 2 has 1 fields"),
        (b"path,label\n\n\na.png,\n", "line 4 has no label"),
        (b"path,label\n,cat\n", "line 2 has no path"),
        (b"path,label,split\na.png,cat,night\n", "line 2 has 'night' for train, val or test"),
        (b"path,label\n\xff\xfe.png,cat\n", "not a table as UTF-8 text"),
        ("path,label\na.png,cat\n".encode("utf-16"), "not a table as UTF-8 text"),
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00\xff", "not a table as UTF-8 text"),
        (b'path,label\n"a.png,cat\n' + b"x" * 200000, "not a table as UTF-8 text"),
        (b"path,label\n\x1b[31ma.png,\n", "line 2 has no label"),
    ],
)
def test_a_faulty_table_is_refused_with_its_line(content, says, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=says) as refused:
        facts(spec(tmp_path / "t.csv"))
    assert str(refused.value).isprintable()


def test_a_path_that_no_file_can_have(tmp_path):
    """A zero byte: Python 3.10 refuses the table, later ones the picture."""
    images(tmp_path)
    lines = [f"{i}.png,{w}" for i, w in enumerate(WORDS)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines, "a\0b,dog"]))
    with pytest.raises(
        UserError, match=r"not a table as UTF-8 text|1 of 25 pictures cannot be read: a\\x00b"
    ) as refused:
        batches.load(spec(tmp_path / "t.csv"), 0)
    assert str(refused.value).isprintable()


def test_a_folder_and_a_missing_table(tmp_path):
    with pytest.raises(UserError, match="is a folder: data=csv needs a table"):
        facts(spec(tmp_path))
    with pytest.raises(
        UserError, match="no such file or folder; data=csv looks for a table with columns path and label"
    ):
        facts(spec(tmp_path / "t.csv"))


def test_no_file_that_a_table_names_is_read_as_anything_but_a_picture(tmp_path):
    images(tmp_path)
    rows = [(f"{i}.png", w) for i, w in enumerate(WORDS)] + [("/etc/passwd", "cat"), ("../t.csv", "dog")]
    path = table(tmp_path / "t.csv", ("path", "label"), rows)
    dataset = batches.load(replace(spec(path), skip_broken=True), 0)
    assert "2 of 26 pictures cannot be read" in dataset.notes()[0]
    assert np.isin(dataset.train.x, range(24)).all()
