"""layerwise_lr as a library on a plain OneFlow model, eager and in an nn.Graph, measured by what the weights do."""

import contextlib
import copy
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from layerwise_lr.plugins import oneflow_plugin  # noqa: F401  (first: it makes `import oneflow` possible)

import layerwise_lr as llr

# isort: split
import oneflow as flow
from native_law import PLAN, STEPS, check_move, constants, depth, law, spared
from oneflow import nn
from scripts import verified


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc2, self.fc1, self.norm = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.LayerNorm(dim)

    def forward(self, x):
        return x + self.fc2(flow.relu(self.fc1(self.norm(x))))


class Net(nn.Module):
    def __init__(self, blocks=3, dim=6, classes=4):
        super().__init__()
        self.head, self.bn = nn.Linear(dim, classes), nn.BatchNorm1d(dim)
        self.blocks = nn.ModuleList([Block(dim) for _ in range(blocks)])
        self.token = nn.Parameter(flow.zeros(1, dim))
        self.drop, self.stem = nn.Dropout(0.5), nn.Linear(5, dim)

    def forward(self, x):
        x = self.drop(self.stem(x)) + self.token
        for block in self.blocks:
            x = block(x)
        return self.head(self.bn(x))


@pytest.fixture
def net():
    return seeded()


def seeded(**more):
    flow.manual_seed(0)
    net = Net(**more)
    net.drop.eval()
    return net


def make(net, **more):
    return llr.plan(net, **{**PLAN, **more})


def batch():
    return flow.tensor(np.random.RandomState(1).randn(32, 5).astype(np.float32))


def values(net):
    return {name: p.numpy().copy() for name, p in net.named_parameters()}


def gradients(net, x):
    net.zero_grad(set_to_none=True)
    (10 * net(x).square().mean()).backward()
    return {name: p.grad.numpy().copy() for name, p in net.named_parameters() if p.grad is not None}


def test_depth_is_the_order_of_execution(net):
    plan = make(net)
    assert {name: plan.depths[name] for name, _ in net.named_parameters()} == {
        name: depth(name) for name, _ in net.named_parameters()
    }
    assert plan.confidence == 1.0


def test_a_plain_loop_moves_every_parameter_by_the_law(net):
    plan, x = make(net), batch()
    optimizer = flow.optim.SGD(plan.param_groups(net), lr=123.0)
    scheduler = plan.scheduler(optimizer)
    for step in range(12):
        directions, before = gradients(net, x), values(net)
        optimizer.step()
        scheduler.step()
        for name, after in values(net).items():
            check_move(name, step, before[name], after, directions[name])


@pytest.mark.parametrize("kind", [flow.optim.Adam, flow.optim.AdamW], ids=lambda kind: kind.__name__)
def test_adam_moves_every_parameter_by_the_law_and_weight_decay_spares_biases_and_norms(net, kind):
    decay = 0.1 if kind is flow.optim.AdamW else 0.0
    plan = make(net, weight_decay=decay)
    optimizer = kind(plan.param_groups(net), lr=123.0)
    scheduler = plan.scheduler(optimizer)
    given = constants({name: tuple(p.shape) for name, p in net.named_parameters()})
    for step in range(12):
        before = values(net)
        for name, p in net.named_parameters():
            p.grad = flow.tensor(given[name])
        optimizer.step()
        scheduler.step()
        for name, after in values(net).items():
            direction = np.sign(given[name]) + (0 if spared(name) else decay) * before[name]
            check_move(name, step, before[name], after, direction)


@pytest.mark.parametrize(("start", "given"), [(0, ""), (20, "lr_sch"), (0, "resumed")])
def test_a_graph_of_the_users_follows_the_plan(start, given):
    """In a process of its own, begun again where OneFlow's race kills it."""
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, __file__, str(start), given], capture_output=True, text=True, timeout=300
        )
        if done.returncode >= 0:
            break
    assert done.returncode == 0, done.stdout + done.stderr


def train_a_graph(start, given):
    net, scheduler, graph = begin_a_graph(start, given)
    check_steps(net, scheduler, graph)
    if given == "resumed":
        state = copy.deepcopy(scheduler.state_dict())
        arrays = {name: t.numpy().copy() for name, t in net.state_dict().items()}
        counter = graph.state_dict()["System-Train-TrainStep"].numpy().copy()
        for held in (
            {},
            {"System-Train-TrainStep": flow.tensor(counter)},
        ):  # a Graph that counts anew, one that goes on
            net, scheduler, graph = begin_a_graph(0, given)
            net.load_state_dict(arrays)
            scheduler.load_state_dict(state)
            graph.load_state_dict(held)
            check_steps(net, scheduler, graph)


