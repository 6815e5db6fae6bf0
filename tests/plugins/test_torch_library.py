"""layerwise_lr as a library, on plain torch models in plain loops; the zoo and other people's loops are in tests/zoo."""

import copy
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import layerwise_lr as llr


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x):
        return x + self.fc2(self.fc1(self.norm(x)).relu())


class Net(nn.Module):
    def __init__(self, blocks=3, dim=6, classes=4):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, dim))
        self.stem, self.drop = nn.Linear(5, dim), nn.Dropout(0.5)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(blocks))
        self.bn, self.head = nn.BatchNorm1d(dim), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.drop(self.stem(x)) + self.token
        for block in self.blocks:
            x = block(x)
        return self.head(self.bn(x))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def law(step, depth, lr=0.1, decay=0.5, top=4, warmup=5, steps=50):
    """By hand: linear warm-up from 0, then half a cosine to 0."""
    rises = step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    return lr * decay ** (top - depth) * rises


DEPTH = {"token": 0, "stem": 0, "blocks.0": 1, "blocks.1": 2, "blocks.2": 3, "bn": 4, "head": 4}


def expected(step):
    return {p: law(step, d) for p, d in DEPTH.items()}


def arrived(net, optimizer):
    """lr by the first words of each parameter's name, as the optimizer holds it."""
    names = {id(p): n for n, p in net.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            key = next(k for k in DEPTH if names[id(p)].startswith(k))
            found.setdefault(key, set()).add(float(group["lr"]))
    return {key: lrs.pop() for key, lrs in found.items() if len(lrs) == 1}


def make(net, **more):
    given = {"lr": 0.1, "layer_decay": 0.5, "weight_decay": 0.01, "schedule": "cosine", "warmup": 0.1, "steps": 50}
    return llr.plan(net, **{**given, **more})


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam])
def test_a_plain_loop_gets_the_law(net, optimizer):
    plan = make(net)
    native = optimizer(plan.param_groups(net), lr=123.0)
    scheduler = plan.scheduler(native)
    for step in range(50):
        assert arrived(net, native) == pytest.approx(expected(step))
        net(torch.randn(4, 5)).sum().backward()
        native.step()
        scheduler.step()
        native.zero_grad()


def test_lrs_can_be_written_by_hand(net):
    plan = make(net)
    native = torch.optim.SGD(plan.param_groups(net), lr=1.0)
    for group, lr in zip(native.param_groups, plan.lrs(20), strict=True):
        group["lr"] = lr
    assert arrived(net, native) == pytest.approx(expected(20))


def test_weight_decay_spares_biases_norms_and_tokens(net):
    names = {id(p): n for n, p in net.named_parameters()}
    groups = make(net).param_groups(net)
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {n for n, p in net.named_parameters() if p.dim() > 1 and n != "token"}
    assert all(g["weight_decay"] == 0.01 for g in make(net, no_weight_decay=False).param_groups(net))


def test_planning_leaves_the_model_as_it_was(net):
    net.drop.eval()
    net(torch.randn(4, 5)).sum().backward()
    held = copy.deepcopy(net.state_dict())
    flags = [m.training for m in net.modules()]
    grads = [p.grad.clone() for p in net.parameters()]
    hooks = [len(m._forward_pre_hooks) for m in net.modules()]
    before = torch.get_rng_state()
    make(net)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(held.values(), net.state_dict().values(), strict=True))
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))
    assert [len(m._forward_pre_hooks) for m in net.modules()] == hooks


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: nn.DataParallel(torch.compile(m))])
def test_wrappers_change_no_depth(net, wrap):
    plain, wrapped = make(net), make(wrap(net))
    assert wrapped.depths == plain.depths
    assert wrapped.plan.sha256 == plain.plan.sha256
    assert [len(g["params"]) for g in plain.param_groups(wrap(net))] == [len(g.params) for g in plain.groups]


def test_frozen_parts_are_in_no_group_and_count_in_the_depths(net):
    for p in net.blocks[2].parameters():
        p.requires_grad_(False)
    plan = make(net)
    assert not [n for g in plan.groups for n in g.params if n.startswith("blocks.2")]
    assert plan.depths["head.weight"] == 4
    assert plan.depths["blocks.1.fc1.weight"] == 2


