"""Seed document 003 (MindSpore): its own code, mended and in plain MindSpore, against our plan and plugin.

The net is a small ResNet, written once in MindSpore and once as a declared tree; both begin with the same weights.
"""

from dataclasses import replace

import numpy as np
import pytest
from layerwise_lr.plugins.mindspore_plugin import plugin  # first: it silences MindSpore's log, read once at import

# isort: split
import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.nn.learning_rate_schedule import LearningRateSchedule

from layerwise_lr.framework import begin, take_step
from layerwise_lr.models.layers import Layer, Residual, Seq, Tree, initial_weights, param_table
from layerwise_lr.models.trees import batchnorm, conv, linear
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import GroupingSpec, GroupSpec
from layerwise_lr.planning.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.planning.schedules import ScheduleSpec
from layerwise_lr.run import reading, resolve

TREE = Tree(
    "small_resnet",
    Seq(
        "",
        (
            conv("conv1", 3, 16, 3, depth=0),
            Seq("", (batchnorm("bn1", 16), Layer("relu")), depth=0),
            Residual("layer1", (conv("conv1", 16, 16, 3, depth=1), Seq("", (batchnorm("bn1", 16),), depth=1))),
            Layer("relu"),
            Layer("globalpool"),
            linear("fc", 16, 10, depth=2),
        ),
    ),
    "fc",
    (3, 12, 12),
    10,
)
STEPS, PER_EPOCH = 8, 2
RENAMED = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


class Block(nn.Cell):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(16, 16, 3, pad_mode="pad", padding=1, has_bias=False)
        self.bn1 = nn.BatchNorm2d(16, eps=1e-5, momentum=0.9)

    def construct(self, x):
        return x + self.bn1(self.conv1(x))


