"""Bad input: one clear line (what, where, what to do), exit code 2, no traceback, nothing left behind.

Each case is a whole command line, run in an empty folder of its own.
`says` are parts of the one line on stderr.
"""

import gzip
import json
import os
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from layerwise_lr.cli import program
from layerwise_lr.framework import registry
from layerwise_lr.models import make_tree
from layerwise_lr.models.layers import initial_weights
from layerwise_lr.planning.errors import UserError

WHOLE = "'+grouping.groups.rest={match: [\"*\"]}'"


class Evil:
    """Unpickling it would write a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def write_npz(name: str, **arrays: np.ndarray) -> Callable[[], None]:
    return lambda: np.savez(name, **arrays)


def lenet_weights(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[], None]:
    """w.npz: the model's arrays, conv2.weight changed."""

    def make() -> None:
        arrays = initial_weights(make_tree("lenet", num_classes=10, in_channels=1, image_size=28), 0)
        np.savez("w.npz", **(arrays | {"conv2.weight": change(arrays["conv2.weight"])}))

    return make


def one_nan(array: np.ndarray) -> np.ndarray:
    array.flat[7] = np.nan
    return array


def pictures(n: int = 60, classes: int = 3, side: int = 28) -> dict[str, np.ndarray]:
    """Arrays x and y of a small, valid data set."""
    rng = np.random.default_rng(0)
    return {"x": rng.integers(0, 256, (n, side, side), dtype=np.uint8), "y": np.arange(n) % classes}


def folder(**classes: int) -> Callable[[], None]:
    """pics/CLASS/N.png"""

    def make() -> None:
        for name, count in classes.items():
            Path("pics", name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((8, 8), i, np.uint8)).save(Path("pics", name, f"{i}.png"))

    return make


def corrupt_folder() -> None:
    folder(a=12, b=12)()
    Path("pics/b/3.png").write_bytes(Path("pics/b/3.png").read_bytes()[:40])


def truncated(name: str) -> Callable[[], None]:
    """A weights file cut in the middle."""

    def make() -> None:
        arrays = {"conv1.weight": np.zeros((6, 1, 5, 5), np.float32)}
        if name.endswith(".safetensors"):
            save_file(arrays, name)
        elif name.endswith(".npz"):
            np.savez(name, **arrays)
        else:
            import torch

            torch.save({k: torch.from_numpy(a) for k, a in arrays.items()}, name)
        Path(name).write_bytes(Path(name).read_bytes()[:150])

    return make


def write(name: str, content: str | bytes) -> Callable[[], None]:
    def make() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def idx_of_floats() -> None:
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        write(f"idx/{name}-ubyte", bytes([0, 0, 13, int(name[-1]), *[0] * 16]))()


def run_folder_with(text: str) -> Callable[[], None]:
    return write("job/config.resolved.yaml", text)


class Case(NamedTuple):
    words: str
    says: tuple[str, ...]
    prepare: Callable[[], object] = lambda: None
    env: Mapping[str, str] = MappingProxyType({})


FEW = "data.train_size=20 data.val_size=10 data.test_size=10 batch_size=5"
NPZ = f"train data=npz data.path=d.npz weights=none {FEW}"
PICS = (
    "train data=image_folder data.path=pics data.train_size=6 data.val_size=4 data.test_size=4 "
    "data.image_size=32 model=resnet18 weights=none batch_size=3"
)
CIFAR = "train data=cifar10 data.path=cifar model=mlp weights=none"
BY = "plan grouping=by_module +grouping.groups.a="
JOIN = "plan scheduler=join '+schedules.up={name: linear}' '+schedules.down={name: cosine}' "