def test_a_tied_weight_has_the_depth_of_its_first_use():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm_head, self.emb = nn.Linear(6, 10, bias=False), nn.Embedding(10, 6)
            self.layers = nn.ModuleList(Block(6) for _ in range(2))
            self.emb.weight = self.lm_head.weight

        def forward(self, x):
            x = self.emb(x)
            for layer in self.layers:
                x = layer(x)
            return self.lm_head(x)

    plan = llr.plan(Tied(), lr=0.1, layer_decay=0.5)
    assert plan.depths["lm_head.weight"] == 0  # it is registered first as lm_head's, and used first as emb's
    assert sum(name.endswith(("lm_head.weight", "emb.weight")) for g in plan.groups for name in g.params) == 1


def test_an_input_can_be_given_in_four_ways():
    class Two(Net):
        def forward(self, x, y=None):
            assert y is not None
            return super().forward(x + y)

    net, x = Two(), torch.randn(2, 5)
    assert "no made-up input fits" in " ".join(make(net).reasons)
    for batch in ((x, x), {"x": x, "y": x}, lambda model: model(x, x)):
        plan = make(net, batch=batch)
        assert plan.confidence == 1.0
        assert plan.depths["blocks.2.fc1.weight"] == 3
    assert make(Net(), batch=x).confidence == 1.0


def test_a_second_writer_is_told_of_at_once(net):
    plan = make(net)
    native = torch.optim.AdamW(plan.param_groups(net))
    scheduler = plan.scheduler(native)
    net(torch.randn(4, 5)).sum().backward()
    native.step()
    scheduler.step()
    torch.optim.lr_scheduler.OneCycleLR(native, max_lr=1e-3, total_steps=50)
    with pytest.raises(llr.UserError, match="somebody else writes learning rates"):
        native.step()


def test_an_optimizer_of_other_groups_is_refused(net):
    with pytest.raises(llr.UserError, match=r"make it of plan\.param_groups"):
        make(net).scheduler(torch.optim.SGD(net.parameters(), lr=0.1))


def test_another_model_is_refused_by_the_names(net):
    plan = make(net)
    with pytest.raises(llr.UserError, match=r"8 parameters? are new|6 parameters are new or thawed \(blocks\.3"):
        plan.param_groups(Net(blocks=4))


def test_the_scheduler_goes_on_from_its_state(net):
    plan = make(net)
    native = torch.optim.AdamW(plan.param_groups(net))
    scheduler = plan.scheduler(native)
    for _ in range(7):
        native.step()
        scheduler.step()
    state = copy.deepcopy((native.state_dict(), scheduler.state_dict()))
    again = torch.optim.AdamW(plan.param_groups(net))
    resumed = plan.scheduler(again)
    again.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    assert arrived(net, again) == pytest.approx(expected(7))
    again.step()
    resumed.step()
    assert resumed.get_last_lr() == plan.lrs(8)
    other = make(net, lr=0.2)
    with pytest.raises(llr.UserError, match=r"another plan.*start=7"):
        other.scheduler(torch.optim.AdamW(other.param_groups(net))).load_state_dict(state[1])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"steps": None}, "steps is missing"),
        ({"steps": 0}, "steps=0"),
        ({"schedule": "cosinus"}, "did you mean 'cosine'"),
        ({"convention": "mea"}, "did you mean 'mae'"),
        ({"groups": {"a": {"match": ["haed.*"]}}}, "matches no parameter"),
        ({"groups": {"a": {"mach": ["head.*"]}}}, "mach"),
        ({"freeze": {"strategi": "none"}}, "strategi"),
        ({"warmup": 60}, "warmup"),
        ({"warmup": -1}, "warmup"),
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"layer_decay": 0.5, "stem_scale": 0.1}, "stem_scale"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_mistakes_are_one_line(net, more, told):
    with pytest.raises(llr.UserError, match=told) as caught:
        make(net, **more)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused():
    with pytest.raises(llr.UserError, match=r"builtins\.int is no model of torch"):
        llr.plan(3, lr=0.1)


