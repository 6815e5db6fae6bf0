"""layerwise_lr as a library on a plain MindSpore model, PyNative and compiled, measured by what the weights do."""

import os

os.environ.setdefault("GLOG_v", "3")  # errors only; read once, at import

import mindspore as ms
import numpy as np
import pytest
from mindspore import mint, nn, ops
from mindspore.experimental import optim
from native_law import PLAN, check_move, constants, depth, law, spared

import layerwise_lr as llr
from layerwise_lr.framework import registry


@pytest.fixture(scope="module", autouse=True)
def started():
    """MindSpore takes device and threads before its first kernel only: other tests of this process want theirs."""
    registry.load("mindspore")("cpu")


class Block(nn.Cell):
    def __init__(self, dim):
        super().__init__()
        self.fc2, self.fc1, self.norm = nn.Dense(dim, dim), nn.Dense(dim, dim), nn.LayerNorm((dim,))

    def construct(self, x):
        return x + self.fc2(ops.relu(self.fc1(self.norm(x))))


class Net(nn.Cell):
    def __init__(self, blocks=3, dim=6, classes=4):
        super().__init__()
        self.head, self.bn = nn.Dense(dim, classes), nn.BatchNorm1d(dim)
        self.blocks = nn.CellList([Block(dim) for _ in range(blocks)])
        self.token = ms.Parameter(np.zeros((1, dim), np.float32))
        self.stem = nn.Dense(5, dim)

    def construct(self, x):
        x = self.stem(x) + self.token
        for block in self.blocks:
            x = block(x)
        return self.head(self.bn(x))


class Loss(nn.Cell):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def construct(self, x):
        return 10 * ops.mean(ops.square(self.net(x)))


class Step(nn.Cell):
    """The loss's gradients, and one update: as a user writes it."""

    def __init__(self, net, optimizer):
        super().__init__()
        self.optimizer = optimizer
        self.differentiate = ms.value_and_grad(Loss(net), None, optimizer.parameters)

    def construct(self, x):
        loss, gradients = self.differentiate(x)
        return ops.depend(loss, self.optimizer(gradients))


@pytest.fixture(params=["pynative", "graph"])
def mode(request):
    ms.set_context(mode=ms.GRAPH_MODE if request.param == "graph" else ms.PYNATIVE_MODE)
    yield request.param
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture
def net():
    return seeded()


def seeded(**more):
    ms.set_seed(0)
    return Net(**more).set_train()


def make(net, **more):
    return llr.plan(net, **{**PLAN, **more})


def batch():
    return ms.Tensor(np.random.RandomState(1).randn(32, 5).astype(np.float32))


def values(net):
    return {name: p.asnumpy().copy() for name, p in net.parameters_and_names() if "moving" not in name}


def gradients(net, x):
    """Those of a twin: the net itself is left alone."""
    twin = seeded()
    ms.load_param_into_net(twin, {p.name: p for p in net.get_parameters()})
    parameters = {name: p for name, p in twin.parameters_and_names() if p.requires_grad}
    found = ms.value_and_grad(Loss(twin), None, ms.ParameterTuple(list(parameters.values())))(x)[1]
    return {name: g.asnumpy() for name, g in zip(parameters, found, strict=True)}


def check_loop(net, scheduler, train, steps=8, start=0):
    x = batch()
    for step in range(start, start + steps):
        directions, before = gradients(net, x), values(net)
        train(x)
        scheduler.step()
        for name, after in values(net).items():
            check_move(name, step, before[name], after, directions[name])


def sgd(groups):
    return nn.SGD(groups, 123.0)


def momentum(groups):
    return nn.Momentum(groups, 123.0, 0.0)


def experimental(groups):
    return optim.SGD(groups[:-1], 123.0)


def test_depth_is_the_order_of_execution(net, mode):
    plan = make(net)
    assert {name: plan.depths[name] for name in values(net)} == {name: depth(name) for name in values(net)}
    assert plan.confidence == 1.0


