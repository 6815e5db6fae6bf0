"""Every key of the schema: read under each option of its group, which shows in what it changes, or refused."""

import re
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from layerwise_lr.data import pictures
from layerwise_lr.framework import proof, registry
from layerwise_lr.models import walk, weights
from layerwise_lr.models.layers import initial_weights
from layerwise_lr.models.trees import MODELS
from layerwise_lr.planning import GroupSpec, UserError
from layerwise_lr.run import CONFIG, RunFolder, options, page, resolve
from layerwise_lr.run.reading import from_data


def config(changes):
    """The schema's defaults with `changes`: dotted key -> value."""
    data = {}
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = data
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return from_data(data)


# --- what is looked at, each by its own way to the arrays, the files or the objects that a key is there for


def told(look, changes):
    """What `look` sees of a final config, or what is refused."""
    try:
        return look(resolve(config(changes)))
    except (UserError, proof.LrMismatch) as error:
        return repr(error)


def layers(given):
    return [(name, layer) for name, layer, _ in walk(given.tree().root)]


def moves(given):
    *_, plan = page.plan_of(given)
    return (
        [
            (g.params, g.active, g.weight_decay, g.grad_centralization, plan.optimizers[g.optimizer])
            for g in plan.groups
        ],
        [plan.lrs(step) for step in range(plan.total_steps)],
        [plan.frozen(step) for step in range(plan.total_steps)],
        (plan.clip, plan.accumulate),
    )


def arrays(given):
    with closing(page.load(given, {"subset": 0})) as data:
        held = [
            *data.train,
            *data.val,
            *data.test,
            *(a for step in range(4) for a in data.batch(step, given.batch_size, 0)),
        ]
    return [(a.shape, a.tobytes()) for a in held]


def start(given):
    return {name: array.tobytes() for name, array in weights.start_weights(given.tree(), given.weights, 0)[0].items()}


class Asked:
    """A plugin's class that keeps what it was asked for."""

    modes, precisions = ("eager", "graph"), ("fp32", "fp64")
    kinds, optimizers = registry.load("reference").kinds, registry.load("reference").optimizers

    def __init__(self, *asked):
        self.asked = asked


# --- keys that every option reads: another value, what is looked at, what else is needed

LENET = {"batch_size": 5, "epochs": 4}
RESNET = {**LENET, "model.name": "resnet18", "data.channels": 3, "data.image_size": 32}
GROUPS = {"grouping.strategy": "by_module"}
SMALL = {"data.train_size": 20, "data.val_size": 10, "data.test_size": 10, "batch_size": 5, "epochs": 1}
TINY = {
    **SMALL,
    "model.name": "mlp",
    "model.width": 2,
    "model.depth": 1,
    "framework.name": "reference",
    "eval_every": 4,
}
OFTEN = {**TINY, "checkpoint.every": 1}

