"""A plugin as `new-plugin` begins it: installed by pip, listed, checked by command and by pytest, and on the first rungs once
four verbs are written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from finished_runs import said

WRITTEN = """
    from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework as _R
    make_model, get_weights, set_weights, predict = _R.make_model, _R.get_weights, _R.set_weights, _R.predict
"""


def test_it_installs_is_listed_and_fails_only_what_is_not_written(tmp_path: Path) -> None:
    folder, site = tmp_path / "foo", tmp_path / "site"
    said(["new-plugin", "foo", str(folder)])
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(folder)], check=True, capture_output=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def ask(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    code, told = ask("layerwise_lr", "frameworks")
    assert code == 0 and "foo plugin 0.1.0" in told
    code, told = ask("layerwise_lr", "check", "foo")
    assert code == 1 and "failed" not in told.replace("0 failed", "")
    assert "next: write make_model, for names_and_shapes" in told
    code, told = ask("layerwise_lr", "train", "framework=foo", "model=mlp", "weights=none")
    assert code and "Traceback" not in told.splitlines()[-1]
    code, told = ask("pytest", "-q", "-x", "--framework", "foo", "-p", "no:cacheprovider")
    assert code == 1 and "not yet: make_model" in told and "eager-names_and_shapes" in told
    code, told = ask("pytest", "-q", "-p", "no:cacheprovider")
    assert code and "--framework NAME is missing" in told, told
    module = folder / "layerwise_lr_foo" / "framework.py"  # `python -m` looks in its folder first
    before, _, _ = module.read_text().partition("    def make_model")
    _, begin, rest = module.read_text().partition("    def make_groups")
    module.write_text(before + WRITTEN + "\n" + begin + rest)
    code, told = ask("layerwise_lr", "check", "foo", "--until", "predict")
    assert code == 0 and told.count("passed ") == 3, told
    code, told = ask("pytest", "-q", "--framework", "foo", "-k", "names or round_trip or same_logits")
    assert code == 0 and "3 passed" in told


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["torch", "new"], "framework=torch is there already: choose another name"),
        (["Foo", "new"], "'Foo' is no name of a framework: small letters, digits and _, a letter first"),
        (["foo/../bar", "new"], "is no name of a framework"),
        (["foo", "full"], "holds something already; name a new or an empty folder"),
        (["foo", "file"], "holds something already; name a new or an empty folder"),
    ],
)
def test_what_cannot_be_begun(words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    for name in ("full/mine", "file"):
        (tmp_path / name).write_text("mine")
    _, told = said(["new-plugin", *words], 2)
    assert line in told and told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine"]
