"""Seed document 004 (MegEngine): its own code, mended, on MegEngine's own optimizers, against our plan and plugin."""

from dataclasses import replace

import megengine
import megengine.functional as F
import numpy as np
import pytest
from beside import Ours, batch_of, largest_difference, moved
from megengine import optimizer as optim
from megengine.autodiff import GradManager

from layerwise_lr import registry
from layerwise_lr.groups import GroupingSpec, GroupSpec
from layerwise_lr.layers import initial_weights, param_table
from layerwise_lr.models import make_tree
from layerwise_lr.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.schedules import ScheduleSpec

TREE = make_tree("lenet", 10, 1, 16)
SGD = OptimizerSpec("sgd", lr=0.05, weight_decay=0.0)
MOMENTUM = OptimizerSpec("momentum", lr=0.05, weight_decay=0.0, momentum=0.9)
CONV, FC = GroupSpec(["conv*"]), GroupSpec(["*"], lr=0.01)


def plan_of(steps, conv=CONV, fc=FC, optimizer=SGD, schedules=None, freeze=None, optimizers=None):
    grouping = GroupingSpec("by_name", groups={"conv": conv, "fc": fc})
    return make_plan(param_table(TREE), grouping, {"default": optimizer, **(optimizers or {})},
                     {"default": ScheduleSpec(), **(schedules or {})}, freeze or FreezeSpec(), steps)[1]  # fmt: skip


def ours(plan, steps):
    run = Ours("megengine", "eager", TREE, plan)
    lrs = [run.step(step) for step in range(steps)]
    return lrs, run.arrays(), run


class Native:
    """The document's LeNet: our modules with the same initial values, its loop."""

    def __init__(self):
        self.fw = registry.load("megengine")("cpu", "eager", 0, "fp32", 1, False)
        self.le_net = self.fw.make_model(TREE)
        self.fw.set_weights(self.le_net, initial_weights(TREE, 0))
        self.named = self.le_net.arrays  # canonical names; the document's named_parameters sorts them
        self.conv_param_list = [p for name, p in self.named.items() if "conv" in name]
        self.fc_param_list = [p for name, p in self.named.items() if "conv" not in name]
        self.gm = GradManager().attach([*self.conv_param_list, *self.fc_param_list])

    def groups(self):
        """The document's list, as printed."""
        return [{"params": self.conv_param_list}, {"params": self.fc_param_list, "lr": 0.01}]

    def step(self, optimizer, step):
        x, y = batch_of(TREE, step)
        with self.gm:
            logits = self.le_net(megengine.Tensor(x))
            self.gm.backward(F.nn.cross_entropy(logits, megengine.Tensor(y.astype(np.int32))))
        optimizer.step()
        optimizer.clear_grad()

    def arrays(self):
        return self.fw.get_weights(self.le_net)


def test_one_lr_inherited_one_given():
    """Seed 004: conv takes the optimizer's lr 0.05, the rest has its own 0.01; len(params) 4 and 6 as printed."""
    native, lrs = Native(), []
    optimizer = optim.SGD(native.groups(), lr=0.05)
    printed = [(len(g["params"]), g["lr"]) for g in optimizer.param_groups]
    for step in range(6):
        lrs.append([g["lr"] for g in optimizer.param_groups])
        native.step(optimizer, step)
    mine, weights, run = ours(plan_of(6), 6)
    assert printed == [(4, 0.05), (6, 0.01)] == [(len(g.params), run.plan.lr(0, g)) for g in run.plan.groups]
    assert mine == lrs
    assert largest_difference(weights, native.arrays()) <= 1e-6


def test_lr_zero_after_epoch_2():
    """Seed 004: param_groups[1]["lr"] = 0.0 at the end of the second epoch, after which fc's values stand still."""
    per_epoch, epochs = 2, 4
    native, seen = Native(), []
    optimizer = optim.SGD(native.groups(), lr=0.05)
    for epoch in range(epochs):
        for step in range(per_epoch):
            native.step(optimizer, epoch * per_epoch + step)
        seen.append(native.arrays())
        if epoch == 1:
            optimizer.param_groups[1]["lr"] = 0.0
    fc = {n for n in seen[0] if "conv" not in n}
    assert moved(seen[0], seen[1]) == set(seen[0])
    assert moved(seen[1], seen[3]) == set(seen[0]) - fc
    schedules = {"zero": ScheduleSpec("multistep", gamma=0.0, milestones=[2 * per_epoch]),
                 "fc": ScheduleSpec("product", parts=["default", "zero"])}  # fmt: skip
    plan = plan_of(epochs * per_epoch, fc=replace(FC, schedule="fc"), schedules=schedules)
    assert plan.table()[:, 1].tolist() == [0.01] * 4 + [0.0] * 4
    assert largest_difference(ours(plan, epochs * per_epoch)[1], seen[3]) <= 1e-6


def fc_through_the_gap(plan, active):
    """fc's momentum before and after steps 1 to 5, and the length of its step 6; one batch throughout, so that the
    momentum alone makes the difference."""
    run, buffers = Ours("megengine", "eager", TREE, plan), []
    for step in range(7):
        if step in (1, 6):
            buffers.append(run.fw.get_optimizer_state(run.state)["fc1.weight/momentum_buffer"].copy())
        before = run.arrays()["fc1.weight"]
        run.fw.set_active(run.state, active(step))
        run.state.scheduler.apply(step)
        run.fw.train_step(run.state, *batch_of(TREE, 0))
        after = run.arrays()["fc1.weight"]
        assert np.array_equal(before, after) == (step in range(1, 6))
    return *buffers, float(np.linalg.norm(after - before))


