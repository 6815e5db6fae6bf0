"""The wheel holds what the tree holds, and works installed elsewhere, run from another directory."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = {
    "conf": "layerwise_lr/conf",
    "plugins/_hydra": "hydra_plugins/layerwise_lr",
    "plugins": "layerwise_lr/plugins",
}
PLACES = ("layerwise_lr/", "conf/", "plugins/")
APART = ("plugins/README.md", "plugins/layerwise-lr-jax/")
"""A distribution of its own is in no other."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def in_wheel(path: str) -> str:
    """Where a file of the tree goes."""
    for place, home in sorted(MAPPED.items(), key=lambda item: -len(item[0])):
        if path.startswith(place + "/"):
            return home + path[len(place) :]
    return path


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    ours = [f for f in tracked.stdout.split() if f.startswith(PLACES)]
    wanted = {in_wheel(f) for f in ours if not f.startswith(APART)}
    with zipfile.ZipFile(wheel) as opened:
        held = {n for n in opened.namelist() if ".dist-info/" not in n}
    assert held == wanted
    assert {n.split("/")[0] for n in held} == {"layerwise_lr", "hydra_plugins"}, "nothing generic in site-packages"


def test_the_wheel_works_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    """A fresh environment that sees the frameworks installed here, but this package from the wheel alone."""
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    here = Path(pytest.__file__).resolve().parent.parent
    site = next((home / "lib").glob("python*")) / "site-packages"
    (site / "zz_dependencies.pth").write_text(f"{here}\n")  # after the wheel's own; editable finders are not read
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def ask(*words: str) -> str:
        done = subprocess.run(
            [home / "bin" / "layerwise-lr", *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import layerwise_lr; print(layerwise_lr.__file__)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.strip().startswith(str(home))
    assert "solar_cells" in ask("train", "--help")
    assert "effective lr proved" in ask("train", "epochs=1", "hydra.run.dir=single")
    assert (tmp_path / "single" / "summary.json").exists()
    ask("train", "-m", "epochs=1", "seed=0,1", "hydra.sweep.dir=both")
    assert len(list((tmp_path / "both").glob("*/summary.json"))) == 2
