"""layerwise_lr as a library on a plain MegEngine model, eager and traced, measured by what the weights do."""

import copy

import numpy as np
import pytest
from layerwise_lr.plugins import megengine_plugin  # noqa: F401  (first: it imports MegEngine without its noise)

import layerwise_lr as llr

# isort: split
import megengine
import megengine.functional as F
import megengine.module as M
from megengine import optimizer as optim
from megengine.autodiff import GradManager
from megengine.jit import trace
from native_law import PLAN, check_move, constants, depth, law, spared


class Block(M.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc2, self.fc1, self.norm = M.Linear(dim, dim), M.Linear(dim, dim), M.LayerNorm(dim)

    def forward(self, x):
        return x + self.fc2(F.relu(self.fc1(self.norm(x))))


class Net(M.Module):
    def __init__(self, blocks=3, dim=6, classes=4):
        super().__init__()
        self.head, self.bn = M.Linear(dim, classes), M.BatchNorm1d(dim)
        self.blocks = [Block(dim) for _ in range(blocks)]
        self.token = megengine.Parameter(np.zeros((1, dim), np.float32))
        self.drop, self.stem = M.Dropout(0.5), M.Linear(5, dim)

    def forward(self, x):
        x = self.drop(self.stem(x)) + self.token
        for block in self.blocks:
            x = block(x)
        return self.head(self.bn(x))


@pytest.fixture
def net():
    return seeded()


def seeded(**more):
    megengine.random.seed(0)
    net = Net(**more)
    net.drop.eval()
    return net


def make(net, **more):
    return llr.plan(net, **{**PLAN, **more})


def batch():
    return megengine.Tensor(np.random.RandomState(1).randn(32, 5).astype(np.float32))


def values(net):
    return {name: np.array(p.numpy()) for name, p in net.named_parameters()}


def gradients(net, x, parts=None):
    """Those of `parts`, all by default, left in the parameters."""
    for p in net.parameters():
        p.grad = None
    with GradManager().attach(list(parts if parts is not None else net.parameters())) as manager:
        manager.backward(10 * (net(x) ** 2).mean())
    return {name: np.array(p.grad.numpy()) for name, p in net.named_parameters() if p.grad is not None}


def test_depth_is_the_order_of_execution(net):
    plan = make(net)
    assert {name: plan.depths[name] for name, _ in net.named_parameters()} == {
        name: depth(name) for name, _ in net.named_parameters()
    }
    assert plan.confidence == 1.0


def test_a_plain_loop_moves_every_parameter_by_the_law(net):
    plan, x = make(net), batch()
    optimizer = optim.SGD(plan.param_groups(net), lr=123.0)
    scheduler = plan.scheduler(optimizer)
    for step in range(12):
        directions, before = gradients(net, x), values(net)
        optimizer.step()
        scheduler.step()
        for name, after in values(net).items():
            check_move(name, step, before[name], after, directions[name])


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW], ids=lambda kind: kind.__name__)
def test_adam_moves_every_parameter_by_the_law_and_weight_decay_spares_biases_and_norms(net, kind):
    decay = 0.1 if kind is optim.AdamW else 0.0
    plan = make(net, weight_decay=decay)
    optimizer = kind(plan.param_groups(net), lr=123.0)
    scheduler = plan.scheduler(optimizer)
    given = constants({name: tuple(p.shape) for name, p in net.named_parameters()})
    for step in range(12):
        before = values(net)
        for name, p in net.named_parameters():
            p.grad = megengine.Tensor(given[name])
        optimizer.step()
        scheduler.step()
        for name, after in values(net).items():
            direction = np.sign(given[name]) + (0 if spared(name) else decay) * before[name]
            check_move(name, step, before[name], after, direction)