def test_lr_zero_is_not_freezing():
    """Seed 004 stops a group by lr 0. Its momentum goes on: after five steps at lr 0 the first live step of fc is
    several times as long as when the group was truly frozen, where it goes on as if nothing had been."""
    gap = {"off": ScheduleSpec("multistep", gamma=0.0, milestones=[1]), "on": ScheduleSpec(),
           "gap": ScheduleSpec("join", parts=["off", "on"], starts=[6])}  # fmt: skip
    zero = plan_of(12, fc=replace(FC, schedule="gap"), optimizer=MOMENTUM, schedules=gap)
    before, after, too_long = fc_through_the_gap(zero, lambda step: [True, True])
    assert np.linalg.norm(after) > 3 * np.linalg.norm(before)
    before, after, right = fc_through_the_gap(  # frozen by hand: a group of ours has one window
        plan_of(12, optimizer=MOMENTUM), lambda step: [True, step not in range(1, 6)]
    )
    assert np.array_equal(after, before), "five frozen steps leave the buffer as it was"
    assert 2.5 < too_long / right < 5, too_long / right


def test_linear_decay_keeps_the_ratio():
    """Seed 004: lr * (1 - epoch / total_epochs), once per epoch. The printed loop writes one value into every group,
    so that fc's 0.01 is gone; mended, each group falls from its own lr."""
    per_epoch, total_epochs, learning_rate = 2, 5, 0.05
    native, mended = Native(), Native()
    printed, optimizer = optim.SGD(native.groups(), lr=0.05), optim.SGD(mended.groups(), lr=0.05)
    own, lrs = [g["lr"] for g in optimizer.param_groups], []
    for epoch in range(total_epochs):
        for group in printed.param_groups:
            group["lr"] = learning_rate * (1 - float(epoch) / total_epochs)
        assert printed.param_groups[0]["lr"] == printed.param_groups[1]["lr"], "the layer-wise lr is lost"
        for group, lr in zip(optimizer.param_groups, own, strict=True):
            group["lr"] = lr * (1 - float(epoch) / total_epochs)
        for step in range(per_epoch):
            lrs.append([g["lr"] for g in optimizer.param_groups])
            mended.step(optimizer, epoch * per_epoch + step)
    steps = per_epoch * total_epochs
    mine, weights, _ = ours(plan_of(steps, schedules={"default": ScheduleSpec("linear", interval=per_epoch)}), steps)
    np.testing.assert_allclose(mine, lrs, rtol=1e-12)
    np.testing.assert_allclose([row[0] / row[1] for row in mine], 5.0, rtol=1e-12)
    assert largest_difference(weights, mended.arrays()) <= 1e-6


class MultipleOptimizer:
    """The document's, with the `self` that its __init__ lacks."""

    def __init__(self, *opts):
        self.opts = opts

    def clear_grad(self):
        for opt in self.opts:
            opt.clear_grad()

    def step(self):
        for opt in self.opts:
            opt.step()


def test_multiple_optimizers():
    """Seed 004: SGD for conv, Adam for fc, stepped together; the class as printed does not know `self`."""

    class AsPrinted:
        def __init__(*opts):
            self.opts = opts  # noqa: F821

    with pytest.raises(NameError, match="self"):
        AsPrinted(1, 2)
    native = Native()
    optimizer = MultipleOptimizer(optim.SGD(native.conv_param_list, lr=0.05), optim.Adam(native.fc_param_list, lr=0.01))
    for step in range(6):
        native.step(optimizer, step)
    plan = plan_of(6, fc=replace(FC, optimizer="adam"), optimizers={"adam": OptimizerSpec("adam", 0.01, 0.0)})
    _, weights, run = ours(plan, 6)
    assert [type(o).__name__ for o in run.state.optimizer] == ["SGD", "Adam"]
    assert largest_difference(weights, native.arrays()) <= 1e-5


def test_a_subset_alone_has_gradients():
    """Seed 004: GradManager and optimizer over conv alone: the others' gradients are None, and they stay bit by bit;
    freeze=only does the same by the same means."""
    native = Native()
    native.gm = GradManager().attach(native.conv_param_list)
    optimizer = optim.SGD(native.conv_param_list, lr=0.05)
    start = native.arrays()
    for step in range(4):
        x, y = batch_of(TREE, step)
        with native.gm:
            logits = native.le_net(megengine.Tensor(x))
            native.gm.backward(F.nn.cross_entropy(logits, megengine.Tensor(y.astype(np.int32))))
        assert {n for n, p in native.named.items() if p.grad is not None} == {n for n in native.named if "conv" in n}
        optimizer.step()
        optimizer.clear_grad()
    plan = plan_of(4, freeze=FreezeSpec("only", match=["conv1", "conv2"]))
    _, weights, run = ours(plan, 4)
    assert set(run.fw.get_gradients(run.state)) == {n for n in native.named if "conv" in n}
    assert moved(start, weights) == {n for n in native.named if "conv" in n} == moved(start, native.arrays())
    assert largest_difference(weights, native.arrays()) <= 1e-6
