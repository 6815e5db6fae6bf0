"""Seed document 003 (MindSpore): its own code, mended, on MindSpore's own optimizer, against our plan and plugin."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from beside import Ours, batch_of, largest_difference
from layerwise_lr.plugins.mindspore_plugin import layers
from mindspore import ParameterTuple, Tensor, nn, ops

from layerwise_lr import registry
from layerwise_lr.config import from_data, resolve
from layerwise_lr.errors import UserError
from layerwise_lr.groups import GroupingSpec, GroupSpec
from layerwise_lr.layers import Layer, Seq, Tree, initial_weights, param_table
from layerwise_lr.models import batchnorm, conv, linear
from layerwise_lr.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.schedules import ScheduleSpec

NODES = (conv("conv1", 16, 8, 3, 2, depth=0), batchnorm("bn1", 8), Layer("relu"), Layer("flatten"),
         linear("fc", 72, 5, depth=1))  # fmt: skip
TREE = Tree("small", Seq("", NODES, depth=0), "fc", (16, 6, 6), 5)
STEPS, PER_EPOCH = 8, 2
MOMENTUM = OptimizerSpec("momentum", lr=1e-3, weight_decay=0.0, momentum=0.9)
GROUPS = {
    "conv": GroupSpec(["conv"], lr=1e-3, weight_decay=1e-4, schedule="cosine_decay_lr"),
    "bn": GroupSpec(["batchnorm"], lr=1e-4, weight_decay=0.0),
    "dense": GroupSpec(["linear.weight"], lr=1e-3, weight_decay=1e-5),
    "other": GroupSpec(["*"]),
}
COSINE = {"default": ScheduleSpec(), "cosine_decay_lr": ScheduleSpec("cosine", interval=PER_EPOCH)}


def plan_of(groups=GROUPS, optimizer=MOMENTUM, schedules=COSINE):
    grouping = GroupingSpec("by_layer_type", groups=groups, no_weight_decay=False)
    return make_plan(param_table(TREE), grouping, {"default": optimizer}, schedules, FreezeSpec(), STEPS)[1]


@pytest.fixture
def model():
    framework = registry.load("mindspore")("cpu", "pynative", 0, "fp32", 1, False)
    made = framework.make_model(TREE)
    framework.set_weights(made, initial_weights(TREE, 0))
    made.framework = framework
    return made


def by_cell(model):
    """The document's loop with `.bata` mended: (conv, bn, dense) by kind of cell."""
    conv_weight, bn_weight, dense_weight = [], [], []
    for _, cell in model.cells_and_names():
        if isinstance(cell, nn.Conv2d):
            conv_weight.append(cell.weight)
        elif isinstance(cell, nn.BatchNorm2d):
            bn_weight.append(cell.gamma)
            bn_weight.append(cell.beta)
        elif isinstance(cell, nn.Dense):
            dense_weight.append(cell.weight)
    return conv_weight, bn_weight, dense_weight


def group_params(model, lrs):
    """The document's groups, `other` mended too (`and`, by identity); `lrs`: of conv, bn, dense and other."""
    conv_weight, bn_weight, dense_weight = by_cell(model)
    known = {id(p) for p in (*conv_weight, *bn_weight, *dense_weight)}
    other = [p for p in model.trainable_params() if id(p) not in known]
    return [
        {"order_params": model.trainable_params()},
        {"params": conv_weight, "weight_decay": 1e-4, "lr": lrs[0]},
        {"params": bn_weight, "weight_decay": 0.0, "lr": lrs[1]},
        {"params": dense_weight, "weight_decay": 1e-5, "lr": lrs[2]},
        {"params": other, "lr": lrs[3]},
    ]


