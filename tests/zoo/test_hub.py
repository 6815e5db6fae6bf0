"""Hugging Face's datasets, with the real library: data=hf_dataset."""

import sys
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from layerwise_lr.data import DataSpec, batches, facts, pictures
from layerwise_lr.planning import Absent, UserError
from layerwise_lr.run import options, resolve
from layerwise_lr.run.reading import from_data

NAMES = ["cat", "dog", "fox"]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def rows(n, first=0):
    return [Image.new("L", (8, 8), first + i) for i in range(n)]


def made(n=24, first=0, labels=None, kind=None, **more):
    """Picture i has the value first + i and class i % 3."""
    labels = [i % 3 for i in range(n)] if labels is None else labels
    features = {"image": datasets.Image(), "label": kind or datasets.ClassLabel(names=NAMES)}
    columns = {"image": rows(n, first), "label": labels}
    for name, (values, of) in more.items():
        columns[name], features[name] = values, of
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def spec(path, **changes):
    sizes = dict.fromkeys(("train_size", "val_size", "test_size"))
    return DataSpec(**{"name": "hf_dataset", "path": str(path), "image_size": 8, "channels": 1, **sizes, **changes})


def read(path, **changes):
    pool = pictures.load_pool(spec(path, **changes))
    return {int(v): pool.names[label] for v, label in zip(pool.x[:, 0, 0, 0], pool.y, strict=True)}


EXPECTED = {i: NAMES[i % 3] for i in range(24)}


@pytest.mark.parametrize("how", ["disk", "parquet", "one file", "bare parquet"])
def test_a_set_of_one_part(how, tmp_path):
    place = tmp_path / "set"
    if how == "disk":
        made().save_to_disk(place)
    elif how == "bare parquet":  # written by another program, without the library's notes: bytes and words
        place.mkdir()
        packed = []
        for picture in rows(24):
            picture.save(tmp_path / "x.png")
            packed.append({"bytes": (tmp_path / "x.png").read_bytes(), "path": None})
        words = [NAMES[i % 3] for i in range(24)]
        pa.parquet.write_table(pa.table({"image": packed, "label": words}), place / "part-0.parquet")
    else:
        place.mkdir()
        made().to_parquet(place / "x.parquet")
        place = place / "x.parquet" if how == "one file" else place
    assert read(place) == EXPECTED
    dataset = batches.load(spec(place), 0)
    assert dataset.names == tuple(NAMES) and [len(p.y) for p in (dataset.train, dataset.val, dataset.test)] == [
        16,
        4,
        4,
    ]


@pytest.mark.parametrize("how", ["disk", "parquet"])
def test_splits_are_read_as_they_are(how, tmp_path):
    parts = {"train": made(12), "validation": made(6, 100), "test": made(9, 200, [0, 1, 2, 0, 1, 2, -1, -1, -1])}
    parts["extra"] = made(3)
    place = tmp_path / "set"
    if how == "disk":
        datasets.DatasetDict(parts).save_to_disk(place)
    else:
        del parts["extra"]  # of another name: train's
        for name, part in parts.items():
            (place / "data").mkdir(parents=True, exist_ok=True)
            part.to_parquet(place / "data" / f"{name}-00000-of-00001.parquet")
    dataset = batches.load(spec(place), 0)
    for part, expected in ((dataset.train, range(12)), (dataset.val, range(100, 106)), (dataset.test, range(200, 206))):
        assert sorted(part.x[:, 0, 0, 0].tolist()) == list(expected)
    (told,) = batches.notes(spec(place))
    assert "3 of test without a label" in told and ("3 of split extra" in told) == (how == "disk")


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        ([(10, 2, 7)[i % 3] for i in range(24)], datasets.Value("int64"), ("2", "7", "10")),
        ([("b", "a", "c")[i % 3] for i in range(24)], datasets.Value("string"), ("a", "b", "c")),
    ],
)
def test_labels_as_numbers_or_words(labels, kind, names, tmp_path):
    made(labels=labels, kind=kind).save_to_disk(tmp_path / "set")
    assert pictures.load_pool(spec(tmp_path / "set")).names == names
    assert read(tmp_path / "set") == {i: str(label) for i, label in enumerate(labels)}


def test_which_column_holds_the_labels(tmp_path):
    coarse, fine = datasets.ClassLabel(names=["pet", "wild"]), datasets.ClassLabel(names=NAMES)
    made(
        fine_label=([i % 3 for i in range(24)], fine), coarse_label=([i % 2 for i in range(24)], coarse)
    ).remove_columns("label").save_to_disk(tmp_path / "set")
    with pytest.raises(
        UserError, match=r"data\.label=\.\.\.; its columns are: image \(Image\), fine_label \(ClassLabel"
    ):
        facts(spec(tmp_path / "set"))
    assert read(tmp_path / "set", label="fine_label") == EXPECTED
    assert read(tmp_path / "set", label="coarse_label") == {i: ["pet", "wild"][i % 2] for i in range(24)}


