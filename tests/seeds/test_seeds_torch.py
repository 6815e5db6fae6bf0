"""Seed document 002 (PyTorch): its own code, mended and in plain torch, against our plan and plugin.

Both sides compute in double precision: what is left between them is what they do, not how they round.
"""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import StepLR

from layerwise_lr.framework import begin, registry, take_step
from layerwise_lr.models.layers import initial_weights, param_table
from layerwise_lr.models.trees import make_tree
from layerwise_lr.planning.groups import GroupingSpec, GroupSpec
from layerwise_lr.planning.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.planning.schedules import ScheduleSpec

TREE = make_tree("resnet18", num_classes=10, in_channels=3, image_size=32)
MODULES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")
BACKBONE, CLASSIFIER = 1e-4, 1e-3


class BasicBlock(nn.Module):
    """torchvision's, from its names."""

    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.downsample = nn.Sequential()
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    """The notebook's model: torchvision's modules, a head of ten classes, our initial values."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        stages = [
            nn.Sequential(BasicBlock(i, o, s), BasicBlock(o, o, 1))
            for i, o, s in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(512, 10)
        given = {n: torch.from_numpy(a) for n, a in initial_weights(TREE, 0).items()}
        missing = self.load_state_dict(given, strict=False)
        assert not missing.unexpected_keys
        assert all(n.endswith("num_batches_tracked") for n in missing.missing_keys)
        self.double()

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))

    def arrays(self):
        """Every parameter and running statistic, as float32."""
        return {n: t.float().numpy().copy() for n, t in self.state_dict().items() if "num_batches" not in n}


def param_groups(model):
    """The notebook's list, as printed."""
    return [
        {"params": model.conv1.parameters(), "lr": BACKBONE},
        {"params": model.bn1.parameters(), "lr": BACKBONE},
        {"params": model.layer1.parameters(), "lr": BACKBONE},
        {"params": model.layer2.parameters(), "lr": BACKBONE},
        {"params": model.layer3.parameters(), "lr": BACKBONE},
        {"params": model.layer4.parameters(), "lr": BACKBONE},
        {"params": model.fc.parameters(), "lr": CLASSIFIER},
    ]


def plan_of(steps, every=30, freeze=None):
    groups = {m: GroupSpec([m], lr=CLASSIFIER if m == "fc" else BACKBONE) for m in MODULES}
    return make_plan(
        param_table(TREE),
        GroupingSpec("by_module", groups=groups),
        {"default": OptimizerSpec("adam", CLASSIFIER, 0.0)},
        {"default": ScheduleSpec("step", gamma=0.1, every=every)},
        freeze or FreezeSpec(),
        steps,
    )[1]


