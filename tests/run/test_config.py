import dataclasses
import os
from dataclasses import replace

import pytest
import yaml
from omegaconf import OmegaConf

from layerwise_lr.plan.errors import UserError
from layerwise_lr.plan.schedules import ScheduleSpec
from layerwise_lr.run import config as configs
from layerwise_lr.run.config import Config, from_data, from_omegaconf, resolve, steps_of


def rich():
    """Something under every key that holds mappings or durations."""
    return from_data(
        {
            "model": {"name": "resnet18"},
            "data": {"channels": 3, "image_size": 32, "train_size": 320, "mean": [0.1, 0.2, 0.3], "std": [1.0]},
            "scheduler": {"name": "cosine", "warmup": "10%"},
            "epochs": 3,
            "eval_every": "50%",
            "schedules": {
                "s": {"name": "step", "every": "2 epochs"},
                "m": {"name": "multistep", "milestones": ["50%", 25]},
                "j": {"name": "join", "parts": ["s", "m"], "starts": ["1 epoch"]},
            },
            "optimizers": {"o": {"name": "momentum", "nesterov": True}},
            "grouping": {
                "groups": {"stem": {"match": ["conv1.*"], "start": "1 epoch", "stop": "80%", "optimizer": "o"}}
            },
            "freeze": {"strategy": "progressive", "every": "5 steps", "stages": ["layer4"]},
            "checkpoint": {"every": "1 epoch", "keep": 2},
        }
    )


# --- durations


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (50, 50),
        (0, 0),
        ("50", 50),
        ("50 steps", 50),
        ("1 step", 1),
        ("7st", 7),
        ("2 epochs", 80),
        ("1 epoch", 40),
        ("3ep", 120),
        ("0.5 epochs", 20),
        ("10%", 20),
        ("12.5 %", 25),
        ("100%", 200),
        ("0%", 0),
        (" 5 % ", 10),
        ("150%", 300),
    ],
)
def test_durations(duration, steps):
    assert steps_of(duration, "k", total=200, per_epoch=40) == steps


@pytest.mark.parametrize(
    "duration",
    [
        -1,
        "-5%",
        "x",
        "",
        None,
        True,
        False,
        "5 weeks",
        "5 epochs 3",
        "1e3",
        0.5,
        "2.5 steps",
        1.5,
        float("nan"),
        float("inf"),
        [5],
        {"epochs": 3},
        "٣ steps؟",
        "10%%",
    ],
)
def test_what_is_no_duration_is_refused_with_its_key(duration):
    with pytest.raises(UserError, match=r"^some\.key="):
        steps_of(duration, "some.key", 200, 40)


def test_every_duration_of_a_config_becomes_steps():
    final = resolve(rich())  # 10 steps an epoch, 3 epochs
    assert final.steps == 30
    assert final.eval_every == 15
    assert (final.scheduler.warmup, final.schedules["s"].every) == (3, 20)
    assert resolve(replace(rich(), scheduler=ScheduleSpec(interval="1 epoch"))).scheduler.interval == 10
    assert final.schedules["m"].milestones == [15, 25]
    assert final.schedules["j"].starts == [10]
    assert (final.grouping.groups["stem"].start, final.grouping.groups["stem"].stop) == (10, 24)
    assert (final.freeze.every, final.checkpoint.every) == (5, 10)
    assert final.model.num_classes == 10
    assert (final.model.in_channels, final.model.image_size) == (3, 32)


def test_steps_win_over_epochs():
    assert resolve(replace(Config(), batch_size=10, epochs=7, steps=3)).steps == 3
    assert resolve(replace(Config(), batch_size=10, epochs=7)).steps == 7 * (50 // 10)


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(UserError, match="batch_size=51 is more than the 50 training pictures"):
        resolve(replace(Config(), batch_size=51))


# --- stand-ins


def absent(tmp_path, **options):
    """A config on CIFAR-10 that is not here."""
    sizes = {"image_size": 32, "channels": 3, "train_size": 200, "val_size": 5000, "test_size": 10000}
    look = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "flip": True}
    data = {"name": "cifar10", "path": str(tmp_path), "stand_in": "digits", **sizes, **look, **options}
    return from_data({"model": {"name": "resnet18"}, "data": data, "batch_size": 20})


