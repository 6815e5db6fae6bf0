"""Seed document 004 (MegEngine): its own code, mended and in plain MegEngine, against our plan and plugin.

The native side is the document's LeNet of MegEngine's own modules; the lr code is the document's, line by line.
"""

import numpy as np
import pytest
from layerwise_lr.plugins.megengine_plugin import plugin  # first: it imports MegEngine without its start-up noise

# isort: split
import megengine.functional as F
import megengine.module as M
import megengine.optimizer as optim
from megengine import Tensor
from megengine.autodiff import GradManager

from layerwise_lr.framework import begin, take_step
from layerwise_lr.models.layers import initial_weights, param_table
from layerwise_lr.models.trees import make_tree
from layerwise_lr.planning.groups import GroupingSpec, GroupSpec
from layerwise_lr.planning.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.planning.schedules import ScheduleSpec

TREE = make_tree("lenet", num_classes=10, in_channels=1, image_size=28)
CONVS, PER_EPOCH = ("conv1", "conv2"), 3
SHAPES = {
    "classifier.bias": (10,),
    "classifier.weight": (10, 84),
    "conv1.bias": (1, 6, 1, 1),
    "conv1.weight": (6, 1, 5, 5),
    "conv2.bias": (1, 16, 1, 1),
    "conv2.weight": (16, 6, 5, 5),
    "fc1.bias": (120,),
    "fc1.weight": (120, 400),
    "fc2.bias": (84,),
    "fc2.weight": (84, 120),
}
"""As the document prints them (but for `classifer`)."""


class LeNet(M.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = M.Conv2d(1, 6, 5, padding=2), M.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.classifier = M.Linear(400, 120), M.Linear(120, 84), M.Linear(84, 10)
        for name, param in self.named_parameters():
            param[...] = Tensor(initial_weights(TREE, 0)[name].reshape(param.shape))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2, 2)
        x = F.flatten(F.max_pool2d(F.relu(self.conv2(x)), 2, 2), 1)
        return self.classifier(F.relu(self.fc2(F.relu(self.fc1(x)))))

    def arrays(self):
        start = initial_weights(TREE, 0)
        return {n: p.numpy().reshape(start[n].shape).copy() for n, p in self.named_parameters()}


def conv_and_fc(net):
    """The document's two lists."""
    conv_param_list, fc_param_list = [], []
    for name, param in net.named_parameters():
        if "conv" in name:
            conv_param_list.append(param)
        else:
            fc_param_list.append(param)
    return conv_param_list, fc_param_list


def two_groups(net, momentum=0.0):
    """The document's optimizer."""
    conv_param_list, fc_param_list = conv_and_fc(net)
    return optim.SGD([{"params": conv_param_list}, {"params": fc_param_list, "lr": 0.01}], lr=0.05, momentum=momentum)


