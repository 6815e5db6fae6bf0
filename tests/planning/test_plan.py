import dataclasses
import json
import random

import numpy as np
import pytest

from layerwise_lr.models.layers import param_table
from layerwise_lr.models.trees import make_tree
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import FOREVER, Group, GroupingSpec, GroupSpec
from layerwise_lr.planning.plan import Clip, FreezeSpec, OptimizerSpec, Plan, make_plan
from layerwise_lr.planning.schedules import ScheduleSpec

LENET = param_table(make_tree("lenet", 10, 1, 28))
RESNET = param_table(make_tree("resnet18", 10, 3, 32))
LINEAR = {"default": ScheduleSpec("linear")}
SGD = {"default": OptimizerSpec("sgd", lr=0.1, weight_decay=0.0)}


def planned(table=LENET, freeze=None, steps=20, schedules=None, optimizers=None, **grouping):
    return make_plan(
        table, GroupingSpec(**grouping), optimizers or SGD, schedules or LINEAR, freeze or FreezeSpec(), steps
    )[1]


# --- the law


def test_the_law_recomputed_by_hand():
    plan = planned(layer_decay=0.5, steps=10, groups={"c": GroupSpec(match=["conv2.*"], start=2, stop=6)})
    depth = {"conv1": 0, "conv2": 1, "fc1": 2, "fc2": 3, "classifier": 4}
    of = {g.name: i for i, g in enumerate(plan.groups)}
    for step in range(10):
        lrs = plan.lrs(step)
        for name, group in plan.group_of().items():
            layer = name.partition(".")[0]
            expected = 0.1 * 0.5 ** (4 - depth[layer]) * (1 - step / 10)
            if layer == "conv2" and not 2 <= step < 6:
                expected = 0.0
            assert lrs[of[group.name]] == pytest.approx(expected, rel=1e-12), (step, name)


def test_lrs_are_written_as_the_law_says_to_the_last_bit():
    """Group by group, whatever they share: one pace for all, or windows and schedules of their own."""
    schedules = {"default": ScheduleSpec("cosine", warmup=3, floor=0.1), "own": ScheduleSpec("step", every=2)}
    windows = {"c": GroupSpec(match=["conv2.*"], start=2, stop=6), "f": GroupSpec(match=["fc1.*"], schedule="own")}
    for groups in ({}, windows):
        plan = planned(layer_decay=0.7, schedules=schedules, groups=groups)
        for step in range(20):
            alone = [plan.lr(step, group) for group in plan.groups]
            natives = [{"lr": -1.0, "place": place} for place in range(len(plan.groups) + 1)]
            plan.write_lrs(step, natives)
            assert plan.lrs(step) == alone == [native["lr"] for native in natives[:-1]]
            assert natives[-1]["lr"] == -1.0


def test_the_table_is_the_law_row_by_row_from_any_start():
    plan = planned(steps=7)
    assert plan.table().shape == (7, len(plan.groups))
    assert plan.table().dtype == np.float64
    assert plan.table().tolist() == [plan.lrs(s) for s in range(7)]
    assert np.array_equal(plan.table(3), plan.table()[3:])
    assert plan.table(7).shape == (0, len(plan.groups))


def test_each_group_follows_its_own_schedule():
    named = {"default": ScheduleSpec(), "fast": ScheduleSpec("exponential", gamma=0.5, every=1)}
    plan = planned(strategy="flat", schedules=named, groups={"h": GroupSpec(match=["classifier.*"], schedule="fast")})
    head = plan.group_of()["classifier.weight"]
    body = plan.group_of()["fc1.weight"]
    assert [plan.lr(s, head) for s in range(4)] == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert [plan.lr(s, body) for s in range(4)] == [0.1] * 4


# --- phases


def test_phases_cut_where_a_group_begins_or_ends():
    plan = planned(freeze=FreezeSpec("progressive", every=5), steps=30)
    phases = plan.phases()
    assert [(p.start, p.stop) for p in phases] == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 30)]
    for phase in phases:
        for step in range(phase.start, phase.stop):
            assert plan.active(step) == phase.active
    assert [sum(p.active) for p in phases] == sorted({sum(p.active) for p in phases})
    assert [(p.start, p.stop) for p in plan.phases(12)] == [(12, 15), (15, 20), (20, 30)]


def test_phases_of_random_windows_cover_the_run_once():
    rng = random.Random(1)
    for _ in range(200):
        groups = []
        for i in range(rng.randint(1, 5)):
            a, b = sorted(rng.sample(range(21), 2))
            groups.append(Group(f"g{i}", (f"p{i}",), 1.0, 0.0, active=(a, b)))
        plan = Plan(tuple(groups), 0.1, LINEAR, SGD, 20)
        steps = [s for p in plan.phases() for s in range(p.start, p.stop)]
        assert steps == list(range(20))
        for p in plan.phases():
            assert {plan.active(s) for s in range(p.start, p.stop)} == {p.active}
        assert all(a.active != b.active for a, b in zip(plan.phases(), plan.phases()[1:], strict=False))


# --- check


