"""llr.verify on torch: what it says of each disease and its healthy twin, and that it leaves no trace."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import verify_cases
from torch import nn
from torch.optim import lr_scheduler
from verify_cases import SAM, Lars, Lion, Net, Quantized, batch, everything, groups, net, train

import layerwise_lr as llr
from layerwise_lr.framework.native import Report, examine

Optimizers = dict[str, Callable[[Net], Any]]
OPTIMIZERS: Optimizers = {
    "sgd": lambda m: torch.optim.SGD(groups(m)),
    "momentum": lambda m: torch.optim.SGD(groups(m), momentum=0.9, weight_decay=0.01),
    "nesterov": lambda m: torch.optim.SGD(groups(m), momentum=0.9, nesterov=True),
    "dampening": lambda m: torch.optim.SGD(groups(m), momentum=0.9, dampening=0.1),
    "adam": lambda m: torch.optim.Adam(groups(m), weight_decay=0.01),
    "adamw": lambda m: torch.optim.AdamW(groups(m)),
    "amsgrad": lambda m: torch.optim.AdamW(groups(m), amsgrad=True),
    "maximize": lambda m: torch.optim.AdamW(groups(m), maximize=True),
    "fused": lambda m: torch.optim.AdamW(groups(m), fused=True),
    "foreach": lambda m: torch.optim.AdamW(groups(m), foreach=True),
    "foreach sgd": lambda m: torch.optim.SGD(groups(m), momentum=0.9, foreach=True),
    "rmsprop": lambda m: torch.optim.RMSprop(groups(m), momentum=0.9),
    "nadam": lambda m: torch.optim.NAdam(groups(m)),
    "radam": lambda m: torch.optim.RAdam(groups(m)),
    "adagrad": lambda m: torch.optim.Adagrad(groups(m)),
    "adadelta": lambda m: torch.optim.Adadelta(groups(m)),
    "adamax": lambda m: torch.optim.Adamax(groups(m)),
    "asgd": lambda m: torch.optim.ASGD(groups(m)),
    "adafactor": lambda m: torch.optim.Adafactor(groups(m)),
    "lion": lambda m: Lion(groups(m), weight_decay=0.01),
    "lars": lambda m: Lars(groups(m)),
    "8 bit": lambda m: Quantized(groups(m)),
    "sam": lambda m: SAM(groups(m), torch.optim.SGD, lr=1e-3, momentum=0.9),
}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "constant": lambda o: lr_scheduler.ConstantLR(o),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, [1e-5, 1e-4, 1e-3], total_steps=9, cycle_momentum=False),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, [1e-6, 1e-5, 1e-4], [1e-5, 1e-4, 1e-3], 3, cycle_momentum=False),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 5)], [3]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def names(report: Report) -> list[str]:
    return [fault.name for fault in report.faults]


def stem(report: Report) -> float:
    return report.lrs["stem.weight"]


# --- what is measured


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 3])
def test_the_lr_of_every_optimizer_is_measured_and_found_right(kind: str, steps: int) -> None:
    model = net()
    optimizer = OPTIMIZERS[kind](model)
    train(model, optimizer, steps)
    report = llr.verify(model, optimizer)
    wanted = {n: lr for n, p in model.named_parameters() for lr in [_lr_of(p, optimizer)]}
    assert report.lrs == pytest.approx(wanted, rel=1e-3)


def _lr_of(parameter: nn.Parameter, optimizer: Any) -> float:
    return next(g["lr"] for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def test_torch_own_are_taken_at_their_formula_and_others_at_two_known_lrs() -> None:
    model = net()
    by = {k: llr.verify(model, OPTIMIZERS[k](model)).measured.by for k in ("sgd", "nesterov", "adam", "fused", "lion")}
    assert by == {**dict.fromkeys(("sgd", "nesterov", "adam", "fused"), "by formula"), "lion": "by two known lrs"}


def test_muon_and_lbfgs() -> None:
    model = net()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    for p in model.parameters():
        p.requires_grad_(p.ndim == 2)
    muon = torch.optim.Muon([{"params": [p], "lr": lr} for p, lr in zip(matrices, verify_cases.LRS, strict=True)])
    assert stem(llr.verify(model, muon)) == pytest.approx(1e-5, rel=1e-2)
    assert stem(llr.verify(model, torch.optim.LBFGS(matrices, lr=0.1, max_iter=1))) == pytest.approx(0.1, rel=1e-3)


def test_a_faint_lr_is_measured_where_float32_would_round_it() -> None:
    model = net()
    report = examine(model, torch.optim.AdamW(groups(model, (1e-12, 1e-4, 1e-3))))
    assert stem(report) == pytest.approx(1e-12, rel=1e-3)


class OnlyFloat32(torch.optim.RMSprop):
    """As a kernel of its own would."""

    def step(self, closure: Any = None) -> Any:
        assert all(p.dtype == torch.float32 for g in self.param_groups for p in g["params"])
        return super().step(closure)


def test_an_optimizer_that_takes_no_float64_is_measured_in_its_own_numbers() -> None:
    model = net()
    healthy = OnlyFloat32(groups(model))
    report = llr.verify(model, healthy, lr_scheduler.CosineAnnealingLR(healthy, 5))
    assert stem(report) == pytest.approx(1e-5, rel=0.05) and "does not step in float64" in report.notes[0]
    sick = OnlyFloat32(groups(model, (1e-3,) * 3, lr_scale=(0.1, 0.5, 1.0)))
    assert names(examine(model, sick)) == ["lr_scale that nobody reads"]


def test_wrapped_model_wrapped_optimizer() -> None:
    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

        def step(self, closure: Any = None) -> None:
            self.optimizer.step()

    model = net()
    report = llr.verify(nn.DataParallel(model), Wrapper(torch.optim.AdamW(groups(model))))
    assert stem(report) == pytest.approx(1e-5)


def test_positions_are_recognised_by_what_is_there() -> None:
    model = net()
    plan = llr.plan(model, lr=1e-3, layer_decay=0.5, schedule="cosine", steps=20, batch=batch()[0])
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    scheduler = plan.scheduler(optimizer)
    for given in ((plan, batch()), (scheduler, plan, batch()), (batch(), scheduler), (plan.plan,), (None, plan)):
        assert llr.verify(model, optimizer, *given).ok
    with pytest.raises(llr.UserError, match="a second plan"):
        llr.verify(model, optimizer, plan, plan)


@pytest.mark.parametrize(
    "given",
    [
        batch(),
        [part.numpy() for part in batch()],
        lambda model: model(batch()[0]).square().sum(),
        batch()[0],
        lambda model: model(batch()[0]).square().sum().backward(),
    ],
    ids=["pair", "arrays", "function", "inputs", "own backward"],
)
def test_batches(given: Any) -> None:
    model = net()
    report = llr.verify(model, torch.optim.AdamW(groups(model), eps=1e-12), batch=given)
    assert stem(report) == pytest.approx(1e-5, rel=1e-3)


def test_what_cannot_be_measured_is_said() -> None:
    class Moody(torch.optim.SGD):
        count = 0

        def step(self, closure: Any = None) -> None:
            type(self).count += 1
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(p.grad, alpha=-group["lr"] * type(self).count)

    model = net()
    with pytest.raises(llr.UserError, match="cannot be measured: two steps of Moody"):
        llr.verify(model, Moody(groups(model)))
    with pytest.raises(llr.UserError, match="is no torch optimizer"):
        llr.verify(model, object())
    with pytest.raises(llr.UserError, match=r"cannot be measured: SparseAdam.step\(\) fails"):  # without a batch
        llr.verify(model, torch.optim.SparseAdam(list(model.parameters())))


# --- no trace is left


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("given", [None, batch()], ids=["drawn", "batch"])
def test_everything_is_as_it_was_for_each_optimizer(kind: str, given: Any) -> None:
    model = net()
    model.norm.eval()
    optimizer = OPTIMIZERS[kind](model)
    train(model, optimizer)
    model.head.bias.grad = None
    model.stem.weight.register_hook(lambda g: g)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 5)
    before = everything(model, optimizer, [scheduler])
    examine(model, optimizer, scheduler, batch=given)
    assert everything(model, optimizer, [scheduler]) == before


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_everything_is_as_it_was_for_each_scheduler(kind: str) -> None:
    model = net()
    optimizer = torch.optim.AdamW(groups(model))
    scheduler = SCHEDULERS[kind](optimizer)
    train(model, optimizer)
    before = everything(model, optimizer, [scheduler, *getattr(scheduler, "_schedulers", ())])
    report = examine(model, optimizer, scheduler)
    assert everything(model, optimizer, [scheduler, *getattr(scheduler, "_schedulers", ())]) == before
    assert report.measured.steps[-1] >= 1
    assert names(report) == []


@pytest.mark.parametrize("when", ["in the forward", "in a step", "in a step of the scheduler", "in the middle"])
def test_everything_is_as_it_was_after_an_exception(when: str) -> None:
    model = net()
    optimizer = torch.optim.AdamW(groups(model))
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    train(model, optimizer)

    class Stop(BaseException):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    given: Any = None
    if when == "in the forward":

        def given(model: Net) -> torch.Tensor:
            model.norm.running_mean.fill_(7)
            torch.manual_seed(5)
            raise Stop

    elif when == "in a step":
        optimizer.register_step_post_hook(stop)
    elif when == "in a step of the scheduler":
        scheduler.step = stop
    else:
        scheduler.step = lambda calls=[]: calls.append(1) or (stop() if len(calls) > 3 else None)
    before = everything(model, optimizer, [scheduler])
    with pytest.raises(Stop):
        llr.verify(model, optimizer, scheduler, given)
    assert everything(model, optimizer, [scheduler]) == before


# --- diseases, each beside its healthy twin


def test_lr_scale_that_nobody_reads() -> None:
    model = net()
    sick = torch.optim.AdamW(groups(model, (1e-3,) * 3, lr_scale=(0.01, 0.1, 1.0)))
    with pytest.raises(llr.LrMismatch, match="lr_scale that nobody reads") as told:
        llr.verify(model, sick)
    assert (
        "0.001" in told.value.report.faults[0].measured and "1e-05 0.0001 0.001" in told.value.report.faults[0].expected
    )
    assert llr.verify(model, torch.optim.AdamW(groups(model, lr_scale=(0.01, 0.1, 1.0)))).ok
    with pytest.raises(llr.ModelLrMismatch, match="nobody reads"):
        llr.verify(model, sick, lr_scheduler.CosineAnnealingLR(sick, 10))
    sick.register_step_pre_hook(_scaled_for_this_step)
    assert names(examine(model, sick)) == []


def _scaled_for_this_step(optimizer: Any, *_: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * group["lr_scale"]


def test_one_lr_though_the_plan_has_several() -> None:
    model = net()
    plan = llr.plan(model, lr=1e-3, layer_decay=0.5, batch=batch()[0])
    sick = torch.optim.AdamW(model.parameters(), lr=1e-3)  # BEiT, weight_decay=0: one group
    assert names(examine(model, sick)) == []
    assert names(examine(model, sick, plan)) == ["no layer-wise lr at all"]
    assert llr.verify(model, torch.optim.AdamW(plan.param_groups(model)), plan).ok


def test_scales_that_are_all_one() -> None:
    model = net()
    sick = torch.optim.AdamW(groups(model, (1e-3,) * 3, lr_scale=(1.0,) * 3))
    assert names(examine(model, sick)) == ["no layer-wise lr at all"]
    assert names(examine(model, torch.optim.AdamW(groups(model, (1e-3,) * 3)))) == []


@pytest.mark.parametrize("make", [
    lambda o: lr_scheduler.OneCycleLR(o, 1e-3, total_steps=9),
    lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-3, 3, cycle_momentum=False),
], ids=["OneCycleLR", "CyclicLR"])  # fmt: skip
def test_a_scheduler_with_one_peak_for_all(make: Callable[[Any], Any]) -> None:
    model = net()
    plan = llr.plan(model, lr=1e-3, layer_decay=0.5, batch=batch()[0])
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    scheduler = make(optimizer)
    report = examine(model, optimizer, scheduler, plan)
    assert names(report) == ["a scheduler that flattens the groups"]
    assert type(scheduler).__name__ in report.faults[0].remedy
    alone = examine(model, optimizer, scheduler)
    assert alone.ok and "give plan=" in alone.notes[0]
    scaled = torch.optim.AdamW(groups(model, lr_scale=(0.01, 0.1, 1.0)))
    assert not examine(model, scaled, make(scaled)).ok


def test_one_peak_per_group_is_right() -> None:
    model = net()
    plan = llr.plan(model, lr=1e-3, layer_decay=0.5, batch=batch()[0])
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    peaks = [group["lr"] for group in optimizer.param_groups]
    assert llr.verify(model, optimizer, lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=9), plan).ok


class OneForAll:
    """A scheduler as people write it: one lr into every group (DeepSpeed's WarmupLR did)."""

    def __init__(self, optimizer: Any, scaled: bool) -> None:
        self.optimizer, self.scaled, self.at = optimizer, scaled, 0

    def step(self) -> None:
        self.at += 1
        for group, own in zip(self.optimizer.param_groups, verify_cases.LRS, strict=True):
            group["lr"] = (own if self.scaled else 1e-3) * 0.99**self.at


def test_a_scheduler_of_ones_own_that_flattens() -> None:
    model = net()
    optimizer = torch.optim.AdamW(groups(model))
    assert names(examine(model, optimizer, OneForAll(optimizer, False))) == ["a scheduler that flattens the groups"]
    assert llr.verify(model, optimizer, OneForAll(optimizer, True)).ok


@pytest.mark.parametrize(("sick", "healthy"), [
    (lambda o: lr_scheduler.CosineAnnealingLR(o, 10, eta_min=5e-5), lambda o: lr_scheduler.CosineAnnealingLR(o, 10)),
    (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, eta_min=5e-5), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10)),
    (lambda o: lr_scheduler.ReduceLROnPlateau(o, min_lr=5e-5), lambda o: lr_scheduler.ReduceLROnPlateau(o)),
    (lambda o: lr_scheduler.ReduceLROnPlateau(o, mode="max", patience=0, min_lr=5e-5), lambda o: lr_scheduler.ReduceLROnPlateau(o, min_lr=[1e-7, 1e-6, 1e-5])),
], ids=["cosine", "restarts", "plateau", "impatient plateau"])  # fmt: skip
def test_a_floor_that_is_one_number(sick: Callable[[Any], Any], healthy: Callable[[Any], Any]) -> None:
    model = net()
    optimizer = torch.optim.AdamW(groups(model))
    assert names(examine(model, optimizer, sick(optimizer))) == ["ratios that a floor or a warm-up destroys"]
    assert llr.verify(model, optimizer, healthy(optimizer)).ok


