"""llr.AdamW and llr.SGD against torch.optim's fused optimizers: to the last bit, whatever happens between two steps."""

import copy
import io
import pickle
import random
import subprocess
import sys
import warnings
from collections import Counter

import pytest
import torch
from layerwise_lr.plugins.torch_plugin import fast
from layerwise_lr.plugins.torch_plugin.plugin import TorchFramework
from torch import nn
from torch.optim import optimizer as torch_optimizer

import layerwise_lr as llr
from layerwise_lr.run import page, reading, resolve

SHAPES = ((5, 3), (5,), (32, 16, 3, 3), (7,), (2, 7, 3), (67,), (1,), (4, 6, 2, 2))
"""The four-dimensional ones are channels_last."""
PAIRS = {
    "adamw": (llr.AdamW, torch.optim.AdamW, {"betas": (0.8, 0.95)}),
    "adam": (fast.Adam, torch.optim.Adam, {}),
    "momentum": (llr.SGD, torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (llr.SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "dampened": (llr.SGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.25, "maximize": True}),
    "sgd": (llr.SGD, torch.optim.SGD, {}),
}
pair = pytest.mark.parametrize("name", PAIRS)


def parameters(dtype=torch.float32, shapes=SHAPES):
    made = torch.Generator().manual_seed(1)
    numbers = [torch.randn(shape, generator=made, dtype=dtype) for shape in shapes]
    return [nn.Parameter(n.to(memory_format=torch.channels_last) if n.dim() == 4 else n) for n in numbers]


def groups_of(params, size=2):
    """Two parameters each: the first and the third group are of equal settings."""
    rates = ((1e-2, 0.1), (2e-2, 0.1), (1e-2, 0.1), (1e-2, 0.0))
    cut = [params[i : i + size] for i in range(0, len(params), size)]
    return [
        {"params": own, "lr": rates[i % 4][0], "weight_decay": rates[i % 4][1], "name": f"g{i}"}
        for i, own in enumerate(cut)
    ]


def gradients(params, seed, without=()):
    made = torch.Generator().manual_seed(seed)
    for index, param in enumerate(params):
        numbers = torch.randn(param.shape, generator=made, dtype=param.dtype) * 0.1
        param.grad = None if index in without else torch.empty_like(param).copy_(numbers)


def numbers_of(optimizer):
    """All that it moves and keeps, by place."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    found = {f"{i}": p for i, p in enumerate(params)}
    return found | {f"{i}/{k}": v for i, p in enumerate(params) for k, v in sorted(optimizer.state.get(p, {}).items())}


def assert_equal(ours, other):
    left, right = numbers_of(ours), numbers_of(other)
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value.dtype == right[key].dtype and torch.equal(value, right[key]), key


@pytest.fixture
def calls(monkeypatch):
    """How often each private kernel is called."""
    seen = Counter()
    assert {fast.way(own, "cpu") for own in fast.CLASSES} == {fast.OURS}
    for name in ("_fused_adamw_", "_fused_adam_", "_fused_sgd_"):
        kept = getattr(torch, name)

        def called(*given, name=name, kept=kept, **options):
            seen[name] += 1
            return kept(*given, **options)

        monkeypatch.setattr(torch, name, called)
    return seen


@pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_twenty_steps_with_scheduler_clipping_and_a_round_trip_are_torch_s(name, dtype, calls):
    ours, other, options = PAIRS[name]
    trusted = fast.way(other, "cpu", dtype) == fast.OURS
    assert trusted or dtype == torch.bfloat16  # in which torch 2.13's kernel is wrong
    sides = []
    for make, fused in ((ours, None), (other, True if trusted else None)):
        params = parameters(dtype)
        optimizer = make(groups_of(params), fused=fused, **options)
        sides.append([params, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))])
    for step in range(20):
        for side in sides:
            params, optimizer, scheduler = side
            gradients(params, step)
            nn.utils.clip_grad_norm_(params, 0.5)
            before = calls.total()
            optimizer.step()
            if type(optimizer) is ours and trusted:
                assert calls.total() - before == 3, "one call for each lr and weight decay that there is"
            scheduler.step()
            if step == 9:
                kept = io.BytesIO()
                torch.save((optimizer.state_dict(), scheduler.state_dict()), kept)
                again = type(optimizer)(groups_of(params), fused=optimizer.defaults["fused"], **options)
                then = torch.optim.lr_scheduler.LambdaLR(again, lambda step: 1 / (1 + step))
                states = torch.load(io.BytesIO(kept.getvalue()), weights_only=True)
                again.load_state_dict(states[0])
                then.load_state_dict(states[1])
                side[1:] = again, then
        assert_equal(sides[0][1], sides[1][1])


@pair
def test_float64_is_the_for_loop_s_but_for_rounding(name):
    ours, other, options = PAIRS[name]
    left, right = parameters(torch.float64), parameters(torch.float64)
    fused, loop = ours(groups_of(left), **options), other(groups_of(right), foreach=False, fused=False, **options)
    for step in range(20):
        for params, optimizer in ((left, fused), (right, loop)):
            gradients(params, step, without=(step % 5,) if step > 2 else ())
            optimizer.step()
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Drama:
    """One optimizer to which things happen; two of the same seed are treated alike."""

    def __init__(self, make, options, fused, seed):
        self.make, self.options, self.fused, self.chance = make, options, fused, random.Random(seed)
        self.params = parameters()
        self.optimizer = make(groups_of(self.params[:6], size=1), fused=fused, **options)
        self.late = self.params[6:]
        self.frozen = set()
        self.steps = 0

    def act(self):
        events = [
            self.train,
            self.train,
            self.train,
            self.lr,
            self.decay,
            self.freeze,
            self.add,
            self.trip,
            self.copied,
        ]
        event = self.chance.choice([*events, self.state_moved, self.data_moved, self.wiped, self.closure, self.zeros])
        event()
        return event.__name__

    def live(self):
        """Whose turn it is; torch's fused SGD asks that in a group all or none have begun."""
        return [i for i in range(len(self.params) - len(self.late)) if i not in self.frozen]

    def train(self, **more):
        self.steps += 1
        without = set(range(len(self.params))) - set(self.live())
        if self.chance.random() < 0.3:
            without.add(self.chance.randrange(6))
        gradients(self.params, self.steps, without)
        self.optimizer.step(**more)

    def closure(self):
        self.train(closure=lambda: torch.ones((), requires_grad=True) * 2)

    def lr(self):
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * self.chance.choice([0.5, 1.0, 1.1])

    def decay(self):
        self.chance.choice(self.optimizer.param_groups)["weight_decay"] = self.chance.choice([0.0, 0.1, 0.3])

    def freeze(self):
        self.frozen ^= {self.chance.randrange(6)}

    def add(self):
        if self.late:
            self.optimizer.add_param_group({"params": [self.late.pop(0)], "lr": 0.01})

    def trip(self):
        saved = copy.deepcopy(self.optimizer.state_dict())
        fresh = [{"params": list(group["params"])} for group in self.optimizer.param_groups]
        self.optimizer = self.make(fresh, fused=self.fused, **self.options)
        self.optimizer.load_state_dict(saved)

    def copied(self):
        """As a pickle gives it back, with parameters of its own."""
        self.optimizer, self.params, self.late = pickle.loads(pickle.dumps((self.optimizer, self.params, self.late)))

    def state_moved(self):
        """As code that moves an optimizer between devices does it."""
        for state in self.optimizer.state.values():
            for key, value in state.items():
                state[key] = value.clone()

    def data_moved(self):
        for param in self.params:
            param.data = param.data.clone()

    def zeros(self):
        self.optimizer.zero_grad(set_to_none=self.chance.random() < 0.5)

    def wiped(self):
        if self.chance.random() < 0.3:
            self.optimizer.state.clear()


@pair
@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_the_bits_are_torch_s(name, seed):
    ours, other, options = PAIRS[name]
    left, right = Drama(ours, options, None, seed), Drama(other, options, True, seed)
    told = []
    for _ in range(60):
        told.append(left.act())
        assert right.act() == told[-1]
        assert_equal(left.optimizer, right.optimizer)
    assert left.steps > 8


@pair
def test_half_a_group_thaws(name):
    """torch's fused SGD cannot: compared with its for-loop."""
    ours, other, options = PAIRS[name]
    left, right = parameters(torch.float64), parameters(torch.float64)
    fused, loop = ours(left, lr=0.1, **options), other(right, lr=0.1, fused=False, **options)
    for step in range(6):
        for params, optimizer in ((left, fused), (right, loop)):
            gradients(params, step, without=(0, 3) if step < 2 else (5,) if step == 4 else ())
            optimizer.step()
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert numbers_of(fused).keys() == numbers_of(loop).keys()


@pair
def test_states_go_to_torch_and_back(name):
    ours, other, options = PAIRS[name]
    sides = []
    for makes in ((ours, other, ours), (other, other, other)):
        params, state = parameters(), None
        for turn, make in enumerate(makes):
            optimizer = make(groups_of(params), fused=True, **options)
            if state is not None:
                optimizer.load_state_dict(state)
            for step in range(3):
                gradients(params, 3 * turn + step)
                optimizer.step()
            state = optimizer.state_dict()
        sides.append(optimizer)
    assert_equal(*sides)
    assert sides[0].state_dict()["param_groups"] == sides[1].state_dict()["param_groups"]


def test_what_it_is():
    params = parameters()
    optimizer = llr.AdamW(params, 1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert type(optimizer).__name__ == "AdamW"
    assert llr.SGD(params).defaults == torch.optim.SGD(params).defaults
    assert optimizer.defaults == torch.optim.AdamW(params).defaults
    with pytest.raises(ValueError, match="Invalid learning rate"):
        llr.AdamW(params, lr=-1.0)
    with pytest.raises(ValueError, match="more than one parameter group"):
        llr.AdamW([{"params": params[:2]}, {"params": params[2:4]}, {"params": params[1:2]}])
    with pytest.raises(ValueError, match="with/without names"):
        llr.SGD([{"params": [("a", params[0])]}, {"params": params[1:2]}])
    with pytest.raises(ValueError, match="empty parameter list"):
        llr.SGD([])
    with pytest.raises(TypeError, match="iterable of Tensors"):
        llr.SGD(params[0])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": params[:1]})


def test_hooks_are_called_once_each():
    seen = []
    params = parameters()
    torch.optim.AdamW(parameters())  # torch has wrapped its own step by now
    optimizer = llr.AdamW(params)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    everywhere = torch_optimizer.register_optimizer_step_post_hook(lambda *_: seen.append("everywhere"))
    try:
        for options in ({}, {"foreach": True}):  # this file's way, torch's way
            for group in optimizer.param_groups:
                group.update(options)
            gradients(params, 0)
            optimizer.step()
            assert seen == ["before", "after", "everywhere"]
            seen.clear()
    finally:
        everywhere.remove()
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#AdamW.step" in {event.name for event in profile.function_events}


def test_the_trial_tells_no_hook(monkeypatch):
    seen = []
    fast.way.cache_clear()
    everywhere = torch_optimizer.register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer))
    try:
        assert fast.way(torch.optim.AdamW, "cpu") == fast.way(torch.optim.SGD, "cpu") == fast.OURS
    finally:
        everywhere.remove()
    assert seen == []


