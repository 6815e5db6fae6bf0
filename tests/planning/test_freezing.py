import pytest

from layerwise_lr.models.layers import param_table
from layerwise_lr.models.trees import make_tree
from layerwise_lr.planning import (
    FOREVER,
    FreezeSpec,
    GroupingSpec,
    GroupSpec,
    OptimizerSpec,
    ScheduleSpec,
    UserError,
    make_plan,
)

LENET = param_table(make_tree("lenet", 10, 1, 28))
RESNET = param_table(make_tree("resnet18", 10, 3, 32))


def planned(table=LENET, freeze=None, **grouping):
    """Of 20 steps, linear, at lr 0.1."""
    sgd, linear = {"default": OptimizerSpec("sgd", lr=0.1, weight_decay=0.0)}, {"default": ScheduleSpec("linear")}
    return make_plan(table, GroupingSpec(**grouping), sgd, linear, freeze or FreezeSpec(), 20)[1]


def windows(plan):
    return {name: g.active for name, g in plan.group_of().items()}


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