def batch_of(step, size=8):
    rng = np.random.default_rng([4, step])
    return rng.standard_normal((size, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, size)


def train(net, gm, optimizer, step):
    """The document's train_func, step and clear_grad."""
    x, y = batch_of(step)
    with gm:
        loss = F.nn.cross_entropy(net(Tensor(x)), Tensor(y.astype(np.int32)))
        gm.backward(loss)
    optimizer.step()
    optimizer.clear_grad()


def plan_of(steps, base=None, freeze=None, schedules=None, other=None, **fc):
    """conv as the optimizer has it (lr 0.05), fc with lr 0.01 and what else is given."""
    groups = {"conv": GroupSpec(list(CONVS)), "fc": GroupSpec(["*"], **{"lr": 0.01, **fc})}
    optimizers = {"default": base or OptimizerSpec("sgd", 0.05, 0.0), **({"other": other} if other else {})}
    return make_plan(
        param_table(TREE),
        GroupingSpec("by_module", groups=groups),
        optimizers,
        {"default": ScheduleSpec("constant"), **(schedules or {})},
        freeze or FreezeSpec(),
        steps,
    )[1]


class Ours:
    """The plan in our plugin, step by step; `at`: the batch of every step, when it is always the same."""

    def __init__(self, fw, plan, start=0, weights=None, state=None, at=None):
        self.fw, self.plan, self.at = fw, plan, at
        self.model = fw.make_model(TREE)
        fw.set_weights(self.model, weights or initial_weights(TREE, 0))
        self.state = begin(fw, self.model, plan, start)
        fw.set_optimizer_state(self.state, state or {})

    def steps(self, start, stop):
        for step in range(start, stop):
            batch = batch_of(step if self.at is None else self.at)
            self.gradients = take_step(self.fw, self.state, self.plan, step, batch, 0, gradients=True).gradients
        return self

    def arrays(self):
        return self.fw.get_weights(self.model)

    def buffers(self):
        return {n.rpartition("/")[0]: a for n, a in self.fw.get_optimizer_state(self.state).items()}


@pytest.fixture(scope="module", params=["eager", "trace"])
def fw(request):
    return plugin.MegEngineFramework("cpu", request.param)


def difference(mine, theirs, tolerance=1e-6):
    """Largest of any number, relative to its array's largest; every array went at least a hundred times as far."""
    start = initial_weights(TREE, 0)
    assert set(mine) == set(theirs) == set(start)
    size = {n: float(np.abs(a).max()) for n, a in theirs.items()}
    found = max(float(np.abs(mine[n] - a).max()) / size[n] for n, a in theirs.items())
    went = min(float(np.abs(start[n] - a).max()) / size[n] for n, a in theirs.items())
    print(f"weights: {found:.1e} apart after moving {went:.1e}")
    assert went > 100 * tolerance
    return found


def is_conv(name):
    return name.startswith(CONVS)


def moved(before, after):
    return {n for n in before if not np.array_equal(before[n], after[n])}


FC = {n for n in SHAPES if not is_conv(n)}


def test_groups_by_name_inherit_or_set_their_lr(fw):
    """Seed 004: conv parameters in one group that inherits lr 0.05, all others in one with 0.01: 4 and 6 parameters.
    The names and shapes are the ones it prints (there `classifer`); six steps end at our plan's weights."""
    net = LeNet()
    assert {n: tuple(p.shape) for n, p in net.named_parameters()} == SHAPES
    optimizer, plan = two_groups(net), plan_of(6)
    printed = [(len(g["params"]), g["lr"]) for g in optimizer.param_groups]
    assert printed == [(4, 0.05), (6, 0.01)]
    assert [(len(g.params), pytest.approx(lr)) for g, lr in zip(plan.groups, plan.lrs(0), strict=True)] == printed
    gm = GradManager().attach(list(net.parameters()))
    for step in range(6):
        train(net, gm, optimizer, step)
    assert difference(Ours(fw, plan).steps(0, 6).arrays(), net.arrays()) <= 1e-6


def off_after(epochs):
    """fc's own: zero from the end of that epoch on, whatever the run's schedule."""
    return {
        "off": ScheduleSpec("multistep", gamma=0.0, milestones=[epochs * PER_EPOCH]),
        "until": ScheduleSpec("product", parts=["default", "off"]),
    }


def test_lr_zero_at_the_end_of_epoch_two(fw):
    """Seed 004: four epochs; at the end of the second the fully connected layers' lr is set to zero, after which
    their values do not change: a multistep of gamma 0 in a product with the run's schedule, in our plan."""
    net, total = LeNet(), 4 * PER_EPOCH
    optimizer, gm, seen = two_groups(net), GradManager().attach(list(net.parameters())), []
    mine = Ours(fw, plan_of(total, schedules=off_after(2), schedule="until"))
    for epoch in range(4):
        for step in range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH):
            train(net, gm, optimizer, step)
            mine.steps(step, step + 1)
            assert mine.state.scheduler.lrs() == pytest.approx([0.05, 0.01 if epoch < 2 else 0.0], abs=1e-15)
        seen.append((net.arrays(), mine.arrays()))
        if epoch == 1:
            optimizer.param_groups[1]["lr"] = 0.0
    for side in (0, 1):
        first, second, third, fourth = (arrays[side] for arrays in seen)
        assert moved(first, second) == set(SHAPES)
        assert moved(second, third) == moved(third, fourth) == set(SHAPES) - FC
    assert difference(mine.arrays(), net.arrays()) <= 1e-6


