import dataclasses
from typing import get_args

import pytest

from layerwise_lr.data import AugmentSpec, DataSpec
from layerwise_lr.planning import FreezeSpec, GroupingSpec, GroupSpec, OptimizerSpec, ScheduleSpec, UserError
from layerwise_lr.run import Config, FrameworkSpec, ranges, resolve
from layerwise_lr.run.reading import from_data
from layerwise_lr.run.schema import CheckpointSpec, EarlyStopSpec, EmaSpec, ModelSpec, VerifySpec

REFUSED = (
    (Config(seed=-1), "seed=-1 must be at least 0"),
    (Config(batch_size=0), "batch_size=0 must be from 1 to 1,000,000"),
    (Config(epochs=0), "epochs=0 must be from 1 to 1,000,000"),
    (Config(steps=10**9), "steps=1000000000 must be from 1 to 1,000,000"),
    (
        Config(name="a/b"),
        "name='a/b' must be a name for a folder: not empty, at most 200 bytes, no slash, no line break, no dot or space in front",
    ),
    (FreezeSpec(batchnorm="off"), "batchnorm=off must be eval or train"),
    (VerifySpec(on_mismatch="go"), "on_mismatch=go must be stop or warn"),
    (Config(metric="f1"), "metric=f1 must be accuracy or balanced_accuracy"),
    (Config(accumulate=0), "accumulate=0 must be from 1 to 10,000"),
    (Config(clip_grad_norm=0.0), "clip_grad_norm=0.0 must be from 1e-12 to 1e12"),
    (Config(clip_grad_value=0.0), "clip_grad_value=0.0 must be from 1e-12 to 1e12"),
    (Config(clip_grad_norm=1.0, clip_grad_value=1.0), "clip_grad_value=1.0 must be null where clip_grad_norm is given"),
    (EmaSpec(decay=1.0), "decay=1.0 must be from 0 to below 1"),
    (EarlyStopSpec(patience=0), "patience=0 must be at least 1"),
    (EarlyStopSpec(min_delta=1.5), "min_delta=1.5 must be from 0 to 1"),
    (CheckpointSpec(keep_best=-1), "keep_best=-1 must be at least 0"),
    (FrameworkSpec(threads=10**6), "threads=1000000 must be auto, or from 1 to 1,024"),
    (FrameworkSpec(distributed="dp"), "distributed=dp must be none, ddp or fsdp"),
    (FrameworkSpec(processes=0), "processes=0 must be from 1 to 1,024"),
    (ModelSpec(width=0), "width=0 must be from 1 to 1,000,000"),
    (ModelSpec(depth=0), "depth=0 must be from 1 to 1,000"),
    (ModelSpec(patch_size=0), "patch_size=0 must be from 1 to 4,096"),
    (ModelSpec(embed_dim=0), "embed_dim=0 must be from 1 to 100,000"),
    (ModelSpec(num_heads=0), "num_heads=0 must be from 1 to 100,000"),
    (ModelSpec(layer_scale=1e300), "layer_scale=1e+300 must be within 1e6"),
    (ModelSpec(dropout=1.0), "dropout=1.0 must be from 0 to below 1"),
    (ModelSpec(drop_path=1.0), "drop_path=1.0 must be from 0 to below 1"),
    (DataSpec(image_size=3), "image_size=3 must be from 4 to 4,096"),
    (DataSpec(train_size=0), "train_size=0 must be at least 1, or a share of the pictures (20%, 0.2)"),
    (DataSpec(val_size=0), "val_size=0 must be at least 1, or a share of the pictures (20%, 0.2)"),
    (DataSpec(test_size=0), "test_size=0 must be at least 1, or a share of the pictures (20%, 0.2)"),
    (DataSpec(split_seed=-1), "split_seed=-1 must be at least 0"),
    (DataSpec(channels=2), "channels=2 must be 1 or 3"),
    (
        DataSpec(channels=3, mean=[0.1, 0.2]),
        "mean=[0.1, 0.2] must be one number, or one for each channel (data.channels=3), within 1e6",
    ),
    (
        DataSpec(channels=3, std=[1.0, 1.0, 0.0]),
        "std=[1.0, 1.0, 0.0] must be one number, or one for each channel (data.channels=3), from 1e-6 to 1e6",
    ),
    (DataSpec(stand_in="mnist"), "stand_in=mnist must be digits or null"),
    (
        DataSpec(name="mnist", stands_for="elpv"),
        "stands_for=elpv must be null: it is filled in where data.stand_in takes effect",
    ),
    (DataSpec(resize="fit"), "resize=fit must be crop, squash or pad"),
    (DataSpec(workers=65), "workers=65 must be from 0 to 64"),
    (DataSpec(memory=-1.0), "memory=-1.0 must be from 0 to 100000 GiB"),
    (AugmentSpec(hflip=1.5), "hflip=1.5 must be from 0 to 1"),
    (AugmentSpec(vflip=-0.5), "vflip=-0.5 must be from 0 to 1"),
    (AugmentSpec(color_jitter=1.5), "color_jitter=1.5 must be from 0 to 1"),
    (AugmentSpec(mix_switch=1.5), "mix_switch=1.5 must be from 0 to 1"),
    (AugmentSpec(random_erasing=1.5), "random_erasing=1.5 must be from 0 to 1"),
    (AugmentSpec(crop_scale=[0.5]), "crop_scale=[0.5] must be two numbers from 0.0001 to 1, the lower first"),
    (AugmentSpec(crop_ratio=[2.0, 1.0]), "crop_ratio=[2.0, 1.0] must be two numbers from 0.01 to 100, the lower first"),
    (AugmentSpec(randaugment_ops=-1), "randaugment_ops=-1 must be from 0 to 16"),
    (AugmentSpec(randaugment_magnitude=11.0), "randaugment_magnitude=11.0 must be from 0 to 10"),
    (AugmentSpec(randaugment_std=-1.0), "randaugment_std=-1.0 must be from 0 to 10"),
    (AugmentSpec(randaugment_prob=0.0), "randaugment_prob=0.0 must be above 0 and at most 1"),
    (AugmentSpec(mix_prob=0.0), "mix_prob=0.0 must be above 0 and at most 1"),
    (AugmentSpec(mixup=1e-9), "mixup=1e-09 must be 0 or from 0.001 to 1000"),
    (AugmentSpec(cutmix=-1.0), "cutmix=-1.0 must be 0 or from 0.001 to 1000"),
    (Config(label_smoothing=1.0), "label_smoothing=1.0 must be from 0 to below 1"),
    (
        Config(class_weights=[1, 0]),
        "class_weights=[1, 0] must be none, balanced or a number from 1e-6 to 1e6 for each class: [1,2.5]",
    ),
    (GroupingSpec(layer_decay=0.0), "layer_decay=0.0 must be above 0 and at most 1"),
    (GroupingSpec(stem_scale=1.5), "stem_scale=1.5 must be above 0 and at most 1"),
    (GroupingSpec(decay_per_12_layers=0.0), "decay_per_12_layers=0.0 must be above 0 and at most 1"),
    (GroupingSpec(min_scale=-0.5), "min_scale=-0.5 must be from 0 to 1"),
    (GroupingSpec(head_scale=-0.5), "head_scale=-0.5 must be from 0 to 1e6"),
    (GroupingSpec(depths={"conv": -1}), "depths={'conv': -1} must be depths of 0 or more"),
    (GroupingSpec(stages=0), "stages=0 must be from 1 to 1,000"),
    (GroupingSpec(backbone_scale=-0.5), "backbone_scale=-0.5 must be from 0 to 1e6"),
    (GroupSpec(lr=-0.5), "lr=-0.5 must be from 0 to 1e6"),
    (GroupSpec(lr_scale=-0.5), "lr_scale=-0.5 must be from 0 to 1e6"),
    (GroupSpec(weight_decay=-0.5), "weight_decay=-0.5 must be from 0 to 1e6"),
    (ScheduleSpec(floor=1.5), "floor=1.5 must be from 0 to 1: a fraction of the group's lr"),
    (ScheduleSpec(warmup_start=1.5), "warmup_start=1.5 must be from 0 to 1: a fraction"),
    (ScheduleSpec("multistep", gamma=-0.5), "gamma=-0.5 must be 0 or more"),
    (ScheduleSpec("step", gamma=0.0), "gamma=0.0 must be above 0"),
    (ScheduleSpec(power=0.0), "power=0.0 must be above 0"),
    (ScheduleSpec(pct_start=1.0), "pct_start=1.0 must be between 0 and 1"),
    (ScheduleSpec(div_factor=0.5), "div_factor=0.5 must be at least 1"),
    (ScheduleSpec(final_div_factor=0.5), "final_div_factor=0.5 must be at least 1"),
    (OptimizerSpec(lr=1e300), "lr=1e+300 must be from 1e-30 to 1e30"),
    (OptimizerSpec(weight_decay=-0.5), "weight_decay=-0.5 must be from 0 to 1e6"),
    (OptimizerSpec(momentum=1.0), "momentum=1.0 must be from 0 to below 1"),
    (OptimizerSpec("momentum", momentum=0.0, nesterov=True), "nesterov=True must be false where momentum is 0"),
    (OptimizerSpec(betas=[0.9]), "betas=[0.9] must be two numbers from 0 to below 1"),
    (OptimizerSpec(alpha=1.0), "alpha=1.0 must be from 0 to below 1"),
    (OptimizerSpec(momentum_decay=-1.0), "momentum_decay=-1.0 must be from 0 to 1e6"),
    (OptimizerSpec(eps=0.0), "eps=0.0 must be from 1e-30 to 1: float32 holds no less"),
    (CheckpointSpec(keep=0), "keep=0 must be at least 1"),
)
"""What each row of the table refuses and what it says; in the table's order, but that the plan's own rows stand last."""
PLANS = (FreezeSpec, GroupingSpec, GroupSpec, ScheduleSpec, OptimizerSpec)