PLANNED = {
    "scheduler.warmup": (7, LENET),
    "scheduler.warmup_start": (0.5, {**LENET, "scheduler.warmup": 7}),
    "scheduler.interval": (3, {**LENET, "scheduler.warmup": 7}),
    "optimizer.lr": (0.5, LENET),
    "optimizer.weight_decay": (0.5, LENET),
    "clip_grad_norm": (0.5, LENET),
    "clip_grad_value": (0.5, LENET),
    "accumulate": (2, LENET),
    "grouping.convention": ("order", {**RESNET, "grouping.strategy": "layer_decay"}),
    "grouping.depths": ({"conv1": 0, "": 3}, {**LENET, "grouping.strategy": "layer_decay"}),
    "grouping.stages": (2, {**LENET, "grouping.strategy": "layer_decay"}),
    "grouping.no_weight_decay": (False, LENET),
    "grouping.groups": ({"a": {"match": ["conv1*"], "lr_scale": 0.5}}, LENET),
    "freeze.batchnorm": ("train", {**RESNET, "freeze.strategy": "head_first", "freeze.every": 2}),
    "schedules": (
        {"s": {"name": "step", "every": 3}},
        {**LENET, "grouping.groups": {"a": {"match": ["conv1*"], "schedule": "s"}}},
    ),
    "optimizers": (
        {"o": {"name": "sgd"}},
        {**LENET, "grouping.groups": {"a": {"match": ["conv1*"], "optimizer": "o"}}},
    ),
}
DRAWN = {
    "data.image_size": 10,
    "data.channels": 3,
    "data.train_size": 30,
    "data.val_size": 20,
    "data.test_size": 20,
    "data.split_seed": 1,
    "data.mean": [0.1],
    "data.std": [0.2],
    "data.flip": True,
}
RANDAUGMENT = {**LENET, "augment.randaugment_ops": 2, "augment.randaugment_prob": 1.0}
MIXED = {**LENET, "augment.mixup": 0.8, "augment.cutmix": 1.0}
BATCHED = {
    "augment.hflip": (0.5, LENET),
    "augment.vflip": (0.5, LENET),
    "augment.crop_scale": ([0.1, 0.9], LENET),
    "augment.crop_ratio": ([0.2, 0.4], {**LENET, "augment.crop_scale": [0.1, 0.9]}),
    "augment.color_jitter": (0.4, LENET),
    "augment.randaugment_ops": (3, RANDAUGMENT),
    "augment.randaugment_magnitude": (3.0, RANDAUGMENT),
    "augment.randaugment_std": (2.0, RANDAUGMENT),
    "augment.randaugment_prob": (0.2, RANDAUGMENT),
    "augment.mixup": (0.2, MIXED),
    "augment.cutmix": (0.2, MIXED),
    "augment.mix_prob": (0.2, MIXED),
    "augment.mix_switch": (0.0, MIXED),
    "augment.random_erasing": (0.5, LENET),
    "label_smoothing": (0.1, LENET),
    "class_weights": ([1.0] * 9 + [3.0], LENET),
}
RUN = {
    "name": ("other", TINY),
    "seed": (1, TINY),
    "batch_size": (4, TINY),
    "epochs": (2, TINY),
    "steps": (3, TINY),
    "eval_every": (2, TINY),
    "metric": ("balanced_accuracy", TINY),
    "verify.start": (False, TINY),
    "verify.training": (False, TINY),
    "verify.every": (1, TINY),
    "verify.on_mismatch": ("warn", TINY),
    "checkpoint.every": (2, {**TINY, "checkpoint.keep": 9}),
    "checkpoint.keep": (2, OFTEN),
    "checkpoint.optimizer": (False, TINY),
    "checkpoint.keep_best": (0, OFTEN),
    "ema.decay": (0.9, TINY),
    "ema.warmup": (False, {**TINY, "ema.decay": 0.9}),
    "early_stop.patience": (1, {**TINY, "eval_every": 1, "steps": 9, "optimizer.lr": 1e-9}),
    "early_stop.min_delta": (0.9, {**TINY, "eval_every": 1, "steps": 9, "early_stop.patience": 4, "model.width": 64}),
}
FRAMEWORK = {"device": "cuda:1", "mode": "graph", "precision": "fp64", "threads": 3, "deterministic": True}
MODEL = {
    "width": 7,
    "depth": 1,
    "dropout": 0.5,
    "drop_path": 0.5,
    "patch_size": 4,
    "embed_dim": 96,
    "num_heads": 2,
    "layer_scale": 0.5,
    "pool": "avg",
    "pre_norm": True,
}
VIT = {"depth", "dropout", "drop_path", "patch_size", "embed_dim", "num_heads", "layer_scale", "pool", "pre_norm"}
TAKES = {"mlp": {"width", "depth"}, "mobilenet_v2": {"dropout"}, "vit_tiny": VIT, "vit_small": VIT, "vit_base": VIT}
TAKES |= {f"resnet{depth}": {"width", "drop_path"} for depth in (18, 34, 50)}
ELSEWHERE = {"data.stands_for", "model.source", "model.options", "data.workers"}
ELSEWHERE |= {"framework.distributed", "framework.processes"}
ELSEWHERE |= {"logger.csv", "logger.tensorboard", "logger.mlflow", "logger.wandb"}
"""The first is refused: test_bad_input; of the model: tests/zoo/test_runs.py; the workers and the loggers must change nothing:
tests/data/test_loading.py, where data.resize and data.memory are as well, and tests/trackers; several processes:
tests/plugins/test_torch_distributed.py."""
SIZES = {"model.num_classes": 3, "model.in_channels": 3, "model.image_size": 30}
GROUP = {
    "match": ["conv2*"],
    "lr": 0.5,
    "lr_scale": 0.5,
    "weight_decay": 0.5,
    "schedule": "s",
    "optimizer": "o",
    "start": 2,
    "stop": 9,
    "grad_centralization": True,
}