def begin_a_graph(start, given):
    net = seeded()
    plan = make(net)
    optimizer = flow.optim.SGD(plan.param_groups(net), lr=123.0)
    plan.scheduler(optimizer, 30)  # one that is thrown away again
    scheduler = plan.scheduler(optimizer, start)

    class Training(nn.Graph):
        def __init__(self):
            super().__init__()
            self.net = net
            self.add_optimizer(optimizer, **({"lr_sch": scheduler} if given == "lr_sch" else {}))

        def build(self, x):
            loss = 10 * self.net(x).square().mean()
            loss.backward()
            return loss

    return net, scheduler, Training()


def check_steps(net, scheduler, graph):
    x, twin = batch(), seeded()
    for step in range(scheduler.last_step, scheduler.last_step + 8):
        twin.load_state_dict(net.state_dict())
        directions, before = gradients(twin, x), values(net)
        graph(x).numpy()
        net.zero_grad(set_to_none=True)
        for name, after in values(net).items():
            check_move(name, step, before[name], after, directions[name])
        scheduler.step()


def test_frozen_parts_are_in_no_group_stay_and_count_in_the_depths(net):
    for p in net.blocks[2].parameters():
        p.requires_grad_(False)
    plan, before = make(net), values(net)
    optimizer = flow.optim.SGD(plan.param_groups(net), lr=1.0)
    scheduler = plan.scheduler(optimizer)
    for _ in range(3):
        gradients(net, batch())
        optimizer.step()
        scheduler.step()
    assert plan.depths["head.weight"] == 4
    assert not [n for g in plan.groups for n in g.params if n.startswith("blocks.2")]
    for name, after in values(net).items():
        assert np.array_equal(after, before[name]) == name.startswith("blocks.2")


def test_planning_leaves_the_model_as_it_was(net):
    net(batch())
    net.bn.eval()
    held = {name: t.numpy().copy() for name, t in net.state_dict().items()}
    flags = [m.training for m in net.modules()]
    seen = []
    net.stem.register_forward_pre_hook(lambda module, args: seen.append(1))
    random = flow.get_rng_state().numpy()
    gradient = gradients(net, batch())
    seen.clear()
    make(net)
    ran = len(seen)
    net(batch())
    assert len(seen) == ran + 1 > 1  # the user's own hook is there still, once
    assert [len(m._forward_pre_hooks) for m in net.modules()] == [int(m is net.stem) for m in net.modules()]
    assert [m.training for m in net.modules()] == flags
    assert np.array_equal(flow.get_rng_state().numpy(), random)
    assert all(np.array_equal(t.numpy(), held[name]) for name, t in net.state_dict().items() if "tracked" not in name)
    assert all(np.array_equal(p.grad.numpy(), gradient[name]) for name, p in net.named_parameters())


def test_a_second_writer_is_told_of_before_it_moves_anything(net):
    plan = make(net)
    optimizer = flow.optim.SGD(plan.param_groups(net), lr=1.0)
    scheduler = plan.scheduler(optimizer, start=3)
    flow.optim.lr_scheduler.CosineDecayLR(optimizer, STEPS).step()
    gradients(net, batch())
    before = values(net)
    for act in (optimizer.step, scheduler.step):
        with pytest.raises(llr.UserError, match="somebody else writes learning rates") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert all(np.array_equal(after, before[name]) for name, after in values(net).items())


def test_the_scheduler_goes_on_from_its_state(net):
    plan = make(net)
    optimizer = flow.optim.AdamW(plan.param_groups(net))
    scheduler = plan.scheduler(optimizer)
    for _ in range(7):
        gradients(net, batch())
        optimizer.step()
        scheduler.step()
    state = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    again = flow.optim.AdamW(plan.param_groups(net))
    resumed = plan.scheduler(again)
    again.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    assert resumed.read() == plan.lrs(7) == pytest.approx([law(7, group.params[0]) for group in plan.groups])
    again.step()
    resumed.step()
    assert resumed.read() == plan.lrs(8)
    other = make(net, lr=0.2)
    with pytest.raises(llr.UserError, match=r"another plan.*start=7"):
        other.scheduler(flow.optim.AdamW(other.param_groups(net))).load_state_dict(state[1])