@pytest.mark.parametrize(
    ("rule", "spec", "says"),
    [
        (rule, *refused)
        for rule, refused in zip(ranges.RULES, sorted(REFUSED, key=lambda row: isinstance(row[0], PLANS)), strict=True)
    ],
    ids=[f"{rule.spec.__name__}.{rule.key}" for rule in ranges.RULES],
)
def test_every_row_refuses_its_own_and_accepts_the_default(rule, spec, says):
    assert [r for r in ranges.RULES if r.spec is type(spec) and r.fault(spec)] == [rule]
    assert rule.fault(spec, "some.") == f"some.{says}"
    assert rule.fault(rule.spec()) is None


def test_what_one_key_forbids_another_may_permit():
    """A picture of three channels takes three means; a milestone may set the lr to zero; null says nothing."""
    permitted = (
        DataSpec(channels=3, mean=[0.1, 0.2, 0.3], std=[1.0]),
        DataSpec(name="digits", stands_for="cifar10"),
        DataSpec(train_size=None, stand_in="digits"),
        ScheduleSpec("multistep", gamma=0.0),
        GroupingSpec(layer_decay=1.5, allow_above_one=True),
    )
    for spec in permitted:
        assert not [rule.fault(spec) for rule in ranges.RULES if rule.spec is type(spec) and rule.fault(spec)]


def test_every_number_of_the_config_is_in_the_table():
    """Or is compared with the data's own size."""
    elsewhere = {"num_classes", "in_channels", "image_size"}
    for spec in {rule.spec for rule in ranges.RULES}:
        numbers = {f.name for f in dataclasses.fields(spec) if {int, float} & {f.type, *get_args(f.type)}}
        ruled = {rule.key for rule in ranges.RULES if rule.spec is spec}
        assert numbers <= ruled | elsewhere


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
        ({"data": {"std": [1e-300]}}, "data.std"),
        ({"optimizer": {"lr": 1e300}}, "optimizer.lr"),
        ({"grouping": {"groups": {"a": {"match": ["*"], "lr": 1e300}}}}, "grouping.groups.a.lr"),
        ({"eval_every": 0}, "eval_every"),
        ({"checkpoint": {"every": "0 epochs"}}, "checkpoint.every"),
        ({"verify": {"every": "0%"}}, "verify.every"),
        ({"framework": {"threads": 10**6}}, "framework.threads"),
        ({"steps": 10**9}, "steps"),
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