def train_natively(model, optimizer, before_step=lambda step: None):
    loss = layers.Loss(model).set_train(True)
    grad = ms.value_and_grad(lambda x, y: loss(x, y), None, ParameterTuple(model.trainable_params()))
    for step in range(STEPS):
        before_step(step)
        x, y = batch_of(TREE, step)
        optimizer(grad(Tensor(x), Tensor(y.astype(np.int32)))[1])
    return model.framework.get_weights(model)


@pytest.fixture(scope="module")
def ours():
    run = Ours("mindspore", "pynative", TREE, plan_of())
    lrs = [run.step(step) for step in range(STEPS)]
    return lrs, run.arrays()


def test_the_documents_own_groups(model):
    """Seed 003: `.bata` is no attribute; `param not in list` compares numbers and raises; mended but for `or`, every
    parameter is `other` as well, which MindSpore refuses as set twice. Ours puts fc.bias alone there."""
    bn = next(cell for _, cell in model.cells_and_names() if isinstance(cell, nn.BatchNorm2d))
    with pytest.raises(AttributeError, match="bata"):
        _ = bn.bata
    params = model.trainable_params()
    with pytest.raises(ValueError, match="broadcast"):
        _ = params[0] not in [params[1]]
    lists = [{id(p) for p in part} for part in by_cell(model)]
    other = [p for p in params if id(p) not in lists[0] or id(p) not in lists[1] or id(p) not in lists[2]]
    assert len(other) == len(params) == 5
    groups = [{"params": part} for part in by_cell(model)]
    with pytest.raises(RuntimeError, match="already exists, it does not support repeated setting"):
        nn.Momentum([*groups, {"params": other}], 1e-3, 0.9)
    assert {g.name: g.params for g in plan_of().groups} == {
        "conv": ("conv1.weight",), "bn": ("bn1.weight", "bn1.bias"), "dense": ("fc.weight",), "other": ("fc.bias",),
    }  # fmt: skip


def by_way_of_one(lr):
    return float(np.float32(lr) + np.float32(1) - np.float32(1))


