"""predict and evaluate from the command line, on runs of the reference framework."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from finished_runs import pictures, trained
from PIL import Image

from layerwise_lr.data import read_picture
from layerwise_lr.framework import metrics
from layerwise_lr.run import asking, open_run


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    home = tmp_path_factory.mktemp("asked")
    pictures(home / "pictures", noise=160)
    for seed in (0, 1):
        trained(home / f"sweep/{seed}", home / "pictures", seed=seed)
    return home


@pytest.fixture
def home(kept, call, tmp_path):
    """Two runs of a sweep and their pictures, in the current folder."""
    shutil.copytree(kept / "sweep", tmp_path / "sweep")
    shutil.copytree(kept / "pictures", tmp_path / "pictures")
    return tmp_path


RUN = "sweep/0"


def probabilities(files):
    """Of each file, by the library's own parts."""
    run = open_run(Path(RUN))
    x = np.stack([read_picture(Path(file), run.config.data) for file in files])
    return metrics.softmax(asking.Model(run).logits(x))


def test_a_table_names_the_likeliest_class(call, home):
    code, out, _ = call(f"predict {RUN} pictures/cats/3.png pictures/eels/4.png --top 2")
    assert code == 0
    row = probabilities(["pictures/cats/3.png"])[0]
    first, second = np.argsort(-row)[:2]
    names = ("cats", "dogs", "eels")
    lines = [line.split() for line in out.splitlines()]
    assert ["pictures/cats/3.png", names[first], f"{row[first]:.4f}"] in lines
    assert [names[second], f"{row[second]:.4f}"] in lines
    assert all(len(line) <= 80 for line in out.splitlines()[1:])


def test_csv_and_json_hold_the_same_numbers(call, home):
    code, out, err = call(f"predict {RUN} pictures --top 3 --csv")
    assert code == 0 and "loading reference" in err
    rows = list(csv.DictReader(io.StringIO(out)))
    _, out, _ = call(f"predict {RUN} pictures --top 9 --json")
    told = json.loads(out)
    assert len(told["pictures"]) == 60 and len(rows) == 180
    assert told["broken"] == [] and told["classes"] == ["cats", "dogs", "eels"]
    flat = [(p["picture"], c["class"], c["probability"]) for p in told["pictures"] for c in p["classes"]]
    assert flat == [(row["picture"], row["class"], float(row["probability"])) for row in rows]
    for picture in told["pictures"]:
        assert sum(c["probability"] for c in picture["classes"]) == pytest.approx(1, abs=1e-12)
        assert [c["probability"] for c in picture["classes"]] == sorted(
            (c["probability"] for c in picture["classes"]), reverse=True
        )
    files = [picture["picture"] for picture in told["pictures"]]
    assert [p["classes"][0]["probability"] for p in told["pictures"]] == pytest.approx(
        probabilities(files).max(1), abs=1e-6
    )


def test_what_predict_gets_right_evaluate_counts(call, home):
    _, out, _ = call(f"predict {RUN} pictures --json")
    taken = [(Path(p["picture"]).parent.name, p["classes"][0]["class"]) for p in json.loads(out)["pictures"]]
    code, out, _ = call(f"evaluate {RUN} data=image_folder data.path=pictures --json")
    told = json.loads(out)["parts"]["all"]
    assert code == 0 and told["pictures"] == len(taken) == 60
    assert told["accuracy"] == sum(a == b for a, b in taken) / 60
    assert 0.4 < told["accuracy"] < 1, "else the counts below would be trivial"
    names = ["cats", "dogs", "eels"]
    assert told["confusion"] == [[taken.count((a, b)) for b in names] for a in names]
    for one in told["classes"]:
        assert one["recall"] == taken.count((one["name"],) * 2) / 20


def test_evaluate_gives_the_runs_own_numbers(call, home):
    code, out, _ = call(f"evaluate {RUN}")
    assert code == 0
    summary = json.loads(Path(RUN, "summary.json").read_text())
    lines = [line.split() for line in out.splitlines()]
    for part, count in (("val", "12"), ("test", "15")):
        numbers = [f"{summary[part][m]:.4f}" for m in ("loss", "accuracy", "balanced_accuracy")]
        assert [part, count, *numbers] in lines
    assert "note:" not in out
    assert all(len(line) <= 80 for line in out.splitlines()[1:])


def test_the_path_alone_keeps_the_kind_of_data(call, home):
    code, out, _ = call(f"evaluate {RUN} data.path=pictures")
    assert code == 0 and ["all", "60"] in [line.split()[:2] for line in out.splitlines()]
    pictures(home / "more", 3)
    code, out, _ = call(f"evaluate {RUN} data.path=more")
    assert code == 0 and "note:" not in out


def test_pictures_that_it_was_trained_on_are_told(call, kept, home):
    _, out, _ = call(f"evaluate {RUN} data=image_folder data.path={kept / 'pictures'}")
    assert "trained on pictures of this very set" in out


def test_of_a_sweep_the_best_is_asked_and_said(call, home):
    code, out, err = call("predict sweep pictures/cats/1.png --json")
    assert code == 0
    assert "best on validation is flat, lr 0.003" in err
    best = max((0, 1), key=lambda seed: json.loads(Path(f"sweep/{seed}/summary.json").read_text())["val"]["accuracy"])
    assert json.loads(out)["run"].endswith(f"sweep/{best}")


def test_places_are_files_folders_and_patterns(call, home):
    Path("pictures/[x].png").write_bytes(Path("pictures/cats/1.png").read_bytes())
    Path("pictures/notes.txt").touch()
    _, out, err = call(f"predict {RUN} 'pictures/*/1.png' 'pictures/[x].png' pictures/cats --csv")
    named = [row["picture"] for row in csv.DictReader(io.StringIO(out))]
    assert named[:4] == ["pictures/cats/1.png", "pictures/dogs/1.png", "pictures/eels/1.png", "pictures/[x].png"]
    assert len(named) == len(set(named)) == 4 + 19
    _, out, err = call(f"predict {RUN} pictures --csv")
    assert "1 file in these folders not named as a picture is: left out" in err


