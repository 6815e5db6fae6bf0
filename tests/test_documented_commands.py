"""Every command that the README and docs/ print is run as written, long ones at size=test, page by page; what the YAML files
print, and what cannot run here, is composed and planned."""

import importlib.util
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from PIL import Image
from safetensors.numpy import save_file

from layerwise_lr.cli import hydra_app, program
from layerwise_lr.data import fetch, pictures
from layerwise_lr.framework import registry
from layerwise_lr.models import initial_weights, make_tree
from layerwise_lr.planning.plan import OPTIMIZERS

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
PROGRAMS = ("layerwise-lr", "python", "make", "chromium", "pip", ".", "eval")
"""First words of what a reader types."""
NOT_RUN = {
    "make demo": "36 runs on fetched pictures: by hand, it gives the README's figures",
    "chromium --headless --hide-scrollbars --force-device-scale-factor=0.75 --window-size=1100,1330 "
    "--screenshot=docs/report.png outputs/emoji/demo/report.html": "of the page that make demo leaves",
    ". .venv/bin/activate": "of the reader's shell",
    'eval "$(layerwise-lr train -sc install=bash)"': "of the reader's shell; tests/cli/test_cli.py completes words",
    "pip install -e '.[mindspore]'": "installs",
    "layerwise-lr train -m hydra/launcher=ray hydra.launcher.address=auto hydra.launcher.num_gpus=1 seed=0,1,2": (
        "needs a Ray cluster; tests/sweep/test_launchers.py makes one"
    ),
    "layerwise-lr train -m hydra/launcher=submitit_slurm hydra.launcher.partition=gpu hydra.launcher.gpus_per_node=1 seed=0,1,2": (
        "needs Slurm; tests/sweep/test_launchers.py plays it"
    ),
    "pip install -e layerwise-lr-foo": "installs; tests/cli/test_new_plugin.py does",
    "layerwise-lr check foo": "of that plugin; likewise",
    "layerwise-lr fetch mobilenet_v2_imagenet": "network; tests/data/test_sources.py fetches",
    "layerwise-lr plan model=timm model.name=vit_small_patch16_224 weights=none data.image_size=64 data.channels=3": (
        "needs timm; tests/zoo/test_documented.py runs it"
    ),
    "layerwise-lr train -m data=emoji data.channels=1 'data.mean=[0.1307]' 'data.std=[0.3081]' data.image_size=28 epochs=30 "
    "'eval_every=3 epochs' optimizer.lr=1e-3,3e-3,1e-2 grouping.layer_decay=0.4,0.6,1.0 seed=0,1,2,3,4 "
    "hydra.sweep.dir=outputs/misfit": "network: the emoji are fetched",
    "layerwise-lr report outputs/misfit": "of that sweep",
    "layerwise-lr export outputs/mine --to timm": "needs timm; tests/zoo/test_exports.py",
    "layerwise-lr export outputs/mine --to onnx --with-normalisation --out cells.onnx": (
        "needs onnxruntime; tests/zoo/test_exports.py"
    ),
}
"""Command: why it is not run here."""
ONCE = {"layerwise-lr tune hydra.sweep.dir=outputs/tuned": "commands.md"}
"""Command that several pages print: the one on which it is run."""