def test_static_lr_beside_cosine_decay_lr(model, ours):
    """Seed 003: nn.Momentum over group dicts with order_params, conv under nn.cosine_decay_lr, the others static.

    MindSpore computes a static lr that stands beside a dynamic one as lr + 1.0 - 1.0, in float32: 1e-4 becomes
    1.0002e-4. Ours is exact, and a plan of the rounded numbers ends at MindSpore's weights."""
    lrs, _ = ours
    dynamic = nn.cosine_decay_lr(0.0, 1e-3, STEPS, PER_EPOCH, STEPS // PER_EPOCH)
    np.testing.assert_allclose([row[0] for row in lrs], dynamic, rtol=1e-6)
    np.testing.assert_allclose([row[1:] for row in lrs], [[1e-4, 1e-3, 1e-3]] * STEPS, rtol=1e-6)
    optimizer = nn.Momentum(group_params(model, (dynamic, 1e-4, 1e-3, 1e-3)), 1e-3, 0.9, weight_decay=0.0)
    assert [p.name for p in optimizer.parameters] == [p.name for p in model.trainable_params()]
    rounded = [float(lr.asnumpy()) for lr in optimizer.get_lr()][1:]
    assert rounded == [by_way_of_one(lr) for lr in (1e-4, 1e-4, 1e-3, 1e-3)] and rounded[0] > 1.0001e-4
    groups = {name: replace(g, lr=by_way_of_one(g.lr or 1e-3)) if name != "conv" else g for name, g in GROUPS.items()}
    run = Ours("mindspore", "pynative", TREE, plan_of(groups))
    for step in range(STEPS):
        run.step(step)
    optimizer = nn.Momentum(group_params(model, (dynamic, 1e-4, 1e-3, 1e-3)), 1e-3, 0.9, weight_decay=0.0)
    assert largest_difference(run.arrays(), train_natively(model, optimizer)) <= 2e-6


class Table(nn.learning_rate_schedule.LearningRateSchedule):
    """The plan's table as MindSpore's own kind of schedule."""

    def __init__(self, column):
        super().__init__()
        self.column = Tensor(np.asarray(column, np.float32))

    def construct(self, global_step):
        return self.column[global_step]


def by_assignment(model, table):
    optimizer = nn.Momentum(group_params(model, [float(lr) for lr in table[0]]), 1e-3, 0.9, weight_decay=0.0)
    group_of = {n: i for i, g in enumerate(plan_of().groups) for n in g.params}

    def assign(step):
        for parameter, lr in zip(optimizer.parameters, optimizer.learning_rate, strict=True):
            ops.assign(lr, Tensor(table[step, group_of[parameter.name]], ms.float32))

    return optimizer, assign


def by_list(model, table):
    return nn.Momentum(
        group_params(model, table.T.tolist()), table[:, 3].tolist(), 0.9, weight_decay=0.0
    ), lambda step: None


def by_schedule(model, table):
    cells = [Table(column) for column in table.T]
    return nn.Momentum(group_params(model, cells), 1e-3, 0.9, weight_decay=0.0), lambda step: None


@pytest.mark.parametrize("way", [by_assignment, by_list, by_schedule])
def test_every_way_to_change_the_lr_is_fed_by_the_plan(model, ours, way):
    """Seed 003: a static lr that is assigned, a dynamic list, a LearningRateSchedule: the plan is the one source of
    all three, and all end at the plugin's weights. (The document's `ops.assign(optimizer.learning_rate, ...)` is for
    an optimizer without groups; with groups it is a ParameterTuple, one element per parameter.)"""
    optimizer, assign = way(model, plan_of().table())
    assert largest_difference(ours[1], train_natively(model, optimizer, assign)) <= 2e-6


def test_grad_centralization_per_group(model):
    """Seed 003: conv's gradient loses each output channel's mean, the others keep theirs; MindSpore's own transform
    has no kernel on a CPU."""
    groups = {**GROUPS, "conv": replace(GROUPS["conv"], grad_centralization=True, weight_decay=0.0, schedule="default")}
    run = Ours("mindspore", "pynative", TREE, plan_of(groups))
    before = run.arrays()
    run.step(0)
    after, gradients = run.arrays(), run.fw.get_gradients(run.state)
    g = gradients["conv1.weight"].astype(np.float64)
    centred = g - g.mean(axis=(1, 2, 3), keepdims=True)
    assert np.abs(g.mean(axis=(1, 2, 3))).max() > 1e-3 * np.abs(g).max()
    np.testing.assert_allclose(before["conv1.weight"] - after["conv1.weight"], 1e-3 * centred, atol=3e-8)
    fc = gradients["fc.weight"] + 1e-5 * before["fc.weight"]
    np.testing.assert_allclose(before["fc.weight"] - after["fc.weight"], 1e-3 * fc, atol=3e-8)
    native = nn.Momentum([{"params": model.trainable_params(), "grad_centralization": True}], 1e-3, 0.9)
    with pytest.raises(RuntimeError, match="Centralization"):
        native(tuple(Tensor(np.ones(p.shape, np.float32)) for p in native.parameters))


def test_rule_1_no_group_is_empty(model):
    """Seed 003, rule 1, in MindSpore's words and in ours."""
    with pytest.raises(ValueError, match="must not be empty"):
        nn.Momentum([{"params": []}, {"params": model.trainable_params()}], 1e-3, 0.9)
    with pytest.raises(UserError, match=r"grouping\.groups\.norm\.match: 'layernorm' matches no parameter"):
        plan_of({"norm": GroupSpec(["layernorm"]), "rest": GroupSpec(["*"])})


def test_rule_2_what_a_group_leaves_out_is_the_optimizers(model):
    """Seed 003, rule 2: lr and weight_decay fall back to the optimizer's, there and here."""
    params = model.trainable_params()
    native = nn.Momentum([{"params": params[:1], "lr": 0.5}, {"params": params[1:], "weight_decay": 1e-4}], 1e-3, 0.9,
                         weight_decay=0.25)  # fmt: skip
    groups = {"conv": GroupSpec(["conv"], lr=0.5), "rest": GroupSpec(["*"], weight_decay=1e-4)}
    plan = plan_of(groups, replace(MOMENTUM, weight_decay=0.25), {"default": ScheduleSpec()})
    of = plan.group_of()
    for parameter, lr, decay in zip(native.parameters, native.learning_rate, native.weight_decay, strict=True):
        group = of[parameter.name]
        assert float(lr.asnumpy()) == pytest.approx(plan.lr(0, group))
        assert float(decay.asnumpy()) == pytest.approx(group.weight_decay)
    assert {g.name: (plan.lr(0, g), g.weight_decay) for g in plan.groups} == {"conv": (0.5, 0.25), "rest": (1e-3, 1e-4)}


def config_of(**group):
    return from_data({"grouping": {"strategy": "by_module", "groups": {"all": {"match": ["*"], **group}}}})


def test_rule_3_an_lr_is_static_or_dynamic_but_not_grouped_again(model):
    """Seed 003, rule 3: a group's lr is a number and its schedule a name; a mapping of further groups is refused."""
    with pytest.raises((TypeError, ValueError)):
        nn.Momentum([{"params": model.trainable_params(), "lr": {"params": 1}}], 1e-3, 0.9)
    with pytest.raises(UserError, match=r"grouping\.groups\.all\.lr"):
        config_of(lr={"conv": 1e-3})
    assert config_of(lr=1e-3, schedule="default").grouping.groups["all"].lr == 1e-3


def test_rule_4_weight_decay_is_a_proper_number(model):
    """Seed 003, rule 4: MindSpore and we refuse a word; we refuse a negative one too."""
    with pytest.raises(TypeError, match=r"Weight_decay.*must be int, float"):
        nn.Momentum([{"params": model.trainable_params(), "weight_decay": "high"}], 1e-3, 0.9)
    with pytest.raises(UserError, match=r"grouping\.groups\.all\.weight_decay"):
        config_of(weight_decay="high")
    with pytest.raises(UserError, match=r"grouping\.groups\.all\.weight_decay=-0\.1 must be 0 or more"):
        resolve(config_of(weight_decay=-0.1))
    with pytest.raises(UserError, match="not a finite number"):
        resolve(config_of(weight_decay=float("nan")))


def test_rule_5_every_parameter_once_and_none_missing(model):
    """Seed 003, rule 5: MindSpore refuses a parameter set twice and takes a missing one in silence, so that it never
    trains; we name both."""
    params = model.trainable_params()
    with pytest.raises(RuntimeError, match="repeated setting"):
        nn.Momentum([{"params": params}, {"params": params[:1]}], 1e-3, 0.9)
    start = model.framework.get_weights(model)
    optimizer = nn.Momentum([{"params": params[:1]}], 1e-3, 0.9)
    grad = ms.value_and_grad(layers.Loss(model).set_train(True), None, optimizer.parameters)
    x, y = batch_of(TREE, 0)
    optimizer(grad(Tensor(x), Tensor(y.astype(np.int32)))[1])
    now = model.framework.get_weights(model)
    assert not np.array_equal(now["conv1.weight"], start["conv1.weight"])
    assert np.array_equal(now["fc.weight"], start["fc.weight"])

    with pytest.raises(UserError, match=r"parameters are in no group: .*fc\.weight"):
        plan_of({"conv": GroupSpec(["conv"]), "bn": GroupSpec(["batchnorm"])})
    plan = plan_of()
    twice = replace(plan, groups=(*plan.groups, replace(plan.groups[0], name="again")))
    with pytest.raises(UserError, match=r"in more than one group: conv1\.weight"):
        twice.check(param_table(TREE))