def broken(**changes):
    plan = planned(strategy="flat")
    first = plan.groups[0]
    table = {
        "uncovered": (dataclasses.replace(first, params=first.params[1:]),),
        "twice": (first, Group("again", ("fc1.weight",), 1.0, 0.0)),
        "twice in one": (dataclasses.replace(first, params=(*first.params, "fc2.bias")),),
        "foreign": (dataclasses.replace(first, params=(*first.params, "fc9.weight")),),
        "empty": (first, Group("hollow", (), 1.0, 0.0)),
        "window": (dataclasses.replace(first, active=(5, 5)),),
        "late": (dataclasses.replace(first, active=(20, FOREVER)),),
        "schedule": (dataclasses.replace(first, schedule="nope"),),
        "optimizer": (dataclasses.replace(first, optimizer="nope"),),
    }
    return dataclasses.replace(plan, groups=table[changes["fault"]])


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("uncovered", r"1 in no group: conv1\.weight"),
        ("twice", r"in more than one group: fc1\.weight"),
        ("twice in one", r"in more than one group: fc2\.bias"),
        ("foreign", r"not trainable parameters of the model: fc9\.weight"),
        ("empty", r"without parameters: hollow"),
        ("window", r"window is empty or begins after the last step: all"),
        ("late", r"after the last step: all"),
        ("schedule", r"unknown schedule: all"),
        ("optimizer", r"unknown optimizer: all"),
    ],
)
def test_every_fault_of_a_plan_is_found_and_named(fault, word):
    with pytest.raises(UserError, match=word):
        broken(fault=fault).check(LENET)


def test_a_buffer_in_a_group_is_a_fault():
    plan = planned(RESNET, strategy="flat")
    group = plan.groups[0]
    bad = dataclasses.replace(plan, groups=(dataclasses.replace(group, params=(*group.params, "bn1.running_mean")),))
    with pytest.raises(UserError, match=r"not trainable parameters of the model: bn1\.running_mean"):
        bad.check(RESNET)


def test_a_sound_plan_passes():
    for table in (LENET, RESNET):
        planned(table).check(table)


@pytest.mark.parametrize(
    ("key", "word"), [("default", r"optimizer\.name='adamm'"), ("slow", r"optimizers\.slow\.name")]
)
def test_an_unknown_optimizer_is_named(key, word):
    with pytest.raises(UserError, match=word):
        planned(optimizers={**SGD, key: OptimizerSpec("adamm")})


# --- plan.json


def rich_plan():
    named = {"default": ScheduleSpec("cosine", warmup=3, floor=0.1), "s": ScheduleSpec("multistep", milestones=[4, 9])}
    optimizers = {"default": OptimizerSpec(), "o": OptimizerSpec("momentum", nesterov=True)}
    return planned(
        RESNET,
        FreezeSpec("progressive", every=1),
        schedules=named,
        optimizers=optimizers,
        groups={"stem": GroupSpec(match=["conv1.*"], schedule="s", optimizer="o", grad_centralization=True)},
    )


def test_json_gives_the_same_plan_again():
    plan = rich_plan()
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.sha256 == plan.sha256 == plan.to_dict()["sha256"] == rich_plan().sha256
    assert np.array_equal(again.table(), plan.table())
    assert again.phases() == plan.phases()


def other_value(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, Clip):
        return Clip(norm=2.0)
    if isinstance(value, dict):
        return {**value, "extra": next(iter(value.values()))}
    return (*value, value[-1]) if isinstance(value, tuple) and value else [*value, 1]


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Plan)])
def test_the_hash_follows_every_field_of_the_plan(field):
    plan = rich_plan()
    assert dataclasses.replace(plan, **{field: other_value(getattr(plan, field))}).sha256 != plan.sha256


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Group)])
def test_the_hash_follows_every_field_of_a_group(field):
    plan = rich_plan()
    group = dataclasses.replace(plan.groups[0], **{field: other_value(getattr(plan.groups[0], field))})
    assert dataclasses.replace(plan, groups=(group, *plan.groups[1:])).sha256 != plan.sha256


@pytest.mark.parametrize(
    ("key", "kind", "field"),
    [("schedules", ScheduleSpec, f.name) for f in dataclasses.fields(ScheduleSpec)]
    + [("optimizers", OptimizerSpec, f.name) for f in dataclasses.fields(OptimizerSpec)],
)
def test_the_hash_follows_every_field_of_a_schedule_and_an_optimizer(key, kind, field):
    plan = rich_plan()
    named = dict(getattr(plan, key))
    named["default"] = dataclasses.replace(named["default"], **{field: other_value(getattr(named["default"], field))})
    assert dataclasses.replace(plan, **{key: named}).sha256 != plan.sha256


# --- what a compiled step can be keyed by


def test_equal_optimizers_have_equal_hashes_and_any_changed_value_another():
    spec = OptimizerSpec("momentum", lr=0.1, betas=[0.8, 0.9])
    assert {spec: "found"}[dataclasses.replace(spec, betas=[0.8, 0.9])] == "found"
    others = [
        dataclasses.replace(spec, **{f.name: other_value(getattr(spec, f.name))}) for f in dataclasses.fields(spec)
    ]
    assert len({hash(s) for s in (spec, *others)}) == len(dataclasses.fields(OptimizerSpec)) + 1


def test_the_update_rule_is_all_but_the_lr():
    optimizers = {"default": OptimizerSpec("momentum", lr=0.1), "twice": OptimizerSpec("momentum", lr=0.2)}
    groups = {
        "stem": GroupSpec(match=["conv1.weight"], optimizer="twice", lr_scale=0.5, stop=3),
        "still": GroupSpec(match=["conv2.weight"], lr_scale=0.0),
        "decay": GroupSpec(match=["fc1.weight"], weight_decay=0.5),
        "centred": GroupSpec(match=["fc2.weight"], grad_centralization=True),
    }
    plan = planned(optimizers=optimizers, groups=groups, layer_decay=0.9, no_weight_decay=False)
    rules = {name: plan.rule(group) for name, group in plan.group_of().items()}
    usual = (OptimizerSpec("momentum", lr=1.0), 0.05, False)
    assert rules["conv1.weight"] == rules["conv2.weight"] == rules["classifier.bias"] == usual
    assert rules["fc1.weight"] == (usual[0], 0.5, False)
    assert rules["fc2.weight"] == (usual[0], 0.05, True)
    assert len(set(rules.values())) == 3