def test_weight_averaging_with_one_lr_for_all() -> None:
    model = net()
    optimizer = torch.optim.SGD(groups(model))
    scheduler = torch.optim.swa_utils.SWALR(optimizer, 5e-5, anneal_epochs=5)
    assert names(examine(model, optimizer, scheduler)) == ["ratios that a floor or a warm-up destroys"]
    healthy = torch.optim.SGD(groups(model))
    scheduler = torch.optim.swa_utils.SWALR(healthy, [1e-6, 1e-5, 1e-4], anneal_epochs=5)
    assert llr.verify(model, healthy, scheduler).ok


def test_sparse_gradients_of_a_batch() -> None:
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True))
    for make in (torch.optim.SparseAdam, torch.optim.SGD):
        optimizer = make(list(model.parameters()), lr=1e-3)
        report = llr.verify(model, optimizer, batch=lambda model: model(torch.tensor([1, 2])).square().sum())
        assert report.lrs == pytest.approx({"0.weight": 1e-3})


def test_a_floor_is_seen_before_the_end() -> None:
    model = net()
    optimizer = torch.optim.AdamW(groups(model))
    report = examine(model, optimizer, lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=5e-5), steps=3)
    assert names(report) == ["ratios that a floor or a warm-up destroys"]


def test_a_group_that_came_after_the_warm_up_began() -> None:
    model = net()
    first, second, late = groups(model, (1e-2, 1e-1, 1.0))
    optimizer = torch.optim.SGD([first, second])
    scheduler = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    optimizer.add_param_group(late)
    report = examine(model, optimizer, scheduler)
    assert names(report) == ["a late group that a warm-up multiplies"]
    # torch's own numbers: 1.0 after two steps
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[2]["lr"] == pytest.approx(4.6)
    early = torch.optim.SGD(groups(model, (1e-2, 1e-1, 1.0)))
    assert llr.verify(model, early, lr_scheduler.LinearLR(early, start_factor=0.1, total_iters=5)).ok


