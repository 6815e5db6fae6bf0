"""llr.verify on MindSpore: what it says of each disease and of healthy set-ups, and that it leaves no trace."""

import contextlib
import os
import random

os.environ.setdefault("GLOG_v", "3")  # errors only; read once, at import

import mindspore as ms
import numpy as np
import pytest
from mindcv.models.vit import VisionTransformer
from mindcv.optim import create_optimizer
from mindspore import mint, nn, ops
from mindspore.experimental import optim
from scripts import verified

import layerwise_lr as llr
from layerwise_lr.framework import registry


@pytest.fixture(scope="module", autouse=True)
def started():
    """MindSpore takes device and threads before its first kernel only: other tests of this process want theirs."""
    registry.load("mindspore")("cpu")


class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.drop, self.head = nn.Dense(4, 8), nn.BatchNorm1d(8), nn.Dropout(p=0.5), nn.Dense(8, 3)

    def construct(self, x):
        return self.head(self.drop(ops.relu(self.bn(self.stem(x)))))


@pytest.fixture
def net():
    return seeded()


def seeded():
    ms.set_seed(0)
    return Net().set_train()


BATCH = (ms.Tensor(np.random.RandomState(1).randn(6, 4).astype(np.float32)), ms.Tensor(np.arange(6) % 3, ms.int32))
LISTS = [0.1 * 0.9**i for i in range(8)]
NATIVE = {
    "SGD": lambda groups: nn.SGD(groups, 1.0),
    "momentum": lambda groups: nn.Momentum(groups, 1.0, 0.9, weight_decay=0.01),
    "Adam": lambda groups: nn.Adam(groups, 1.0),
    "AdamWeightDecay": lambda groups: nn.AdamWeightDecay(groups, 1.0, weight_decay=0.1),
    "RMSProp": lambda groups: nn.RMSProp(groups, 1.0),
    "Adagrad": lambda groups: nn.Adagrad(groups, learning_rate=1.0),
}
EXPERIMENTAL = {
    "experimental SGD": lambda groups: optim.SGD(groups, 1.0, momentum=0.9),
    "experimental AdamW": lambda groups: optim.AdamW(groups, 1.0),
}
LRS = {
    "numbers": lambda lr: lr,
    "lists": lambda lr: [lr * 0.9**i for i in range(8)],
    "schedules": lambda lr: nn.CosineDecayLR(0.0, lr, 8),
}
HEALTHY = [
    *((name, "numbers") for name in (*NATIVE, *EXPERIMENTAL)),
    *((name, kind) for name in ("SGD", "Adam") for kind in ("lists", "schedules")),
]


def groups(net, kind="numbers", lr=0.1, **more):
    """A group per parameter, each a half of the one before."""
    return [
        {"params": [p], "lr": LRS[kind](lr * 0.5**i), **{key: value(i) for key, value in more.items()}}
        for i, p in enumerate(net.trainable_params())
    ]


def made(name, given):
    return (NATIVE | EXPERIMENTAL)[name](given)


def train(net, optimizer, steps=2):
    differentiate = ms.value_and_grad(lambda: ops.cross_entropy(net(BATCH[0]), BATCH[1]), None, optimizer.parameters)
    for _ in range(steps):
        optimizer(differentiate()[1])
    return optimizer


def diseases(*given, **named):
    with pytest.raises(llr.ModelLrMismatch) as caught:
        llr.verify(*given, **named)
    return [fault.name for fault in caught.value.report.faults]


def right(report):
    held = np.array(report.measured.held)
    np.testing.assert_allclose(report.measured.group_lr, held, rtol=1e-5)
    return held


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize(("name", "kind"), HEALTHY)
def test_the_lr_of_every_optimizer_is_measured_and_found_right(net, name, kind, trained):
    optimizer = made(name, groups(net, kind))
    if trained:
        train(net, optimizer)
    held = right(llr.verify(net, optimizer, steps=3))
    assert len(held) == (1 if kind == "numbers" else 4)
    start = 2 if trained and kind != "numbers" else 0
    curve = {
        "numbers": lambda s: 1.0,
        "lists": lambda s: 0.9**s,
        "schedules": lambda s: 0.5 * (1 + np.cos(np.pi * s / 8)),
    }
    assert held[:, 1] == pytest.approx([0.05 * curve[kind](start + s) for s in range(len(held))], rel=1e-5)


def test_lists_end_and_their_end_is_looked_at(net):
    report = llr.verify(net, nn.SGD(groups(net, "lists"), 1.0), steps=14)
    assert report.measured.steps[-1] == 7
    assert right(llr.verify(net, train(net, nn.SGD(groups(net, "lists"), 1.0), 7))).shape == (1, 6)