def test_no_key_is_left_out():
    """A new key fails here until it is tried."""
    tried = {
        *PLANNED,
        *DRAWN,
        *BATCHED,
        *RUN,
        *SIZES,
        *(f"framework.{key}" for key in FRAMEWORK),
        *(f"model.{key}" for key in MODEL),
    }
    listed = {f"{s.at}.{key}" for s in options.SECTIONS for keys in s.table.values() for key in keys}
    chosen = {f"{s.at}.{s.key}" for s in options.SECTIONS} | {"framework.name", "model.name"}
    assert not tried & listed
    assert tried | listed | chosen | ELSEWHERE == set(options.leaves())
    assert set(GROUP) == {field.name for field in fields(GroupSpec)}


@pytest.mark.parametrize("key", PLANNED)
def test_of_the_plan(key):
    value, base = PLANNED[key]
    if key in ("schedules", "optimizers"):
        other = value | {
            name: {**spec, "name": "constant" if key == "schedules" else "adam"} for name, spec in value.items()
        }
        assert told(moves, {**base, key: value}) != told(moves, {**base, key: other})
    else:
        assert told(moves, base) != told(moves, {**base, key: value})


@pytest.mark.parametrize("key", BATCHED)
def test_of_the_batches(key):
    value, base = BATCHED[key]
    assert isinstance(told(arrays, base), list)
    assert told(arrays, base) != told(arrays, {**base, key: value})


@pytest.mark.parametrize(
    ("given", "of"),
    [
        ("augment.crop_ratio", LENET),
        ("augment.randaugment_magnitude", LENET),
        ("augment.randaugment_std", LENET),
        ("augment.randaugment_prob", LENET),
        ("augment.mix_prob", LENET),
        ("augment.mix_switch", {**LENET, "augment.mixup": 0.8}),
        ("data.flip", {**LENET, "augment.hflip": 0.5}),
        ("data.workers", LENET),
    ],
)
def test_a_key_of_the_batches_that_another_leaves_unread(given, of):
    with pytest.raises(UserError, match=f"{given} would be ignored: "):
        options.refuse_ignored([given], options.ignored(resolve(config(of))))