def test_other_optimizers_and_other_models_are_refused(net):
    plan = make(net)
    with pytest.raises(llr.UserError, match=r"make it of plan\.param_groups"):
        plan.scheduler(flow.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(llr.UserError, match=r"are new or thawed \(blocks\.3"):
        plan.param_groups(seeded(blocks=4))


def test_a_constant_plan_needs_no_number_of_steps(net):
    plan = llr.plan(net, lr=0.1, layer_decay=0.5, warmup=3)
    scheduler = plan.scheduler(flow.optim.SGD(plan.param_groups(net), lr=1.0))
    for _ in range(9):
        scheduler.step()
    assert max(scheduler.read()) == 0.1


# --- verify ----------------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "none": lambda optimizer: None,
    "CosineDecayLR": lambda optimizer: flow.optim.lr_scheduler.CosineDecayLR(optimizer, 10),
    "StepLR": lambda optimizer: flow.optim.lr_scheduler.StepLR(optimizer, 2),
    "WarmUpLR": lambda optimizer: flow.optim.lr_scheduler.WarmUpLR(
        flow.optim.lr_scheduler.StepLR(optimizer, 5), warmup_factor=0.1, warmup_iters=3, warmup_prefix=True
    ),
    "ReduceLROnPlateau": flow.optim.lr_scheduler.ReduceLROnPlateau,
}
OPTIMIZERS = {
    "SGD": lambda groups: flow.optim.SGD(groups, lr=0.1),
    "momentum": lambda groups: flow.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": flow.optim.Adam,
    "AdamW": lambda groups: flow.optim.AdamW(groups, weight_decay=0.1),
    "LAMB": flow.optim.LAMB,
    "RMSprop": flow.optim.RMSprop,
    "Adagrad": flow.optim.Adagrad,  # takes no float64
}
PAIRS = [*((name, "CosineDecayLR") for name in OPTIMIZERS), *(("AdamW", kind) for kind in SCHEDULERS)]


def scaled(net, key):
    """A group per parameter, 0.9 apart: in lr_scale, or in the lr itself."""
    groups = [{"params": [p], "lr": 0.1} for p in net.parameters()]
    for i, group in enumerate(groups):
        group |= {"lr": 0.1 * 0.9**i} if key == "lr" else {"lr_scale": 0.9**i}
    return groups


def advanced(net, optimizer):
    """After three steps, with gradients in place."""
    for _ in range(3):
        gradients(net, batch())
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_lr_scale_that_eager_steps_and_stock_schedulers_do_not_read(net, name, kind):
    optimizer = advanced(net, OPTIMIZERS[name](scaled(net, "lr_scale")))
    with pytest.raises(llr.ModelLrMismatch) as caught:
        llr.verify(net, optimizer, SCHEDULERS[kind](optimizer))
    assert [fault.name for fault in caught.value.report.faults] == ["lr_scale that nobody reads"]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_no_alarm_where_the_lrs_arrive(net, name, kind):
    optimizer = advanced(net, OPTIMIZERS[name](scaled(net, "lr")))
    report = llr.verify(net, optimizer, SCHEDULERS[kind](optimizer), steps=6)
    held = np.array(report.measured.held)
    assert len(held) == (1 if kind == "none" else 7)
    np.testing.assert_allclose(report.measured.group_lr, held, rtol=5e-2 if name == "Adagrad" else 1e-5)


@pytest.mark.parametrize(
    "given",
    [None, batch(), (batch(), flow.zeros(32, dtype=flow.int64)), lambda net: net(batch()).square().mean()],
    ids=["drawn", "inputs", "inputs and classes", "function"],
)
def test_the_plan_is_verified_and_another_is_not(net, given):
    plan = make(net, weight_decay=0.1)
    optimizer = flow.optim.AdamW(plan.param_groups(net))
    scheduler = plan.scheduler(optimizer, start=7)
    assert not llr.verify(net, optimizer, scheduler, plan, given).faults
    with pytest.raises(llr.ModelLrMismatch, match="lr that is not the plan's"):
        llr.verify(net, optimizer, scheduler, make(net, layer_decay=0.6), given)
    flat = flow.optim.AdamW(net.parameters(), lr=0.1)
    with pytest.raises(llr.ModelLrMismatch, match="no layer-wise lr at all"):
        llr.verify(net, flat, plan, given)


def everything(net, optimizer, scheduler):
    """All that verify must leave as it was, by public state."""
    held = [(id(p), own) for p, own in optimizer._state.items() if isinstance(own, dict)]
    state = {p: {key: tensor.numpy().tobytes() for key, tensor in own.items()} for p, own in held}
    return {
        "arrays": {name: (t.numpy().tobytes(), t.dtype) for name, t in net.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.numpy().tobytes() for p in net.parameters()],
        "flags": [(p.requires_grad, p.is_leaf) for p in net.parameters()] + [m.training for m in net.modules()],
        "state": (state, optimizer._state["step"]),
        "groups": [(dict(g.options), list(map(id, g.parameters))) for g in optimizer.param_groups],
        "scheduler": {k: list(v) if isinstance(v, list) else v for k, v in vars(scheduler).items()}
        if scheduler
        else None,
        "steps": (optimizer.step, sorted(vars(optimizer))),
        "chance": (flow.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()),
        "dropout": net.drop.generator.get_state().numpy().tobytes(),
    }