def test_a_broken_picture_is_named_and_the_others_answered(call, home):
    Path("pictures/cats/broken.png").write_bytes(b"no picture")
    code, out, err = call(f"predict {RUN} pictures/cats --json")
    told = json.loads(out)
    assert code == 1 and len(told["pictures"]) == 20
    assert [one["picture"] for one in told["broken"]] == ["pictures/cats/broken.png"]
    assert "pictures/cats/broken.png: not a readable picture" in err and "1 of 21" in err
    code, out, _ = call(f"predict {RUN} pictures/cats")
    assert code == 1
    assert ["pictures/cats/broken.png", "not", "readable", "-"] in [line.split() for line in out.splitlines()]
    code, out, _ = call(f"predict {RUN} pictures/cats/broken.png --csv")
    assert code == 1 and out == "picture,rank,class,probability\n"


def test_names_out_of_a_folder_do_not_steer_the_terminal(call, home):
    data = json.loads(Path(RUN, "data.json").read_text())
    data["classes"]["0"] = "\x1b[31mcats\x07\n[bold]"
    Path(RUN, "data.json").write_text(json.dumps(data))
    Image.new("RGB", (8, 8), (255, 0, 0)).save("\x1b[31mred.png")
    for line in (f"predict {RUN} . --top 3", f"predict {RUN} . --top 3 --json", f"evaluate {RUN} data.path=more"):
        _, out, err = call(line)
        assert "\x1b" not in out + err and "\x07" not in out + err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("predict nowhere pictures", "nowhere: no such folder"),
        ("predict sweep/0", "the following arguments are required: PICTURES"),
        ("predict sweep/0 nothere.png", "nothere.png: no such file or folder"),
        ("predict sweep/0 'none/*.png'", "none/*.png: no such file or folder"),
        ("predict sweep/0 sweep/1/checkpoints", "no pictures there"),
        ("predict sweep/0 pictures --top 0", "--top 0: must be at least 1"),
        ("predict sweep/0 pictures --csv --json", "not allowed with"),
        ("predict sweep/0 pictures framework=tensorflow", "framework.name='tensorflow' is unknown"),
        ("predict pictures pictures", "no finished run in or below it"),
        ("evaluate sweep/0 model=resnet18", "evaluate takes data=..., data.path=..."),
        ("evaluate sweep/0 data.image_size=9 data.path=pictures", "data.image_size: is the run's own"),
        ("evaluate sweep/0 data.val_size=9 data.path=pictures", "data.val_size: divides or varies pictures"),
        ("evaluate sweep/0 data=image_folder", "data.path is missing"),
        ("evaluate sweep/0 data.path=gone", "data.path=gone: no such file or folder"),
        ("evaluate sweep/0 data=digits", "(0, 1, 2, 3, 4, 5, ...); it knows cats, dogs, eels"),
        ("evaluate sweep/0 data=foo", "there are: cifar10"),
        ("export sweep/0", "the following arguments are required: --to"),
        ("export sweep/0 --to tensorflow", "invalid choice: 'tensorflow'"),
        ("export sweep/0 --to safetensors --out x.pth", "whose name ends in .safetensors"),
        ("export sweep/0 --to safetensors --with-normalisation", "it is --to onnx's"),
    ],
)
def test_a_mistake_is_one_line(call, home, line, says):
    code, _, err = call(line)
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("layerwise-lr: ") and says in last
    assert "Traceback" not in err


def test_an_unfinished_run_is_told(call, home):
    Path(RUN, "summary.json").unlink()
    for line in (f"predict {RUN} pictures", f"evaluate {RUN}", f"export {RUN} --to safetensors"):
        code, _, err = call(line)
        assert code == 2 and f"layerwise-lr resume {RUN}" in err


def test_the_weights_alone_need_no_framework(call, home):
    """And hold all that makes them answer: the forward pass by hand from nothing but the file."""
    from safetensors import safe_open

    code, out, _ = call(f"export {RUN} --to safetensors --out kept/m.safetensors")
    assert code == 0 and "kept/m.safetensors" in out
    with safe_open("kept/m.safetensors", "np") as file:
        facts = json.loads(file.metadata()["layerwise_lr"])
        w = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    beside = json.loads(Path("kept/m.safetensors.json").read_text())
    assert facts.items() <= beside.items() and beside["checked"]
    ready = facts["pictures"]
    size = (ready["image_size"],) * 2
    with Image.open("pictures/dogs/7.png") as image:  # 30 x 20, cropped to its middle
        square = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, box=(5, 0, 25, 20))
    x = np.asarray(square).transpose(2, 0, 1)
    z = (x / 255 - np.reshape(ready["mean"], (3, 1, 1))) / np.reshape(ready["std"], (3, 1, 1))
    logits = (
        np.maximum(z.ravel() @ w["fc1.weight"].T + w["fc1.bias"], 0) @ w["classifier.weight"].T + w["classifier.bias"]
    )
    _, out, _ = call(f"predict {RUN} pictures/dogs/7.png --top 3 --json")
    told = {c["class"]: c["probability"] for c in json.loads(out)["pictures"][0]["classes"]}
    wanted = np.exp(logits) / np.exp(logits).sum()
    assert [told[name] for name in facts["classes"]] == pytest.approx(wanted, abs=1e-5)
    assert facts["model"]["arguments"] == {"num_classes": 3, "in_channels": 3, "image_size": 8, "width": 8, "depth": 1}