@pytest.mark.parametrize("strategy", ["flat", "layer_decay", "backbone_head", "by_name", "by_module", "by_layer_type"])
@pytest.mark.parametrize("key", GROUP)
def test_of_a_named_group(strategy, key):
    named = {"schedules": {"s": {"name": "step", "every": 3}}, "optimizers": {"o": {"name": "sgd"}}}
    one, other = (
        ("conv", "linear")
        if strategy == "by_layer_type"
        else ("conv1", "conv2")
        if strategy == "by_module"
        else ("conv1*", "conv2*")
    )
    base = {**LENET, **named, "grouping.strategy": strategy}
    rest = {"z": {"match": ["*"]}} if strategy.startswith("by_") else {}
    value = [other] if key == "match" else GROUP[key]
    plain = {"match": [one], "weight_decay": 0.3}
    changed = {**plain, key: value}
    assert told(moves, {**base, "grouping.groups": {"a": plain, **rest}}) != told(
        moves, {**base, "grouping.groups": {"a": changed, **rest}}
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("key", MODEL)
def test_of_a_model(model, key):
    base = {"model.name": model, "data.channels": 3, "data.image_size": 32, "batch_size": 5}
    plain, changed = told(layers, base), told(layers, {**base, f"model.{key}": MODEL[key]})
    if key in TAKES.get(model, ()):
        assert isinstance(changed, list) and plain != changed
    else:
        assert f"model {model} takes no {key}" in changed


@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_is_the_data_s(key):
    assert f"{key}={SIZES[key]}, but data digits has" in told(layers, {**LENET, key: SIZES[key]})


@pytest.mark.parametrize("key", FRAMEWORK)
def test_of_a_framework(key, monkeypatch):
    monkeypatch.setattr(registry, "load", lambda name: Asked)

    def asked(given):
        return page.make_framework(given).asked

    assert told(asked, LENET) != told(asked, {**LENET, f"framework.{key}": FRAMEWORK[key]})


def test_threads_of_the_reference_are_refused():
    final = resolve(config({**LENET, "framework.name": "reference", "framework.threads": 3}))
    assert final.framework.threads == 1
    with pytest.raises(UserError, match=r"framework\.threads would be ignored"):
        options.refuse_ignored(["framework.threads"], options.ignored(final))


@pytest.mark.parametrize("key", RUN)
def test_of_a_run(key, tmp_path, monkeypatch):
    value, base = RUN[key]
    if key == "verify.on_mismatch":
        monkeypatch.setattr(proof, "TOLERANCE", -1.0)
    made = iter(range(2))

    def files(given):
        folder, lines = RunFolder.claim(tmp_path / str(next(made))), []
        folder.write_text(CONFIG, given.to_yaml())
        try:
            summary = page.run(folder.path, lines.append)
        except proof.LrMismatch as mismatch:
            return str(mismatch)
        kept = {
            p.relative_to(folder.path): p.read_bytes()
            for p in folder.path.rglob("*")
            if p.suffix in (".jsonl", ".safetensors")
        }
        return kept, lines, summary["name"], summary["metric"]

    assert told(files, base) != told(files, {**base, key: value})


# --- data and weights: every option x every key

HERE = [option for option in options.DATA if option != "hf_dataset"]
"""It needs a library: tests/zoo/test_hub.py."""


def write_idx(path, array):
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes())


@pytest.fixture
def held(tmp_path, monkeypatch):
    """Small data of every kind; what each option needs, and another `path`."""
    monkeypatch.setenv("LAYERWISE_LR_CACHE", str(tmp_path))
    pictures._read.cache_clear()
    rng = np.random.default_rng(0)

    def make(option, folder):
        folder.mkdir(parents=True)
        count, classes = {"mnist": (70000, 10), "elpv": (2624, 2), "emoji": (1433, 8)}.get(option, (120, 3))
        x, y = rng.integers(0, 256, (count, 8, 8), np.uint8), np.arange(count) % classes
        if option in ("mnist", "elpv", "emoji"):
            np.save(folder / "images.npy", x)
            np.save(folder / "labels.npy", y)
        elif option == "npz":
            np.savez(folder / "d.npz", x=x, y=y)
            return folder / "d.npz"
        elif option == "idx":
            for part, some in (("train", slice(0, 80)), ("t10k", slice(80, 120))):
                write_idx(folder / f"{part}-images-idx3-ubyte", x[some])
                write_idx(folder / f"{part}-labels-idx1-ubyte", y[some].astype(np.uint8))
        elif option == "cifar10":
            for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
                rows = rng.integers(0, 256, (40, 3073), np.uint8)
                rows[:, 0] = np.arange(40) % 10
                (folder / f"{name}.bin").write_bytes(rows.tobytes())
        elif option in ("image_folder", "csv"):
            rows = ["path,label,coarse"]
            for number, (label, picture) in enumerate(zip(y, x, strict=True)):
                (folder / str(label)).mkdir(exist_ok=True)
                Image.fromarray(picture).save(folder / str(label) / f"{number}.png")
                rows.append(f"{label}/{number}.png,{label},{label % 2}")
            if option == "csv":
                (folder / "t.csv").write_text("\n".join(rows))
                return folder / "t.csv"
        return folder

    def needs(option):
        base = {"data.name": option, "data.image_size": 8, "model.name": "mlp", **SMALL}
        if option == "digits":
            return base
        place = make(option, tmp_path / option)
        return (
            base
            | ({"data.path": str(place)} if "path" in options.DATA[option] else {})
            | ({"data.checksum": False} if option == "cifar10" else {})
        )

    return needs, make


