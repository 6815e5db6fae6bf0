"""What a person sees first: a line at once, a plan of any model, tables as wide as the terminal."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerwise_lr.models import MODELS

SCRIPT = str(Path(sys.executable).with_name("layerwise-lr"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def layerwise_lr(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("model", MODELS)
def test_plan_of_any_model_alone(model: str) -> None:
    """No word but the model's name; no table wider than the terminal, no name cut or wrapped."""
    ended = layerwise_lr("plan", f"model={model}")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = [line for line in ended.stdout.splitlines() if not line.startswith("note: ")]
    assert [line for line in lines if len(line) > 80] == []
    rows = lines[next(i for i, line in enumerate(lines) if line.startswith("lr of group")) + 1 :]
    table = rows[: rows.index("")]
    assert all(line.startswith("layer_") and len(line.split()) in (6, 7, 8) for line in table), table
    notes = [line for line in ended.stdout.splitlines() if line.startswith("note: ")]
    assert any("usual 224x224x3" in note for note in notes) == model.startswith("vit_")
    assert any("lenet_mnist is another model's" in note for note in notes) == (model != "lenet")


@pytest.mark.parametrize("experiment", ["emoji", "solar_cells", "pretrain_lenet"])
def test_weights_of_the_model_are_not_another_s(experiment: str) -> None:
    ended = layerwise_lr("plan", f"experiment={experiment}")
    assert ended.returncode == 0 and "another model's" not in ended.stdout


def test_a_vit_is_planned_at_its_usual_size() -> None:
    ended = layerwise_lr("plan", "model=vit_base")
    assert "1x197x768" in ended.stdout and "768x3x16x16" in ended.stdout
    by_hand = layerwise_lr("plan", "model=vit_base", "weights=none", "data.image_size=224", "data.channels=3")
    without = [line for line in ended.stdout.splitlines() if not line.startswith(("note: ", "outputs/"))]
    assert [line for line in by_hand.stdout.splitlines() if not line.startswith("outputs/")] == without
    tables = [path.read_text() for path in Path().glob("outputs/*/*/params.csv")]
    assert len(tables) == 2 and tables[0] == tables[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "model=vit_base"), "data.image_size=32"),
        (("plan", "model=vit_base", "data.image_size=100"), "data.image_size=112"),
        (("plan", "model=vit_base", "model.patch_size=15"), "data.image_size=30"),
        (("plan", "model=vit_base", "batch_size=0"), "batch_size=0"),
    ],
)
def test_what_was_asked_for_is_not_guessed(words: tuple[str, ...], says: str) -> None:
    ended = layerwise_lr(*words)
    assert ended.returncode == 2
    assert says in ended.stderr and len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [("train", "+size=test"), ("train", "-m", "+size=test", "seed=0,1")])
def test_the_first_line_comes_before_the_framework(words: tuple[str, ...]) -> None:
    """Measured against the whole of a short run, so that a busy machine is no matter."""
    began = time.monotonic()
    process = subprocess.Popen([SCRIPT, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    first = process.stdout.readline()
    until_first = time.monotonic() - began
    process.communicate(timeout=100)
    assert "loading torch ..." in first
    assert until_first < 0.6 * (time.monotonic() - began)


def test_too_few_pictures_says_which_sizes_would_do() -> None:
    from PIL import Image

    for index in range(100):
        Path(f"pictures/{index % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(f"pictures/{index % 2}/{index}.png")
    words = ("data=image_folder", "data.path=pictures", "data.image_size=16", "model=mlp", "weights=none", "epochs=1")
    Path("pictures/0/._0.png").touch()
    trained = layerwise_lr("train", *words)
    assert trained.returncode == 0, "sizes have a default"
    assert "(70 pictures to train on, 15 to choose by, 15 to report)" in " ".join(trained.stdout.split())
    for command in (trained, layerwise_lr("plan", *words)):
        assert "left out of pictures: 1 with a dot in front (0/._0.png)" in command.stdout
    told = layerwise_lr("train", *words, "data.val_size=50", "data.test_size=60").stderr
    remedy = told.partition("try ")[2].split()
    assert remedy == ["data.val_size=20", "data.test_size=20"]
    assert layerwise_lr("train", *words, *remedy).returncode == 0