def batch_of(step, size=4):
    rng = np.random.default_rng([2, step])
    return rng.standard_normal((size, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, size)


def loss_of(model, step):
    x, y = batch_of(step)
    return functional.cross_entropy(model(torch.from_numpy(x).double()), torch.from_numpy(y))


class Ours:
    """The plan in our plugin, step by step."""

    def __init__(self, plan):
        self.fw, self.plan = registry.load("torch")("cpu", precision="fp64"), plan
        self.model = self.fw.make_model(TREE)
        self.fw.set_weights(self.model, initial_weights(TREE, 0))
        self.state = begin(self.fw, self.model, plan)

    def step(self, step):
        take_step(self.fw, self.state, self.plan, step, batch_of(step), seed=0)
        return self.state.scheduler.lrs()

    def arrays(self):
        return self.fw.get_weights(self.model)


def largest_difference(mine, theirs):
    """Of any number of any array, relative to the array's largest."""
    assert set(mine) == set(theirs)
    return max(float(np.abs(mine[n] - theirs[n]).max() / max(np.abs(theirs[n]).max(), 1e-6)) for n in theirs)


def moved(before, after):
    """Names of the parameters, not running statistics, that are not bit by bit what they were."""
    return {n for n in before if "running" not in n and not np.array_equal(before[n], after[n])}


def below(*modules):
    return {row.name for row in param_table(TREE).trainable if row.name.split(".")[0] in modules}


@pytest.mark.parametrize("per_epoch", [1, 4])
def test_seven_groups_under_steplr_have_our_lrs_at_every_step(per_epoch):
    """Seed 002: Adam takes each group's lr, and StepLR(30, 0.1) divides all of them by ten every 30 epochs."""
    epochs = 70
    optimizer = torch.optim.Adam(param_groups(ResNet18()))
    scheduler, native = StepLR(optimizer, step_size=30, gamma=0.1), []
    for _ in range(epochs):
        for _ in range(per_epoch):
            native.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
        scheduler.step()
    plan = plan_of(epochs * per_epoch, 30 * per_epoch)
    assert [g.name for g in plan.groups] == list(MODULES)
    np.testing.assert_allclose(plan.table(), native, rtol=1e-12)
    corner = plan.table()[30 * per_epoch - 1 : 30 * per_epoch + 1, [0, -1]]
    np.testing.assert_allclose(corner, [[1e-4, 1e-3], [1e-5, 1e-4]], rtol=1e-12)


def test_seven_groups_end_at_our_weights():
    """Seed 002: different lr for backbone (1e-4) and head (1e-3), with StepLR, moves the weights where our plan does.

    Mended in its loop: `ouputs`, `loss.backwark()`, `scheduler.step()` in the place of `optimizer.step()` (with the
    comment "update the parameters") and `scheduler.zero_grad()`, which no scheduler has."""
    model, ours, steps = ResNet18(), Ours(plan_of(32)), 32
    optimizer = torch.optim.Adam(param_groups(model))
    scheduler, start = StepLR(optimizer, step_size=30, gamma=0.1), model.arrays()
    for step in range(steps):
        native = [group["lr"] for group in optimizer.param_groups]
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        np.testing.assert_allclose(ours.step(step), native, rtol=1e-12)
    difference = largest_difference(ours.arrays(), model.arrays())
    print(f"largest relative difference after {steps} steps: {difference:.1e}")
    assert moved(start, model.arrays()) == below(*MODULES)
    assert difference <= 1e-6


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_the_loop_as_printed_trains_nothing():
    """Seed 002: the scheduler's loop, with only the name `backwark` mended: no weight moves in ten steps, for
    optimizer.step() is missing; the lr falls all the same; `scheduler.zero_grad()` is an AttributeError."""
    model = ResNet18()
    optimizer = torch.optim.Adam(param_groups(model))
    scheduler, start = StepLR(optimizer, step_size=3, gamma=0.1), model.arrays()
    for step in range(10):
        loss_of(model, step).backward()
        scheduler.step()
        with pytest.raises(AttributeError, match="zero_grad"):
            scheduler.zero_grad()
    assert moved(start, model.arrays()) == set()
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(1e-6)


def test_unfreezing_as_printed_freezes_all_and_thaws_nothing():
    """Seed 002: `model.fc.requires_grad = True` sets an attribute on a module, which no parameter reads. After the
    printed loop 0 of 62 parameters train and backward raises; with a mended head the printed lines for layer4 and
    layer3 still leave 2 (the head's). The other way round, `requires_grad = False` on every module freezes nothing."""
    model = ResNet18()
    for param in model.parameters():
        param.requires_grad = False
        model.fc.requires_grad = True
    assert [p.requires_grad for p in model.parameters()] == [False] * 62
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss_of(model, 0).backward()

    model.fc.requires_grad_(True)
    for thaw in ((), ("layer4",), ("layer3",)):
        for name in thaw:
            getattr(model, name).requires_grad = True  # as printed
        assert moved_in_a_step(model) == below("fc")

    model = ResNet18()
    for module in model.modules():
        module.requires_grad = False
    assert moved_in_a_step(model) == below(*MODULES)


def moved_in_a_step(model):
    start, optimizer = model.arrays(), torch.optim.Adam(param_groups(model))
    loss_of(model, 0).backward()
    optimizer.step()
    return moved(start, model.arrays())


@pytest.mark.parametrize("rest", [False, True], ids=["batchnorm trains on", "batchnorm rests"])
def test_progressive_unfreezing_moves_what_was_meant(rest):
    """Seed 002: first the head, some epochs later layer4, again later layer3. Ours (freeze=progressive, stages
    [layer4, layer3]) trains 2, 17 and 32 parameters, and with `requires_grad_`, the fault mended, so does the
    notebook's Adam, to the same weights: what thaws late counts its own steps. The notebook leaves
    the model in training mode, so that frozen batchnorms go on; with the plan's own rule they are in evaluation."""
    plan = plan_of(9, freeze=FreezeSpec("progressive", every=3, stages=["layer4", "layer3"]))
    ours = Ours(plan if rest else replace(plan, batchnorms={}))
    model, before = ResNet18(), ours.arrays()
    optimizer, counts = torch.optim.Adam(param_groups(model)), []
    model.requires_grad_(False)
    for step in range(9):
        with suppress(KeyError):
            getattr(model, {0: "fc", 3: "layer4", 6: "layer3"}[step]).requires_grad_(True)
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.train(norm.weight.requires_grad or not rest)
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        ours.step(step)
        after = ours.arrays()
        assert moved(before, after) == below(*("fc", "layer4", "layer3")[: step // 3 + 1])
        counts.append(len(moved(before, after)))
        before = after
    difference = largest_difference(before, model.arrays())
    print(f"largest relative difference: {difference:.1e}")
    assert counts == [2, 2, 2, 17, 17, 17, 32, 32, 32]
    assert difference <= 1e-6