@pytest.mark.parametrize("option", HERE)
@pytest.mark.parametrize("key", DRAWN)
def test_of_every_data_set(option, key, held):
    base = held[0](option)
    assert isinstance(told(arrays, base), list)
    assert told(arrays, base) != told(arrays, {**base, key: DRAWN[key]})


@pytest.mark.parametrize("option", HERE)
@pytest.mark.parametrize("key", ["path", "label", "skip_broken", "checksum", "stand_in"])
def test_of_a_data_set(option, key, held, tmp_path):
    needs, make = held
    base = needs(option)
    value = {
        "path": str(tmp_path / "other"),
        "label": "coarse",
        "skip_broken": True,
        "checksum": key == "checksum" and option != "cifar10",
        "stand_in": "digits",
    }[key]
    if key not in options.DATA[option]:
        final = resolve(config({**base, f"data.{key}": value}))
        assert final == resolve(config(base)), "equal in what they do, so equal"
        with pytest.raises(UserError, match=f"data.{key} would be ignored: data={option} does not read it"):
            options.refuse_ignored([f"data.{key}"], options.ignored(final))
    elif key == "path":
        value = make(option, tmp_path / "other")
        pictures._read.cache_clear()
        assert told(arrays, base) != told(arrays, {**base, "data.path": str(value)})
    elif key == "label":
        assert told(arrays, base) != told(arrays, {**base, "data.label": value})
    elif key == "skip_broken":
        (tmp_path / option / "0" / "0.png").write_bytes(b"")
        assert "data.skip_broken=true" in told(arrays, base)
        assert isinstance(told(arrays, {**base, "data.skip_broken": True}), list)
    elif key == "checksum":
        assert "data.checksum=false" in told(arrays, {**base, "data.checksum": True})
    else:
        gone = {**base, "data.path": str(tmp_path / "gone")} if "path" in options.DATA[option] else base
        for path in (tmp_path / option).rglob("*.npy"):
            path.unlink()
        assert "Absent" in told(arrays, gone) and isinstance(told(arrays, {**gone, "data.stand_in": "digits"}), list)


@pytest.mark.parametrize("option", options.WEIGHTS)
@pytest.mark.parametrize("key", ["path", "resize_pos_embed"])
def test_of_weights(option, key, tmp_path, monkeypatch):
    vit = {"model.name": "vit_tiny", "model.depth": 1, "data.image_size": 32, "batch_size": 5}
    small = resolve(config({**vit, "data.image_size": 16})).tree()
    full = resolve(config(vit)).tree()
    for name, tree, seed in (("small", small, 0), ("one", full, 0), ("two", full, 1)):
        np.savez(tmp_path / f"{name}.npz", **initial_weights(tree, seed))
    base = {**vit, "weights.name": option}
    if key not in options.WEIGHTS[option]:
        final = resolve(config({**base, f"weights.{key}": str(tmp_path / "one.npz") if key == "path" else False}))
        assert final == resolve(config(base))
        with pytest.raises(UserError, match=f"weights.{key} would be ignored: weights={option} does not read it"):
            options.refuse_ignored([f"weights.{key}"], options.ignored(final))
    elif key == "path":
        one, two = (told(start, {**base, "weights.path": str(tmp_path / f"{n}.npz")}) for n in ("one", "two"))
        assert one != two and one == {n: a.tobytes() for n, a in initial_weights(full, 0).items()}
    else:
        if option == "file":
            base["weights.path"] = str(tmp_path / "small.npz")
        else:
            monkeypatch.setenv("LAYERWISE_LR_CACHE", str(tmp_path))
            (tmp_path / option).mkdir()
            save_file(initial_weights(small, 0), str(tmp_path / option / "model.safetensors"))
        assert "weights.resize_pos_embed" in told(start, {**base, "weights.resize_pos_embed": False})
        assert isinstance(told(start, base), dict)


def test_the_list_in_the_docs_is_this_one():
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+=\w+)` \| (.*) \|$", text, re.MULTILINE))
    table = {f"{s.group}={option}": keys for s in options.SECTIONS for option, keys in s.table.items() if keys}
    assert {option: tuple(re.findall(r"\w+", keys)) for option, keys in rows.items()} == table
