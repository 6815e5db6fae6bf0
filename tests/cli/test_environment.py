"""${oc.env:NAME} in a config: the run uses the value, and no file and no line on the terminal tells it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from finished_runs import pictures, said

from layerwise_lr.planning import secrets
from layerwise_lr.run import CONFIG, reading

WORDS = (
    *("framework=reference", "model=mlp", "weights=none", "grouping=flat", "model.width=8", "model.depth=1"),
    *("data=image_folder", "data.image_size=8", "data.channels=3", "data.val_size=12", "data.test_size=15"),
    *("data.mean=[0.4,0.5,0.6]", "data.std=[0.2,0.25,0.3]", "batch_size=8", "epochs=2", "eval_every=4"),
)
CANARY = "canary-5e1f"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures at CANARY, which the variable DATA names."""
    monkeypatch.setattr(secrets, "_given", {})
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / CANARY / "in")
    monkeypatch.setenv("DATA", str(tmp_path / CANARY))
    return tmp_path


def leaks(home: Path, told: Sequence[str], *values: str) -> list[str]:
    """Files below `home` that hold one of the values; of what was told, "terminal"."""
    held = {path.relative_to(home): path.read_bytes().decode("latin-1") for path in home.rglob("*") if path.is_file()}
    found = [str(path) for path, text in held.items() if any(value in text for value in values)]
    return found + ["terminal" for text in told if any(value in text for value in values)]


def recorded(run: Path) -> dict:
    return yaml.safe_load((run / CONFIG).read_text())


def test_a_place_is_used_and_nowhere_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = said(["train", *WORDS, "data.path=${oc.env:DATA}/in", "hydra.run.dir=run"])
    assert recorded(here / "run")["data"]["path"] == "${oc.env:DATA}/in"
    assert json.loads((here / "run/command.json").read_text())["overrides"][-1] == "data.path=${oc.env:DATA}/in"
    assert reading.read(here / "run" / CONFIG).data.path == str(here / CANARY / "in")
    told += said(["report", "run"])
    told += said(["evaluate", "run"])
    told += said(["reproduce", "run", "--to", "new"])
    assert "to the last bit" in told[-2]
    assert recorded(here / "new") == recorded(here / "run")
    assert leaks(here / "run", told, CANARY) == leaks(here / "new", told, CANARY) == []
    (here / CANARY).rename(here / f"{CANARY}-moved")  # the same pictures elsewhere: what comes of them is judged
    monkeypatch.setenv("DATA", str(here / f"{CANARY}-moved"))
    assert "to the last bit" in said(["reproduce", "run", "--to", "moved"])[0]
    (here / f"{CANARY}-moved").rename(here / CANARY)
    monkeypatch.setenv("DATA", "/nowhere/canary-gone")
    _, error = said(["reproduce", "run"], 2)
    assert error.count("\n") == 1 and "${oc.env:DATA}/in: no such file or folder" in error
    monkeypatch.delenv("DATA")
    for words in (["reproduce", "run"], ["evaluate", "run"]):
        _, error = said(words, 2)
        assert "environment variable DATA is not set" in error and error.count("\n") == 1
    said(["predict", "run", f"{here / CANARY}/in/cats/1.png"])  # which needs none of it
    said(["report", "run"])


def test_an_interrupted_run_asks_for_it_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(["train", *WORDS, "data.path=${oc.env:DATA}/in", "hydra.run.dir=run"])
    first = (here / "run/metrics.jsonl").read_bytes()
    for name in ("summary.json", "status.json"):
        (here / "run" / name).unlink()
    (here / "run/status.json").write_text('{"state": "interrupted", "pid": 1, "host": "x"}')
    monkeypatch.delenv("DATA")
    _, error = said(["resume", "run"], 2)
    assert "data.path: environment variable DATA is not set" in error
    monkeypatch.setenv("DATA", str(here / CANARY))
    told = said(["resume", "run"])
    assert (here / "run/metrics.jsonl").read_bytes() == first
    again = ["train", *WORDS, "data.path=${oc.env:DATA}/in", "hydra.run.dir=run", "resume=auto"]
    assert "is finished" in said(again)[0]
    assert leaks(here / "run", told, CANARY) == []