class Compiled(Net):
    @ms.jit
    def construct(self, x):
        x = self.stem(x) + self.token
        for block in self.blocks:
            x = block(x)
        return self.head(self.bn(x))


def test_what_is_decorated_with_jit_is_traced_and_stays_compiled(net, mode):
    compiled = Compiled().set_train()
    assert make(compiled).depths == make(net).depths
    assert "MS_JIT" not in os.environ
    ms.load_param_into_net(compiled, net.parameters_dict())
    np.testing.assert_allclose(compiled(batch()).asnumpy(), net(batch()).asnumpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [sgd, momentum, experimental])
@pytest.mark.parametrize("compiled", [False, True], ids=["called", "jit"])
def test_a_plain_loop_moves_every_parameter_by_the_law(net, mode, kind, compiled):
    plan = make(net)
    optimizer = kind(plan.param_groups(net))
    train = Step(net, optimizer)
    check_loop(net, plan.scheduler(optimizer), ms.jit(train) if compiled else train)


def test_train_one_step_cell_follows_the_plan_from_any_step(net, mode):
    plan = make(net)
    optimizer = nn.Momentum(plan.param_groups(net), 123.0, 0.0)
    train = nn.TrainOneStepCell(Loss(net), optimizer).set_train()
    check_loop(net, plan.scheduler(optimizer, start=20), train, start=20)


def test_model_train_follows_the_plan_by_a_callback(net, mode):
    plan, x = make(net), batch()
    optimizer = nn.SGD(plan.param_groups(net), 123.0)
    scheduler, seen = plan.scheduler(optimizer), []

    class Steps(ms.Callback):
        def on_train_step_end(self, run_context):
            seen.append(values(net))
            scheduler.step()

    data = ms.dataset.GeneratorDataset([(x.asnumpy(),)] * 6, ["x"], shuffle=False)
    before, directions = values(net), []
    ms.Model(Loss(net), optimizer=optimizer).train(1, data, callbacks=Steps(), dataset_sink_mode=False)
    assert len(seen) == 6
    again = seeded()
    for step, after in enumerate(seen):
        ms.load_param_into_net(again, {name: ms.Parameter(value, name=name) for name, value in before.items()})
        directions = gradients(again, x)
        for name in after:
            check_move(name, step, before[name], after[name], directions[name])
        before = after


@pytest.mark.parametrize("kind", ["Adam", "AdamWeightDecay", "experimental AdamW"])
def test_adam_moves_every_parameter_by_the_law_and_weight_decay_spares_biases_and_norms(net, kind):
    """With the same gradient at each step its direction is the sign; nn.AdamWeightDecay, which corrects no bias, has it
    times (1 - beta1**t) / sqrt(1 - beta2**t)."""
    decay = 0.0 if kind == "Adam" else 0.1
    plan = make(net, weight_decay=decay)
    groups = plan.param_groups(net)
    made = {
        "Adam": lambda: nn.Adam(groups, 123.0),
        "AdamWeightDecay": lambda: nn.AdamWeightDecay(groups, 123.0, eps=1e-12),
        "experimental AdamW": lambda: optim.AdamW(groups[:-1], 123.0),
    }
    optimizer = made[kind]()
    scheduler = plan.scheduler(optimizer)
    names = {id(p): name for name, p in net.parameters_and_names()}
    given = constants({name: p.shape for name, p in values(net).items()})
    for step in range(8):
        before, t = values(net), step + 1
        optimizer(tuple(ms.Tensor(given[names[id(p)]]) for p in optimizer.parameters))
        scheduler.step()
        for name, after in values(net).items():
            size = (1 - 0.9**t) / (1 - 0.999**t) ** 0.5 if kind == "AdamWeightDecay" else 1.0
            direction = size * np.sign(given[name]) + (0 if spared(name) else decay) * before[name]
            check_move(name, step, before[name], after, direction)


def test_gradients_go_in_the_order_of_trainable_params(net):
    optimizer = nn.Momentum(make(net).param_groups(net), 1.0, 0.0)
    assert [id(p) for p in optimizer.parameters] == [id(p) for p in net.trainable_params()]