def test_one_lr_for_all_is_no_fault_and_is_noted(net):
    for lr in (0.1, LISTS, nn.CosineDecayLR(0.0, 0.1, 8)):
        report = llr.verify(net, nn.Momentum(net.trainable_params(), lr, 0.9))
        right(report)
        assert "give plan=" in report.notes[0]


def test_each_group_its_own_schedule_is_meant_and_one_floor_for_all_is_not(net):
    stem, rest = net.trainable_params()[:2], net.trainable_params()[2:]
    fixed = nn.SGD([{"params": stem, "lr": 0.01}, {"params": rest, "lr": LISTS}], 1.0)
    longer = nn.CosineDecayLR(0.0, 0.1, 16)
    two = nn.SGD([{"params": stem, "lr": nn.CosineDecayLR(0.0, 0.01, 8)}, {"params": rest, "lr": longer}], 1.0)
    assert not llr.verify(net, fixed).faults + llr.verify(net, two).faults
    for end in (lambda lr: nn.CosineDecayLR(0.002, lr, 8), lambda lr: nn.PolynomialDecayLR(lr, 0.002, 8, 1.0)):
        floor = nn.SGD([{"params": stem, "lr": end(0.01)}, {"params": rest, "lr": end(0.1)}], 1.0)
        assert diseases(net, floor) == ["ratios that a floor or a warm-up destroys"]


@pytest.mark.parametrize("lr", [1e-9, 1e-3])
def test_faint_lrs_beside_large_weights_are_measured(net, lr):
    for p in net.trainable_params():
        ops.assign(p, ops.full_like(p, 3.0))
    right(llr.verify(net, nn.Adam(groups(net, lr=lr), 1.0)))


@pytest.mark.parametrize("given", [None, BATCH, BATCH[0], lambda net: net(BATCH[0]).mean()])
@pytest.mark.parametrize("kind", ["nn", "experimental"])
def test_the_plan_is_verified_and_another_is_not(net, given, kind):
    plan = llr.plan(net, lr=0.1, layer_decay=0.5, weight_decay=0.1, schedule="cosine", steps=30)
    own = plan.param_groups(net)
    optimizer = nn.Adam(own, 1.0) if kind == "nn" else optim.AdamW(own[:-1], 1.0)
    scheduler = plan.scheduler(optimizer, start=7)
    assert not llr.verify(net, optimizer, scheduler, plan, given, steps=3).faults
    other = llr.plan(net, lr=0.1, layer_decay=0.6, schedule="cosine", steps=30)
    assert diseases(net, optimizer, scheduler, other, given, steps=1) == ["lr that is not the plan's"]
    assert diseases(net, nn.SGD(net.trainable_params(), 0.1), plan, given) == ["no layer-wise lr at all"]


@pytest.mark.parametrize("schedule", ["none", "StepLR"])
def test_lr_scale_that_nobody_reads(net, schedule):
    """nn.Optimizer refuses the key; mindspore.experimental.optim takes it, and does nothing."""
    own = [{**group, "lr": 0.1} for group in groups(net, lr_scale=lambda i: 0.5**i)]
    optimizer = optim.AdamW(own, 1.0)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 2) if schedule == "StepLR" else None
    assert diseases(net, optimizer, scheduler, steps=2) == ["lr_scale that nobody reads"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda o: optim.lr_scheduler.StepLR(o, 2), None),
        (lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 8), None),
        (lambda o: optim.lr_scheduler.ReduceLROnPlateau(o, patience=1), None),
        (lambda o: optim.lr_scheduler.LambdaLR(o, [lambda s, i=i: 1.0 / (1 + i * s) for i in range(6)]), None),
        (
            lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 8, eta_min=0.002),
            "ratios that a floor or a warm-up destroys",
        ),
        (
            lambda o: optim.lr_scheduler.ReduceLROnPlateau(o, patience=1, min_lr=0.02),
            "ratios that a floor or a warm-up destroys",
        ),
    ],
)
def test_schedulers_of_experimental_optim(net, make, told):
    optimizer = optim.SGD(groups(net), 1.0)
    scheduler = make(optimizer)
    if told is None:
        right(llr.verify(net, optimizer, scheduler, steps=8))
    else:
        assert diseases(net, optimizer, scheduler, steps=8) == [told]


def test_a_head_that_was_replaced_and_parameters_in_no_group(net):
    optimizer = nn.SGD(groups(net), 1.0)
    net.head = nn.Dense(8, 5)
    assert diseases(net, optimizer) == ["parameters in no group", "parameters that the model does not have"]
    assert diseases(net, nn.SGD(net.stem.trainable_params(), 1.0)) == ["parameters in no group"]


