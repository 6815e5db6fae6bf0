"""A finished run runs again and is the same; whatever is not is named: what, where, both values."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_runs import pictures, said, trained

from layerwise_lr.run import CONFIG, RunFolder, reproducing
from layerwise_lr.sweep import jobs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run and its reproduction."""
    home = tmp_path_factory.mktemp("made")
    os.environ |= jobs.thread_environment(1)  # as the command sets it
    run = trained(home / "run", ema={"decay": 0.9}, early_stop={"patience": 5}, epochs=3, eval_every=3)
    out, _ = said(["reproduce", str(run), "--to", str(home / "new")])
    assert "is reproduced in" in out and "to the last bit" in out
    assert out.index("environment, data and code are those of the run") < out.index("step 3/18")
    return run, home / "new"


@pytest.fixture
def copies(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    for path in made:
        shutil.copytree(path, tmp_path / path.name)
    return tmp_path / "run", tmp_path / "new"


def asked(run: Path, new: Path, code: int = 3) -> dict[str, Any]:
    """The verdict on a reproduction that is there: nothing is trained."""
    out, told = said(["reproduce", str(run), "--to", str(new), "--json"], code)
    verdict = json.loads(out)
    assert verdict["verdict"] == ("reproduced" if code == 0 else "not reproduced")
    return verdict | {"told": told}


def bad(verdict: dict[str, Any]) -> dict[str, list[str]]:
    return {one["file"]: one["first"] for one in verdict["compared"] if one["first"]}


def test_every_number_of_every_file_is_compared(made: tuple[Path, Path]) -> None:
    verdict = asked(*made, code=0)
    assert (verdict["exact"], verdict["differences"], bad(verdict)) == (True, [], {})
    numbers = {one["file"]: one["numbers"] for one in verdict["compared"]}
    records = [json.loads(line) for line in (made[0] / "metrics.jsonl").read_text().splitlines()]
    assert numbers["metrics.jsonl"] == sum(_numbers(record) for record in records[1:]) + 1
    assert numbers["lrs.csv"] == 18 * len(records[1]["lrs"])


def _numbers(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(map(_numbers, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def of_line(name: str, index: int, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        lines = (path / name).read_text().splitlines()
        record = json.loads(lines[index])
        change(record)
        lines[index] = json.dumps(record)
        (path / name).write_text("\n".join(lines) + "\n")

    return spoil


def of_text(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        held = (path / name).read_text()
        assert change(held) != held
        (path / name).write_text(change(held))

    return spoil


def of_json(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        held = json.loads((path / name).read_text())
        change(held)
        (path / name).write_text(json.dumps(held))

    return spoil


def last_bit(record: Any) -> None:
    record["loss"] = float.fromhex(record["loss"].hex()[:-4] + "0p" + record["loss"].hex().partition("p")[2]) + 2e-16


def cut(text: str) -> str:
    return text[: text.rindex("\n", 0, -1) + 1]


SABOTEURS = {
    "a loss": (of_line("metrics.jsonl", 5, last_bit), {"metrics.jsonl": "step 3, loss"}),
    "a step is missing": (of_text("metrics.jsonl", cut), {"metrics.jsonl": "evaluation at step 18, "}),
    "an lr that was read": (
        of_line("metrics.jsonl", 3, lambda record: record["lrs"].__setitem__(0, 0.125)),
        {"metrics.jsonl": "step 2, lrs[0]"},
    ),
    "an lr that was planned": (
        of_text("lrs.csv", lambda text: text.replace("\n5,", "\n5,1")),
        {"lrs.csv": "step 5, all"},
    ),
    "a parameter's group": (
        of_text("params.csv", lambda text: text.replace("True,all,", "True,other,", 1)),
        {"params.csv": "name fc1.weight, group"},
    ),
    "a measured lr": (
        of_line("lr_check.jsonl", 0, lambda record: record["groups"][0].__setitem__("measured", 0.5)),
        {"lr_check.jsonl": "step 0, groups[0].measured"},
    ),
    "a result": (
        of_json("summary.json", lambda held: held["test"].__setitem__("accuracy", 0.3)),
        {"summary.json": "test.accuracy"},
    ),
    "a plan": (of_json("plan.json", lambda held: held.__setitem__("base_lr", 0.25)), {"plan.json": "base_lr"}),
    "a picture": (
        of_json("data.json", lambda held: held["val"].__setitem__("sha256", "0" * 64)),
        {"data.json": "val.sha256"},
    ),
    "the seed": (of_json("seed.json", lambda held: held.__setitem__("seed", 1)), {CONFIG: "seed"}),
    "a table is gone": (lambda path: (path / "params.csv").unlink(), {"params.csv": "its heading"}),
}


@pytest.mark.parametrize("name", SABOTEURS)
def test_one_number_that_is_another_is_named(copies: tuple[Path, Path], name: str) -> None:
    spoil, wanted = SABOTEURS[name]
    spoil(copies[0])
    found = bad(asked(*copies))
    assert {file: first[0] for file, first in found.items()}.keys() == wanted.keys()
    for file, where in wanted.items():
        assert found[file][0].startswith(where), found
        assert found[file][1] != found[file][2]


def test_both_values_are_told(copies: tuple[Path, Path]) -> None:
    of_json("summary.json", lambda held: held["test"].__setitem__("accuracy", 0.3125))(copies[0])
    real = json.loads((copies[1] / "summary.json").read_text())["test"]["accuracy"]
    out, _ = said(["reproduce", str(copies[0]), "--to", str(copies[1])], 3)
    assert f"summary.json: first at test.accuracy: 0.3125 then, {real} now" in " ".join(out.split())
    assert "is NOT reproduced" in out


def test_another_config_is_named_before_it_trains(copies: tuple[Path, Path], tmp_path: Path) -> None:
    of_text(CONFIG, lambda text: text.replace("\nseed: 0\n", "\nseed: 5\n"))(copies[0])
    out, _ = said(["reproduce", str(copies[0]), "--to", str(tmp_path / "other")], 3)
    assert out.index("config sha256") < out.index("step 3/18")
    assert "config.resolved.yaml: first at seed: 0 then, 5 now" in out
    said(["reproduce", str(copies[0]), "--to", str(copies[1])], 2)  # of the old config: another run's folder


FACTS = {
    "version": ("framework_version", "numpy 1.0", True),
    "threads": ("threads", 64, True),
    "processor": ("cpu", "Another", True),
    "Python": ("python", "3.0.0", False),
}


@pytest.mark.parametrize("name", FACTS)
def test_another_environment_is_named_and_has_a_tolerance(copies: tuple[Path, Path], name: str) -> None:
    key, value, decides = FACTS[name]
    of_json("env.json", lambda held: held.__setitem__(key, value))(copies[0])
    real = str(json.loads((copies[1] / "env.json").read_text())[key])

    def much(record: Any) -> None:
        record["loss"] *= 1.5

    verdict = asked(*copies, code=0)
    assert verdict["exact"] is not decides
    assert verdict["differences"] == [{"what": key, "then": str(value), "now": real, "decides": decides}]
    of_line("metrics.jsonl", 5, lambda record: record.__setitem__("loss", record["loss"] * 1.005))(copies[0])
    assert bad(asked(*copies, code=0 if decides else 3)).keys() == (set() if decides else {"metrics.jsonl"})
    of_line("metrics.jsonl", 5, much)(copies[0])
    assert bad(asked(*copies))["metrics.jsonl"][0] == "step 3, loss"


def test_elsewhere_the_plan_is_exact_all_the_same(copies: tuple[Path, Path]) -> None:
    of_json("env.json", lambda held: held.__setitem__("threads", 64))(copies[0])
    of_text("lrs.csv", lambda text: text.replace("\n5,0.00", "\n5,0.000"))(copies[0])
    assert bad(asked(*copies))["lrs.csv"][0] == "step 5, all"


def test_versions_of_packages_and_the_code_are_told(copies: tuple[Path, Path]) -> None:
    of_text("requirements.lock.txt", lambda text: text + "gone==1\n")(copies[1])
    shutil.copy(copies[1] / "requirements.lock.txt", copies[0])
    of_json("env.json", lambda held: held.__setitem__("numpy", "0.1"))(copies[0])
    (copies[0] / "git.json").write_text('{"sha": "0123456789abcdef"}')
    (copies[0] / "git.diff").write_text("a\nb\nc\n")
    found = {one["what"]: one for one in asked(*copies, code=0)["differences"]}
    assert found["numpy"]["decides"] and found["numpy"]["then"] == "0.1"
    assert found["packages gone"]["then"] == "1" and not found["packages gone"]["decides"]
    assert found["git commit"]["then"] == "0123456789ab"
    assert found["git diff"]["then"] == "3 lines"


def test_data_that_are_others_or_gone(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", pictures(tmp_path / "data"), verify={"start": False, "training": False})
    (tmp_path / "data" / "dogs" / "3.png").write_bytes((tmp_path / "data" / "dogs" / "4.png").read_bytes())
    out, _ = said(["reproduce", str(run), "--json"], 3)
    verdict = json.loads(out)
    assert verdict["new"] == f"{run}_reproduced" and not (run / "lr_check.jsonl").exists()
    named = [one["what"] for one in verdict["differences"]]
    assert named and all(what in ("data: train", "data: val", "data: test") for what in named)
    assert "data.json" in bad(verdict) and "lr_check.jsonl" not in {one["file"] for one in verdict["compared"]}
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    _, err = said(["reproduce", str(run)], 2)
    assert str(tmp_path / "data") in err and err.count("\n") == 1
    assert not (tmp_path / "run_reproduced_2").exists()


def test_start_weights_of_another_run_and_where_they_are_gone(made: tuple[Path, Path], tmp_path: Path) -> None:
    first = shutil.copytree(made[0], tmp_path / "first")
    run = trained(tmp_path / "run", weights={"name": "file", "path": str(first)}, checkpoint={"keep_best": 0})
    assert asked(run, tmp_path / "new", code=0)["exact"]
    shutil.rmtree(first)
    _, err = said(["reproduce", str(run)], 2)
    assert str(first) in err and err.count("\n") == 1


REFUSED = {
    "nowhere": (lambda run: run.with_name("none"), "no such folder"),
    "no run": (lambda run: run.parent, "no such file; a run folder holds config.resolved.yaml"),
    "unfinished": (lambda run: ((run / "summary.json").unlink(), run)[1], "this goes on with it: layerwise-lr resume"),
    "into itself": (lambda run: run, "lies in the run itself"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_reproduced_is_one_line(copies: tuple[Path, Path], name: str) -> None:
    place, says = REFUSED[name]
    to = copies[0] / "in it" if name == "into itself" else copies[0].with_name("to")
    _, err = said(["reproduce", str(place(copies[0])), "--to", str(to)], 2)
    assert says in err and err.count("\n") == 1 and not to.exists()


def test_nothing_is_written_over(copies: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for place in (tmp_path / "notes", made_by_train(tmp_path / "other")):
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        said(["reproduce", str(copies[0]), "--to", str(place)], 2)
        assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def made_by_train(path: Path) -> Path:
    said(
        [
            *("train", "framework=reference", "model=mlp", "weights=none", "data.train_size=50", "epochs=1"),
            *("grouping=flat", "model.width=8", "model.depth=1", "data.image_size=8", "eval_every=1"),
            f"hydra.run.dir={path}",
        ]
    )
    return path


def test_a_run_that_was_stopped_and_resumed_is_reproduced(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", epochs=3, eval_every=3)
    held = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(held | {"resumed": [3, 9], "seconds": 1e4, "peak_memory_mb": 1.0}))
    assert asked(run, tmp_path / "new", code=0)["exact"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two finished jobs and one that never began."""
    home = tmp_path_factory.mktemp("sweep") / "sweep"
    home.mkdir()
    for seed in range(2):
        trained(home / f"seed-{seed}", seed=seed)
    jobs = {f"seed-{seed}": {"config_sha256": "", "overrides": [f"seed={seed}"]} for seed in range(3)}
    RunFolder(home).write_json("sweep.json", {"jobs": jobs})
    return home


def test_a_sweep_is_reproduced_job_by_job(sweep: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sweep, tmp_path / "sweep")
    of_line("metrics.jsonl", 2, last_bit)(copy / "seed-1")
    out, _ = said(["reproduce", str(copy), "--json"], 3)
    verdict = json.loads(out)
    assert {name: one["verdict"] for name, one in verdict["runs"].items()} == {
        "seed-0": "reproduced",
        "seed-1": "not reproduced",
    }
    assert verdict["left_out"] == {"seed-2": "missing"}
    new = tmp_path / "sweep_reproduced"
    assert Path(verdict["new"]) == new and list(RunFolder(new).jobs()) == ["seed-0", "seed-1"]
    out, _ = said(["report", str(new)])
    shutil.copy(sweep / "seed-1" / "metrics.jsonl", copy / "seed-1")
    out, _ = said(["reproduce", str(copy), "--to", str(new)])  # both are there: compared, not trained
    assert "2 of 2 runs are reproduced" in out and "left out, it was not finished (missing): seed-2" in out


def test_a_job_of_a_sweep_is_not_put_among_the_others(sweep: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sweep, tmp_path / "sweep")
    out, _ = said(["reproduce", str(copy / "seed-0"), "--json"])
    assert Path(json.loads(out)["new"]) == tmp_path / "sweep_reproduced" / "seed-0"
    assert sorted(path.name for path in copy.iterdir()) == ["seed-0", "seed-1", "sweep.json"]


def test_interrupted_it_names_the_command_that_goes_on(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", epochs=40, eval_every=2)
    words = [sys.executable, "-m", "layerwise_lr", "reproduce", str(run), "--to", str(tmp_path / "new")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until = time.monotonic() + 60
    while not (tmp_path / "new" / "checkpoints" / "resume").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 130
    again = err.rpartition("this goes on: layerwise-lr ")[2].split()
    out, _ = said(again)
    assert "goes on after step" in out and "to the last bit" in out


def test_facts_that_decide_are_those_that_bits_depend_on() -> None:
    env = {"platform": "Linux-6.1.0-13-amd64-x86_64-with-glibc2.36", "cpu": "A", "device": "cuda:0"}
    of = reproducing.environment_of
    kernel = of({**env, "platform": "Linux-6.2.0-x86_64-with-glibc2.36"}, "")
    assert [fact.decides for fact in reproducing.other_environment(of(env, ""), kernel)] == [False]
    libc = of({**env, "platform": "Linux-6.1.0-13-amd64-x86_64-with-glibc2.31"}, "")
    assert [f.what for f in reproducing.other_environment(of(env, ""), libc) if f.decides] == ["machine"]
    other = of({**env, "cpu": "B"}, "")
    assert [f.decides for f in reproducing.other_environment(of(env, ""), other)] == [False]  # the device computes