def blocks(text: str) -> Iterator[str]:
    """What stands between fences of no language, a command that goes on in the next line as one line."""
    for block in re.findall(r"^```\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        yield re.sub(r" *\\\n *", " ", block)


def typed(text: str) -> list[str]:
    """The lines of a page that a reader types."""
    lines = (line for block in blocks(text) for line in block.splitlines() if line.split(" ")[0] in PROGRAMS)
    return [re.split(r" +# ", line)[0].strip() for line in lines]


def in_yaml() -> Iterator[str]:
    """The commands in the heads of the YAML files."""
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        found = re.findall(r"^# (layerwise-lr .*)$", path.read_text(), flags=re.MULTILINE)
        assert found, f"{path} does not say which command uses it"
        yield from found


TYPED = {page: typed(text) for page, text in PAGES.items()}
PLANNED = sorted({*in_yaml(), *(c for c in NOT_RUN if c.startswith("layerwise-lr"))})
COMMANDS = sorted({*PLANNED, *(c for lines in TYPED.values() for c in lines if c.startswith("layerwise-lr "))})


IDX = {
    "train-images-idx3-ubyte": (2100, 4, 4),
    "train-labels-idx1-ubyte": (2100,),
    "t10k-images-idx3-ubyte": (9, 4, 4),
    "t10k-labels-idx1-ubyte": (9,),
}


PACKAGES = ("model=timm", "model=torchvision", "model=transformers", "model=flowvision", "model=mindcv", "model=own")
PACKAGES += ("data=hf_dataset", "experiment=convnext_finetune")


SMALL_MODELS = {
    "resnet18": (32, {"width": 4}),
    "vit_tiny": (32, {"depth": 1, "embed_dim": 8, "num_heads": 1}),
    "vit_small": (32, {"depth": 1, "embed_dim": 8, "num_heads": 1}),
    "vit_base": (32, {"depth": 1, "embed_dim": 8, "num_heads": 1}),
}
"""Size of pictures and options, for runs at size=test."""
LONG = ("epochs", "eval_every", "data.train_size", "data.val_size", "data.test_size", "data.image_size")
"""Keys that say how long a run takes: size=test says it."""


def at_size_test(words: list[str]) -> list[str]:
    """What trains does so for 4 epochs of 5 steps, of a larger model a small one, of a sweep's first key two values."""
    if words[1] not in ("train", "verify", "compare", "lr-find", "tune") or "--script" in words:
        return words
    kept = [word for word in words if word.partition("=")[0] not in LONG and word != "+size=test"]
    varied = [word for word in kept if "-m" in kept and re.fullmatch(r"[\w.]+=[\w.-]+(,[\w.-]+)+", word)]
    for word in varied:
        some = word.split(",")[: 2 if word == varied[0] else 1]
        kept[kept.index(word)] = ",".join(some)
    model = next((word.removeprefix("model=") for word in kept if word.startswith("model=")), "")
    size, options = SMALL_MODELS.get(model, (28 if model in ("", "lenet", "mlp") else 32, {}))
    more = [f"model.{key}={value}" for key, value in options.items()]
    if "hydra/sweeper=optuna" in kept:
        kept = [word for word in kept if not word.startswith("hydra.sweeper.n_trials=")]
        more.append("hydra.sweeper.n_trials=2")
    if words[1] == "tune":
        kept = [word for word in kept if not word.startswith(("grouping.layer_decay=", "seed="))]
        more += ["grouping.layer_decay=0.75", "seed=0"]
    if words[1] in ("lr-find", "tune"):
        more += ["--steps", "20"]
    return [*kept, *more, *([] if "experiment=parity" in kept else [f"data.image_size={size}", "+size=test"])]


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
    for text in PAGES.values():
        for name, script in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            (home / name).write_text(script)
    np.savez(home / "mine.npz", x=rng.integers(0, 255, (700, 8, 8), np.uint8), y=np.arange(700) % 3)
    (home / "idx").mkdir()
    for name, shape in IDX.items():
        head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        (home / "idx" / name).write_bytes(head + bytes(i % 3 for i in range(math.prod(shape))))
    for index in range(700):
        folder = home / "pictures" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / f"{index}.png")
    for name, path in (("0", "more/0/a.png"), ("1", "more/1/b.png"), ("", "new/c.jpg"), ("", "new/d.jpg")):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), "white" if name else "grey").save(home / path)
    for model, (size, options) in SMALL_MODELS.items():
        save_file(initial_weights(make_tree(model, 5, 3, size, **options), 0), home / f"{model}.safetensors")
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


@pytest.mark.parametrize("command", PLANNED)
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


def test_commands_in_a_line_of_text_exist() -> None:
    named = {word for text in PAGES.values() for word in re.findall(r"`layerwise-lr ([a-z-]+)", text)}
    assert {"resume", "verify"} <= named
    assert named <= set(program.COMMANDS) | set(program.HYDRA_COMMANDS)


def test_what_is_not_run_is_documented() -> None:
    assert {*NOT_RUN, *ONCE} <= {line for lines in TYPED.values() for line in lines}
    assert all(line in TYPED[page] for line, page in ONCE.items())


RUN = [page for page, lines in TYPED.items() if set(lines) - set(NOT_RUN)]
FETCHED = "weights=mobilenet_v2_imagenet"


@pytest.mark.torch
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.network) if any(FETCHED in line for line in TYPED[p]) else p for p in RUN],
)
def test_what_a_page_says_runs(
    page: str, somewhere: Path, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """In one folder, from top to bottom: what a command leaves, the next ones find."""
    words_of_it = " ".join(TYPED[page])
    if FETCHED in words_of_it:
        request.getfixturevalue("mobilenet_checkpoint")
    for extra in ("tensorboard", "mlflow", "optuna"):
        if extra in words_of_it and importlib.util.find_spec(extra) is None:
            pytest.skip(f"NOT RUN: the commands of {page} ({extra} is not installed): make build/installed-dev")
    for line in TYPED[page]:
        if line in NOT_RUN or (line in ONCE and page != ONCE[line]):
            continue
        words = shlex.split(line)
        expected = int(said[1]) if (said := re.search(re.escape(line) + r" +# exit code (\d)", PAGES[page])) else 0
        if words[0] == "python":
            code = subprocess.run([sys.executable, *words[1:]]).returncode
        else:
            code = ran(at_size_test(words)[1:])
        allowed = (0, 3, 4, 5) if "--decide" in words else (expected,)
        assert code in allowed, f"{page}: {line}\n{''.join(capfd.readouterr())[-3000:]}"


def ran(words: list[str]) -> int:
    """The exit code of layerwise-lr, called in this process as often as one likes."""
    sys.argv = ["layerwise-lr", *words]
    with pytest.raises(SystemExit) as ended:
        program.main(words)
    os.environ.pop("HYDRA_FULL_ERROR", None)
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    hydra_app.sweep_folder = hydra_app.made_folder = None
    return int(ended.value.code or 0)


def test_every_framework_has_a_config() -> None:
    assert {p.stem for p in (ROOT / "conf/framework").glob("*.yaml")} >= set(registry.BUILT_INS)


def test_every_optimizer_has_a_config() -> None:
    for name in OPTIMIZERS:
        assert f"name: {name}\n" in (ROOT / f"conf/optimizer/{name}.yaml").read_text()
    assert len(list((ROOT / "conf/optimizer").iterdir())) == len(OPTIMIZERS)