CASES = {
    # the command itself
    "unknown command": Case("tran", ("'tran' is no command", "did you mean 'train'")),
    "key without command": Case("seed=1", ("'seed=1' is no command", "layerwise-lr train ...")),
    "unknown flag": Case("train --sed 1", ("--sed", "layerwise-lr train --help")),
    "-m in the middle": Case("train seed=1 -m batch_size=5,10", ("batch_size=5,10", "-m")),
    "-m with --cfg": Case("train -m seed=1,2 --cfg job", ("--multirun", "--cfg")),
    "plan -m": Case("plan -m seed=0,1 ", ("only 'layerwise-lr train' and 'compare' take -m",)),
    "verify -m": Case("verify -m seed=0,1", ("only 'layerwise-lr train' and 'compare' take -m",)),
    "no equals sign": Case("train steps", ("'steps'", "missing EQUAL", "key=value")),
    "unbalanced bracket": Case("train data.mean=[0.1", ("[0.1",)),
    "comma without -m": Case("train seed=0,1", ("seed", "-m")),
    "glob without -m": Case("train 'model=glob(*)'", ("model=glob(*)", "-m")),
    "interval": Case("train -m 'optimizer.lr=interval(0,1)'", ("INTERVAL", "key=a,b,c")),
    "--info of everything": Case("train --info", ("--info", "searchpath")),
    "--package alone": Case("plan --package data", ("--package", "--cfg")),
    "--experimental-rerun": Case("train --experimental-rerun x.pickle", ("--experimental-rerun", "layerwise-lr run")),
    "another primary config": Case("train --config-name data/digits", ("--config-name", "experiment=")),
    # keys and groups
    "typo in a key": Case(
        "train grouping.layer_deca=0.5", ("grouping.layer_deca", "did you mean grouping.layer_decay?")
    ),
    "typo in a top key": Case("train bach_size=5", ("bach_size", "did you mean batch_size?")),
    "typo with plus": Case("train +grouping.layer_deca=1", ("grouping.layer_deca", "did you mean 'layer_decay'")),
    "typo with plus, top": Case("train +sed=1", ("unknown key sed", "did you mean 'seed'")),
    "typo with plus in a group": Case(
        BY + "'{match: [conv1], lr_scal: 1}'", ("grouping.groups.a.lr_scal", "did you mean 'lr_scale'")
    ),
    "typo in a group": Case("train modle=lenet", ("modle", "did you mean model?")),
    "typo in a group option": Case("train model=resnet81", ("model=resnet81", "resnet18", "did you mean")),
    "unknown framework": Case("train framework=tensorflow", ("framework=tensorflow", "torch")),
    "unknown framework by name": Case(
        "train framework.name=tourch", ("framework.name='tourch'", "did you mean 'torch'")
    ),
    "unknown experiment": Case("train experiment=solar", ("experiment=solar", "solar_cells")),
    "experiment twice": Case("train +experiment=solar_cells", ("experiment", "+")),
    # types
    "word for a number": Case("train grouping.layer_decay=abc", ("grouping.layer_decay", "'abc'", "Float")),
    "fraction for an int": Case("train seed=1.5", ("seed", "'1.5'", "Integer")),
    "null for an int": Case("train batch_size=null", ("batch_size", "not Optional")),
    "word for a bool": Case("train verify=maybe", ("verify=maybe", "off, on, warn")),
    "list for a number": Case("train optimizer.lr=[1,2]", ("optimizer.lr",)),
    "number for a mapping": Case("train grouping=3", ("int", "group=option")),
    "number for the groups": Case("train grouping.groups=5", ("grouping.groups",)),
    "one word for a list": Case("train data.mean=0.5", ("data.mean",)),
    # ranges
    "layer_decay 0": Case("plan grouping.layer_decay=0", ("grouping.layer_decay=0", "above 0 and at most 1")),
    "layer_decay -1": Case("plan grouping.layer_decay=-1", ("grouping.layer_decay=-1", "above 0 and at most 1")),
    "layer_decay 1.5": Case("plan grouping.layer_decay=1.5", ("layer_decay=1.5", "grouping.allow_above_one=true")),
    "layer_decay nan": Case("plan grouping.layer_decay=nan", ("grouping.layer_decay=nan", "finite")),
    "stem_scale 2": Case("plan grouping.stem_scale=2", ("grouping.stem_scale=2", "at most 1")),
    "lr nan": Case("train optimizer.lr=nan", ("optimizer.lr=nan", "finite")),
    "lr inf": Case("train optimizer.lr=inf", ("optimizer.lr=inf", "finite")),
    "lr negative": Case("train optimizer.lr=-0.1", ("optimizer.lr=-0.1", "from 1e-30 to 1e30")),
    "lr 0": Case("train optimizer.lr=0", ("optimizer.lr=0", "from 1e-30 to 1e30")),
    "weight decay negative": Case("train optimizer.weight_decay=-1", ("optimizer.weight_decay=-1", "from 0 to 1e6")),
    "betas": Case("train optimizer.betas=[0.9,1.0]", ("optimizer.betas", "below 1")),
    "batch_size 0": Case("train batch_size=0", ("batch_size=0", "from 1 to")),
    "epochs 0": Case("train epochs=0", ("epochs=0", "from 1 to")),
    "steps 0": Case("train steps=0", ("steps=0", "from 1 to")),
    "seed negative": Case("train seed=-1", ("seed=-1", "at least 0")),
    "threads 0": Case("train framework.threads=0", ("framework.threads=0", "from 1 to")),
    "model size 0": Case("train model=mlp weights=none model.width=0", ("model.width=0", "from 1 to")),
    "heads 0": Case("plan model=vit_tiny weights=none data.image_size=32 +model.num_heads=0", ("model.num_heads=0",)),
    "embed_dim negative": Case(
        "plan model=vit_tiny weights=none data.image_size=32 model.embed_dim=-192", ("model.embed_dim=-192",)
    ),
    "dropout 1": Case("plan model=mobilenet_v2 weights=none model.dropout=1", ("model.dropout=1", "below 1")),
    "metric": Case("train metric=acc", ("metric=acc", "accuracy or balanced_accuracy")),
    "channels 2": Case("train data.channels=2", ("data.channels=2", "1 or 3")),
    "std 0": Case("train data.std=[0]", ("data.std=[0.0]", "from 1e-6 to 1e6")),
    "mean of no length": Case(
        "train data.mean=[]", ("data.mean", "one number, or one for each channel (data.channels=1)")
    ),
    "std of no length": Case(
        "train data.std=[]", ("data.std=[]", "one number, or one for each channel (data.channels=1)")
    ),
    "checkpoint.keep 0": Case("train checkpoint.keep=0", ("checkpoint.keep=0", "at least 1")),
    "name with a slash": Case("train name=a/b", ("name='a/b'", "no slash")),
    "name with a line break": Case("train 'name=\"a\nb\"'", ("a\\nb", "no line break")),
    "name of 201 bytes": Case("train name=" + "x" * 201, ("at most 200 bytes",)),
    "name of 300 bytes": Case("train name=" + "x" * 300, ("File name too long", "choose a shorter name")),
    "name at the root": Case("train name=/abs", ("name='/abs'", "no slash")),
    "name above, in a sweep": Case("train -m seed=0,1 name=..", ("name='..'", "no dot")),
    "name empty": Case("train name=", ("name=''", "not empty")),
    # durations
    "duration in days": Case("train eval_every='2 days'", ("eval_every='2 days'", "'2 epochs'")),
    "duration negative": Case("train eval_every=-3", ("eval_every=-3", "no duration")),
    "duration: half a step": Case("train eval_every=1.5", ("eval_every=1.5", "whole")),
    "warmup as a bool": Case("train scheduler.warmup=true", ("scheduler.warmup=True", "no duration")),
    "warmup longer than the run": Case("plan scheduler.warmup=200%", ("scheduler.warmup", "run")),
    "duration in a group": Case(BY + "'{match: [\"*\"], stop: soon}'", ("grouping.groups.a.stop='soon'",)),
    # weights
    "weights=file without path": Case("train weights=file", ("weights.path", "missing")),
    "weights file absent": Case("train weights=file weights.path=w.npz", ("weights.path=w.npz", "no such file")),
    "weights of another model": Case("train model=mlp", ("lenet_mnist.npz", "model mlp", "weights=none")),
    "weights of another depth": Case(
        "train model=resnet18 weights=file weights.path=w.npz data.image_size=32",
        ("w.npz", "resnet18", "missing from the file", "weights=none"),
        write_npz("w.npz", **{"conv1.bias": np.zeros(6, np.float32)}),
    ),
    "unknown weights": Case("train weights.name=lenet", ("weights.name='lenet'", "lenet_mnist")),
    "truncated safetensors": Case(
        "train weights=file weights.path=w.safetensors", ("w.safetensors", "not a readable"), truncated("w.safetensors")
    ),
    "truncated npz": Case("train weights=file weights.path=w.npz", ("w.npz", "not a readable"), truncated("w.npz")),
    "truncated pth": Case("train weights=file weights.path=w.pth", ("w.pth", "torch cannot read"), truncated("w.pth")),
    "empty npz": Case("train weights=file weights.path=w.npz", ("w.npz", "not a readable"), write("w.npz", b"")),
    "pickle": Case(
        "train weights=file weights.path=w.pth", ("w.pth", "torch cannot read"), write("w.pth", pickle.dumps(Evil(), 2))
    ),
    "pth that is a list": Case(
        "train weights=file weights.path=w.pth",
        ("w.pth", "holds no arrays"),
        lambda: __import__("torch").save([1, 2], "w.pth"),
    ),
    "object arrays": Case(
        "train weights=file weights.path=w.npz",
        ("w.npz", "not a readable"),
        write_npz("w.npz", a=np.array([Evil()], object)),
    ),
    "weights of text": Case("train weights=file weights.path=w.txt", ("w.txt", ".safetensors"), write("w.txt", "x")),
    "weights not fetched": Case(
        "train model=mobilenet_v2 weights=mobilenet_v2_imagenet data.image_size=32 data.channels=3",
        ("layerwise-lr fetch mobilenet_v2_imagenet",),
        env={"LAYERWISE_LR_CACHE": "cache"},
    ),
    # data
    "data not fetched": Case(
        "train experiment=solar_cells weights=none", ("layerwise-lr fetch elpv",), env={"LAYERWISE_LR_CACHE": "cache"}
    ),
    "CIFAR-10 not downloaded": Case(
        CIFAR, ("looked in cifar", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "data.path=...")
    ),
    "CIFAR-10 not downloaded, in a sweep": Case(CIFAR.replace("train", "train -m seed=0,1"), ("looked in cifar",)),
    "CIFAR-10 altered": Case(
        CIFAR, ("cifar/cifar-10-python.tar.gz", "data.checksum=false"), write("cifar/cifar-10-python.tar.gz", b"x")
    ),
    "CIFAR-10 altered, a batch": Case(
        CIFAR, ("data_batch_2.bin", "data.checksum=false"), write("cifar/data_batch_2.bin", b"x")
    ),
    "CIFAR-10 truncated": Case(
        CIFAR + " data.checksum=false",
        ("cifar/cifar-10-binary.tar.gz", "cut short"),
        write("cifar/cifar-10-binary.tar.gz", gzip.compress(b"x" * 9999)[:20]),
    ),
    "CIFAR-10 with a batch missing": Case(
        CIFAR + " data.checksum=false", ("cifar: lacks data_batch_1.bin",), write("cifar/test_batch.bin", bytes(3073))
    ),
    "CIFAR-10 of code": Case(
        CIFAR + " data.checksum=false",
        ("data_batch_1", "system is no array"),
        write("cifar/data_batch_1", pickle.dumps(Evil(), 2)),
    ),
    "IDX without path": Case("train data=idx", ("data.path", "missing")),
    "IDX absent": Case("train data=idx data.path=idx", ("data.path=idx", "apt install dataset-fashion-mnist")),
    "IDX of floats": Case("train data=idx data.path=idx", ("train-images-idx3-ubyte", "00000d03"), idx_of_floats),
    "IDX with a file missing": Case(
        "train data=idx data.path=idx", ("lacks train-labels",), write("idx/train-images-idx3-ubyte", b"x")
    ),
    "unknown stand-in": Case("train data=cifar10 data.stand_in=mnist", ("data.stand_in=mnist", "digits or null")),
    "stands_for by hand": Case("train data.stands_for=imagenet", ("data.stands_for=imagenet", "data.stand_in")),
    "unknown data": Case("train data.name=digit", ("data.name='digit'", "did you mean 'digits'")),
    "npz without path": Case("train data=npz", ("data.path", "missing")),
    "npz absent": Case(NPZ, ("data.path=d.npz", "no such file")),
    "npz of floats": Case(
        NPZ, ("data.path=d.npz", "uint8", "float64"), write_npz("d.npz", x=np.zeros((60, 28, 28)), y=np.arange(60) % 3)
    ),
    "npz of a wrong shape": Case(
        NPZ, ("data.path=d.npz", "[60, 784]"), write_npz("d.npz", x=np.zeros((60, 784), np.uint8), y=np.arange(60) % 3)
    ),
    "npz with too few labels": Case(
        NPZ, ("data.path=d.npz", "60 labels"), write_npz("d.npz", x=pictures()["x"], y=np.arange(59) % 3)
    ),
    "npz with negative labels": Case(
        NPZ, ("data.path=d.npz", "labels from 0"), write_npz("d.npz", x=pictures()["x"], y=np.arange(60) % 3 - 1)
    ),
    "npz with a class left out": Case(
        NPZ, ("data.path=d.npz", "class 1"), write_npz("d.npz", x=pictures()["x"], y=np.arange(60) % 2 * 2)
    ),
    "npz of one class": Case(NPZ, ("data.path=d.npz", "two classes"), write_npz("d.npz", **pictures(classes=1))),
    "npz without pictures": Case(NPZ, ("data.path=d.npz", "no pictures"), write_npz("d.npz", **pictures(n=0))),
    "npz with no y": Case(NPZ, ("data.path=d.npz", "arrays x and y"), write_npz("d.npz", x=pictures()["x"])),
    "npz of one array": Case(
        NPZ, ("data.path=d.npz", "arrays x and y"), lambda: Path("d.npz").write_bytes(pickle.dumps(Evil(), 2))
    ),
    "npz truncated": Case(NPZ, ("data.path=d.npz", "arrays x and y"), truncated("d.npz")),
    "npz is an npy": Case(
        NPZ,
        ("data.path=d.npz", "arrays x and y"),
        lambda: (np.save("d.npy", np.zeros(3)), Path("d.npy").rename("d.npz")),
    ),
    "npz is a folder": Case(NPZ, ("data.path=d.npz",), lambda: Path("d.npz").mkdir()),
    "corrupt picture": Case(PICS, ("data.path=pics", "b/3.png", "data.skip_broken=true"), corrupt_folder),
    "folder of one class": Case(PICS, ("data.path=pics", "at least two"), folder(a=12)),
    "folder with an empty class": Case(PICS, ("data.path=pics", "without pictures: b"), folder(a=12, b=0)),
    "folder empty": Case(PICS, ("data.path=pics", "at least two"), lambda: Path("pics").mkdir()),
    "folder absent": Case(PICS, ("data.path=pics", "no such file or folder")),
    "folder is a file": Case(PICS, ("data.path=pics", "at least two"), write("pics", "x")),
    "class count": Case("train +model.num_classes=3", ("model.num_classes=3", "digits has 10")),
    "batch larger than data": Case("train batch_size=64", ("batch_size=64", "50 training pictures")),
    "train_size too large": Case("train data.train_size=2000", ("train_size=2000", "1797")),
    "train_size below the classes": Case("train data.train_size=5 batch_size=5", ("data.train_size=5", "class")),
    "val_size too large": Case("train data.val_size=2000", ("val_size=2000", "1797")),
    "val_size 0": Case("train data.val_size=0", ("data.val_size=0", "at least 1")),
    # model
    "image_size and patch_size": Case("train model=vit_tiny weights=none", ("image_size=28", "data.image_size=32")),
    "image too small": Case("plan data.image_size=8", ("image_size=8", "at least 12")),
    "option of another model": Case("plan weights=none model.patch_size=4", ("lenet", "patch_size")),
    "unknown model by name": Case("plan model.name=lenett", ("model.name='lenett'", "did you mean 'lenet'")),
    "unknown pool": Case("plan model=vit_tiny weights=none data.image_size=32 model.pool=max", ("pool='max'", "'avg'")),
    # framework
    "cuda": Case("train framework.device=cuda", ("framework.device='cuda:0'", "sees: cpu")),
    "cuda in verify": Case("verify framework.device=cuda:1", ("framework.device='cuda:1'", "sees: cpu")),
    "cuda in a sweep": Case("train -m seed=0,1 framework.device=cuda", ("framework.device='cuda:0'", "sees: cpu")),
    "cuda in one job": Case("train -m framework.device=cpu,cuda", ("framework.device='cuda:0'", "sees: cpu")),
    "ascend": Case("train framework.device=ascend", ("framework.device='ascend:0'", "sees: cpu")),
    "unknown mode": Case("train framework.mode=graf", ("framework.mode='graf'", "eager")),
    "unknown mode in a sweep": Case("train -m seed=0,1 framework.mode=graf", ("framework.mode='graf'", "eager")),
    "unknown precision": Case("train framework.precision=fp8", ("framework.precision='fp8'", "fp32")),
    # groups
    "no such module": Case(BY + "'{match: [covn1]}' " + WHOLE, ("grouping.groups.a.match", "'covn1'", "'conv1'")),
    "shadowed": Case(
        BY + "'{match: [\"*\"]}' '+grouping.groups.b={match: [conv1]}'",
        ("grouping.groups.b.match", "'conv1'", "first match wins"),
    ),
    "uncovered": Case(BY + "'{match: [conv1]}'", ("in no group", "conv2.weight", "match: ['*']")),
    "empty match": Case(BY + "'{match: []}'", ("grouping.groups.a.match is empty",)),
    "no groups": Case("plan grouping=by_name", ("by_name", "grouping.groups")),
    "no such layer type": Case(
        "plan grouping=by_layer_type '+grouping.groups.a={match: [convo]}' " + WHOLE, ("'convo'", "did you mean 'conv'")
    ),
    "lr and lr_scale": Case(BY + "'{match: [\"*\"], lr: 1, lr_scale: 1}'", ("grouping.groups.a", "lr or lr_scale")),
    "negative lr of a group": Case(BY + "'{match: [\"*\"], lr: -1}'", ("grouping.groups.a.lr=-1", "from 0 to 1e6")),
    "NaN in a group": Case(BY + "'{match: [\"*\"], lr_scale: nan}'", ("grouping.groups.a.lr_scale",)),
    "bad regex": Case("plan grouping=by_name '+grouping.groups.a={match: [\"re:(conv\"]}'", ("'re:(conv'", "no regex")),
    "unknown schedule of a group": Case(BY + "'{match: [\"*\"], schedule: slow}'", ("'slow'", "schedules")),
    "unknown optimizer of a group": Case(BY + "'{match: [\"*\"], optimizer: fast}'", ("'fast'", "optimizers")),
    "unknown strategy": Case("plan grouping.strategy=layerdecay", ("grouping.strategy='layerdecay'", "did you mean")),
    "unknown convention": Case("plan grouping.convention=trea", ("grouping.convention='trea'", "did you mean 'tree'")),
    "the convention's old name": Case(
        "plan grouping.depth=mae", ("grouping.depth", "did you mean grouping.convention?")
    ),
    "a convention that does not know the model": Case(
        "plan grouping.convention=mae", ("mae knows ViT only", "grouping.convention=tree", "grouping.depths")
    ),
    "rules without a plus": Case(
        "plan 'grouping.depths={conv: 0}'", ("grouping.depths", "+grouping.depths={REGEX: DEPTH}")
    ),
    "rules that leave a parameter out": Case(
        "plan '+grouping.depths={conv: 0, fc: 1}'", ("2 parameters match no rule", "classifier.weight", "'.*': 1")
    ),
    "a rule and a typo": Case(
        "plan '+grouping.depths={covn1: 0, .*: 1}'", ("'covn1' matches no parameter", "did you mean 'conv1'")
    ),
    "a negative depth": Case("plan '+grouping.depths={.*: -1}'", ("grouping.depths", "depths of 0 or more")),
    "two decays": Case(
        "plan grouping.stem_scale=0.1 grouping.decay_per_12_layers=0.7",
        ("grouping.stem_scale=0.1", "grouping.decay_per_12_layers=0.7", "one of the two"),
    ),
    "a decay that another says": Case(
        "plan grouping.layer_decay=0.5 grouping.decay_per_12_layers=0.7",
        ("grouping.layer_decay would be ignored", "grouping.decay_per_12_layers"),
    ),
    "more stages than depths": Case("plan grouping.stages=9", ("grouping.stages=9", "the 4 depths below the head")),
    "one convention to compare": Case("plan --compare mae", ("takes two conventions", "--compare mae,timm", "beit")),
    "compare nothing": Case("plan --compare", ("takes two conventions",)),
    "compare outside of plan": Case("train --compare mae,timm", ("--compare is plan's", "layerwise-lr plan --compare")),
    "compare what is not there": Case(
        "plan model=vit_tiny --compare mae,tim", ("grouping.convention='tim'", "did you mean 'timm'")
    ),
    "compare under flat": Case("plan grouping=flat --compare tree,order", ("grouping=flat reads no convention",)),
    "group begins after the end": Case(BY + "'{match: [\"*\"], start: 100%}'", ("groups", "after the last step")),
    # schedules, optimizers, freezing
    "unknown scheduler": Case("plan scheduler.name=cosin", ("scheduler.name='cosin'", "did you mean 'cosine'")),
    "unknown scheduler option": Case("plan scheduler=cosin", ("scheduler=cosin", "did you mean 'cosine'")),
    "two clippings": Case(
        "plan clip_grad_norm=1 clip_grad_value=1", ("clip_grad_value=1.0 must be null", "clip_grad_norm is given")
    ),
    "the average in 64 bits": Case(
        "train ema.decay=0.9 framework=torch_fp64", ("ema.decay=0.9", "framework.precision=fp32")
    ),
    "warm-up of no average": Case("plan ema.warmup=false", ("ema.warmup would be ignored", "ema.decay is given")),
    "min_delta without patience": Case(
        "plan early_stop.min_delta=0.1", ("early_stop.min_delta would be ignored", "early_stop.patience is given")
    ),
    "muon without a matrix": Case(
        "plan optimizer=muon model=resnet18 weights=none data.channels=3 data.image_size=32",
        ("optimizer muon", "none of its 62 parameters is a hidden matrix", "optimizer=adamw"),
    ),
    "drop_path of a net without branches": Case("plan model.drop_path=0.1", ("model lenet takes no drop_path",)),
    "parts of more than there is": Case(
        "plan accumulate=9", ("batch_size=25 times accumulate=9 is more than the 50 training pictures",)
    ),
    "unknown optimizer": Case("plan optimizer.name=adan", ("optimizer.name='adan'", "adamw")),
    "join without parts": Case("plan scheduler=join", ("scheduler.parts", "missing")),
    "join with too many starts": Case(
        JOIN + "scheduler.parts=[up,down] scheduler.starts=[10%,50%]", ("join", "one fewer than parts")
    ),
    "join with an unknown part": Case(
        JOIN + "scheduler.parts=[up,side] scheduler.starts=[50%]", ("'side'", "up, down")
    ),
    "join beyond the run": Case(
        JOIN + "scheduler.parts=[up,down] scheduler.starts=[360]", ("join", "[360]", "120 steps")
    ),
    "floor 2": Case("plan scheduler.floor=2", ("scheduler.floor=2", "from 0 to 1")),
    "freeze: no such stage": Case("plan freeze=progressive freeze.stages=[fc1,layer9]", ("'layer9'", "no module")),
    "freeze after nothing": Case("plan freeze=after", ("freeze.match is empty", "name the modules")),
    "freeze after an empty list": Case("plan freeze=after freeze.match=[]", ("freeze.match is empty",)),
    "freeze longer than the run": Case("plan freeze=progressive 'freeze.every=40 epochs'", ("groups", "freeze.every")),
    "freeze after the end": Case(
        "plan freeze=after freeze.match=[conv1] freeze.at=300%", ("freeze.at=300%", "at most 100%")
    ),
    "unknown freezing": Case("plan freeze.strategy=head", ("freeze.strategy='head'", "head_first")),
    # folders
    "run folder taken": Case(
        "train hydra.run.dir=taken",
        ("taken", "holds a run already"),
        write("taken/status.json", json.dumps({"state": "failed", "pid": 1, "host": "here"})),
    ),
    "run folder is a file": Case("train hydra.run.dir=taken", ("taken",), write("taken", "x")),
    "report without a folder": Case("report", ("folder", "layerwise-lr report --help")),
    "report on an absent folder": Case("report nowhere", ("nowhere", "no such folder")),
    "report with an unknown metric": Case("report . --metric acc", ("acc", "balanced_accuracy")),
    "run without a folder": Case("run", ("folder", "layerwise-lr run --help")),
    "run on an empty folder": Case(
        "run job", ("job/config.resolved.yaml", "no such file"), lambda: Path("job").mkdir()
    ),
    "run on an interpolation": Case(
        "run job", ("job/config.resolved.yaml", "interpolation"), run_folder_with("name: ${oc.select:seed}\n")
    ),
    "run on a huge file": Case(
        "run job", ("job/config.resolved.yaml", "larger than"), run_folder_with("#" * 1_100_000)
    ),
    "run on a YAML tag": Case(
        "run job",
        ("job/config.resolved.yaml", "not YAML"),
        run_folder_with("name: !!python/object/apply:os.system ['touch pwned']\n"),
    ),
    "run on a list": Case("run job", ("job/config.resolved.yaml", "mapping"), run_folder_with("- 1\n")),
    "run on half a config": Case("run job", ("job/config.resolved.yaml", "steps"), run_folder_with("name: x\n")),
    "run on binary": Case(
        "run job", ("job/config.resolved.yaml", "not UTF-8 text"), write("job/config.resolved.yaml", b"\xff\xfe\x00")
    ),
    "run on an unknown key": Case(
        "run job", ("job/config.resolved.yaml", "unknown key sed"), run_folder_with("sed: 1\n")
    ),
    "run with a word": Case("run a b", ("b", "layerwise-lr run --help")),
    "frameworks with a word": Case("frameworks torch", ("torch", "layerwise-lr frameworks --help")),
    "frameworks --json unknown": Case("frameworks --json tourch", ("'tourch'", "did you mean 'torch'")),
    "fetch nothing": Case("fetch", ("name", "layerwise-lr fetch --help")),
    "fetch unknown": Case("fetch elvp", ("'elvp'", "did you mean 'elpv'"), env={"LAYERWISE_LR_CACHE": "cache"}),
    # keys that nothing reads
    "momentum of sgd": Case(
        "plan optimizer=sgd optimizer.momentum=0.9",
        ("optimizer.momentum would be ignored", "optimizer=momentum, rmsprop or muon does"),
    ),
    "gamma of cosine, in a mapping": Case(
        "plan 'scheduler={name: cosine, gamma: 0.5}'", ("scheduler.gamma would be ignored", "scheduler=step")
    ),
    "gamma of cosine, with plusses": Case("plan ++scheduler.gamma=0.5", ("scheduler.gamma would be ignored",)),
    "gamma of a named schedule": Case(
        BY + "'{match: [\"*\"], schedule: up}' '+schedules.up={name: linear, gamma: 2}'",
        ("schedules.up.gamma would be ignored", "scheduler=linear"),
    ),
    "schedule that nobody names": Case(
        "plan '+schedules.up={name: linear}'",
        ("schedules.up.name would be ignored", "grouping.groups.NAME.schedule=up"),
    ),
    "optimizer that nobody names": Case(
        "plan '+optimizers.slow={name: sgd}'", ("optimizers.slow.name would be ignored", "NAME.optimizer=slow")
    ),
    "decay of flat": Case("plan grouping=flat grouping.layer_decay=0.5", ("grouping.layer_decay would be ignored",)),
    "match of freeze=none": Case(
        "plan freeze.match=[conv1]", ("freeze.match would be ignored", "freeze=after or only")
    ),
    "batchnorm of a model without": Case(
        "plan freeze=head_first freeze.batchnorm=train", ("freeze.batchnorm", "lenet has no batchnorm layer")
    ),
    "batchnorm where nothing is frozen": Case(
        "plan model=resnet18 weights=none data.image_size=32 freeze.batchnorm=train", ("nothing is frozen",)
    ),
    "path of the digits": Case("train data.path=my_pictures", ("data.path would be ignored", "image_folder does")),
    "path of no weights": Case("train weights=none weights.path=w.npz", ("weights.path would be", "weights=file does")),
    "key of shipped weights": Case("train weights.key=teacher", ("weights.key would be", "weights=file does")),
    "new head of no weights": Case("train weights=none weights.renew_head=true", ("weights.renew_head would be",)),
    "path of weights alone": Case("train weights.path=nowhere.npz", ("weights.path=nowhere.npz", "no such file")),
    "position embedding of a lenet": Case(
        "plan weights=file weights.path=w.npz weights.resize_pos_embed=true", ("lenet has no position embedding",)
    ),
    "checksum of the digits": Case("plan data.checksum=false", ("data.checksum would be", "data=cifar10 does")),
    "keep without every": Case("plan checkpoint.keep=3", ("checkpoint.keep would be ignored", "checkpoint.every")),
    "mismatch without a proof": Case("plan verify=off verify.on_mismatch=warn", ("verify.on_mismatch", "verify=off")),
    "steps and epochs": Case("plan steps=10 epochs=3", ("epochs would be ignored", "steps=10")),
    "ignored in every job": Case(
        "train -m optimizer=sgd,adamw optimizer.momentum=0.5", ("optimizer.momentum would be ignored",)
    ),
    # Hydra's own keys
    "chdir": Case("train hydra.job.chdir=true", ("hydra.job.chdir would be ignored", "leave it out")),
    "sweep.subdir": Case("train -m seed=0,1 hydra.sweep.subdir=x", ("hydra.sweep.subdir", "hydra.sweep.dir=...")),
    "n_jobs of a single run": Case("train hydra.launcher.n_jobs=2", ("hydra.launcher.n_jobs", "-m")),
    "sweep.dir of a single run": Case("train hydra.sweep.dir=x", ("hydra.sweep.dir", "hydra.run.dir=...")),
    "run.dir of a sweep": Case("train -m seed=0,1 hydra.run.dir=x", ("hydra.run.dir", "hydra.sweep.dir=...")),
    "another launcher": Case("train -m seed=0,1 hydra/launcher=basic", ("hydra/launcher would be ignored",)),
    "output_subdir": Case("plan hydra.output_subdir=x", ("hydra.output_subdir would be ignored",)),
    "verbose": Case("plan ++hydra.verbose=true", ("hydra.verbose would be ignored",)),
    "logging": Case("plan hydra/job_logging=default", ("hydra/job_logging would be ignored",)),
    # hints
    "lr": Case("train lr=0.1", ("did you mean optimizer.lr?",)),
    "lr with a plus": Case("train +lr=0.1", ("unknown key lr", "did you mean optimizer.lr?")),
    "another program's key": Case("train trainer.max_epochs=3", ("did you mean epochs?",)),
    "new group without a plus": Case(
        "plan grouping=by_module 'grouping.groups.a={match: [conv1]}'", ("'+grouping.groups.a={match: [conv1]}'",)
    ),
    "new groups without a plus": Case("plan 'grouping.groups={a: {match: [conv1]}}'", ("+grouping.groups.NAME=",)),
    "a bool for verify": Case("plan verify=false", ("verify=false: there are: off, on, warn",)),
    "one word for the modules": Case("plan freeze=only freeze.match=conv1", ("freeze.match", "key=[a,b]")),
    "path with brackets": Case("plan data=npz 'data.path=my (1).npz'", ("""'data.path="my (1).npz"'""",)),
    "path that looks like a number": Case("plan data=npz data.path=1e3", ("""'data.path="1e3"'""",)),
    "path that looks like a bool": Case("plan data=npz data.path=true", ("""'data.path="true"'""",)),
    "name with a comma": Case("plan name=a,b", ("""'name="a,b"'""",)),
    "name that is the folder above": Case("plan name=..", ("name='..'", "no dot")),
    "variable of the shell": Case("plan data=npz 'data.path=${HOME}/x'", ("'HOME'", "${oc.env:NAME}")),
    # what this run does not reach
    "milestone beyond the run": Case(
        "plan steps=4 scheduler=multistep scheduler.milestones=[2,9]",
        ("scheduler.milestones would be ignored", "9 is not within its 4 steps"),
    ),
    "milestone beyond the warm-up": Case(
        "plan steps=4 scheduler=multistep scheduler.warmup=2 scheduler.milestones=[2]",
        ("scheduler.milestones", "2 is not within its 2 steps after the warm-up"),
    ),
    "milestone beyond its part": Case(
        JOIN.replace("name: linear", "name: multistep, milestones: [30]")
        + "scheduler.parts=[up,down] scheduler.starts=[20]",
        ("schedules.up.milestones", "30 is not within its 20 steps"),
    ),
    "no milestones": Case("plan scheduler=multistep scheduler.milestones=[]", ("scheduler.milestones", "it is empty")),
    "gamma never": Case("plan steps=4 scheduler=step scheduler.every=4", ("scheduler.every", "not within its 4 steps")),
    "stop beyond the run": Case(
        BY + "'{match: [\"*\"], stop: 500}'", ("grouping.groups.a.stop", "500 is more than the run's 120 steps")
    ),
    "checkpoints beyond the run": Case("plan checkpoint.every=500", ("checkpoint.every", "more than the run's")),
    "proof beyond the run": Case("plan verify.every=500", ("verify.every would be ignored", "more than the run's")),
    "schedule of no group": Case(
        BY + "'{match: [\"*\"], schedule: up}' '+schedules.up={name: linear}' scheduler.floor=0.5",
        ("scheduler.floor", "every group has a schedule of its own"),
    ),
    "optimizer of no group": Case(
        BY + "'{match: [\"*\"], optimizer: slow}' '+optimizers.slow={name: sgd}' optimizer.betas=[0.5,0.5]",
        ("optimizer.betas", "every group has an optimizer of its own"),
    ),
    "no weight decay of none": Case(
        "plan optimizer=adam grouping.no_weight_decay=false",
        ("grouping.no_weight_decay", "optimizer.weight_decay is 0"),
    ),
    "optimizer that nobody names, by its group": Case(
        "plan +optimizer@optimizers.slow=sgd", ("optimizers.slow.name would be ignored", "NAME.optimizer=slow")
    ),
    "nesterov without momentum": Case(
        "plan optimizer=momentum optimizer.momentum=0 optimizer.nesterov=true",
        ("optimizer.nesterov=True", "false where momentum is 0"),
    ),
    "held at 0": Case("plan scheduler.interval=500", ("lr is 0", "interval")),
    "one word for a group's match": Case(BY + "'{match: conv1}'", ("grouping.groups.a.match", "key=[a,b]")),
    "threads of the reference": Case(
        "train framework=reference framework.threads=3", ("framework.threads would be ignored", "framework=reference")
    ),
    "stand-in of the digits": Case("plan data.stand_in=digits", ("data.stand_in would be ignored", "data=elpv")),
    "stand-in for nothing": Case("plan data.stands_for=mnist", ("data.stands_for=mnist must be null",)),
    # sizes and lengths
    "steps without end": Case("plan steps=1000000000", ("steps=1000000000", "from 1 to 1,000,000")),
    "epochs without end": Case("plan epochs=1000000", ("epochs=1000000", "2,000,000 steps")),
    "more than the memory": Case("train data.image_size=4096 model=mlp weights=none model.width=1000000", ("GiB",)),
    "threads without end": Case("train framework.threads=1000000", ("framework.threads=1000000", "1,024")),
    "batch of one": Case(
        "train model=resnet18 weights=none data.image_size=32 batch_size=1", ("batch_size=1", "batch_size=2 or more")
    ),
    "warm-up for the whole run": Case("plan steps=1 scheduler.warmup=1", ("lr is 0", "lower scheduler.warmup")),
    "share above the whole": Case("plan eval_every=150%", ("eval_every=150%", "at most 100%")),
    "evaluation never": Case("plan eval_every=0", ("eval_every=0", "at least one step")),
    "checkpoint never": Case("plan checkpoint.every='0 epochs'", ("checkpoint.every=0 epochs", "at least one step")),
    "gamma that grows": Case(
        "plan scheduler=exponential scheduler.gamma=10", ("lr is above 1e+06", "lower scheduler.gamma")
    ),
    "gamma beyond any float": Case("plan scheduler=step scheduler.gamma=1e300", ("lower scheduler.gamma",)),
    "layer_scale": Case(
        "plan model=vit_tiny weights=none data.image_size=32 model.layer_scale=1e300", ("model.layer_scale=1e+300",)
    ),
    "heads and width": Case(
        "plan model=vit_tiny weights=none data.image_size=32 model.embed_dim=100", ("embed_dim=100", "num_heads=3")
    ),
    # numbers of the weights
    "NaN in the weights": Case(
        "train weights.path=w.npz", ("w.npz", "1 of 2400", "conv2.weight"), lenet_weights(one_nan)
    ),
    "weights beyond float32": Case(
        "train weights.path=w.npz",
        ("w.npz", "conv2.weight", "float32"),
        lenet_weights(lambda a: a.astype(float) * 1e99),
    ),
    "weights that are words": Case(
        "train weights.path=w.npz",
        ("w.npz", "conv2.weight", "not of floating-point"),
        lenet_weights(lambda a: a.astype(str)),
    ),
    # sweeps
    "no values": Case("train -m 'seed=range(0,0)'", ("the sweep has no jobs",)),
    "sweep.json of no sweep": Case("report s", ("s/sweep.json", "holds no facts by name"), write("s/sweep.json", "[]")),
    "torn sweep.json": Case("report s", ("s/sweep.json", "not JSON"), write("s/sweep.json", "{")),
    "compare with itself": Case("compare framework=torch,torch", ("two frameworks or more",)),
    "compare seeds": Case(
        "compare seed=0,1", ("compare takes one experiment", "framework=torch,reference", "train -m")
    ),
    "compare seeds of two": Case(
        "compare framework=reference,torch seed=0,1", ("compare takes one experiment", "layerwise-lr report")
    ),
    "compare one framework with itself": Case("compare framework=reference steps=1", ("two frameworks or more",)),
    "compare alone": Case("compare steps=1", ("two frameworks or more",)),
    "one bad job": Case("train -m grouping.layer_decay=0.5,1.5 epochs=1", ("layer_decay=1.5", "allow_above_one")),
    "one job of a bad type": Case("train -m grouping.layer_decay=0.5,abc", ("grouping.layer_decay", "'abc'")),
    "one bad option": Case("train -m model=lenet,lenett", ("model=lenett", "did you mean 'lenet'")),
    "one job without data": Case("train -m data=digits,npz", ("data.path", "missing")),
    "n_jobs 0": Case("train -m seed=0,1 hydra.launcher.n_jobs=0", ("hydra.launcher.n_jobs=0", "at least 1")),
    "n_jobs a word": Case("train -m seed=0,1 hydra.launcher.n_jobs=all", ("hydra.launcher.n_jobs", "'all'")),
    "timeout -1": Case("train -m seed=0,1 hydra.launcher.timeout=-1", ("hydra.launcher.timeout=-1", "above 0")),
    **{
        f"memory {word}": Case(
            f"train -m seed=0,1 hydra.launcher.memory={word}", ("hydra.launcher.memory=", "4GiB, 500MiB")
        )
        for word in ("0", "-1", "lots", "4G", "true", "nan", "[1]")
    },
    "limits of a run": Case("resume r --memory 4GiB", ("--memory is a sweep's",), write("r/x", "")),
    "memory of a sweep": Case(
        "resume s --memory lots", ("hydra.launcher.memory=lots",), write("s/sweep.json", '{"jobs": {}}')
    ),
    "limits of another's sweep": Case(
        "resume s", ("sweep.json: limits.memory",), write("s/sweep.json", '{"jobs": {}, "limits": {"memory": []}}')
    ),
    "fork": Case("train -m seed=0,1 hydra.launcher.fork=always", ("hydra.launcher.fork='always'", "'never'")),
    "jobs_per_device 0": Case(
        "train -m seed=0,1 hydra.launcher.jobs_per_device=0", ("hydra.launcher.jobs_per_device=0", "at least 1")
    ),
    "unknown launcher": Case("train -m seed=0,1 hydra/launcher=rayy", ("jobs, ray", "did you mean 'ray'")),
    "launcher of a single run": Case("train hydra/launcher=joblib", ("hydra/launcher would be ignored", "-m")),
    "another launcher's key": Case(
        "train -m seed=0,1 hydra/launcher=ray hydra.launcher.adress=auto", ("adress", "did you mean 'address'")
    ),
    "a new resource without a plus": Case(
        "train -m seed=0,1 hydra/launcher=ray 'hydra.launcher.resources={tpu: 1}'", ("+hydra.launcher.resources.NAME",)
    ),
    "an interval in a grid": Case(
        "train -m 'grouping.layer_decay=interval(0.6,1)'", ("key=a,b,c", "hydra/sweeper=optuna searches an interval")
    ),
    "unknown sweeper": Case("train -m seed=0,1 hydra/sweeper=optun", ("basic, optuna", "did you mean 'optuna'")),
    "nothing to search": Case("train -m hydra/sweeper=optuna seed=0,1", ("nothing to search", "interval(0.6, 1)")),
    "an interval upside down": Case(
        "train -m hydra/sweeper=optuna 'optimizer.lr=interval(1,0.1)'", ("optimizer.lr=interval(1,0.1)", "lower")
    ),
    "a log interval from 0": Case(
        "train -m hydra/sweeper=optuna 'optimizer.lr=tag(log,interval(0,0.1))'", ("log above 0",)
    ),
    "trials 0": Case(
        "train -m hydra/sweeper=optuna optimizer.lr=1,2 hydra.sweeper.n_trials=0", ("n_trials=0", "at least 1")
    ),
    "unknown pruner": Case(
        "train -m hydra/sweeper=optuna optimizer.lr=1,2 hydra.sweeper.pruner=best", ("'best'", "median, asha, none")
    ),
    "unknown sweeper key": Case(
        "train -m hydra/sweeper=optuna optimizer.lr=1,2 hydra.sweeper.ntrials=3", ("did you mean 'n_trials'",)
    ),
    "steps of lr-find": Case("lr-find --steps 3", ("--steps 3", "from 20 to 1000")),
    "lrs of lr-find": Case("lr-find --from 1 --to 0.1", ("--from 1 --to 0.1", "lower first")),
    "lr of lr-find": Case("lr-find optimizer.lr=1", ("optimizer.lr would be ignored",)),
    "lr of tune": Case("tune optimizer.lr=1", ("optimizer.lr is not tune's",)),
    "unknown launcher key": Case("train -m seed=0,1 hydra.launcher.njobs=2", ("njobs", "did you mean 'n_jobs'")),
    "sweep folder is a file": Case("train -m seed=0,1 hydra.sweep.dir=taken", ("taken",), write("taken", "x")),
}


