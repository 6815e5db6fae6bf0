"""The one reader of a run folder: what it refuses, and that nothing at all makes it fail in another way (hypothesis;
its seeds are kept: derandomized, with the examples below)."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finished_runs import trained
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from layerwise_lr.models import kept_checkpoint
from layerwise_lr.planning import UserError
from layerwise_lr.run import CONFIG, RunFolder, files, looked_through, provenance, reading
from layerwise_lr.run.shapes import SHAPES, fault, is_plain_name

FUZZ = settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
BYTES = st.binary(max_size=300) | JSON.map(lambda held: json.dumps(held).encode())
NAMES = (*SHAPES, "metrics.jsonl", "lr_check.jsonl", "params.csv", CONFIG, "checkpoints/best")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("files") / "run")


def read_all(path: Path) -> None:
    """Every way to read it; a UserError of one line is an answer."""
    for read in (looked_through, files.jobs, kept_checkpoint, lambda at: list(files.records(at, "metrics.jsonl"))):
        try:
            read(path)
        except UserError as error:
            assert str(error).isprintable()
            assert len(str(error)) < 3000


@pytest.mark.parametrize("name", NAMES)
@given(held=BYTES)
@example(held=b"")
@example(held=b"[" * 5000)
@example(held=b'{"a": ' * 5000)
@example(held=b"\xff\xfe")
@example(held=b"9" * 5000)
@example(held=b"&a [*a]")
@example(held=b"a: &a [1]\nb: *a\n")
@example(held=b"2001-99-99")
@example(held=b"? [a, b]\n: c\n")
@example(held=b"!!binary aGk=")
@example(held=b'{"metrics_version": 1}\n{"step": 1e999}\n')
@example(held=b'{"jobs": {"\\ud800": {}}}')
@FUZZ
def test_any_bytes_are_read_or_refused_in_a_line(made, name, held):
    path = made / name
    before = path.read_bytes() if path.exists() else None
    try:
        path.write_bytes(held)
        read_all(made)
    finally:
        path.unlink()
        if before is not None:
            path.write_bytes(before)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})


def changed(held, at: int, value):
    """A copy of nested data whose `at`-th place (modulo their number) holds `value`."""
    held, places = copy.deepcopy(held), []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(held)
    node, key = places[at % len(places)]
    node[key] = value
    return held


@pytest.mark.parametrize("name", ["summary.json", "plan.json", "status.json", "data.json", CONFIG])
@given(at=st.integers(0, 400), value=LEAVES)
@example(at=1, value=float("nan"))
@example(at=0, value=10**400)
@FUZZ
def test_one_other_value_is_read_or_refused_in_a_line(made, name, at, value):
    import yaml

    path = made / name
    before = path.read_text()
    load, dump = (yaml.safe_load, yaml.safe_dump) if name == CONFIG else (json.loads, json.dumps)
    try:
        path.write_text(dump(changed(load(before), at, value)))
        read_all(made)
    finally:
        path.write_text(before)


@given(name=st.text(max_size=12))
@example(name="..")
@example(name="../victim")
@example(name="a\n")
@FUZZ
def test_a_plain_name_stays_in_its_folder(name):
    if is_plain_name(name):
        assert Path("/a/b", name).parent == Path("/a/b")
        assert os.path.normpath(f"/a/b/{name}") == f"/a/b/{name}"
        assert name.isprintable() and not name.startswith(("-", ".", "~"))


def test_a_shape_says_where_a_fault_is():
    held = {"jobs": {"a": {"config_sha256": "x", "overrides": ["b", 3]}}}
    assert fault(held, SHAPES["sweep.json"]) == "jobs.a.overrides[1] is not text"
    assert fault({"jobs": {"../b": {}}}, SHAPES["sweep.json"]).endswith("is not a plain name")


def test_what_is_no_plain_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "status.json")
    with pytest.raises(UserError, match="not a plain file"):
        RunFolder(tmp_path).state()
    (tmp_path / "sweep.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="leads out"):
        RunFolder(tmp_path).jobs()
    with (tmp_path / "summary.json").open("wb") as file:
        file.truncate(files.MOST + 1)
    with pytest.raises(UserError, match="larger than"):
        files.read_json(tmp_path, "summary.json")


def test_a_link_inside_the_folder_is_a_file(tmp_path):
    (tmp_path / "real").write_text('{"argv": [], "overrides": []}')
    (tmp_path / "command.json").symlink_to("real")
    assert files.read_json(tmp_path, "command.json") == {"argv": [], "overrides": []}


def test_an_alias_bomb_is_refused_before_it_is_built(tmp_path):
    from hostile_folders import BOMB

    (tmp_path / CONFIG).write_text(BOMB)
    with pytest.raises(UserError, match="alias"):
        reading.read(tmp_path / CONFIG)


# --- what is written


def test_nothing_is_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("metrics.jsonl", "log.txt", "report.html", f".report.html.{os.getpid()}.part"):
        (run / name).symlink_to(victim)
    (run / "hard").hardlink_to(victim)
    folder = RunFolder(run)
    folder.metrics().close()
    folder.write_text("report.html", "page")
    os.close(files.appended(run / "log.txt"))
    with os.fdopen(files.appended(run / "hard"), "ab") as file:
        file.write(b"more")
    assert victim.read_text() == "mine"
    assert (run / "report.html").read_text() == "page"
    (run / "link").symlink_to(victim)
    with pytest.raises(UserError, match="link"):
        files.only_plain(run)


def test_checkpoints_that_are_a_link_are_not_written_through(tmp_path):
    outside = tmp_path / "outside" / "step_3"
    outside.mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(outside.parent)
    with pytest.raises(UserError, match="leads out"):
        RunFolder(tmp_path / "run").save_checkpoint(1, {}, None, {}, None)
    assert outside.exists()


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "params.csv").write_text("mine")
    with pytest.raises(UserError, match=r"no run's.*params\.csv"):
        RunFolder.claim(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["params.csv"]


def test_a_folder_that_is_removed_is_no_completed_run(tmp_path):
    folder = RunFolder.claim(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="was removed"), folder.running():
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        (tmp_path / "run").mkdir()
    assert json.loads((tmp_path / "elsewhere" / "status.json").read_text())["state"] == "running"


# --- secrets


def test_the_diff_leaves_out_secrets_and_what_is_not_tracked(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    git("init")
    names = (".env", "sub/.env.local", "id_rsa", "deep/er/server.PEM", "my_secrets.json", "tokenizer.py", "train.py")
    for text in ("old\n", "content-of-it\n"):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + f"password = 'p-{name}'\n")
        if text == "old\n":
            git("add", "-A")
            git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "x")
    (tmp_path / "untracked.txt").write_text("untracked content")
    _, diff = provenance.git(tmp_path)
    assert {name for name in names if f"b/{name}\n" in diff} == {"tokenizer.py", "train.py"}
    assert "content-of-it" in diff and "untracked content" not in diff
    assert "p-train.py" not in diff


def test_a_secret_in_the_model_s_options_is_refused():
    from layerwise_lr.run import ranges

    config = reading.from_data({"model": {"options": {"hf_token": "abc"}}})
    with pytest.raises(UserError, match="looks like a secret") as caught:
        ranges.check(config)
    assert "abc" not in str(caught.value)


# --- the command line


def command(*words, cwd, **more):
    return subprocess.run(
        [sys.executable, "-m", "layerwise_lr", *words], cwd=cwd, capture_output=True, text=True, timeout=120, **more
    )


def test_output_that_cannot_be_written_is_said(tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "layerwise_lr", "frameworks"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("layerwise-lr: standard output: No space left on device")


def test_ascii_alone_is_enough(made):
    done = command("report", ".", cwd=made, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
