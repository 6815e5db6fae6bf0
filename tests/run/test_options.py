"""Every option of every group, every key: read, or refused. That a key is read shows in what it changes."""

from dataclasses import fields, replace

import numpy as np
import pytest

from layerwise_lr.data.pictures import READERS
from layerwise_lr.framework.updates import UNITS
from layerwise_lr.models.weights import WeightsSpec
from layerwise_lr.planning.assigning import STRATEGIES
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.plan import OPTIMIZERS, OptimizerSpec
from layerwise_lr.planning.schedules import NAMES, ScheduleSpec
from layerwise_lr.run import options, page
from layerwise_lr.run.resolving import resolve
from layerwise_lr.run.schema import Config

BASE = Config(epochs=10, batch_size=5)
NEEDS = {  # what an option cannot do without
    ("scheduler", "join"): {"parts": ["a", "b"], "starts": [50]},
    ("scheduler", "product"): {"parts": ["a"]},
    ("scheduler", "multistep"): {"milestones": [20]},
    ("freeze", "after"): {"match": ["conv1"]},
    ("freeze", "only"): {"match": ["classifier"]},
}
OTHER = {  # another valid value of a key
    "scheduler": {
        "floor": 0.5,
        "gamma": 0.5,
        "every": 7,
        "milestones": [33],
        "power": 3.0,
        "pct_start": 0.6,
        "div_factor": 5.0,
        "final_div_factor": 10.0,
        "parts": ["b", "a"],
        "starts": [20],
    },
    "optimizer": {
        "momentum": 0.5,
        "nesterov": True,
        "betas": [0.5, 0.9],
        "eps": 0.1,
        "alpha": 0.5,
        "momentum_decay": 0.5,
    },
    "grouping": {
        "layer_decay": 0.5,
        "stem_scale": 0.3,
        "decay_per_12_layers": 0.6,
        "min_scale": 0.9,
        "head_scale": 3.0,
        "backbone_scale": 0.5,
    },
    "freeze": {"every": 13, "stages": ["fc2"], "match": ["fc1"], "at": 31},
}
SCHEDULES = {"a": ScheduleSpec("constant"), "b": ScheduleSpec("exponential", gamma=0.9, every=3)}


def config(at, option, values=()):
    section = next(s for s in options.SECTIONS if s.at == at)
    spec = replace(getattr(BASE, at), **{section.key: option, **NEEDS.get((at, option), {}), **dict(values)})
    return replace(BASE, schedules=SCHEDULES, **{at: spec})


def effect(given):
    """What the plan makes of it: lr of every parameter at every step, windows, and one update of each optimizer."""
    *_, plan = page.plan_of(given)
    lrs = {name: [plan.lr(step, group) for step in range(plan.total_steps)] for name, group in plan.group_of().items()}
    rng = np.random.default_rng(0)
    w, g = rng.standard_normal((2, 5, 3))
    held = {
        "momentum_buffer": g[::-1],
        "exp_avg": g[::-1],
        "exp_avg_sq": g * g,
        "square_avg": g * g,
        "step": np.array(3.0),
    }
    units = [UNITS[spec.name](spec, w, g, 0.1, held).tolist() for spec in plan.optimizers.values()]
    return lrs, {n: group.active for n, group in plan.group_of().items()}, units


PLANNED = [s for s in options.SECTIONS if s.at in OTHER]
CELLS = [
    (s.at, option, key)
    for s in PLANNED
    for option in s.table
    for key in sorted({k for ks in s.table.values() for k in ks})
]


@pytest.mark.parametrize(("at", "option", "key"), CELLS)
def test_a_key_changes_what_happens_or_is_not_read(at, option, key):
    section = next(s for s in PLANNED if s.at == at)
    if key == "allow_above_one":
        return  # a permission: tests/planning/test_groups.py
    plain, other = config(at, option), config(at, option, {key: OTHER[at][key]})
    read = key in section.table[option]
    assert (f"{at}.{key}" not in options.unread(resolve(other))) == read
    if read:
        assert effect(resolve(plain)) != effect(resolve(other))
    else:
        assert resolve(plain) == resolve(other), "equal in what they do, so equal: one job, not two"
        with pytest.raises(
            UserError, match=rf"{at}\.{key} would be ignored: {section.group}={option} does not read it"
        ):
            options.refuse_ignored([f"{at}.{key}"], options.unread(resolve(other)))


def test_the_tables_have_every_option():
    known = {
        "scheduler": set(NAMES),
        "optimizer": set(OPTIMIZERS),
        "grouping": set(STRATEGIES),
        "freeze": {"none", "head_first", "progressive", "after", "only"},
        "data": set(READERS),
        "weights": {"none", "lenet_mnist", "mobilenet_v2_imagenet", "dinov2_vits14", "file", "pretrained"},
    }
    assert {s.at: set(s.table) for s in options.SECTIONS} == known


def test_the_tables_name_keys_that_are_there():
    for section in options.SECTIONS:
        there = {field.name for field in fields(type(getattr(BASE, section.at)))}
        assert {key for keys in section.table.values() for key in keys} <= there - {section.key}


@pytest.mark.parametrize(
    ("given", "values", "says"),
    [
        (
            "scheduler.warmup_start",
            {"scheduler": ScheduleSpec("cosine", warmup_start=0.5)},
            "scheduler.warmup is above 0",
        ),
        ("optimizers.slow.lr", {"optimizers": {"slow": OptimizerSpec("sgd", lr=0.5)}}, "grouping.groups.NAME.lr"),
        ("checkpoint.keep", {}, "checkpoint.every"),
        ("data.path", {}, "data=image_folder does|image_folder does"),
        ("weights.path", {"weights": WeightsSpec("none", path="x")}, "weights=file does"),
        (
            "grouping.convention",
            {"grouping": replace(BASE.grouping, strategy="flat")},
            "freeze=progressive without stages",
        ),
    ],
)
def test_what_hangs_on_another_value(given, values, says):
    final = resolve(replace(BASE, **values))
    with pytest.raises(UserError, match=f"{given} would be ignored: .*({says})"):
        options.refuse_ignored([given], options.unread(final))
    assert final == resolve(final)


@pytest.mark.parametrize("instead", ["stem_scale", "decay_per_12_layers"])
def test_it_says_it_all(instead):
    final = resolve(replace(BASE, grouping=replace(BASE.grouping, **{instead: 0.1}, layer_decay=0.5)))
    assert "grouping.layer_decay" in options.unread(final)
    assert final.grouping.layer_decay == Config().grouping.layer_decay


def test_rules_are_read_instead_of_the_convention_and_not_at_all_by_flat():
    rules = {"conv": 0, ".*": 1}
    final = resolve(replace(BASE, grouping=replace(BASE.grouping, convention="order", depths=rules)))
    assert final.grouping.convention == "tree" and final.grouping.depths == rules
    final = resolve(replace(BASE, grouping=replace(BASE.grouping, strategy="flat", depths=rules)))
    assert final.grouping.depths == {}
    with pytest.raises(UserError, match=r"grouping\.depths\.conv would be ignored: grouping=layer_decay reads it"):
        options.refuse_ignored(["grouping.depths.conv"], options.ignored(final))


def test_equal_lengths_are_equal_jobs():
    by_epochs, by_steps = resolve(replace(BASE, epochs=3)), resolve(replace(BASE, steps=30))
    assert by_epochs == by_steps and by_epochs.sha256() == by_steps.sha256()