def words_of(line: str) -> list[str]:
    """The line as a shell would split it."""
    return shlex.split(line)


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below `root`, with its content."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


NEED_TORCH = {
    "CIFAR-10 altered",
    "CIFAR-10 altered, a batch",
    "CIFAR-10 not downloaded",
    "CIFAR-10 not downloaded, in a sweep",
    "ascend",
    "corrupt picture",
    "cuda",
    "cuda in a sweep",
    "cuda in one job",
    "cuda in verify",
    "data not fetched",
    "empty npz",
    "object arrays",
    "one bad job",
    "pickle",
    "pth that is a list",
    "run folder taken",
    "train_size below the classes",
    "truncated npz",
    "truncated pth",
    "truncated safetensors",
    "unknown mode",
    "unknown mode in a sweep",
    "unknown precision",
    "unknown weights",
    "weights file absent",
    "weights not fetched",
    "weights of another depth",
    "weights of another model",
    "weights of text",
    "weights=file without path",
}
"""What is refused only once torch, the default framework, has been found."""


def cases(names: Iterable[str]) -> list[Any]:
    """Those of these names, marked where they need torch."""
    return [pytest.param(CASES[n], id=n, marks=[pytest.mark.torch] if n in NEED_TORCH else []) for n in names]


@pytest.mark.parametrize("case", cases(CASES))
def test_one_line_and_nothing_left(case: Case, call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in case.env.items():
        monkeypatch.setenv(key, value)
    case.prepare()
    before = tree(tmp_path)
    code, out, err = call(case.words)
    assert "Traceback" not in out + err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert [part for part in case.says if part not in lines[0]] == [], lines[0]
    assert code == 2
    assert tree(tmp_path) == before


GOOD = {
    "layer_decay above one": "plan grouping.layer_decay=1.5 grouping.allow_above_one=true",
    "named groups": "plan grouping=by_module '+grouping.groups.a={match: [conv1], lr: 1e-4}' " + WHOLE,
    "join": JOIN + "scheduler.parts=[up,down] scheduler.starts=[50%]",
    "flags before the keys": "plan --cfg job seed=3",
    "head of another size": f"train data=npz data.path=d.npz {FEW} epochs=1",
}


@pytest.mark.parametrize(
    "words", ["train optimizer.lr=-1 hydra.run.dir=mine/x", "train -m optimizer.lr=-1,-2 hydra.sweep.dir=mine/x"]
)
@pytest.mark.parametrize("there", ["mine", "mine/x", "mine/x/y"])
def test_empty_folders_of_the_user_s_stay(words: str, there: str, call: Callable, tmp_path: Path) -> None:
    Path(there).mkdir(parents=True)
    before = tree(tmp_path)
    assert call(words)[0] == 2
    assert tree(tmp_path) == before


@pytest.mark.torch
@pytest.mark.parametrize("line", GOOD.values(), ids=list(GOOD))
def test_near_misses_are_accepted(line: str, call: Callable) -> None:
    np.savez("d.npz", **pictures())
    code, out, err = call(line)
    assert (code, err) == (0, "")
    assert out


def test_pickle_never_runs(call: Callable, tmp_path: Path) -> None:
    Path("w.pth").write_bytes(pickle.dumps(Evil(), 2))
    call("train weights=file weights.path=w.pth")
    assert not (tmp_path / "pwned").exists()
    pickle.loads(Path("w.pth").read_bytes())  # the control: this file is dangerous
    assert (tmp_path / "pwned").exists()


def test_the_traceback_is_there_when_asked(call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match=r"optimizer\.lr=-1"):
        program.main(["train", "optimizer.lr=-1"])


def test_framework_not_installed(call: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = registry.BUILT_INS["torch"]._replace(needs="no-such-framework")
    monkeypatch.setattr(registry, "BUILT_INS", {"absent": absent._replace(module="no-such-framework")})
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    for line in ("train framework.name=absent", "train -m seed=0,1 framework.name=absent"):
        code, _, err = call(line)
        assert code == 2
        assert "framework=absent" in err and absent.install in err and len(err.splitlines()) == 1
        assert tree(tmp_path) == {}


REAL = ["typo in a key", "lr nan", "cuda in one job", "one bad job", "run on a YAML tag", "report without a folder"]


@pytest.mark.parametrize("case", cases(REAL))
def test_the_console_script_says_the_same(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case.prepare()
    before = tree(tmp_path)
    script = Path(sys.executable).with_name("layerwise-lr")
    ended = subprocess.run([str(script), *words_of(case.words)], capture_output=True, text=True)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert all(part in ended.stderr for part in case.says)
    assert tree(tmp_path) == before