class SmallResNet(nn.Cell):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, pad_mode="pad", padding=1, has_bias=False)
        self.bn1 = nn.BatchNorm2d(16, eps=1e-5, momentum=0.9)
        self.layer1, self.fc, self.relu = Block(), nn.Dense(16, 10), nn.ReLU()

    def construct(self, x):
        x = self.relu(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(ops.mean(x, (2, 3)))


class Table(LearningRateSchedule):
    """The plan's column of a group, looked up by global_step."""

    def __init__(self, column):
        super().__init__()
        self.table = Tensor(np.array(column, np.float32))

    def construct(self, global_step):
        return ops.gather(self.table, ops.cast(global_step, ms.int32), 0).reshape(())


def canonical(native):
    module, _, last = native.rpartition(".")
    return f"{module}.{RENAMED.get(last, last)}"


def arrays(net):
    return {canonical(p.name): np.array(p.asnumpy()) for p in net.get_parameters()}


@pytest.fixture(scope="module")
def fw():
    return plugin.MindSporeFramework("cpu", "pynative")


@pytest.fixture
def net(fw):
    made, start = SmallResNet(), initial_weights(TREE, 0)
    assert set(arrays(made)) == set(start)
    for p in made.get_parameters():
        ops.assign(p, Tensor(start[canonical(p.name)]))
    return made.set_train(True)


def batch_of(step, size=8):
    rng = np.random.default_rng([3, step])
    return rng.standard_normal((size, 3, 12, 12)).astype(np.float32), rng.integers(0, 10, size)


def gradients_of(net, parameters, step):
    loss = nn.CrossEntropyLoss()
    x, y = batch_of(step)
    found = ms.value_and_grad(lambda x, y: loss(net(x), y), None, parameters)(Tensor(x), Tensor(y.astype(np.int32)))
    return found[1]


def train(net, optimizer, before=lambda step: None):
    """STEPS native steps; the lr of every parameter at each, by canonical name."""
    told = []
    for step in range(STEPS):
        before(step)
        lrs = [float(lr.asnumpy()) for lr in optimizer.get_lr()]
        told.append(dict(zip([canonical(p.name) for p in optimizer.parameters], lrs, strict=True)))
        optimizer(gradients_of(net, optimizer.parameters, step))
    return told


def ours(fw, plan, steps=STEPS):
    model = fw.make_model(TREE)
    fw.set_weights(model, initial_weights(TREE, 0))
    state = begin(fw, model, plan)
    for step in range(steps):
        take_step(fw, state, plan, step, batch_of(step), step)
    return fw.get_weights(model)


def plan_of(groups=None, lr=1e-3, **grouping):
    """The document's four groups: conv cosine by epoch and decay 1e-4, norm 1e-4, dense 1e-5, the rest as it comes."""
    given = {
        "conv": GroupSpec(["conv"], lr=1e-3, weight_decay=1e-4, schedule="cosine"),
        "bn": GroupSpec(["batchnorm"], lr=1e-4, weight_decay=0.0),
        "dense": GroupSpec(["linear.weight"], lr=1e-3, weight_decay=1e-5),
        "other": GroupSpec(["*"]),
    }
    spec = GroupingSpec("by_layer_type", no_weight_decay=False, groups=groups or given, **grouping)
    named = {"default": ScheduleSpec("constant"), "cosine": ScheduleSpec("cosine", interval=PER_EPOCH)}
    return make_plan(
        param_table(TREE), spec, {"default": OptimizerSpec("momentum", lr, 0.0)}, named, FreezeSpec(), STEPS
    )[1]


def cells_by_type(net):
    """The document's loop over cells_and_names, `.bata` mended."""
    conv_weight, bn_weight, dense_weight = [], [], []
    for _, cell in net.cells_and_names():
        if isinstance(cell, nn.Conv2d):
            conv_weight.append(cell.weight)
        elif isinstance(cell, nn.BatchNorm2d):
            bn_weight.append(cell.gamma)
            bn_weight.append(cell.beta)
        elif isinstance(cell, nn.Dense):
            dense_weight.append(cell.weight)
    return conv_weight, bn_weight, dense_weight


def among(param, params):
    return any(param is one for one in params)


def grouped(net):
    """The document's partition: `and` for `or`, identity for `in`."""
    conv_weight, bn_weight, dense_weight = cells_by_type(net)
    other = [
        p
        for p in net.trainable_params()
        if not among(p, conv_weight) and not among(p, bn_weight) and not among(p, dense_weight)
    ]
    return {"conv": conv_weight, "bn": bn_weight, "dense": dense_weight, "other": other}


def momentum(groups, order, lr=1e-3):
    return nn.Momentum([*groups, {"order_params": order}], learning_rate=lr, weight_decay=0.0, momentum=0.9)


def differences(mine, net):
    """Largest difference of any number, relative to its array's largest, by array; the filters and matrices went a
    hundred times further than 1e-6."""
    theirs, start = arrays(net), initial_weights(TREE, 0)
    assert set(mine) == set(theirs)
    found = {n: float(np.abs(mine[n] - a).max() / np.abs(a).max()) for n, a in theirs.items()}
    went = min(float(np.abs(theirs[n] - a).max() / np.abs(a).max()) for n, a in start.items() if a.ndim > 1)
    print(f"weights: {max(found.values()):.1e} apart after moving {went:.1e}")
    assert went > 1e-4
    return found


def names(params):
    return {canonical(p.name) for p in params}


def test_grouping_as_printed_puts_every_parameter_in_other(net):
    """Seed 003: groups by cell type. As printed: `cell.bata` does not exist; `param not in conv_weight` compares
    tensors, and raises where the shapes do not broadcast; asked by identity, `or` for `and` puts all 8 parameters
    into `other`, and the optimizer refuses what is there twice. Mended, and in our plan: 2, 4, 1 and 1."""
    with pytest.raises(AttributeError, match="no attribute 'bata'"):
        _ = net.bn1.bata
    conv_weight, bn_weight, dense_weight = cells_by_type(net)
    with pytest.raises(ValueError, match="need to broadcast"):
        [p for p in net.trainable_params() if p not in conv_weight or p not in bn_weight or p not in dense_weight]
    other = [
        p
        for p in net.trainable_params()
        if not among(p, conv_weight) or not among(p, bn_weight) or not among(p, dense_weight)
    ]
    assert len(other) == len(net.trainable_params()) == 8
    with pytest.raises(RuntimeError, match="already exists"):
        momentum([{"params": conv_weight}, {"params": other}], net.trainable_params())
    mended = {name: names(params) for name, params in grouped(net).items()}
    assert {g.name: set(g.params) for g in plan_of().groups} == mended
    assert [len(found) for found in mended.values()] == [2, 4, 1, 1]
    assert mended["other"] == {"fc.bias"}


def test_group_dicts_end_at_our_weights(fw, net):
    """Seed 003: Momentum over four groups with their own lr and weight decay, cosine_decay_lr for the convolutions
    beside static lrs, order_params: our plan (cosine with interval = steps per epoch).

    MindSpore takes a static lr beside a dynamic one through `lr + 1.0 - 1.0` in float32: 1e-4 becomes 1.00016594e-4,
    1e-3 becomes 1.0000467e-3. Ours stays what was asked for, so what is born zero ends as far apart as those lrs (the
    same groups with constant lists instead, test_three_native_ways, end at our very bits)."""
    found, plan = grouped(net), plan_of()
    cosine = nn.cosine_decay_lr(0.0, 1e-3, STEPS, PER_EPOCH, STEPS // PER_EPOCH)
    np.testing.assert_allclose(plan.table()[:, 0], cosine, rtol=1e-12)
    optimizer = momentum(
        [
            {"params": found["conv"], "weight_decay": 1e-4, "lr": cosine},
            {"params": found["bn"], "weight_decay": 0.0, "lr": 1e-4},
            {"params": found["dense"], "weight_decay": 1e-5, "lr": 1e-3},
            {"params": found["other"]},
        ],
        net.trainable_params(),
    )
    assert [canonical(p.name) for p in optimizer.parameters] == [row.name for row in param_table(TREE).trainable]
    told, one = train(net, optimizer), np.float32(1)
    for step, lrs in enumerate(told):
        for group, lr in zip(plan.groups, plan.lrs(step), strict=True):
            native = [lrs[name] for name in group.params]
            rounded = lr if group.name == "conv" else float(np.float32(lr) + one - one)
            np.testing.assert_allclose(native, rounded, rtol=1e-6)
    off = {g.name: told[0][g.params[0]] / plan.lr(0, g) - 1 for g in plan.groups}
    print("native lr off by", {name: f"{value:.1e}" for name, value in off.items()})
    assert off["bn"] == pytest.approx(1.66e-4, rel=0.01)
    assert off["dense"] == off["other"] == pytest.approx(4.67e-5, rel=0.01)
    apart, start = differences(ours(fw, plan), net), initial_weights(TREE, 0)
    born_zero = {n for n in apart if not start[n].any()}
    assert max(a for n, a in apart.items() if n not in born_zero) <= 1e-6
    for name in ("bn1.bias", "layer1.bn1.bias"):
        assert apart[name] == pytest.approx(off["bn"], rel=0.05)


@pytest.mark.parametrize("way", ["assign", "list", "cell"])
def test_three_native_ways_to_change_an_lr(fw, net, way):
    """Seed 003: an lr is a Parameter (static; ops.assign changes it), a list with one number per step, or a
    LearningRateSchedule cell. Each fed from the same plan, all give the weights of our plugin.

    The document assigns `optimizer.learning_rate`; with groups that is a ParameterTuple, whose elements are assigned."""
    found, plan = grouped(net), plan_of()
    columns = dict(zip([g.name for g in plan.groups], plan.table().T.tolist(), strict=True))
    value = {"assign": lambda column: 0.5, "list": list, "cell": Table}[way]
    groups = [
        {"params": found[g.name], "weight_decay": g.weight_decay, "lr": value(columns[g.name])} for g in plan.groups
    ]
    optimizer = momentum(groups, net.trainable_params())

    def assign(step):
        of = plan.group_of()
        for parameter, lr in zip(optimizer.parameters, optimizer.learning_rate, strict=True):
            ops.assign(lr, Tensor(plan.lr(step, of[canonical(parameter.name)]), ms.float32))

    told = train(net, optimizer, assign if way == "assign" else lambda step: None)
    for step, lrs in enumerate(told):
        for group, lr in zip(plan.groups, plan.lrs(step), strict=True):
            np.testing.assert_allclose([lrs[name] for name in group.params], lr, rtol=2e-7)
    assert max(differences(ours(fw, plan), net).values()) <= 1e-6


def test_assigning_an_ungrouped_lr(fw):
    """Seed 003: its last listing, which prints 0.1 and then 0.01."""
    optimizer = nn.Momentum(nn.Dense(1, 2).trainable_params(), learning_rate=0.1, momentum=0.9)
    assert float(optimizer.learning_rate.data.asnumpy()) == pytest.approx(0.1)
    ops.assign(optimizer.learning_rate, Tensor(0.01, ms.float32))
    assert float(optimizer.learning_rate.data.asnumpy()) == pytest.approx(0.01)


def test_grad_centralization_per_group(fw, net):
    """Seed 003: gradient centralization is a property of a group. Ours subtracts each filter's mean in the group that
    asks, as computed here in NumPy, and in no other; MindSpore's own has no kernel on a CPU and says so."""
    groups = {"conv": GroupSpec(["conv"], grad_centralization=True), "rest": GroupSpec(["*"])}
    after, start = ours(fw, plan_of(groups, lr=0.1), steps=1), initial_weights(TREE, 0)
    order = net.trainable_params()
    given = {
        canonical(p.name): np.array(g.asnumpy())
        for p, g in zip(order, gradients_of(net, ms.ParameterTuple(order), 0), strict=True)
    }
    means = []
    for name, g in given.items():
        wanted = g - g.mean((1, 2, 3), keepdims=True) if g.ndim == 4 else g
        np.testing.assert_allclose(after[name], start[name] - 0.1 * wanted, rtol=1e-5, atol=1e-7)
        means.append(np.abs(g - wanted).max() / np.abs(g).max())
    assert sorted(m > 0.01 for m in means) == [False] * 6 + [True] * 2  # a mean to lose

    conv_weight = grouped(net)["conv"]
    rest = [p for p in order if not among(p, conv_weight)]
    native = momentum([{"params": conv_weight, "grad_centralization": True}, {"params": rest}], order)
    with pytest.raises(RuntimeError, match=r"Unsupported op \[Centralization\] on CPU"):
        native(gradients_of(net, native.parameters, 0))


def test_rule_1_no_empty_group(net):
    """Seed 003, rule 1: no group's list may be empty. MindSpore raises ValueError; our plan names the group and what
    it asked for."""
    with pytest.raises(ValueError, match="must not be empty"):
        momentum([{"params": []}, {"params": net.trainable_params()}], net.trainable_params())
    with pytest.raises(UserError, match=r"groups\.it\.match: 'layernorm' matches no parameter of the model"):
        plan_of({"it": GroupSpec(["layernorm"]), "rest": GroupSpec(["*"])})
    with pytest.raises(UserError, match=r"groups\.it\.match is empty"):
        plan_of({"it": GroupSpec([]), "rest": GroupSpec(["*"])})


def test_rule_2_what_a_group_leaves_out_is_the_optimizers(net):
    """Seed 003, rule 2: without lr or weight_decay a group takes the optimizer's; with them its own."""
    conv_weight = grouped(net)["conv"]
    rest = [p for p in net.trainable_params() if not among(p, conv_weight)]
    native = nn.Momentum(
        [{"params": conv_weight, "lr": 0.5, "weight_decay": 0.25}, {"params": rest}],
        learning_rate=0.125,
        weight_decay=0.0625,
        momentum=0.9,
    )
    lrs = dict(zip([canonical(p.name) for p in native.parameters], native.get_lr(), strict=True))
    decays = dict(zip(lrs, native.get_weight_decay(), strict=True))
    groups = {"conv": GroupSpec(["conv"], lr=0.5, weight_decay=0.25), "rest": GroupSpec(["*"])}
    plan = make_plan(
        param_table(TREE),
        GroupingSpec("by_layer_type", no_weight_decay=False, groups=groups),
        {"default": OptimizerSpec("momentum", 0.125, 0.0625)},
        {"default": ScheduleSpec("constant")},
        FreezeSpec(),
        STEPS,
    )[1]
    for name, group in plan.group_of().items():
        assert plan.lr(0, group) == float(lrs[name].asnumpy()) == (0.5 if "conv" in name else 0.125)
        assert group.weight_decay == float(np.asarray(decays[name])) == (0.25 if "conv" in name else 0.0625)


@pytest.mark.parametrize(
    ("lr", "words"),
    [
        ({"params": 1e-3}, "could not convert string to float"),
        ([[1e-3, 1e-3], [1e-4, 1e-4]], "must be subclass of Cell"),
    ],
)
def test_rule_3_an_lr_is_static_or_dynamic_but_not_grouped(net, lr, words):
    """Seed 003, rule 3: a group's lr may be static or dynamic, but not grouped again. MindSpore fails in words of its
    own; our schema says which key is no number. A static lr is `lr`, a dynamic one `schedule`: `plan_of` has both."""
    with pytest.raises((ValueError, TypeError), match=words):
        momentum([{"params": net.trainable_params(), "lr": lr}], net.trainable_params())
    with pytest.raises(UserError, match=r"grouping\.groups\.it\.lr"):
        reading.from_data({"grouping": {"strategy": "by_name", "groups": {"it": {"match": ["*"], "lr": lr}}}})
    lrs = plan_of().table()
    assert (np.ptp(lrs, axis=0) > 0).tolist() == [True, False, False, False]


def test_rule_4_weight_decay_is_a_float(net):
    """Seed 003, rule 4: weight_decay must be a proper float, and not negative; a whole number is taken as one, there
    and here."""
    params = net.trainable_params()
    for bad in ("heavy", -1.0):
        with pytest.raises((TypeError, ValueError), match=r"(?i)weight_decay"):
            momentum([{"params": params, "weight_decay": bad}], params)
        with pytest.raises(UserError, match=r"grouping\.groups\.it\.weight_decay"):
            data = {"strategy": "by_name", "groups": {"it": {"match": ["*"], "weight_decay": bad}}}
            resolve(reading.from_data({"grouping": data}))
    assert float(np.asarray(momentum([{"params": params, "weight_decay": 1}], params).weight_decay[0])) == 1.0
    whole = {"strategy": "by_name", "groups": {"it": {"match": ["*"], "weight_decay": 1}}}
    assert reading.from_data({"grouping": whole}).grouping.groups["it"].weight_decay == 1.0


def test_rule_5_every_parameter_once(net):
    """Seed 003, rule 5: no parameter twice, and the union (the document says the intersection) is all that is to be
    updated. MindSpore raises for the first and takes a missing parameter in silence; our plan refuses both."""
    params, found = net.trainable_params(), grouped(net)
    with pytest.raises(RuntimeError, match="already exists"):
        momentum([{"params": found["conv"]}, {"params": params}], params)
    silent = nn.Momentum([{"params": found["conv"]}], learning_rate=1e-3, momentum=0.9)
    assert len(silent.parameters) == 2
    with pytest.raises(UserError, match=r"6 parameters are in no group: bn1\.weight"):
        plan_of({"conv": GroupSpec(["conv"])})
    plan = plan_of()
    twice = replace(plan, groups=(*plan.groups, replace(plan.groups[0], name="again")))
    with pytest.raises(UserError, match=r"2 in more than one group: conv1\.weight, layer1\.conv1\.weight"):
        twice.check(param_table(TREE))