def test_the_library_needs_numpy_and_the_framework_alone():
    code = """
import sys
from pathlib import Path
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("hydra", "omegaconf", "yaml", "matplotlib", "PIL", "safetensors", "scipy", "rich", "jinja2"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
import torch
import layerwise_lr as llr
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
plan = llr.plan(model, lr=0.1, layer_decay=0.5)
plan.scheduler(torch.optim.SGD(plan.param_groups(model)))
print(plan)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "layer_0" in done.stdout


def test_it_prints_as_a_table(net):
    text = str(make(net))
    assert max(map(len, text.splitlines())) <= 80
    assert "layer_4" in text
    assert "confidence 1.00" in text


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_the_page_s_own_lines_run(net, page):
    text = (Path(__file__).parents[2] / page).read_text()
    blocks = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "scheduler = " in b]
    assert blocks
    old = make(net, layer_decay=0.9)
    checkpoint = {"plan": old.to_dict(), "step": 5, "optimizer": trained(net, old).state_dict()}
    for block in blocks:
        batch = (torch.randn(4, 5), torch.arange(4))
        there = {"model": net, "torch": torch, "batch": batch, "llr": llr, "plan": make(net), "checkpoint": checkpoint}
        exec(block, there)
        assert there["scheduler"].get_last_lr() == there["plan"].lrs(there["scheduler"].last_epoch)


def trained(net, plan, steps=5):
    torch.manual_seed(3)
    native = torch.optim.AdamW(plan.param_groups(net), betas=(0.8, 0.9))
    scheduler = plan.scheduler(native)
    for _ in range(steps):
        net(torch.randn(4, 5)).square().sum().backward()
        native.step()
        scheduler.step()
        native.zero_grad()
    return native


def moments(net, native):
    return {n: native.state[p]["exp_avg"].clone() for n, p in net.named_parameters() if p in native.state}


@pytest.mark.parametrize("choice", ["adopt", "keep"])
def test_another_plan_on_an_old_state(net, choice):
    old = make(net)
    native = trained(net, old)
    state, before = copy.deepcopy(native.state_dict()), moments(net, native)
    new = make(net, layer_decay=0.8, groups={"first": {"match": ["blocks.0.*"], "lr_scale": 2.0}}, weight_decay=0.2)
    change = new.on(old.to_dict(), step=5)
    assert {m.name for m in change.moved} == {n for n, _ in net.named_parameters() if not n.startswith(("head", "bn"))}
    row = next(m for m in change.moved if m.name == "stem.weight")
    assert (row.lr_before, row.lr_after) == pytest.approx((law(5, 0), law(5, 0, decay=0.8)))
    assert "adopt() the new plan, or keep() the old" in str(change)
    plan = getattr(change, choice)()
    again = torch.optim.AdamW(plan.param_groups(net))
    again.load_state_dict(change.state(state, plan))
    after = moments(net, again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    plan.scheduler(again, start=5)
    names = {id(p): n for n, p in net.named_parameters()}
    lrs = {names[id(p)]: g["lr"] for g in again.param_groups for p in g["params"]}
    decay, twice = (0.8, 2.0) if choice == "adopt" else (0.5, 1.0)
    assert lrs["stem.weight"] == pytest.approx(law(5, 0, decay=decay))
    assert lrs["blocks.0.fc1.weight"] == pytest.approx(twice * law(5, 1, decay=decay))
    assert {g["betas"] for g in again.param_groups} == {(0.8, 0.9)}
    assert {g["weight_decay"] for g in again.param_groups} == {0, 0.2 if choice == "adopt" else 0.01}
    again.step()


def test_equal_plans_are_told_and_new_parameters_begin_without_state(net):
    old = make(net)
    assert "the plans are equal" in str(make(net).on(old.plan, 3))
    state = trained(net, old).state_dict()
    torch.manual_seed(1)
    grown = Net(blocks=4)
    change = make(grown).on(old.to_dict(), 5)
    with pytest.raises(llr.UserError, match=r"6 parameters are not in both plans \(blocks\.3"):
        change.keep()
    native = torch.optim.AdamW(change.adopt().param_groups(grown))
    native.load_state_dict(change.state(state, change.adopt()))
    fresh = {n for n, p in grown.named_parameters() if p not in native.state}
    assert fresh == {n for n, _ in grown.named_parameters() if n.startswith("blocks.3")}


def test_a_state_of_yet_another_plan_is_refused(net):
    state = torch.optim.AdamW(net.parameters()).state_dict()
    change = make(net, layer_decay=0.8).on(make(net).plan, 5)
    with pytest.raises(llr.UserError, match="saved under another plan"):
        change.state(state, change.adopt())


def test_the_scheduler_knows_lrs_in_tensors_and_groups_of_others(net):
    plan, extra = make(net), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW(plan.param_groups(net))
    scheduler = plan.scheduler(optimizer)
    optimizer.add_param_group({"params": [extra], "lr": 7.0})
    for step in range(1, 12):
        optimizer.step()
        if step == 6:  # as one does before a step is compiled
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"])
            held = [group["lr"] for group in optimizer.param_groups]
            optimizer.step()
        scheduler.step()
        own = SimpleNamespace(param_groups=optimizer.param_groups[:-1])
        assert arrived(net, own) == pytest.approx(expected(step), rel=1e-6)
        assert [float(lr) for lr in scheduler.get_last_lr()] == [float(g["lr"]) for g in optimizer.param_groups]
        assert float(optimizer.param_groups[-1]["lr"]) == 7.0
    assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, held, strict=True))