@pytest.mark.parametrize("inside", [False, True], ids=["optimizer outside", "optimizer inside"])
@pytest.mark.parametrize("symbolic", [False, True])
def test_a_traced_step_of_the_users_follows_the_plan(net, symbolic, inside):
    plan, x, twin = make(net), batch(), seeded()
    optimizer = optim.SGD(plan.param_groups(net), lr=123.0)
    scheduler = plan.scheduler(optimizer)
    manager = GradManager().attach(list(net.parameters()))

    @trace(symbolic=symbolic)
    def train(x):
        with manager:
            loss = 10 * (net(x) ** 2).mean()
            manager.backward(loss)
        if inside:
            optimizer.step().clear_grad()
        return loss

    for step in range(8):
        twin.load_state_dict(net.state_dict())
        directions, before = gradients(twin, x), values(net)
        train(x).numpy()
        if not inside:
            optimizer.step().clear_grad()
        for name, after in values(net).items():
            check_move(name, step, before[name], after, directions[name])
        scheduler.step()


def test_what_no_grad_manager_is_attached_to_stays_and_counts_in_the_depths(net):
    """MegEngine's way of freezing; its parameters know nothing of it, so they are in the plan's groups."""
    plan, before = make(net, weight_decay=0.1), values(net)
    optimizer = optim.SGD(plan.param_groups(net), lr=1.0, momentum=0.9)
    scheduler = plan.scheduler(optimizer)
    for _ in range(3):
        gradients(net, batch(), [p for name, p in net.named_parameters() if not name.startswith("blocks.2")])
        optimizer.step()
        scheduler.step()
    for name, after in values(net).items():
        assert np.array_equal(after, before[name]) == name.startswith("blocks.2")


def test_planning_leaves_the_model_as_it_was(net):
    net(batch())
    net.bn.eval()
    held = copy.deepcopy(net.state_dict())
    flags = [m.training for m in net.modules()]
    seen = []
    net.stem.register_forward_pre_hook(lambda module, args: seen.append(1))
    gradient = gradients(net, batch())
    seen.clear()
    make(net)
    ran = len(seen)
    net(batch())
    assert len(seen) == ran + 1 > 1  # the user's own hook is there still, once
    assert [len(m._forward_pre_hooks) for m in net.modules()] == [int(m is net.stem) for m in net.modules()]
    assert [m.training for m in net.modules()] == flags
    assert all(np.array_equal(value, held[name]) for name, value in net.state_dict().items())
    assert all(np.array_equal(p.grad.numpy(), gradient[name]) for name, p in net.named_parameters())


def test_a_second_writer_is_told_of_before_it_moves_anything(net):
    plan = make(net)
    optimizer = optim.SGD(plan.param_groups(net), lr=1.0)
    scheduler = plan.scheduler(optimizer, start=3)
    optim.MultiStepLR(optimizer, [1]).step()
    gradients(net, batch())
    before = values(net)
    for act in (optimizer.step, scheduler.step):
        with pytest.raises(llr.UserError, match="somebody else writes learning rates") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert all(np.array_equal(after, before[name]) for name, after in values(net).items())


def test_the_scheduler_goes_on_from_its_state(net):
    plan = make(net)
    optimizer = optim.AdamW(plan.param_groups(net), lr=1.0)
    scheduler = plan.scheduler(optimizer)
    for _ in range(7):
        gradients(net, batch())
        optimizer.step()
        scheduler.step()
    state = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    again = optim.AdamW(plan.param_groups(net), lr=1.0)
    resumed = plan.scheduler(again)
    again.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    assert resumed.read() == plan.lrs(7) == pytest.approx([law(7, group.params[0]) for group in plan.groups])
    again.step()
    resumed.step()
    assert resumed.read() == plan.lrs(8)
    other = make(net, lr=0.2)
    with pytest.raises(llr.UserError, match=r"another plan.*start=7"):
        other.scheduler(optim.AdamW(other.param_groups(net), lr=1.0)).load_state_dict(state[1])


def test_other_optimizers_and_other_models_are_refused(net):
    plan = make(net)
    with pytest.raises(llr.UserError, match=r"make it of plan\.param_groups"):
        plan.scheduler(optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(llr.UserError, match=r"are new or thawed \(blocks\.3"):
        plan.param_groups(seeded(blocks=4))


def test_a_constant_plan_needs_no_number_of_steps(net):
    plan = llr.plan(net, lr=0.1, layer_decay=0.5, warmup=3)
    scheduler = plan.scheduler(optim.SGD(plan.param_groups(net), lr=1.0))
    for _ in range(9):
        scheduler.step()
    assert max(scheduler.read()) == 0.1