def test_frozen_parts_are_in_no_group_stay_and_count_in_the_depths(net, mode):
    for p in net.blocks[2].get_parameters():
        p.requires_grad = False
    plan, before = make(net), values(net)
    optimizer = nn.SGD(plan.param_groups(net), 1.0)
    scheduler, train = plan.scheduler(optimizer), Step(net, optimizer)
    for _ in range(3):
        train(batch())
        scheduler.step()
    assert plan.depths["head.weight"] == 4
    assert not [n for g in plan.groups for n in g.params if n.startswith("blocks.2")]
    for name, after in values(net).items():
        assert np.array_equal(after, before[name]) == name.startswith("blocks.2")


def test_planning_leaves_the_model_as_it_was(net, mode):
    Loss(net)(batch())
    net.bn.set_train(False)
    held = {p.name: p.asnumpy().copy() for p in net.get_parameters()}
    flags = [(c.training, c.phase, dict(c.get_flags())) for _, c in net.cells_and_names()]
    make(net)
    assert [(c.training, c.phase, dict(c.get_flags())) for _, c in net.cells_and_names()] == flags
    assert not any(c._forward_pre_hook for _, c in net.cells_and_names())
    assert ms.get_context("mode") == (ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    assert all(np.array_equal(p.asnumpy(), held[p.name]) for p in net.get_parameters())


def test_a_second_writer_is_told_of_at_the_step(net):
    plan = make(net)
    optimizer = optim.SGD(plan.param_groups(net)[:-1], 1.0)
    scheduler = plan.scheduler(optimizer, start=3)
    optim.lr_scheduler.StepLR(optimizer, 1).step()
    with pytest.raises(llr.UserError, match="somebody else writes learning rates") as caught:
        scheduler.step()
    assert "\n" not in str(caught.value)


def test_the_scheduler_goes_on_from_its_state(net):
    plan = make(net)
    scheduler = plan.scheduler(nn.Adam(plan.param_groups(net), 1.0))
    for _ in range(7):
        scheduler.step()
    state = scheduler.state_dict()
    resumed = plan.scheduler(nn.Adam(plan.param_groups(net), 1.0))
    resumed.load_state_dict(state)
    assert resumed.read() == pytest.approx([law(7, group.params[0]) for group in plan.groups])
    resumed.step()
    assert resumed.read() == pytest.approx(plan.lrs(8))
    other = make(net, lr=0.2)
    with pytest.raises(llr.UserError, match=r"another plan.*start=7"):
        other.scheduler(nn.Adam(other.param_groups(net), 1.0)).load_state_dict(state)


@pytest.mark.parametrize("lr", [0.1, [0.1] * 50], ids=["one lr", "a list"])
def test_other_optimizers_and_other_models_are_refused(net, lr):
    plan = make(net)
    halves = net.trainable_params()[:9], net.trainable_params()[9:]
    grouped = [{"params": half, "lr": lr} for half in halves]
    for made in (nn.SGD(net.trainable_params(), lr), nn.SGD(grouped, lr)):
        with pytest.raises(llr.UserError, match=r"make it of plan\.param_groups"):
            plan.scheduler(made)
    with pytest.raises(llr.UserError, match=r"are new or thawed \(blocks\.3"):
        plan.param_groups(seeded(blocks=4))


def test_an_optimizer_that_reads_no_lr_is_refused(net):
    plan = make(net)
    optimizer = mint.optim.SGD(plan.param_groups(net)[:-1], 0.1)
    with pytest.raises(llr.UserError, match="keeps the lr that it was made with"):
        plan.scheduler(optimizer)


def test_a_constant_plan_needs_no_number_of_steps(net):
    plan = llr.plan(net, lr=0.1, layer_decay=0.5, warmup=3)
    scheduler = plan.scheduler(nn.SGD(plan.param_groups(net), 1.0))
    for _ in range(9):
        scheduler.step()
    assert max(scheduler.read()) == pytest.approx(0.1)
