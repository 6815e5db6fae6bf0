"""Every command that the READMEs, docs/ and the YAML files print can be composed and planned as written."""

import math
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from PIL import Image

from layerwise_lr.cli import hydra_app, program
from layerwise_lr.data import fetch, pictures
from layerwise_lr.framework import registry
from layerwise_lr.planning.plan import OPTIMIZERS

ROOT = Path(__file__).resolve().parent.parent


def documented() -> Iterator[str]:
    """Lines that begin with layerwise-lr, in code blocks and in the heads of YAML files."""
    for path in (ROOT / "README.md", ROOT / "plugins/README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"^```\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE):
            lines = block.replace("\\\n", " ").splitlines()
            yield from (line.partition(" # ")[0].strip() for line in lines if line.startswith("layerwise-lr "))
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        found = re.findall(r"^# (layerwise-lr .*)$", path.read_text(), flags=re.MULTILINE)
        assert found, f"{path} does not say which command uses it"
        yield from found


COMMANDS = sorted(set(documented()))


IDX = {
    "train-images-idx3-ubyte": (2100, 4, 4),
    "train-labels-idx1-ubyte": (2100,),
    "t10k-images-idx3-ubyte": (9, 4, 4),
    "t10k-labels-idx1-ubyte": (9,),
}


PACKAGES = ("model=timm", "model=torchvision", "model=transformers", "model=flowvision", "model=mindcv", "model=own")
PACKAGES += ("data=hf_dataset", "experiment=convnext_finetune")


def as_plan(words: list[str]) -> list[str]:
    """The dry run of the same words: of a sweep, its first job."""
    overrides = [
        w
        for w in words[2:]
        if w not in ("-m", "--multirun")
        and not w.startswith(("hydra.sweep", "hydra/sweeper", "hydra.launcher.", "hydra/launcher", "resume="))
    ]
    firsts = []
    for override in overrides:
        key, _, value = override.partition("=")
        if value.startswith(("interval(", "tag(", "range(")):
            continue
        firsts.append(override if value.startswith(("{", "[")) else f"{key}={value.partition(',')[0]}")
    return ["plan", *firsts]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those that the commands speak of."""
    home, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    np.savez(home / "mine.npz", x=rng.integers(0, 255, (700, 8, 8), np.uint8), y=np.arange(700) % 3)
    (home / "idx").mkdir()
    for name, shape in IDX.items():
        head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        (home / "idx" / name).write_bytes(head + bytes(i % 3 for i in range(math.prod(shape))))
    for index in range(700):
        folder = home / "pictures" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / f"{index}.png")
    rows = (f"pictures/class{index % 2}/{index}.png,{index % 2}" for index in range(700))
    (home / "labels.csv").write_text("\n".join(["path,label", *rows]))
    return home


@pytest.fixture
def somewhere(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds nothing but links to them."""
    monkeypatch.chdir(tmp_path)
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    before, argv = dict(os.environ), list(sys.argv)
    pictures._read.cache_clear()
    yield tmp_path
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    hydra_app.sweep_folder = hydra_app.made_folder = None
    sys.argv = argv
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_can_be_planned(command: str, somewhere: Path) -> None:
    words = shlex.split(command)
    if words[1] == "fetch":
        assert set(words[2:]) <= set(fetch.SOURCES) | {"NAME"}
    elif {"--script", "--factory"} & set(words):
        assert words[1] == "verify"
    elif model := next((word for word in words if word.startswith(PACKAGES)), ""):
        assert (ROOT / "conf" / f"{model.replace('=', '/')}.yaml").exists()  # planned in tests/zoo, where they are
    elif words[1] in ("train", "plan", "verify", "compare"):
        compares = "--compare" in words
        with pytest.raises(SystemExit) as ended:
            program.main(words[1:] if compares else as_plan(words))
        assert ended.value.code == 0
        assert list(somewhere.rglob("conventions.csv" if compares else "lr_heatmap.png"))
    else:
        assert words[1] in program.COMMANDS


def test_every_framework_has_a_config() -> None:
    assert {p.stem for p in (ROOT / "conf/framework").glob("*.yaml")} >= set(registry.BUILT_INS)


def test_every_optimizer_has_a_config() -> None:
    for name in OPTIMIZERS:
        assert f"name: {name}\n" in (ROOT / f"conf/optimizer/{name}.yaml").read_text()
    assert len(list((ROOT / "conf/optimizer").iterdir())) == len(OPTIMIZERS)