def test_where_data_are_absent_the_digits_stand_in(tmp_path):
    final = resolve(absent(tmp_path)).data
    assert (final.name, final.stands_for, final.stand_in) == ("digits", "cifar10", None)
    assert (final.train_size, final.val_size, final.test_size) == (200, 300, 500)
    assert (final.image_size, final.channels, final.flip) == (32, 3, True)
    assert (final.mean, final.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert resolve(absent(tmp_path)).steps == 4 * (200 // 20)


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ({"train_size": 997}, (997, 300, 500)),  # 1797 - 300 - 500: the most that fits
        ({"train_size": 998}, (None, 300, 500)),
        ({"train_size": None, "val_size": 299, "test_size": 20}, (None, 299, 20)),
    ],
)
def test_a_stand_in_s_sizes_are_cut_to_what_it_has(sizes, cut, tmp_path):
    final = resolve(absent(tmp_path, **sizes)).data
    assert (final.train_size, final.val_size, final.test_size) == cut


def test_a_stand_in_is_final(tmp_path):
    once = resolve(absent(tmp_path))
    assert resolve(once) == once
    (tmp_path / "c.yaml").write_text(once.to_yaml())
    assert configs.read(tmp_path / "c.yaml") == once
    assert once.sha256() != resolve(replace(absent(tmp_path), data=replace(once.data, stands_for=None))).sha256()


def test_nothing_stands_in_for_data_that_are_here(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"")  # here, if not whole: that is another error
    final = resolve(absent(tmp_path)).data
    assert (final.name, final.stands_for, final.stand_in, final.val_size) == ("cifar10", None, None, 5000)
    assert resolve(from_data({"data": {"stand_in": "digits"}})) == resolve(Config())


@pytest.mark.parametrize(
    "data",
    [
        {"name": "idx", "path": "nowhere"},
        {"name": "npz", "path": "nowhere.npz"},
        {"name": "image_folder", "path": "nowhere"},
        {"name": "mnist"},
        {"name": "elpv"},
        {"name": "cifar10"},
    ],
    ids=lambda data: data["name"],
)
def test_every_data_set_can_have_a_stand_in(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAYERWISE_LR_CACHE", str(tmp_path))
    final = resolve(from_data({"data": {**data, "stand_in": "digits"}})).data
    assert (final.name, final.stands_for) == ("digits", data["name"])


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"name": "cifar10", "stand_in": "mnist"}, r"data\.stand_in=mnist must be digits or null"),
        ({"stands_for": "cifar01"}, r"data\.stands_for=cifar01 must be null"),
        ({"name": "mnist", "stands_for": "cifar10"}, r"data\.stands_for=cifar10 must be null"),
        ({"name": "npz", "stand_in": "digits"}, r"data\.path is missing"),
        ({"name": "cifar01", "stand_in": "digits"}, "'cifar01' is unknown.*did you mean 'cifar10'"),
    ],
)
def test_what_can_stand_in_and_for_what(data, word):
    with pytest.raises(UserError, match=word):
        resolve(from_data({"data": data}))


# --- the file


def test_resolve_is_idempotent():
    for config in (Config(), rich()):
        once = resolve(config)
        assert resolve(once) == once
        assert resolve(once).sha256() == once.sha256()


def test_yaml_round_trip(tmp_path):
    final = resolve(rich())
    (tmp_path / "config.resolved.yaml").write_text(final.to_yaml())
    again = configs.read(tmp_path / "config.resolved.yaml")
    assert again == final
    assert again.to_yaml() == final.to_yaml()
    assert again.sha256() == final.sha256()


def test_odd_strings_survive_the_yaml(tmp_path):
    for name in ("no", "1e3", "a: b", "- x", "é ☃", "'\"", "1_000", "0x1f", "null", ""):
        (tmp_path / "c.yaml").write_text(replace(Config(), name=name).to_yaml())
        assert configs.read(tmp_path / "c.yaml").name == name


def other_value(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if value is None:
        return 3
    if isinstance(value, list):
        return [*value, 1]
    if dataclasses.is_dataclass(value):
        first = dataclasses.fields(value)[0].name
        return replace(value, **{first: other_value(getattr(value, first))})
    return {**value, "extra": None} if isinstance(value, dict) else value


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Config)])
def test_the_hash_follows_every_key(field):
    config = Config()
    assert replace(config, **{field: other_value(getattr(config, field))}).sha256() != config.sha256()
    assert Config().sha256() == config.sha256()


