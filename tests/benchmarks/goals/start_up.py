"""What a command costs before it does anything, in CPU seconds of its process, over `import torch`."""

import re
import subprocess
import sys
from collections.abc import Iterator

from .timing import Case, once, process, ratio

GOALS = {"G14": "--help, train --help, train --cfg job, plan of ViT-B / import torch; frameworks in sys.modules"}
NEEDS = ("torch",)
DEVICES = ("cpu",)
COMMANDS = {
    "--help": (["--help"], 0.12),
    "train --help": (["train", "--help"], 0.30),
    "train --cfg job": (["train", "--cfg", "job"], 0.30),
    "plan model=vit_base": (["plan", "model=vit_base"], 0.60),
}
ROUNDS = 7
IMPORTED = re.compile(r"\| +(torch|oneflow|mindspore|megengine|timm|torchvision)$", re.MULTILINE)
"""In what `python -X importtime` tells."""


def measure(device: str) -> Iterator[Case]:
    """Interleaved; the first round, which fills caches, is left out."""
    words = {name: ["-m", "layerwise_lr", *command] for name, (command, _) in COMMANDS.items()}
    words["torch"] = ["-c", "import torch"]
    took: dict[str, list[float]] = {name: [] for name in words}
    for turn in range(ROUNDS + 1):
        for name, command in words.items():
            spent = process(command)
            if turn:
                took[name].append(spent)
    for name, (_, target) in COMMANDS.items():
        yield ratio("G14", name, took[name], took["torch"], target)
        told = subprocess.run(
            [sys.executable, "-X", "importtime", *words[name]], check=True, capture_output=True, text=True
        )
        yield once("G14", f"{name}, frameworks imported", len(IMPORTED.findall(told.stderr)), 0)