def test_lr_zero_is_not_freezing(fw):
    """Seed 004 has two ways to hold a layer: lr 0, and not binding it. Under momentum 0.9 they part: at lr 0 the
    buffer goes on. Everything held for five steps from the start, one batch over and over: the first live step of
    lr 0 goes (1 - 0.9**6) / (1 - 0.9) = 4.69 times as far as after true freezing."""
    momentum, start = OptimizerSpec("momentum", 0.01, 0.0), initial_weights(TREE, 0)
    still = {
        "wait": ScheduleSpec("multistep", gamma=0.0, milestones=[0]),
        "go": ScheduleSpec("constant"),
        "later": ScheduleSpec("join", parts=["wait", "go"], starts=[5]),
    }
    plans = {}
    for name, options in (("lr 0", {"schedule": "later"}), ("frozen", {"start": 5})):
        groups = {"all": GroupSpec(["*"], **options)}
        plans[name] = make_plan(
            param_table(TREE),
            GroupingSpec("by_module", groups=groups),
            {"default": momentum},
            {"default": ScheduleSpec("constant"), **still},
            FreezeSpec(),
            6,
        )[1]
    assert plans["lr 0"].table().tolist() == plans["frozen"].table().tolist() == [[0.0]] * 5 + [[0.01]]
    went = {}
    for name, plan in plans.items():
        mine = Ours(fw, plan, at=0).steps(0, 5)
        assert moved(start, mine.arrays()) == set()
        assert len(mine.buffers()) == (10 if name == "lr 0" else 0)
        after = mine.steps(5, 6).arrays()
        went[name] = np.concatenate([(start[n].astype(float) - after[n]).ravel() for n in SHAPES])
    ratio = float(went["lr 0"] @ went["frozen"] / (went["frozen"] @ went["frozen"]))
    print(f"the first live step goes {ratio:.4f} times too far")
    assert ratio == pytest.approx((1 - 0.9**6) / (1 - 0.9), rel=1e-4)


def test_lr_zero_and_freezing_in_the_middle_of_a_run(fw):
    """Seed 004: after two epochs under momentum 0.9 fc is held for five steps while conv trains, then turned on
    again. By lr 0 its buffer becomes 0.9 * buffer + gradient five times over, as MegEngine's own does; frozen (the
    plan's stop) it keeps the bits it had. The first live step is lr * buffer for both: they land apart."""
    momentum, begun, live = OptimizerSpec("momentum", 0.05, 0.0), 2 * PER_EPOCH, 2 * PER_EPOCH + 5
    held = {
        "off": ScheduleSpec("multistep", gamma=0.0, milestones=[0]),
        "on": ScheduleSpec("constant"),
        "pause": ScheduleSpec("join", parts=["on", "off", "on"], starts=[begun, live]),
    }
    zero = Ours(fw, plan_of(live + 1, momentum, schedules=held, schedule="pause")).steps(0, begun)
    frozen = Ours(fw, plan_of(live + 1, momentum, stop=begun)).steps(0, begun)
    at_stop, value = zero.buffers(), zero.arrays()
    assert moved(at_stop, frozen.buffers()) == set()
    wanted = {n: at_stop[n].astype(float) for n in FC}
    for step in range(begun, live):
        zero.steps(step, step + 1)
        wanted = {n: 0.9 * v + zero.gradients[n] for n, v in wanted.items()}
    frozen.steps(begun, live)
    assert moved(value, zero.arrays()) == moved(value, frozen.arrays()) == set(SHAPES) - FC
    assert moved(zero.arrays(), frozen.arrays()) == set()  # conv sees no difference
    assert moved(at_stop, frozen.buffers()) == set(SHAPES) - FC
    assert moved(at_stop, zero.buffers()) == set(SHAPES)
    for name, v in wanted.items():
        np.testing.assert_allclose(zero.buffers()[name], v, rtol=1e-4, atol=1e-6)

    net = LeNet()
    optimizer, gm = two_groups(net, momentum=0.9), GradManager().attach(list(net.parameters()))
    for step in range(live + 1):
        optimizer.param_groups[1]["lr"] = 0.0 if begun <= step < live else 0.01
        train(net, gm, optimizer, step)
    thawed = Ours(
        fw,
        plan_of(live + 1, momentum),
        live,
        frozen.arrays(),
        {f"{n}/momentum_buffer": a for n, a in frozen.buffers().items()},
    ).steps(live, live + 1)
    zero.steps(live, live + 1)
    assert difference(zero.arrays(), net.arrays()) <= 1e-6
    length = {}
    for name, mine in (("lr 0", zero), ("frozen", thawed)):
        steps = {n: value[n].astype(float) - a for n, a in mine.arrays().items() if n in FC}
        for n, a in steps.items():
            np.testing.assert_allclose(a, 0.01 * mine.buffers()[n], atol=1e-7)
        length[name] = np.concatenate([a.ravel() for a in steps.values()])
    apart = np.linalg.norm(length["lr 0"] - length["frozen"]) / np.linalg.norm(length["frozen"])
    print(
        f"first live steps: lengths {np.linalg.norm(length['lr 0']):.3g} and {np.linalg.norm(length['frozen']):.3g}, "
        f"apart by {apart:.2f} of the frozen one's"
    )
    assert apart > 0.1