@pytest.mark.parametrize(
    "given", [None, lambda net: net(batch()).mean(), lambda net: 1 / 0], ids=["", "batch", "raises"]
)
@pytest.mark.parametrize(
    ("name", "kind"),
    [("momentum", "none"), ("AdamW", "CosineDecayLR"), ("Adagrad", "WarmUpLR"), ("AdamW", "ReduceLROnPlateau")],
)
def test_everything_is_as_it_was(net, name, kind, given):
    net.drop.train()
    net.stem.bias.requires_grad_(False)
    optimizer = advanced(net, OPTIMIZERS[name](scaled(net, "lr")))
    net.head.bias.grad = None
    scheduler = SCHEDULERS[kind](optimizer)
    before = everything(net, optimizer, scheduler)
    with contextlib.suppress(ZeroDivisionError, llr.ModelLrMismatch):
        llr.verify(net, optimizer, scheduler, given)
    assert everything(net, optimizer, scheduler) == before


def test_what_is_no_optimizer_is_said(net):
    with pytest.raises(llr.UserError, match="object is no OneFlow optimizer"):
        llr.verify(net, object())


class Training(nn.Graph):
    def __init__(self, net, optimizer):
        super().__init__()
        self.net = net
        self.add_optimizer(optimizer)

    def build(self, x):
        loss = self.net(x).square().mean()
        loss.backward()
        return loss


def test_a_graph_is_refused_with_the_way_out(net):
    """Nothing is compiled here: OneFlow's race does not come into it."""
    optimizer, other = (flow.optim.SGD(scaled(net, "lr"), lr=0.1) for _ in range(2))
    graph = Training(net, optimizer)
    with pytest.raises(
        llr.UserError, match=r"Training compiles the lrs of this SGD in.*before the Graph is made"
    ) as caught:
        llr.verify(net, optimizer)
    assert "\n" not in str(caught.value)
    with pytest.raises(llr.UserError, match=r"Training is an nn\.Graph: give the module that it runs"):
        llr.verify(graph, optimizer)
    assert not llr.verify(net, other).faults


SCRIPT = """
import oneflow as flow
from oneflow import nn

net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
groups = [{"params": list(part.parameters()), "lr": lr} for part, lr in ((net[0], 0.001), (net[2], 0.1))]
X, Y = flow.ones(2, 4), flow.tensor([0, 1])

def train(optimizer):
    scheduler = flow.optim.lr_scheduler.CosineDecayLR(optimizer, 10)
    for step in range(2):
        optimizer.zero_grad(set_to_none=True)
        nn.CrossEntropyLoss()(net(X), Y).backward()
        optimizer.step()
        open(f"step{step}", "w").close()
        scheduler.step()

def make():
    return net, flow.optim.SGD([{**group, "lr": 0.1, "lr_scale": 0.1 ** i} for i, group in enumerate(groups)], lr=0.1)

"""
GRAPH = """
class Training(nn.Graph):
    def __init__(self):
        super().__init__()
        self.net, self.loss = net, nn.CrossEntropyLoss()
        self.add_optimizer(flow.optim.SGD(groups, lr=0.1))

    def build(self, x, y):
        loss = self.loss(self.net(x), y)
        loss.backward()
        return loss

Training()(X, Y)
"""


def test_a_script_is_verified_at_its_first_step(tmp_path):
    code, out, err = verified(tmp_path, SCRIPT + "train(flow.optim.AdamW(groups))")
    assert (code, "CosineDecayLR" in out, "nothing is wrong" in out) == (0, True, True), out + err
    code, out, err = verified(tmp_path, SCRIPT + "train(make()[1])")
    assert (code, "lr_scale that nobody reads" in out) == (1, True), out + err
    assert not list(tmp_path.glob("step*"))
    code, _, err = verified(tmp_path, SCRIPT + GRAPH)
    assert (code, "cannot be measured: the nn.Graph Training" in err) == (2, True), err


def test_a_factory_is_verified(tmp_path):
    code, out, err = verified(tmp_path, SCRIPT, factory=True)
    assert (code, "lr_scale that nobody reads" in out) == (1, True), out + err


if __name__ == "__main__":
    train_a_graph(int(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # OneFlow hangs now and then where its Graphs are torn down