CASES = {
    "a number": ("optimizer.lr=${oc.env:X}", "0.0125", ("optimizer", "lr"), 0.0125),
    "a count": ("seed=${oc.env:X}", "41", ("seed",), 41),
    "decoded": ('class_weights="${oc.decode:${oc.env:X}}"', "[1,2.5,1]", ("class_weights",), [1, 2.5, 1]),
    "in a list": ("class_weights=['${oc.decode:${oc.env:X}}',2.5,1]", "1.5", ("class_weights", 0), 1.5),
    "with a default": ("optimizer.lr=${oc.env:X,0.5}", None, ("optimizer", "lr"), 0.5),
    "with an odd default": ("name=${oc.env:X,'a, b'}", None, ("name",), "a, b"),
    "an option": ("optimizer.name=${oc.env:X}", "adam", ("optimizer", "name"), "adam"),
    "by another key": ("name=run_${data.label}_${oc.env:X}", "canary", ("name",), "run_None_canary"),
}


@pytest.mark.parametrize("name", CASES)
def test_as_it_was_typed(here: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    word, value, path, means = CASES[name]
    if value is not None:
        monkeypatch.setenv("X", value)
    said(["train", *WORDS, f"data.path={here}/{CANARY}/in", word, "hydra.run.dir=run", "epochs=1"])
    node, used = recorded(here / "run"), reading.read(here / "run" / CONFIG).to_dict()
    for key in path:
        node, used = node[key], used[key]
    typed = word.partition("=")[2].strip('"').replace("${data.label}", "None")
    assert node == (typed if name != "in a list" else "${oc.decode:${oc.env:X}}")
    assert used == means
    assert said(["reproduce", "run", "--json"])[0]


def test_a_sweep(here: Path) -> None:
    words = ["train", "-m", *WORDS, "epochs=1", "seed=0,1", "data.path=${oc.env:DATA}/in", "hydra.sweep.dir=sweep"]
    told = said([*words, "hydra.launcher.n_jobs=1"])
    told += said(["report", "sweep"])
    jobs = json.loads((here / "sweep/sweep.json").read_text())["jobs"]
    assert len(jobs) == 2 and all(
        "${oc.env:DATA}/in" in " ".join(job["overrides"]).replace("\\", "") for job in jobs.values()
    )
    assert leaks(here / "sweep", [*told, *jobs], CANARY) == []


def test_what_fails_tells_the_variable_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", "canary/none")
    told = []
    for word in (
        "data.path=${oc.env:X}",
        "optimizer.lr=${oc.env:X}",
        "optimizer.name=${oc.env:X}",
        'class_weights="${oc.decode:${oc.env:X}}"',
        "weights=file weights.path=${oc.env:X}",
        "metric=${oc.env:X}",
        "name=${oc.env:X}",
    ):
        place = [] if "data.path" in word else ["data.path=${oc.env:DATA}/in"]
        told += said(["train", *WORDS, *place, *word.split(), "hydra.run.dir=run"], 2)
        assert told[-1].count("\n") == 1 and "${oc.env:X}" in told[-1], told[-1]
    assert leaks(here / "run", told, "canary") == []


def test_a_folder_may_name_variables_and_nothing_else(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(["train", *WORDS, "data.path=${oc.env:DATA}/in", "hydra.run.dir=run", "epochs=1"])
    held = (here / "run" / CONFIG).read_text()
    monkeypatch.setenv("MY_TOKEN", "hush-hush")
    for other, says in {
        "${oc.env:MY_TOKEN}": "looks like a secret",
        "${oc.env:${oc.env:WHICH,MY_TOKEN}}": "looks like a secret",
        "${seed}": "interpolation",
        "${oc.select:seed}": "interpolation",
        "${oc.env:DATA}${hydra:runtime.cwd}": "interpolation",
        "${oc.env:" * 40: "interpolation",
        "${oc.env:DATA": "run/config.resolved.yaml: data.path: ",
        "${oc.env:DATA,${oc.create:x}}": "interpolation",
    }.items():
        (here / "run" / CONFIG).write_text(held.replace("${oc.env:DATA}/in", json.dumps(other)))
        told = said(["reproduce", "run", "--to", "new"], 2)
        assert says in told[1] and told[1].count("\n") == 1, told[1]
        assert leaks(here, told, "hush-hush") == []


def test_what_is_hidden_and_what_stands_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_given", {})
    for value in ("/mnt/my data/", "0.001", "none", "vit", "lenet", "it's"):
        secrets.hide(value, "${oc.env:X}")
    text = '/mnt/my data/a.png /mnt/my data/ 0.001 none vit lenet_mnist lenet "it\'s" /mnt/my database'
    assert secrets.hidden(text) == (
        '${oc.env:X}/a.png ${oc.env:X} 0.001 none vit lenet_mnist ${oc.env:X} "${oc.env:X}" /mnt/my database'
    )
    assert os.environ.get("X") is None