# --- unknown keys and wrong types


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"sede": 1}, "unknown key sede;.*did you mean 'seed'"),
        ({"model": {"nme": "lenet"}}, r"unknown key model\.nme;.*did you mean 'name'"),
        ({"grouping": {"layer_deacy": 0.5}}, r"unknown key grouping\.layer_deacy;.*'layer_decay'"),
        ({"grouping": {"groups": {"a": {"mtch": ["*"]}}}}, r"unknown key grouping\.groups\.a\.mtch;.*'match'"),
        ({"schedules": {"s": {"gama": 1}}}, r"unknown key schedules\.s\.gama;.*'gamma'"),
        ({"optimizers": {"o": {"lrr": 1}}}, r"unknown key optimizers\.o\.lrr"),
        ({"checkpoint": {"kepe": 1}}, r"unknown key checkpoint\.kepe"),
        ({1: 2}, "unknown key 1"),
        ({"model": 3}, "model.* must be a mapping, it is int"),
        ({"model": None}, "model.* must be a mapping, it is NoneType"),
        ([], "config must be a mapping, it is list"),
        (None, "config must be a mapping"),
        ({"grouping": {"groups": {"a": None}}}, r"grouping\.groups\.a.* must be a mapping"),
        ({"grouping": {"groups": ["conv1.*"]}}, r"grouping\.groups.* must be a mapping"),
        ({"schedules": "cosine"}, r"schedules.* must be a mapping"),
        ({"seed": "x"}, "seed.*'x'"),
        ({"seed": 1.5}, "seed"),
        ({"optimizer": {"lr": "fast"}}, r"optimizer\.lr.*'fast'"),
        ({"optimizer": {"betas": 0.9}}, r"optimizer\.betas"),
        ({"data": {"mean": ["a"]}}, r"data\.mean"),
        ({"verify": "perhaps"}, "verify.*'perhaps'"),
    ],
)
def test_unknown_keys_and_wrong_types_at_each_level(data, word):
    with pytest.raises(UserError, match=word):
        from_data(data)


def test_no_named_groups_may_be_written_as_null():
    assert from_data({"grouping": {"groups": {}}}).grouping.groups == {}


NAN = [
    {"optimizer": {"lr": float("nan")}},
    {"optimizer": {"betas": [0.9, float("nan")]}},
    {"optimizer": {"eps": float("inf")}},
    {"grouping": {"layer_decay": float("nan")}},
    {"grouping": {"stem_scale": float("inf")}},
    {"grouping": {"groups": {"a": {"match": ["*"], "lr": float("nan")}}}},
    {"grouping": {"groups": {"a": {"match": ["*"], "start": float("nan")}}}},
    {"schedules": {"s": {"floor": float("nan")}}},
    {"scheduler": {"warmup": float("inf")}},
    {"scheduler": {"milestones": [float("nan")], "name": "multistep"}},
    {"optimizers": {"o": {"momentum": float("-inf")}}},
    {"data": {"std": [float("nan")]}},
    {"model": {"name": "mobilenet_v2", "dropout": float("nan")}},
    {"freeze": {"at": float("nan")}},
    {"checkpoint": {"every": float("inf")}},
    {"eval_every": float("nan")},
]


