"""The documented commands about models of packages, which tests/test_documented_commands.py leaves to us."""

import shlex
import subprocess
import sys

import datasets
import pytest
from PIL import Image
from test_documented_commands import COMMANDS, PACKAGES, as_plan

OTHERS = ("model=own", "framework=")  # ours is torch
THEIRS = [
    c for c in COMMANDS if any(w.startswith(PACKAGES) for w in shlex.split(c)) and not any(word in c for word in OTHERS)
]


def test_there_are_some():
    assert THEIRS


@pytest.mark.parametrize("command", THEIRS)
def test_it_can_be_planned(command, tmp_path):
    if "data.path=my_set" in command:
        pictures = [Image.new("RGB", (4, 4))] * 60
        labels = ["cat", "dog"] * 30
        datasets.Dataset.from_dict({"image": pictures, "label": labels}).save_to_disk(tmp_path / "my_set")
    elif "data.path=pictures" in command:
        for index in range(800):
            (folder := tmp_path / "pictures" / str(index % 2)).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(folder / f"{index}.png")
    words = as_plan(shlex.split(command))
    done = subprocess.run([sys.executable, "-m", "layerwise_lr", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("lr_heatmap.png"))