def test_frozen_ones_that_move_and_that_rest(net):
    optimizer = nn.Momentum(groups(net, weight_decay=lambda i: 0.1), 1.0, 0.9)
    net.stem.weight.requires_grad = False
    assert diseases(net, optimizer) == ["frozen parameters that move"]
    right(llr.verify(net, nn.Momentum(groups(net), 1.0, 0.9), BATCH))


def test_what_no_gradient_reaches_and_a_head_of_zeros_that_lets_none_through(net):
    assert diseases(net, nn.SGD(groups(net), 1.0), batch=lambda net: net.stem(BATCH[0]).mean()) == [
        "trainable parameters that cannot move"
    ]
    ops.assign(net.head.weight, ops.zeros_like(net.head.weight))
    assert not llr.verify(net, nn.SGD(groups(net), 1.0), BATCH).faults


def test_an_lr_of_zero(net):
    own = groups(net)
    own[0]["lr"] = 0.0
    assert diseases(net, nn.SGD(own, 1.0)) == ["trainable parameters that cannot move"]


class Deaf(nn.Optimizer):
    """Keeps the lr that it was made with."""

    def __init__(self, params):
        super().__init__(0.1, params)

    def construct(self, gradients):
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            ops.assign(parameter, parameter - 0.1 * gradient)
        return True


def test_optimizers_that_read_no_lr(net):
    assert diseases(net, Deaf(groups(net))) == ["lr that the optimizer does not read"]


def test_mint_optim_is_measured_or_refused(net):
    """Its SGD moves nothing on a CPU (an in-place sum that does not add), or reads no lr; its AdamW has no kernel there."""
    told = diseases(net, mint.optim.SGD(groups(net), lr=1.0))
    assert told in (["trainable parameters that cannot move"], ["lr that the optimizer does not read"])
    with pytest.raises(llr.UserError, match="cannot be measured: a step of AdamW fails") as caught:
        llr.verify(net, mint.optim.AdamW(groups(net), lr=1.0))
    assert "\n" not in str(caught.value)


def test_a_python_number_that_compiled_steps_do_not_read_again_is_noted(net):
    optimizer = optim.SGD(groups(net), 1.0)
    optimizer.param_groups[1]["lr"] = 0.05
    report = llr.verify(net, optimizer)
    right(report)
    assert any("lr of group 1 is a Python number" in note for note in report.notes)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_updates_too_small_for_float16(net, name):
    for p in net.trainable_params():
        p.set_dtype(ms.float16)
    report = llr.verify(net, made(name, groups(net, lr=0.05)))
    np.testing.assert_allclose(report.measured.group_lr, np.array(report.measured.held), rtol=0.02)
    assert diseases(net, made(name, groups(net, lr=5e-5))) == ["updates too small for float16"]


def test_what_is_no_optimizer_is_said(net):
    with pytest.raises(llr.UserError, match="object is no MindSpore optimizer"):
        llr.verify(net, object())


def everything(net, optimizer, scheduler):
    cells = [cell for top in (net, optimizer) for _, cell in top.cells_and_names()]
    return {
        "arrays": {id(p): p.asnumpy().tobytes() for top in (net, optimizer) for p in top.get_parameters()},
        "wanted": [(p.name, p.requires_grad) for p in net.get_parameters()],
        "flags": [(cell.training, cell.phase, dict(cell.get_flags()), sorted(vars(cell))) for cell in cells],
        "lrs": [id(lr) for lr in getattr(optimizer, "learning_rate", ()) or ()]
        if hasattr(optimizer, "group_lr")
        else [],
        "groups": [
            {k: id(v) if isinstance(v, ms.Tensor) else str(v) for k, v in group.items()}
            for group in getattr(optimizer, "param_groups", ())
        ],
        "scheduler": str(sorted(vars(scheduler).items(), key=str)) if scheduler else None,
        "mode": (ms.get_context("mode"), os.environ.get("MS_JIT"), ms.get_seed()),
        "chance": (ms.get_rng_state().asnumpy().tobytes(), str(np.random.get_state()), random.getstate()),
    }


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE], ids=["pynative", "graph"])
@pytest.mark.parametrize("given", [None, BATCH, lambda net: 1 / 0], ids=["", "batch", "raises"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("momentum", "numbers"), ("Adam", "lists"), ("SGD", "schedules"), ("experimental AdamW", "numbers")],
)
def test_everything_is_as_it_was(net, name, kind, given, mode):
    optimizer = train(net, made(name, groups(net, kind)))
    net.bn.set_train(False)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 2) if name in EXPERIMENTAL else None
    ms.set_context(mode=mode)
    try:
        before = everything(net, optimizer, scheduler)
        with contextlib.suppress(ZeroDivisionError, llr.ModelLrMismatch):
            llr.verify(net, optimizer, scheduler, given, steps=2)
        assert everything(net, optimizer, scheduler) == before
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def test_training_goes_on_as_if_nothing_had_been():
    done = []
    for asked in (False, True):
        net = seeded()
        net.drop.set_train(False)
        optimizer = train(net, nn.Adam(groups(net, "lists"), 1.0))
        if asked:
            llr.verify(net, optimizer, BATCH)
        train(net, optimizer)
        done.append({name: p.asnumpy().tobytes() for name, p in net.parameters_and_names()})
    assert done[0] == done[1]


