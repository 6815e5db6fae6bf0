"""llr.verify on MegEngine: what it says of each disease and of healthy set-ups, and that it leaves no trace."""

import contextlib
import random

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
from scripts import verified


class Net(M.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.drop, self.head = M.Linear(4, 8), M.BatchNorm1d(8), M.Dropout(0.5), M.Linear(8, 3)

    def forward(self, x):
        return self.head(self.drop(F.relu(self.bn(self.stem(x)))))


@pytest.fixture
def net():
    megengine.random.seed(0)
    return Net()


BATCH = (np.random.RandomState(1).randn(6, 4).astype(np.float32), np.arange(6, dtype=np.int32) % 3)
OPTIMIZERS = {
    "SGD": optim.SGD,
    "momentum": lambda groups, lr: optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda groups, lr: optim.Adam(groups, lr=lr, weight_decay=0.01),
    "AdamW": optim.AdamW,
    "Adagrad": optim.Adagrad,
    "Adadelta": optim.Adadelta,
}


class Floor(optim.LRScheduler):
    """Halves down to one number for all groups."""

    def get_lr(self):
        return [max(lr * 0.5**self.current_epoch, 1e-3) for lr in self.base_lrs]


class Flat(optim.LRScheduler):
    """The linear decay of the LeNet tutorial: one lr for all groups, whatever they had."""

    def get_lr(self):
        return [0.1 * (1 - self.current_epoch / 10)] * len(self.base_lrs)


class Again(optim.LRScheduler):
    """Multiplies by lr_scale at each step."""

    def get_lr(self):
        return [group["lr"] * group["lr_scale"] for group in self.optimizer.param_groups]


def groups(net, key="lr"):
    """A group per parameter, each a half of the one before: in lr, or in lr_scale."""
    made = [{"params": [p], "lr": 0.1} for p in net.parameters()]
    for i, group in enumerate(made):
        group |= {"lr": 0.1 * 0.5**i} if key == "lr" else {"lr_scale": 0.5**i}
    return made


def train(net, optimizer, parts=None, steps=3):
    """Leaves state behind, and gradients."""
    x, y = map(megengine.Tensor, BATCH)
    for _ in range(steps):
        with GradManager().attach(list(parts or net.parameters())) as manager:
            manager.backward(F.nn.cross_entropy(net(x), y))
        optimizer.step()
    return optimizer


def diseases(*given, **named):
    with pytest.raises(llr.ModelLrMismatch) as caught:
        llr.verify(*given, **named)
    return [fault.name for fault in caught.value.report.faults]


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_lr_of_every_optimizer_is_measured_and_found_right(net, name, trained):
    optimizer = OPTIMIZERS[name](groups(net), lr=1.0)
    if trained:
        train(net, optimizer)
    report = llr.verify(net, optimizer, optim.MultiStepLR(optimizer, [2]), BATCH, steps=3)
    np.testing.assert_allclose(report.measured.group_lr, np.array(report.measured.held), rtol=1e-5)
    assert report.measured.held[3][0] == pytest.approx(0.01)


@pytest.mark.parametrize("lr", [1e-9, 1e-3])
def test_faint_lrs_beside_large_weights_are_measured(net, lr):
    for p in net.parameters():
        p[...] = megengine.Tensor(np.full(p.shape, 3.0, np.float32))
    made = [{"params": [p], "lr": lr * 0.5**i} for i, p in enumerate(net.parameters())]
    report = llr.verify(net, optim.SGD(made, lr=1.0))
    np.testing.assert_allclose(report.measured.group_lr[0], [group["lr"] for group in made], rtol=1e-5)


@pytest.mark.parametrize("given", [None, BATCH, BATCH[0], lambda net: net(megengine.Tensor(BATCH[0])).mean()])
def test_the_plan_is_verified_and_another_is_not(net, given):
    if given is BATCH[0]:
        given = megengine.Tensor(given)
    plan = llr.plan(net, lr=0.1, layer_decay=0.5, weight_decay=0.1, schedule="cosine", steps=30)
    optimizer = optim.AdamW(plan.param_groups(net), lr=1.0)
    scheduler = plan.scheduler(optimizer, start=7)
    assert not llr.verify(net, optimizer, scheduler, plan, given).faults
    other = llr.plan(net, lr=0.1, layer_decay=0.6, schedule="cosine", steps=30)
    assert diseases(net, optimizer, scheduler, other, given) == ["lr that is not the plan's"]
    assert diseases(net, optim.AdamW(net.parameters(), lr=0.1), plan, given) == ["no layer-wise lr at all"]


@pytest.mark.parametrize("schedule", ["none", "MultiStepLR"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lr_scale_that_nobody_reads(net, name, schedule):
    optimizer = OPTIMIZERS[name](groups(net, "lr_scale"), lr=1.0)
    scheduler = optim.MultiStepLR(optimizer, [2, 4]) if schedule == "MultiStepLR" else None
    assert diseases(net, optimizer, scheduler) == ["lr_scale that nobody reads"]


@pytest.mark.parametrize(
    ("scheduler", "key", "told"),
    [
        (Floor, "lr", "ratios that a floor or a warm-up destroys"),
        (Flat, "lr_scale", "lr_scale that nobody reads"),
        (Again, "lr_scale", "lr that compounds"),
    ],
)
def test_schedulers_that_spoil_the_groups(net, scheduler, key, told):
    optimizer = optim.SGD(groups(net, key), lr=1.0)
    assert diseases(net, optimizer, scheduler(optimizer), steps=9) == [told]


def test_a_flat_loop_against_a_plan(net):
    plan = llr.plan(net, lr=0.1, layer_decay=0.5)
    optimizer = optim.SGD(plan.param_groups(net), lr=1.0)
    assert diseases(net, optimizer, Flat(optimizer), plan, steps=5) == ["no layer-wise lr at all"]


def test_a_head_that_was_replaced(net):
    optimizer = optim.SGD(groups(net), lr=1.0)
    net.head = M.Linear(8, 5)
    assert diseases(net, optimizer) == ["parameters that the model does not have"]
    assert diseases(net, optimizer, llr.plan(net, lr=0.1, layer_decay=0.5))[-2:] == [
        "parameters in no group",
        "parameters that the model does not have",
    ]


def test_what_no_gradient_reaches(net):
    told = diseases(net, optim.SGD(groups(net), lr=1.0), batch=lambda net: net.stem(megengine.Tensor(BATCH[0])).mean())
    assert told == ["trainable parameters that cannot move"]


def test_an_lr_of_zero(net):
    made = groups(net)
    made[0]["lr"] = 0.0
    assert diseases(net, optim.SGD(made, lr=1.0)) == ["trainable parameters that cannot move"]


class Deaf(optim.SGD):
    """Keeps the lr that it was made with."""

    def _updates(self, param_group):
        return super()._updates({**param_group, "lr": 0.1})


def test_an_lr_that_the_optimizer_does_not_read(net):
    assert diseases(net, Deaf(groups(net), lr=1.0)) == ["lr that the optimizer does not read"]


def test_frozen_parts_are_no_fault(net):
    """MegEngine freezes by attaching nothing to a parameter, or by leaving it out of the groups."""
    assert not llr.verify(net, optim.SGD(net.head.parameters(), lr=0.1), BATCH).faults
    plan = llr.plan(net, lr=0.1, layer_decay=0.5, steps=30, freeze={"strategy": "only", "match": ["head"]})
    optimizer = optim.SGD(plan.param_groups(net), lr=1.0)
    assert not llr.verify(net, optimizer, plan.scheduler(optimizer), plan, BATCH).faults


def test_gradients_in_place_are_taken_and_what_has_none_rests(net):
    optimizer = train(net, optim.Adam(groups(net), lr=1.0), net.head.parameters())
    report = llr.verify(net, optimizer, batch=lambda net: None)
    assert {name for name, lr in report.lrs.items() if np.isfinite(lr)} == {"head.weight", "head.bias"}


def everything(net, optimizer, scheduler):
    state = {id(p): {k: t.numpy().tobytes() for k, t in own.items()} for p, own in optimizer._state.items()}
    return {
        "arrays": {name: value.tobytes() for name, value in net.state_dict().items()},
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes()) for p in net.parameters()],
        "flags": [module.training for module in net.modules()],
        "state": state,
        "objects": [sorted(map(id, own.values())) for own in optimizer._state.values()],
        "groups": [{**g, "params": list(map(id, g["params"]))} for g in optimizer.param_groups],
        "scheduler": None if scheduler is None else {k: v for k, v in vars(scheduler).items() if k != "optimizer"},
        "chance": (str(np.random.get_state()), random.getstate()),
    }


@pytest.mark.parametrize("given", [None, BATCH, lambda net: 1 / 0], ids=["", "batch", "raises"])
@pytest.mark.parametrize("name", ["momentum", "AdamW", "Adagrad"])
def test_everything_is_as_it_was(net, name, given):
    optimizer = train(net, OPTIMIZERS[name](groups(net), lr=1.0))
    net.bn.eval()
    net.head.bias.grad = None
    scheduler = Floor(optimizer)
    before = everything(net, optimizer, scheduler)
    with contextlib.suppress(ZeroDivisionError, llr.ModelLrMismatch):
        llr.verify(net, optimizer, scheduler, given)
    assert everything(net, optimizer, scheduler) == before
    assert (megengine.Tensor(1.0) + 1).numpy() == 2  # a failed step leaves MegEngine unable to add


def test_training_goes_on_as_if_nothing_had_been(net):
    """The generator of dropouts, too."""
    done = []
    for asked in (False, True):
        megengine.random.seed(0)
        twin = Net()
        optimizer = optim.Adam(groups(twin), lr=1.0)
        train(twin, optimizer, steps=2)
        if asked:
            llr.verify(twin, optimizer, BATCH)
        train(twin, optimizer, steps=3)
        done.append({name: value.tobytes() for name, value in twin.state_dict().items()})
    assert done[0] == done[1]


def test_what_cannot_be_measured_is_said(net):
    with pytest.raises(llr.UserError, match="object is no MegEngine optimizer"):
        llr.verify(net, object())
    optimizer = optim.Adam(groups(net)[:2], lr=1.0)
    optimizer.add_param_group(groups(net)[2])  # MegEngine makes no state for it
    with pytest.raises(llr.UserError, match="cannot be measured: a step of Adam fails") as caught:
        llr.verify(net, optimizer)
    assert "\n" not in str(caught.value)
    assert (megengine.Tensor(1.0) + 1).numpy() == 2


SCRIPT = """
import numpy as np
import megengine, megengine.functional as F, megengine.module as M
from megengine import Tensor, optimizer as optim
from megengine.autodiff import GradManager

class Net(M.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = M.Linear(4, 8), M.Linear(8, 3)

    def forward(self, x):
        return self.head(F.relu(self.stem(x)))

def make(key="lr_scale"):
    net = Net()
    groups = [{"params": list(part.parameters()), "lr": 0.1} for part in (net.stem, net.head)]
    groups[0][key] = 0.01
    optimizer = optim.SGD(groups, lr=0.1)
    return net, optimizer, optim.MultiStepLR(optimizer, [3])

def train(net, optimizer, scheduler):
    manager = GradManager().attach(net.parameters())
    for step in range(3):
        with manager:
            manager.backward(F.nn.cross_entropy(net(Tensor(np.ones((2, 4), np.float32))), Tensor([0, 1])))
        optimizer.step().clear_grad()
        open(f"step{step}", "w").close()
        scheduler.step()

if __name__ == "__main__":
    train(*make(KEY))
"""


def test_a_script_is_verified_at_its_first_step(tmp_path):
    code, out, err = verified(tmp_path, SCRIPT.replace("KEY", "'lr'"))
    assert (code, "MultiStepLR" in out, "nothing is wrong" in out) == (0, True, True), err
    code, out, err = verified(tmp_path, SCRIPT.replace("KEY", ""))
    assert (code, out.count("WRONG: "), "lr_scale that nobody reads" in out) == (1, 1, True), err
    assert not list(tmp_path.glob("step*"))


def test_a_factory_is_verified(tmp_path):
    code, out, err = verified(tmp_path, SCRIPT.replace("KEY", ""), factory=True)
    assert (code, "lr_scale that nobody reads" in out) == (1, True), err
