import dataclasses
import json
import random

import numpy as np
import pytest

from layerwise_lr.models.layers import param_table
from layerwise_lr.models.trees import make_tree
from layerwise_lr.plan.errors import UserError
from layerwise_lr.plan.groups import FOREVER, Group, GroupingSpec, GroupSpec
from layerwise_lr.plan.plan import FreezeSpec, OptimizerSpec, Plan, make_plan
from layerwise_lr.plan.schedules import ScheduleSpec

LENET = param_table(make_tree("lenet", 10, 1, 28))
RESNET = param_table(make_tree("resnet18", 10, 3, 32))
LINEAR = {"default": ScheduleSpec("linear")}
SGD = {"default": OptimizerSpec("sgd", lr=0.1, weight_decay=0.0)}


def planned(table=LENET, freeze=None, steps=20, schedules=None, optimizers=None, **grouping):
    return make_plan(
        table, GroupingSpec(**grouping), optimizers or SGD, schedules or LINEAR, freeze or FreezeSpec(), steps
    )[1]


def windows(plan):
    return {name: g.active for name, g in plan.group_of().items()}


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


# --- freezing


def test_none_trains_everything_always():
    assert set(windows(planned()).values()) == {(0, FOREVER)}


def test_head_first():
    found = windows(planned(freeze=FreezeSpec("head_first", every=5)))
    assert {n for n, w in found.items() if w == (0, FOREVER)} == {"classifier.weight", "classifier.bias"}
    assert {w for n, w in found.items() if not n.startswith("classifier")} == {(5, FOREVER)}


def test_progressive_thaws_a_depth_per_stage_from_the_head_down():
    found = windows(planned(freeze=FreezeSpec("progressive", every=3)))
    starts = {n.partition(".")[0]: w[0] for n, w in found.items()}
    assert starts == {"classifier": 0, "fc2": 3, "fc1": 6, "conv2": 9, "conv1": 12}
    assert {w[1] for w in found.values()} == {FOREVER}


def test_progressive_with_stages_keeps_the_unnamed_frozen():
    plan = planned(RESNET, FreezeSpec("progressive", every=4, stages=["layer4", "layer3.1"]))
    found = windows(plan)
    assert {n.split(".")[0] for n, w in found.items() if w == (0, FOREVER)} == {"fc"}
    assert {n for n, w in found.items() if w == (4, FOREVER)} == {
        r.name for r in RESNET.trainable if r.name.startswith("layer4.")
    }
    assert all(n.startswith("layer3.1.") for n, w in found.items() if w == (8, FOREVER))
    assert found["conv1.weight"][0] >= FOREVER
    frozen = [i for i, g in enumerate(plan.groups) if g.active[0] >= FOREVER]
    assert frozen
    assert not plan.table()[:, frozen].any()


def test_a_stage_is_a_prefix_up_to_a_dot():
    """ "conv1" must not take "conv10"."""
    with pytest.raises(UserError, match=r"freeze: 'layer' names no module"):
        planned(RESNET, FreezeSpec("progressive", every=4, stages=["layer"]))


def test_after_stops_what_it_names():
    found = windows(planned(freeze=FreezeSpec("after", match=["conv1", "conv2"], at=7)))
    assert {n: w for n, w in found.items() if w != (0, FOREVER)} == dict.fromkeys(
        ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"], (0, 7)
    )


def test_only_what_is_named_trains():
    plan = planned(freeze=FreezeSpec("only", match=["fc1", "classifier"]))
    trains = {n for g, on in zip(plan.groups, plan.active(0), strict=True) if on for n in g.params}
    assert trains == {"fc1.weight", "fc1.bias", "classifier.weight", "classifier.bias"}
    assert plan.active(0) == plan.active(19)
    assert all((lr > 0) == on for lr, on in zip(plan.lrs(3), plan.active(3), strict=True))


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (FreezeSpec("after", at=3), "freeze.match is empty"),
        (FreezeSpec("only"), "freeze.match is empty"),
        (FreezeSpec("only", match=["conv9"]), "'conv9' names no module"),
        (FreezeSpec("after", match=["conv9"], at=3), "'conv9'"),
        (FreezeSpec("progresive", every=1), "did you mean 'progressive'"),
        (FreezeSpec("after", match=["conv1"], at=0), "window is empty.*layer_0"),
        (FreezeSpec("head_first", every=20), "begins after the last step"),
        (FreezeSpec("progressive", every=6), "begins after the last step"),
    ],
)
def test_a_faulty_freeze_is_refused(spec, word):
    with pytest.raises(UserError, match=word):
        planned(freeze=spec)


def test_windows_intersect():
    plan = planned(
        freeze=FreezeSpec("after", match=["conv1"], at=7),
        groups={"stem": GroupSpec(match=["conv1.*"], start=2, stop=15)},
    )
    assert windows(plan)["conv1.weight"] == (2, 7)
    with pytest.raises(UserError, match="window is empty"):
        planned(
            freeze=FreezeSpec("after", match=["conv1"], at=7), groups={"stem": GroupSpec(match=["conv1.*"], start=7)}
        )


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