def test_a_group_that_came_late_to_a_decay_is_right() -> None:
    model = net()
    first, second, late = groups(model)
    optimizer = torch.optim.SGD([first, second])
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    optimizer.add_param_group(late)
    assert llr.verify(model, optimizer, scheduler).ok


class Compounding:
    """OneFlow's guide: multiplied by lr_scale at every step."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] *= group["lr_scale"]


class LayerDecayOptimizer:
    """ViTPose_pytorch: the wrapper multiplies before each step."""

    def __init__(self, optimizer: Any, rates: list[float], once: bool = False) -> None:
        self.optimizer, self.rates, self.once, self.param_groups = optimizer, rates, once, optimizer.param_groups

    def step(self, *args: Any, **kwargs: Any) -> None:
        for i, group in enumerate(self.optimizer.param_groups):
            group["lr"] = (1e-3 if self.once else group["lr"]) * self.rates[i]
        self.optimizer.step(*args, **kwargs)


def test_an_lr_that_compounds() -> None:
    model = net()
    optimizer = torch.optim.AdamW(groups(model, lr_scale=(0.25, 0.5, 1.0)))
    report = examine(model, optimizer, Compounding(optimizer))
    assert names(report) == ["lr that compounds"] and "0.25 0.5" in report.faults[0].measured
    wrapped = examine(model, LayerDecayOptimizer(torch.optim.AdamW(groups(model, (1e-3,) * 3)), [0.25, 0.5, 1.0]))
    assert names(wrapped) == ["lr that compounds"]
    right = examine(
        model,
        LayerDecayOptimizer(
            torch.optim.AdamW(groups(model, (1e-3,) * 3, lr_scale=(0.25, 0.5, 1.0))), [0.25, 0.5, 1.0], once=True
        ),
    )
    assert names(right) == []
    assert stem(right) == pytest.approx(0.25e-3, rel=1e-3)


def test_parameters_in_no_group() -> None:
    model = net()
    report = examine(model, torch.optim.AdamW(groups(model)[:2]))
    assert names(report) == ["parameters in no group"]
    assert report.faults[0].where == ("head.weight", "head.bias")
    model.head.requires_grad_(False)
    assert examine(model, torch.optim.AdamW(groups(model)[:2])).ok


def test_parameters_of_a_head_that_was_replaced() -> None:
    model = net()
    optimizer = torch.optim.AdamW(groups(model))
    model.head = nn.Linear(8, 5)
    assert set(names(examine(model, optimizer))) == {
        "parameters that the model does not have",
        "parameters in no group",
    }
    assert examine(model, torch.optim.AdamW(groups(model))).ok


def test_a_parameter_in_two_groups() -> None:
    model = net()
    optimizer = torch.optim.SGD(groups(model))
    optimizer.param_groups[0]["params"].append(model.head.bias)
    report = examine(model, optimizer)
    assert "parameters in two groups" in names(report)
    assert next(f for f in report.faults if f.name == "parameters in two groups").where == ("head.bias",)


def test_frozen_parameters_that_move() -> None:
    model = net()
    optimizer = torch.optim.SGD(groups(model), momentum=0.9, weight_decay=0.1)
    train(model, optimizer)
    model.stem.requires_grad_(False)
    optimizer.zero_grad(set_to_none=False)
    report = examine(model, optimizer)
    assert names(report) == ["frozen parameters that move"]
    assert set(report.faults[0].where) == {"stem.weight", "stem.bias"}
    optimizer.zero_grad(set_to_none=True)
    assert llr.verify(model, optimizer).ok


def test_what_the_plan_has_frozen_moves() -> None:
    model = net()
    plan = llr.plan(model, lr=1e-3, steps=20, freeze={"strategy": "only", "match": ["head"]}, batch=batch()[0])
    healthy = torch.optim.SGD(plan.param_groups(model), momentum=0.9)
    assert examine(model, healthy, plan.scheduler(healthy), plan).ok
    sick = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    assert "frozen parameters that move" in names(examine(model, sick, plan=plan))


def test_trainable_parameters_that_cannot_move() -> None:
    model = net()
    report = examine(model, torch.optim.AdamW(groups(model, (0.0, 1e-4, 1e-3))))
    assert names(report) == ["trainable parameters that cannot move"]
    assert set(report.faults[0].where) == {"stem.weight", "stem.bias", "norm.weight", "norm.bias"}
    warm = torch.optim.AdamW(groups(model))
    scheduler = lr_scheduler.LambdaLR(warm, lambda step: min(step / 10, 1))
    assert [g["lr"] for g in warm.param_groups] == [0, 0, 0]
    assert llr.verify(model, warm, scheduler).ok
    assert names(examine(model, warm)) == ["trainable parameters that cannot move"]


def test_parameters_that_no_gradient_reaches() -> None:
    class Cut(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.block(self.norm(self.stem(x)).detach()))

    model = Cut()
    report = examine(model, torch.optim.AdamW(groups(model)), batch())
    assert names(report) == ["trainable parameters that cannot move"] and "no gradient" in report.faults[0].measured
    assert (
        examine(net(), torch.optim.AdamW(groups(whole := net()))).faults
        and llr.verify(whole, torch.optim.AdamW(groups(whole)), batch()).ok
    )


@pytest.mark.parametrize("given", [None, batch()], ids=["drawn", "batch"])
def test_a_decay_on_gradients_under_adam(given: Any) -> None:
    model = net()
    for layer, scale in ((model.stem, 0.01), (model.block, 0.1)):
        for p in layer.parameters():
            p.register_hook(lambda g, scale=scale: g * scale)
    adam = torch.optim.Adam(groups(model, (1e-3,) * 3), eps=1e-12)
    report = examine(model, adam, given)
    assert names(report) == ["decay on gradients that the optimizer divides out"]
    assert set(report.faults[0].where) == {"stem.weight", "stem.bias", "block.weight", "block.bias"}
    sgd = torch.optim.SGD(groups(model, (1e-3,) * 3))
    healthy = examine(model, sgd, given)
    assert names(healthy) == []
    assert stem(healthy) == pytest.approx(1e-5, rel=1e-3)


def test_a_decay_on_gradients_before_the_step() -> None:
    model = net()

    def scale(optimizer: Any, *_: Any) -> None:
        for group, factor in zip(optimizer.param_groups, (0.01, 0.1, 1.0), strict=True):
            for p in group["params"]:
                p.grad.mul_(factor)

    for make, wanted in (
        (torch.optim.AdamW, ["decay on gradients that the optimizer divides out"]),
        (torch.optim.SGD, []),
    ):
        optimizer = make(groups(model, (1e-3,) * 3))
        optimizer.register_step_pre_hook(scale)
        assert names(examine(model, optimizer)) == wanted


def test_updates_that_round_away_in_bfloat16() -> None:
    model = net().bfloat16()
    report = examine(model, torch.optim.AdamW(groups(model, (1e-6, 1e-6, 1e-6))))
    assert names(report) == ["updates too small for bfloat16"]
    assert llr.verify(model, torch.optim.AdamW(groups(model, (1e-1,) * 3))).ok


def test_an_optimizer_that_does_not_read_its_lr() -> None:
    class Deaf(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(p.grad, alpha=-1e-3)

    model = net()
    assert names(examine(model, Deaf(groups(model)))) == ["lr that the optimizer does not read"]


def test_an_lr_that_something_changes_on_its_way() -> None:
    model = net()
    optimizer = torch.optim.AdamW(groups(model))

    def half(optimizer: Any, *_: Any) -> None:
        optimizer.param_groups[0]["lr"] *= 0.5

    def fixed(optimizer: Any, *_: Any) -> None:
        optimizer.param_groups[0]["lr"] = 5e-6

    for hook, disease in ((half, "lr that compounds"), (fixed, "lr that does not arrive")):
        handle = optimizer.register_step_pre_hook(hook)
        assert names(examine(model, optimizer)) == [disease]
        handle.remove()
    assert examine(model, optimizer).ok


def test_lrs_that_are_not_the_plans() -> None:
    model = net()
    plan = llr.plan(model, lr=1e-3, layer_decay=0.5, batch=batch()[0])
    sick = plan.param_groups(model)
    sick[0]["lr"] *= 3
    report = examine(model, torch.optim.AdamW(sick), plan)
    assert names(report) == ["lr that is not the plan's"]
    assert len(report.faults[0].where) == 1


def test_a_second_writer_beside_the_plans_scheduler() -> None:
    model = net()
    plan = llr.plan(model, lr=1e-3, layer_decay=0.5, batch=batch()[0])
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    scheduler = plan.scheduler(optimizer)
    optimizer.param_groups[0]["lr"] = 1.0
    with pytest.raises(llr.UserError, match="somebody else writes learning rates"):
        llr.verify(model, optimizer, scheduler)


# --- healthy set-ups: nothing is said


def _plain(model: Net) -> tuple[Any, ...]:
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return (
        torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=1e-3),
    )


def _ours(model: Net, make: Callable[..., Any] = torch.optim.AdamW) -> tuple[Any, ...]:
    plan = llr.plan(
        model,
        lr=1e-3,
        layer_decay=0.7,
        weight_decay=0.05,
        schedule="cosine",
        warmup=0.1,
        steps=50,
        floor=0.01,
        batch=batch()[0],
    )
    optimizer = make(plan.param_groups(model))
    return optimizer, plan.scheduler(optimizer), plan


def _theirs(model: Net) -> tuple[Any, ...]:
    plan = llr.plan(model, lr=1e-3, layer_decay=0.7, batch=batch()[0])
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    return optimizer, lr_scheduler.CosineAnnealingLR(optimizer, 20), plan


def _lambdas(model: Net) -> tuple[Any, ...]:
    optimizer = torch.optim.SGD(groups(model))
    return optimizer, lr_scheduler.LambdaLR(optimizer, [lambda s: 0.9**s, lambda s: 1.0, lambda s: 0.99**s])


def _frozen_backbone(model: Net) -> tuple[Any, ...]:
    for layer in (model.stem, model.norm, model.block):
        layer.requires_grad_(False)
    return (torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1),)


def _frozen_outside(model: Net) -> tuple[Any, ...]:
    _frozen_backbone(model)
    return (torch.optim.AdamW(model.head.parameters(), lr=1e-3),)


def _tensor_lr(model: Net) -> tuple[Any, ...]:
    optimizer = torch.optim.AdamW(groups(model), fused=True)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    return optimizer, lr_scheduler.ExponentialLR(optimizer, 0.9)


def _trained(model: Net) -> tuple[Any, ...]:
    optimizer = torch.optim.AdamW(groups(model))
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for _ in range(7):
        train(model, optimizer, 1)
        scheduler.step()
    return optimizer, scheduler


def _thawing(model: Net, steps: int, scheduler: bool) -> tuple[Any, ...]:
    """A plan with windows, some way into it; lrs by its scheduler, or written by hand as plan.lrs says."""
    plan = llr.plan(
        model, lr=1e-3, layer_decay=0.7, steps=30, freeze={"strategy": "head_first", "every": 10}, batch=batch()[0]
    )
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    written = plan.scheduler(optimizer) if scheduler else None
    for step in range(steps):
        train(model, optimizer, 1)
        if written:
            written.step()
        else:
            for group, lr in zip(optimizer.param_groups, plan.lrs(step + 1), strict=True):
                group["lr"] = lr
    return optimizer, plan


HEALTHY: dict[str, Callable[[Net], tuple[Any, ...]]] = {
    "decay and no decay, one lr": _plain,
    "our plan and scheduler": _ours,
    "our plan and scheduler, RMSprop": lambda m: _ours(m, torch.optim.RMSprop),
    "our plan, torch's cosine": _theirs,
    "a list of lambdas": _lambdas,
    "lion": lambda m: (Lion(groups(m)),),
    "lion until its lr is 0": lambda m: (o := Lion(groups(m)), lr_scheduler.CosineAnnealingLR(o, 7)),
    "sam": lambda m: (SAM(groups(m), torch.optim.SGD, lr=1e-3, momentum=0.9),),
    "a frozen backbone in the optimizer": _frozen_backbone,
    "a frozen backbone outside": _frozen_outside,
    "an lr that is a tensor": _tensor_lr,
    "after some training": _trained,
    "plateau": lambda m: (o := torch.optim.SGD(groups(m)), lr_scheduler.ReduceLROnPlateau(o, patience=3)),
    "fused": lambda m: (o := torch.optim.AdamW(groups(m), fused=True), lr_scheduler.StepLR(o, 3)),
    "foreach": lambda m: (o := torch.optim.AdamW(groups(m), foreach=True), lr_scheduler.LinearLR(o)),
    "a plan that thaws, its scheduler not given": lambda m: _thawing(m, 3, True),
    "a plan that thaws, thawed": lambda m: _thawing(m, 12, True),
    "a plan that thaws, lrs by hand": lambda m: _thawing(m, 3, False),
    "a plan that thaws, thawed by hand": lambda m: _thawing(m, 12, False),
    "clipped by a hook": lambda m: (_clipping(torch.optim.SGD(groups(m))),),
}


def _clipping(optimizer: Any) -> Any:
    def clip(optimizer: Any, *_: Any) -> None:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 0.1)

    optimizer.register_step_pre_hook(clip)
    return optimizer


@pytest.mark.parametrize("given", [None, batch()], ids=["drawn", "batch"])
@pytest.mark.parametrize("kind", HEALTHY)
def test_no_alarm(kind: str, given: Any) -> None:
    model = net()
    report = llr.verify(model, *HEALTHY[kind](model), batch=given)
    assert report.ok and "nothing is wrong" in str(report)


def test_no_alarm_for_tied_weights_and_lora() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.base = nn.Linear(4, 4).requires_grad_(False)
            self.lora_a, self.lora_b = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight
            nn.init.zeros_(self.lora_b.weight)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            x = self.embedding(words)
            return self.head(self.base(x) + self.lora_b(self.lora_a(x)))

    model = Tied()
    optimizer = torch.optim.AdamW(
        [
            {"params": [model.embedding.weight], "lr": 1e-5},
            {"params": [model.lora_a.weight], "lr": 1e-4},
            {"params": [model.lora_b.weight], "lr": 1e-3},  # LoRA+
        ]
    )
    words = torch.tensor([[0, 1, 2], [3, 4, 0]])
    assert llr.verify(model, optimizer, (words, words)).ok
    report = llr.verify(model, optimizer)
    assert report.lrs == pytest.approx({"embedding.weight": 1e-5, "lora_a.weight": 1e-4, "lora_b.weight": 1e-3})


# --- the report


def test_the_table_fits_a_terminal_and_the_first_line_says_it_all() -> None:
    model = net()
    optimizer = torch.optim.AdamW(groups(model, name=("a" * 60, "b", "c"), lr_scale=(0.1, 0.5, 1.0)), lr=1e-3)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    with pytest.raises(llr.ModelLrMismatch) as told:
        llr.verify(model, optimizer, lr_scheduler.CosineAnnealingLR(optimizer, 10))
    text = str(told.value.report)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert str(told.value).splitlines()[0].startswith("lr_scale that nobody reads: ")
    for word in ("where", "measured", "expected", "remedy"):
        assert f"  {word}" in text


def test_the_library_tells_what_verify_does() -> None:
    assert "verify" in dir(llr) and "Measured by displacement" in (llr.verify.__doc__ or "")