def packed(contents):
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=NAMES)})
    images = [{"bytes": content, "path": None} for content in contents]
    return datasets.Dataset.from_dict(
        {"image": images, "label": [i % 3 for i in range(len(images))]}, features=features
    )


def test_broken_pictures_and_programs_are_listed_or_left_out(tmp_path):
    whole = [entry["bytes"] for entry in made().cast_column("image", datasets.Image(decode=False))["image"]]
    whole[4], whole[5], whole[6] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", b"", whole[6][:40]
    packed(whole).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError) as refused:
        batches.load(spec(tmp_path / "set"), 0)
    said = str(refused.value)
    assert (
        "3 of 24 pictures cannot be read: train 4 (of no format that is read), train 5 (an empty file), train 6" in said
    )
    asked = spec(tmp_path / "set", skip_broken=True)
    assert facts(asked).pictures == 21
    assert read(tmp_path / "set", skip_broken=True) == {i: n for i, n in EXPECTED.items() if i not in (4, 5, 6)}
    assert any("left out: 3 of 24" in note for note in batches.load(asked, 0).notes())


def test_rules_of_decoding_hold_here_too(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    packed([(tmp_path / "x.png").read_bytes()] * 9).save_to_disk(tmp_path / "set")
    assert np.array_equal(pictures.load_pool(spec(tmp_path / "set")).x[0, 0], np.round(ramp / 257))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p.mkdir(), "neither what save_to_disk wrote nor parquet files"),
        (lambda p: p.write_text("x"), "neither what save_to_disk wrote nor parquet files"),
        (lambda p: (p.mkdir(), (p / "a.parquet").write_text("x")), "cannot be read"),
        (lambda p: (p.mkdir(), (p / "state.json").write_text("x")), "cannot be read"),
        (lambda p: made(labels=[0] * 24, kind=datasets.Value("int64")).save_to_disk(p), "at least two classes"),
        (
            lambda p: made().remove_columns("image").save_to_disk(p),
            "none of them holds pictures; its columns are: label",
        ),
        (lambda p: datasets.DatasetDict({"a": made(), "b": made()}).save_to_disk(p), "has splits a, b, none of which"),
    ],
)
def test_a_faulty_set_is_refused_in_one_line(make, says, tmp_path):
    make(tmp_path / "set")
    with pytest.raises(UserError) as refused:
        facts(spec(tmp_path / "set"))
    assert says in str(refused.value) and str(refused.value).isprintable()


def test_a_name_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"data\.path=nobody/nothing: not a folder here, and not to be had from the hub"
    ):
        facts(spec("nobody/nothing"))
    with pytest.raises(Absent, match="no such file or folder, and no name of a set on the hub"):
        pictures.reader("hf_dataset").find(spec("./nothing/at/all"))


def test_without_the_library(monkeypatch, tmp_path):
    made().save_to_disk(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'layerwise-lr\[datasets\]'"):
        facts(spec(tmp_path / "set"))


# --- every key that data=hf_dataset reads does something; those of all sets: tests/run/test_keys.py

CHANGES = {
    "image_size": 10,
    "channels": 3,
    "train_size": 9,
    "val_size": 6,
    "test_size": 6,
    "split_seed": 1,
    "mean": [0.1],
    "std": [0.2],
    "flip": True,
}


def drawn(given):
    data = batches.load(given, 0)
    return [(a.shape, a.tobytes()) for a in (*data.train, *data.val, *data.test, data.batch(0, 5, 0)[0])]


@pytest.mark.parametrize("key", CHANGES)
def test_every_key_is_read(key, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 8, 8), np.uint8)
    made().map(lambda row, i: {"image": Image.fromarray(noise[i])}, with_indices=True).save_to_disk(tmp_path / "set")
    base = spec(tmp_path / "set")
    assert drawn(base) != drawn(replace(base, **{key: CHANGES[key]}))


def test_absent_data_give_way_and_a_final_config_is_final(tmp_path):
    made().save_to_disk(tmp_path / "set")
    data = {
        "name": "hf_dataset",
        "path": str(tmp_path / "set"),
        "val_size": "20%",
        "test_size": None,
        "train_size": None,
    }
    given = {"data": data, "model": {"name": "mlp"}, "weights": {"name": "none"}, "batch_size": 5}
    final = resolve(from_data(given))
    assert (final.data.val_size, final.data.test_size) == (5, 4) and resolve(final) == final
    assert not {"data.path", "data.label", "data.skip_broken", "data.stand_in"} & set(options.unread(final))
    gone = resolve(from_data({**given, "data": {**data, "path": str(tmp_path / "gone"), "stand_in": "digits"}}))
    assert gone.data.stands_for == "hf_dataset"