# --- mindcv ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "momentum", "lion"])
def test_mindcv_layer_decay_gives_every_layer_the_same_lr(name):
    """The real create_optimizer on a real model of its own: layer_decay does nothing, and nothing in the groups tells."""
    size = {"image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    net = VisionTransformer(**size).set_train()
    x = ms.Tensor(np.random.RandomState(0).randn(2, 3, 8, 8).astype(np.float32))
    plan = llr.plan(net, lr=0.1, layer_decay=0.75, schedule="cosine", steps=8, batch=x)
    optimizer = create_optimizer(net, name, lr=LISTS, layer_decay=0.75, weight_decay=0.05)
    report = llr.verify(net, optimizer, steps=1)
    right(report)
    assert "give plan=" in report.notes[0]
    assert diseases(net, optimizer, plan, steps=1) == ["no layer-wise lr at all"]
    healthy = nn.SGD(plan.param_groups(net), 1.0)
    assert not llr.verify(net, healthy, plan.scheduler(healthy), plan, steps=1).faults


# --- scripts ---------------------------------------------------------------------------------------------------------

SCRIPT = """
import numpy as np
import mindspore as ms
from mindspore import nn, ops
from mindspore.experimental import optim

ms.set_context(mode=ms.GRAPH_MODE)

class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Dense(4, 8), nn.Dense(8, 3)

    def construct(self, x):
        return self.head(ops.relu(self.stem(x)))

net = Net().set_train()
X, Y = ms.Tensor(np.ones((2, 4), np.float32)), ms.Tensor([0, 1], ms.int32)
groups = [{"params": part.trainable_params(), "lr": lr} for part, lr in ((net.stem, 0.001), (net.head, 0.1))]
loss = nn.CrossEntropyLoss()

def train(optimizer):
    differentiate = ms.value_and_grad(lambda x, y: loss(net(x), y), None, optimizer.parameters)

    @ms.jit
    def step(x, y):
        value, gradients = differentiate(x, y)
        optimizer(gradients)
        return value

    for i in range(2):
        step(X, Y)
        open(f"step{i}", "w").close()
"""
LOOPS = {
    "jit": "train(nn.SGD(groups, 0.1))",
    "cell": "nn.TrainOneStepCell(nn.WithLossCell(net, loss), nn.SGD(groups, 0.1)).set_train()(X, Y)",
    "Model.train": """
data = ms.dataset.GeneratorDataset([(X.asnumpy()[0], Y.asnumpy()[0])] * 4, ["x", "y"], shuffle=False).batch(2)
ms.Model(net, loss, nn.SGD(groups, 0.1)).train(1, data, dataset_sink_mode=False)
""",
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_script_is_verified_at_its_first_step_compiled_or_not(tmp_path, loop):
    code, out, err = verified(tmp_path, SCRIPT + LOOPS[loop])
    assert (code, "of 4 parameters of Net in 2 groups" in out, "nothing is wrong" in out) == (0, True, True), out + err
    assert not list(tmp_path.glob("step*"))


def test_a_sick_script_is_told_and_its_scheduler_is_found(tmp_path):
    sick = """
groups = [{**group, "lr": 0.1, "lr_scale": scale} for group, scale in zip(groups, (0.01, 1.0))]
optimizer = optim.SGD(groups, 0.1)
scheduler = optim.lr_scheduler.StepLR(optimizer, 2)
train(optimizer)
"""
    code, out, err = verified(tmp_path, SCRIPT + sick)
    assert (code, "StepLR" in out, "lr_scale that nobody reads" in out) == (1, True, True), out + err


def test_a_factory_is_verified(tmp_path):
    code, out, err = verified(tmp_path, SCRIPT + "make = lambda: (net, nn.Adam(groups, 0.1))", factory=True)
    assert (code, "nothing is wrong" in out) == (0, True), out + err