def test_linear_decay_by_epoch_keeps_the_ratio(fw):
    """Seed 004: lr falls linearly, once per epoch: our `linear` with interval = steps per epoch. Its loop writes one
    number into every group, so fc jumps from 0.01 to 0.05 at once: mended by each group's own lr times the factor."""
    total_epochs, learning_rate = 10, 0.05
    steps = total_epochs * PER_EPOCH
    plan = plan_of(steps, schedules={"default": ScheduleSpec("linear", interval=PER_EPOCH)})
    printed, mended, net = two_groups(LeNet()), [], LeNet()
    optimizer, gm, overwritten = two_groups(net), GradManager().attach(list(net.parameters())), []
    own = [group["lr"] for group in optimizer.param_groups]
    for epoch in range(total_epochs):
        for param_group in printed.param_groups:
            param_group["lr"] = learning_rate * (1 - float(epoch) / total_epochs)
        overwritten += [[g["lr"] for g in printed.param_groups]] * PER_EPOCH
        for param_group, lr in zip(optimizer.param_groups, own, strict=True):
            param_group["lr"] = lr * (1 - float(epoch) / total_epochs)
        for step in range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH):
            mended.append([g["lr"] for g in optimizer.param_groups])
            train(net, gm, optimizer, step)
    np.testing.assert_allclose(plan.table(), mended, rtol=1e-12)
    np.testing.assert_allclose(np.array(overwritten) / plan.table(), np.tile([1.0, 5.0], (steps, 1)), rtol=1e-12)
    np.testing.assert_allclose(plan.table()[:, 1] / plan.table()[:, 0], 0.2, rtol=1e-12)
    assert difference(Ours(fw, plan).steps(0, steps).arrays(), net.arrays()) <= 1e-6


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


def test_sgd_for_conv_and_adam_for_fc(fw):
    """Seed 004: MultipleOptimizer steps SGD over conv (0.05) and Adam over fc (0.01) together: our optimizers
    {default: sgd, other: adam}. Mended: `def __init__(*opts)` without self raises NameError.

    Over MegEngine's own convolutions, which round otherwise than ours, Adam parts a few numbers whose gradient is next
    to nothing; so the same optimizers also run over our modules, where only the optimizers could differ."""

    class AsPrinted:
        def __init__(*opts):
            self.opts = opts  # noqa: F821

    with pytest.raises(NameError, match="self"):
        AsPrinted()
    plan = plan_of(6, other=OptimizerSpec("adam", 0.01, 0.0), optimizer="other")
    mine, net, twin = Ours(fw, plan).steps(0, 6), LeNet(), fw.make_model(TREE)
    fw.set_weights(twin, initial_weights(TREE, 0))
    for module, named in ((net, dict(net.named_parameters())), (twin, twin.arrays)):
        conv_param_list = [p for n, p in named.items() if "conv" in n]
        fc_param_list = [p for n, p in named.items() if "conv" not in n]
        optimizer = MultipleOptimizer(optim.SGD(conv_param_list, lr=0.05), optim.Adam(fc_param_list, lr=0.01))
        gm = GradManager().attach(conv_param_list + fc_param_list)
        for step in range(6):
            train(module, gm, optimizer, step)
    assert {key.partition("/")[0] for key in fw.get_optimizer_state(mine.state)} == FC
    assert difference(mine.arrays(), fw.get_weights(twin)) <= 1e-6
    assert difference(mine.arrays(), net.arrays(), 1e-4) <= 1e-4


def test_a_gradmanager_on_conv_alone(fw):
    """Seed 004: only the parameters to be trained are bound to GradManager and optimizer: the others' grad is None
    and they stay as they are, bit by bit. Ours: freeze=only match [conv1, conv2]."""
    net, start = LeNet(), initial_weights(TREE, 0)
    param_list, _ = conv_and_fc(net)
    optimizer, gm = optim.SGD(param_list, lr=0.05), GradManager().attach(param_list)
    mine = Ours(fw, plan_of(4, freeze=FreezeSpec("only", match=list(CONVS)), lr=0.05)).steps(0, 4)
    for step in range(3):
        train(net, gm, optimizer, step)
    x, y = batch_of(3)
    with gm:
        gm.backward(F.nn.cross_entropy(net(Tensor(x)), Tensor(y.astype(np.int32))))
    optimizer.step()
    assert {n for n, p in net.named_parameters() if p.grad is None} == FC
    assert {n for n, p in mine.model.arrays.items() if p.grad is None} == FC
    assert set(mine.gradients) == set(SHAPES) - FC
    assert moved(start, net.arrays()) == moved(start, mine.arrays()) == set(SHAPES) - FC
    theirs = net.arrays()
    apart = max(float(np.abs(mine.arrays()[n] - a).max() / np.abs(a).max()) for n, a in theirs.items())
    print(f"weights: {apart:.1e} apart")
    assert apart <= 1e-6