@pytest.mark.parametrize("data", NAN, ids=str)
def test_nan_and_infinity_are_refused_anywhere(data):
    with pytest.raises(UserError, match="not a finite number"):
        resolve(from_data(data))


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"steps": 0}, "steps"),
        ({"metric": "f1"}, "metric"),
        ({"framework": {"threads": 0}}, "framework.threads"),
        ({"data": {"image_size": 3}}, "data.image_size"),
        ({"data": {"channels": 2}}, "data.channels"),
        ({"data": {"train_size": 0}}, "data.train_size"),
        ({"data": {"val_size": -1}}, "data.val_size"),
        ({"data": {"test_size": -1}}, "data.test_size"),
        ({"data": {"split_seed": -1}}, "data.split_seed"),
        ({"data": {"mean": [0.5, 0.5]}}, "data.mean"),
        ({"data": {"std": [0.0]}}, "data.std"),
        ({"data": {"std": []}}, "data.std"),
        ({"data": {"mean": []}}, "data.mean"),
        ({"grouping": {"layer_decay": 0}}, "grouping.layer_decay"),
        ({"grouping": {"layer_decay": -0.5}}, "grouping.layer_decay"),
        ({"grouping": {"stem_scale": 0}}, "grouping.stem_scale"),
        ({"grouping": {"stem_scale": 1.01}}, "grouping.stem_scale"),
        ({"grouping": {"min_scale": 1.5}}, "grouping.min_scale"),
        ({"grouping": {"backbone_scale": -1}}, "grouping.backbone_scale"),
        ({"grouping": {"groups": {"a": {"lr": -1}}}}, "grouping.groups.a.lr"),
        ({"grouping": {"groups": {"a": {"lr_scale": -1}}}}, "grouping.groups.a.lr_scale"),
        ({"grouping": {"groups": {"a": {"weight_decay": -1}}}}, "grouping.groups.a.weight_decay"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr"),
        ({"optimizer": {"lr": -1}}, "optimizer.lr"),
        ({"optimizer": {"weight_decay": -1}}, "optimizer.weight_decay"),
        ({"optimizer": {"momentum": 1}}, "optimizer.momentum"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas"),
        ({"optimizer": {"eps": 0}}, "optimizer.eps"),
        ({"optimizer": {"name": "layer_adaptive", "betas": [1.0, 0.9]}}, "optimizer.betas"),
        ({"optimizers": {"o": {"lr": 0}}}, "optimizers.o.lr"),
        ({"scheduler": {"floor": 1.1}}, "scheduler.floor"),
        ({"scheduler": {"warmup_start": -0.1}}, "scheduler.warmup_start"),
        ({"scheduler": {"name": "step", "gamma": 0}}, "scheduler.gamma"),
        ({"scheduler": {"name": "multistep", "gamma": -1}}, "scheduler.gamma"),
        ({"scheduler": {"power": 0}}, "scheduler.power"),
        ({"scheduler": {"pct_start": 1}}, "scheduler.pct_start"),
        ({"scheduler": {"div_factor": 0.5}}, "scheduler.div_factor"),
        ({"scheduler": {"final_div_factor": 0}}, "scheduler.final_div_factor"),
        ({"schedules": {"s": {"floor": -1}}}, "schedules.s.floor"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep"),
        ({"model": {"name": "mlp", "depth": 0}}, "model.depth"),
        ({"model": {"name": "mlp", "width": 0}}, "model.width"),
        ({"model": {"name": "vit_tiny", "patch_size": 0}}, "model.patch_size"),
        ({"model": {"name": "vit_tiny", "embed_dim": 0}}, "model.embed_dim"),
        ({"model": {"name": "vit_tiny", "num_heads": 0}}, "model.num_heads"),
        ({"model": {"name": "mobilenet_v2", "dropout": 1.0}}, "model.dropout"),
        ({"model": {"num_classes": 3}}, "model.num_classes"),
        ({"model": {"in_channels": 3}}, "model.in_channels"),
        ({"model": {"image_size": 32}}, "model.image_size"),
        ({"model": {"width": 3}}, "lenet takes no width"),
    ],
    ids=str,
)
def test_ranges_name_their_key(data, key):
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        resolve(from_data(data))


# --- nothing in a file is evaluated


@pytest.mark.parametrize(
    "text",
    [
        "name: ${oc.env:HOME}",
        'name: "\\x24{oc.env:HOME}"',
        'name: "$\\u007Boc.env:HOME}"',
        "name: ${seed}",
        'grouping: {groups: {a: {match: ["\\x24{oc.env:HOME}"]}}}',
        '"\\x24{oc.env:HOME}": 1',
        'optimizers: {"\\x24{seed}": {}}',
    ],
)
def test_an_interpolation_in_a_run_s_config_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        configs.read(tmp_path / "c.yaml")
    assert os.environ["HOME"] not in str(caught.value).replace(str(tmp_path), "")
    assert "interpolation" in str(caught.value) or "unknown key" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"name: [", "not YAML"),
        (b"!!python/object/apply:os.system ['echo hi']", "not YAML"),
        (b"", "must be a mapping"),
        (b"\xff\xfe\x00bad", "not YAML"),
        (b"name: a\x00b", "not YAML"),
        (b"x" * 1_000_001, "larger than"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, content, word):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UserError, match=word):
        configs.read(tmp_path / "c.yaml")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        configs.read(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="no such file"):
        configs.read(tmp_path)


def test_a_composed_config_may_interpolate_and_is_plain_afterwards():
    cfg = OmegaConf.create({"seed": 7, "name": "run-${seed}"})
    assert from_omegaconf(cfg).name == "run-7"
    assert yaml.safe_load(from_omegaconf(cfg).to_yaml())["name"] == "run-7"