FLAGS = (
    *({"foreach": True}, {"foreach": False}, {"fused": False}, {"fused": True, "amsgrad": True}),
    *({"differentiable": True}, {"amsgrad": True}, {"maximize": True, "fused": True}, {"eps": 0.1, "fused": True}),
)


@pytest.mark.parametrize("options", FLAGS, ids=str)
def test_flags_are_torch_s(options):
    sides = []
    for make in (llr.AdamW, torch.optim.AdamW):
        params = [p.detach() for p in parameters()] if "differentiable" in options else parameters()
        optimizer = make(params, **options)
        for step in range(3):
            gradients(params, step)
            optimizer.step()
        sides.append(optimizer)
    assert_equal(*sides)


def test_without_torch_there_is_no_such_name():
    code = "import sys; sys.modules['torch'] = None; import layerwise_lr as llr; print(hasattr(llr, 'SGD')); llr.AdamW"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"
    assert "layerwise_lr.AdamW needs torch: pip install torch" in done.stderr


def test_what_fused_kernels_do_not_take_is_torch_s():
    sides = []
    for make in (llr.SGD, torch.optim.SGD):
        table = nn.Embedding(5, 3, sparse=True)
        with torch.no_grad():
            table.weight.copy_(torch.arange(15.0).reshape(5, 3))
        optimizer = make([table.weight], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            table(torch.tensor([1, 3, 1])).sum().backward()
            optimizer.step()
        sides.append(optimizer)
    assert_equal(*sides)
    number = nn.Parameter(torch.tensor([1 + 2j]))
    number.grad = torch.tensor([1j])
    llr.SGD([number], lr=0.5).step()
    assert torch.equal(number, torch.tensor([1 + 1.5j]))


@pair
def test_grad_scaler_s_two_numbers(name):
    ours, other, options = PAIRS[name]
    sides = []
    for make in (ours, other):
        params = parameters()
        optimizer = make(groups_of(params), fused=True, **options)
        for step, overflow in enumerate((0.0, 1.0, 0.0)):
            gradients(params, step)
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(overflow)
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        sides.append(optimizer)
    assert_equal(*sides)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    params = parameters(shapes=SHAPES[:1])
    optimizer = ours(params, lr=0.1, **options)
    scaler.scale((params[0] * 2).sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(params[0].grad, torch.full((5, 3), 2.0))


def test_a_first_step_that_overflows_leaves_no_momentum():
    """torch's leaves memory as it found it there."""
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = llr.SGD([param], lr=0.1, momentum=0.9, fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(param, torch.ones(3))
    assert torch.equal(optimizer.state[param]["momentum_buffer"], torch.zeros(3))


def test_an_lr_in_a_tensor_is_read_at_every_step():
    lr, sides = torch.tensor(0.1), []
    for make in (llr.AdamW, torch.optim.AdamW):
        params = parameters()
        optimizer = make(params, lr=lr.fill_(0.1), fused=True)
        for step in range(3):
            gradients(params, step)
            lr.mul_(0.5)
            optimizer.step()
        sides.append(optimizer)
    assert_equal(*sides)


@pair
def test_gradients_laid_out_otherwise(name):
    """What channels_last promises of the parameter alone."""
    ours, other, options = PAIRS[name]
    sides = []
    for make in (ours, other):
        params = parameters()
        optimizer = make(params, lr=0.1, fused=True, **options)
        for step in range(4):
            gradients(params, step)
            if step in (0, 2):
                for param in params:
                    param.grad = param.grad.contiguous()
            optimizer.step()
        sides.append(optimizer)
    assert_equal(*sides)


def test_others_may_keep_things_of_theirs_in_a_state():
    sides = []
    for make in (llr.SGD, torch.optim.SGD):
        params = parameters()
        optimizer = make(params, lr=0.1, fused=True)
        for step in range(3):
            for param in params:
                optimizer.state[param]["average"] = torch.ones(1)
            gradients(params, step)
            optimizer.step()
            if step == 1:
                optimizer.param_groups[0]["momentum"] = 0.5
        sides.append(optimizer)
    assert_equal(*sides)


def test_a_parameter_is_replaced():
    sides = []
    for make in (llr.AdamW, torch.optim.AdamW):
        params = parameters()
        optimizer = make(groups_of(params), fused=True)
        for step in range(6):
            gradients(params, step)
            optimizer.step()
            if step == 2:
                new = nn.Parameter(params[4].detach().double())
                state = optimizer.state.pop(params[4])
                optimizer.state[new] = {k: v.double() if k != "step" else v for k, v in state.items()}
                optimizer.param_groups[2]["params"][0] = params[4] = new
            if step == 4:
                for group in optimizer.param_groups:
                    group["params"] = group["params"][1:]
        sides.append(optimizer)
    assert_equal(*sides)


def test_counts_are_each_parameter_s_own():
    """Though they are one tensor: what is written to one is not written to another, and each can be saved alone."""
    params = parameters()
    optimizer = llr.AdamW(params)
    for step in range(3):
        gradients(params, step, without=(1,) if step else ())
        optimizer.step()
    steps = [float(optimizer.state[p]["step"]) for p in params]
    assert steps == [3.0, 1.0, *[3.0] * 6]
    optimizer.state[params[2]]["step"].fill_(10.0)
    gradients(params, 4)
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [4.0, 2.0, 11.0, *[4.0] * 5]
    from safetensors.torch import save

    state = optimizer.state_dict()["state"]
    assert save({f"{i}/{k}": v.contiguous() for i, own in state.items() for k, v in own.items()})


def test_merged_groups_keep_their_names():
    params = parameters()
    each = [
        {"params": [p], "lr": 0.1 * (1 + i % 2), "name": f"p{i}", "param_names": [f"p{i}"]}
        for i, p in enumerate(params)
    ]
    optimizer = llr.SGD(copy.copy(each), momentum=0.9, merge=True)
    assert [group["names"] for group in optimizer.param_groups] == [[f"p{i}" for i in range(k, 8, 2)] for k in (0, 1)]
    assert [group["param_names"] for group in optimizer.param_groups] == [
        group["names"] for group in optimizer.param_groups
    ]
    assert optimizer.param_groups[1]["params"] == params[1::2] or all(
        a is b for a, b in zip(optimizer.param_groups[1]["params"], params[1::2], strict=True)
    )
    assert len(llr.SGD(each).param_groups) == 8
    lists = [{"params": [p], "betas": [0.9, 0.99]} for p in params]
    assert len(llr.AdamW(lists, merge=True).param_groups) == 8, "settings that cannot be told apart stay apart"
    assert len(llr.AdamW(params, merge=True).param_groups) == 1


@pytest.mark.parametrize("name", ["_fused_adamw_", "_fused_sgd_"])
def test_a_kernel_that_is_gone_or_differs_is_not_used(name, monkeypatch):
    kept = getattr(torch, name)
    kind = {"_fused_adamw_": "adamw", "_fused_sgd_": "momentum"}[name]
    ours, other, options = PAIRS[kind]

    def greedy(params, *given, **more):
        """Right for a group alone, wrong where groups share a call."""
        kept(params, *given, **more)
        if len(params) > 2:
            params[0].add_(1e-6)

    def trained(make, fused):
        params = parameters()
        optimizer = make(groups_of(params), fused=fused, **options)
        for step in range(3):
            gradients(params, step)
            optimizer.step()
        return optimizer

    try:
        for hide, way, fused in (
            (lambda m: m.setattr(torch, name, greedy), fast.FUSED, True),
            (lambda m: m.delattr(torch, name), fast.DEFAULT, None),
        ):
            fast.way.cache_clear()
            with monkeypatch.context() as patch:
                hide(patch)
                assert fast.way(other, "cpu") == way
                assert_equal(trained(ours, fused), trained(other, fused))
    finally:
        fast.way.cache_clear()
    assert fast.way(other, "cpu") == fast.OURS


def test_the_plan_s_groups_and_its_scheduler(calls):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = llr.plan(net, lr=0.1, layer_decay=0.5, weight_decay=0.01, schedule="cosine", warmup=0.1, steps=20)
    optimizer = llr.AdamW(plan.param_groups(net))
    scheduler = plan.scheduler(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(5, 4)).square().sum().backward()
            optimizer.step()
            scheduler.step()
    assert llr.verify(net, optimizer, scheduler)
    before = calls.total()
    optimizer.step()
    assert calls.total() - before == len({(g["lr"], g["weight_decay"]) for g in optimizer.param_groups})


def test_a_compiled_step_is_torch_s():
    params = parameters(shapes=SHAPES[:2])
    optimizer = llr.AdamW(params)
    seen = []
    torch._dynamo.reset()
    compiled = torch.compile(lambda: optimizer.step(), backend=lambda graph, _: seen.append(graph) or graph.forward)
    for step in range(2):
        gradients(params, step)
        compiled()
    left, right = params, parameters(shapes=SHAPES[:2])
    other = torch.optim.AdamW(right)
    for step in range(2):
        gradients(right, step)
        other.step()
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b)
    assert seen


@pytest.mark.parametrize("name", ["adamw", "adam", "momentum", "sgd"])
def test_runs_use_them_and_tell_of_it(name):
    given = {"model": {"name": "mlp", "width": 4}, "data": {"name": "digits"}, "steps": 3, "optimizer": {"name": name}}
    config = resolve(reading.from_data(given))
    for precision in ("fp32", "fp64"):
        framework = TorchFramework("cpu", precision=precision)
        assert page.environment(config, framework)["optimizer_steps"] == {name: fast.OURS}
        subject, _, plan = page.plan_of(config)
        model = framework.make_model(subject.tree)
        (optimizer,) = framework.make_optimizer(model, framework.make_groups(model, plan), plan)
        assert type(optimizer) in fast.CLASSES.values()
        assert {group["fused"] for group in optimizer.param_groups} == {True}
    lion = resolve(reading.from_data({**given, "optimizer": {"name": "lion"}}))
    assert "optimizer_steps" not in page.environment(lion, framework)
