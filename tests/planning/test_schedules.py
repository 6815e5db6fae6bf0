import itertools
import math
import random

import pytest

from layerwise_lr.planning import schedules
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import Group
from layerwise_lr.planning.plan import OptimizerSpec, Plan
from layerwise_lr.planning.schedules import ScheduleSpec, make

BASES = (1e-3, 1e-1)


def torch_factors(build, steps):
    """torch's own scheduler (by `build` of torch's module and an optimizer) on two groups, as factors of their lr."""
    import torch

    params = [torch.nn.Parameter(torch.zeros(1)) for _ in BASES]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(params, BASES, strict=True)])
    scheduler, rows = build(torch.optim.lr_scheduler, optimizer), []
    for _ in range(steps):
        rows.append([g["lr"] / lr for g, lr in zip(optimizer.param_groups, BASES, strict=True)])
        optimizer.step()
        scheduler.step()
    return rows


TORCH = {
    "step": (ScheduleSpec("step", gamma=0.3, every=7), lambda t, o: t.StepLR(o, 7, gamma=0.3)),
    "multistep": (
        ScheduleSpec("multistep", gamma=0.2, milestones=[3, 11, 12]),
        lambda t, o: t.MultiStepLR(o, [3, 11, 12], gamma=0.2),
    ),
    "exponential": (ScheduleSpec("exponential", gamma=0.9, every=1), lambda t, o: t.ExponentialLR(o, 0.9)),
    "cosine": (ScheduleSpec("cosine"), lambda t, o: t.CosineAnnealingLR(o, 30)),
    "linear": (ScheduleSpec("linear", floor=0.1), lambda t, o: t.LinearLR(o, 1.0, 0.1, total_iters=30)),
    "polynomial": (ScheduleSpec("polynomial", power=2.5), lambda t, o: t.PolynomialLR(o, 30, power=2.5)),
    "constant": (ScheduleSpec("constant"), lambda t, o: t.LambdaLR(o, lambda _: 1.0)),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(TORCH))
def test_step_by_step_as_torch_s_own(name):
    spec, build = TORCH[name]
    schedule = make(spec, 30)
    for step, row in enumerate(torch_factors(build, 31)):
        assert row == pytest.approx([schedule(step)] * 2, rel=1e-9, abs=1e-12), step


@pytest.mark.torch
@pytest.mark.parametrize("steps", [20, 30, 100, 101])
@pytest.mark.parametrize("pct", [0.1, 0.3, 0.5, 0.25])
@pytest.mark.parametrize(("div", "final"), [(25.0, 1e4), (10.0, 100.0)])
def test_one_cycle_step_by_step_as_torch_s_own(steps, pct, div, final):
    schedule = make(ScheduleSpec("one_cycle", pct_start=pct, div_factor=div, final_div_factor=final), steps)

    import torch

    params = [torch.nn.Parameter(torch.zeros(1)) for _ in BASES]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(params, BASES, strict=True)])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, list(BASES), total_steps=steps, pct_start=pct, div_factor=div, final_div_factor=final
    )
    for step in range(steps):
        row = [g["lr"] / lr for g, lr in zip(optimizer.param_groups, BASES, strict=True)]
        assert row == pytest.approx([schedule(step)] * 2, rel=1e-9, abs=1e-12), step
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()


MAE = {
    0: (0.0, 0.0),
    2.5: (5e-4, 1.187863e-5),
    5: (1e-3, 2.375726e-5),
    52.5: (5.005e-4, 1.189051e-5),
    100: (1e-6, 2.375726e-8),
}


@pytest.mark.parametrize("epoch", sorted(MAE))
def test_mae_s_warm_up_and_cosine(epoch):
    """lr 1e-3, min 1e-6, warm-up 5 of 100 epochs (util/lr_sched.py, run); head and stem at decay .75."""
    per_epoch = 20
    spec = ScheduleSpec("cosine", warmup=5 * per_epoch, floor=1e-6 / 1e-3)
    groups = (Group("head", ("h",), 1.0, 0.0), Group("stem", ("s",), 0.75**13, 0.0))
    plan = Plan(groups, 1e-3, {"default": spec}, {"default": OptimizerSpec()}, 100 * per_epoch)
    assert plan.lrs(int(epoch * per_epoch)) == pytest.approx(MAE[epoch], rel=1e-6, abs=1e-15)


def test_warm_up_rises_in_a_line_and_hands_over_the_clock():
    schedule = schedules.warmup(4, schedules.exponential(0.5, 2), start=0.2)
    assert [schedule(s) for s in range(9)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 0.5, 0.5, 0.25])


def test_the_cosine_after_a_warm_up_ends_with_the_run():
    schedule = make(ScheduleSpec("cosine", warmup=10, floor=0.05), 50)
    expected = [0.05 + 0.95 * (1 + math.cos(math.pi * (s - 10) / 40)) / 2 for s in range(10, 51)]
    assert [schedule(s) for s in range(10, 51)] == pytest.approx(expected)


def test_steps_past_the_end_stay_at_the_floor():
    for name in ("linear", "cosine", "polynomial"):
        schedule = make(ScheduleSpec(name, floor=0.25), 10)
        assert [schedule(s) for s in (10, 11, 1000)] == pytest.approx([0.25] * 3)


def test_join_puts_each_part_on_its_own_clock():
    named = {"up": ScheduleSpec("linear", floor=0.5), "down": ScheduleSpec("step", gamma=0.1, every=2)}
    spec = ScheduleSpec("join", parts=["up", "down", "up"], starts=[4, 8])
    schedule = make(spec, 12, named)
    ramp = [1, 0.875, 0.75, 0.625]
    assert [schedule(s) for s in range(12)] == pytest.approx([*ramp, 1, 1, 0.1, 0.1, *ramp])


@pytest.mark.torch
def test_join_as_torch_s_sequential():
    named = {"a": ScheduleSpec("constant"), "b": ScheduleSpec("exponential", gamma=0.8, every=1)}
    schedule = make(ScheduleSpec("join", parts=["a", "b"], starts=[5]), 20, named)

    def build(torch_lr, optimizer):
        parts = [torch_lr.ConstantLR(optimizer, 1.0), torch_lr.ExponentialLR(optimizer, 0.8)]
        return torch_lr.SequentialLR(optimizer, parts, [5])

    for step, row in enumerate(torch_factors(build, 20)):
        assert row == pytest.approx([schedule(step)] * 2), step


def test_a_product_multiplies_its_parts_and_default_is_the_runs_own():
    named = {"default": ScheduleSpec("cosine", warmup=4), "stairs": ScheduleSpec("exponential", gamma=0.9, every=10)}
    schedule = make(ScheduleSpec("product", parts=["default", "stairs"]), 40, named)
    cosine = make(named["default"], 40)
    assert [schedule(s) for s in range(40)] == pytest.approx([cosine(s) * 0.9 ** (s // 10) for s in range(40)])


@pytest.mark.torch
def test_interval_holds_any_schedule_as_a_scheduler_stepped_per_epoch():
    per_epoch = 5

    def build(torch_lr, optimizer):
        inner = torch_lr.CosineAnnealingLR(optimizer, 6)

        class PerEpoch:
            steps = 0

            def step(self):
                self.steps += 1
                if self.steps % per_epoch == 0:
                    inner.step()

        return PerEpoch()

    schedule = make(ScheduleSpec("cosine", interval=per_epoch), 6 * per_epoch)
    for step, row in enumerate(torch_factors(build, 6 * per_epoch)):
        assert row == pytest.approx([schedule(step)] * 2, abs=1e-12), step


def test_a_milestone_may_set_the_lr_to_zero():
    schedule = make(ScheduleSpec("multistep", gamma=0.0, milestones=[3]), 6)
    assert [schedule(s) for s in range(6)] == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (ScheduleSpec("product"), "needs parts"),
        (ScheduleSpec("product", parts=["a", "zz"]), "'zz'"),
        (ScheduleSpec("product", parts=["a", "self"]), "'self'"),
        (ScheduleSpec("cosin"), "did you mean 'cosine'"),
        (ScheduleSpec(""), "unknown"),
        (ScheduleSpec("join", parts=["a", "b"], starts=[]), "one fewer than parts"),
        (ScheduleSpec("join", parts=["a", "a", "a"], starts=[5, 3]), "rising"),
        (ScheduleSpec("join", parts=["a", "zz"], starts=[5]), "'zz'"),
        (ScheduleSpec("join", parts=["a", "self"], starts=[5]), "'self'"),
    ],
)
def test_a_faulty_spec_is_refused_by_name(spec, word):
    named = {"a": ScheduleSpec(), "self": spec}
    with pytest.raises(UserError, match=word):
        make(spec, 10, named)


def test_every_name_can_be_made():
    named = {"a": ScheduleSpec()}
    for name in schedules.NAMES:
        schedule = make(ScheduleSpec(name, every=3, parts=["a"]), 10, named)
        assert all(math.isfinite(schedule(s)) for s in range(10))


@pytest.mark.parametrize("total", [1, 2, 3, 17])
@pytest.mark.parametrize("name", schedules.NAMES)
def test_no_schedule_breaks_on_a_short_run(name, total):
    named = {"a": ScheduleSpec()}
    for pct in (0.01, 0.3, 0.5, 0.99):
        for warmup in (0, 1, total, total + 5):
            schedule = make(ScheduleSpec(name, every=1, parts=["a"], warmup=warmup, pct_start=pct), total, named)
            assert all(0 <= schedule(s) <= 1 + 1e-12 for s in range(total))


def test_the_ratio_between_groups_never_changes():
    """A property of every schedule with floors, warm-ups and starts: all groups share one factor."""
    rng = random.Random(0)
    for name, _ in itertools.product(schedules.NAMES, range(12)):
        total = rng.randint(2, 60)
        warmup = rng.randint(0, total - 2)
        spec = ScheduleSpec(
            name,
            warmup=warmup,
            warmup_start=rng.random(),
            floor=rng.random(),
            gamma=rng.uniform(0.05, 1.5),
            every=rng.randint(1, 9),
            milestones=sorted(rng.sample(range(total), 2)),
            power=rng.uniform(0.3, 3),
            pct_start=rng.uniform(0.05, 0.95),
            parts=["a", "b"],
            starts=[rng.randint(1, total - warmup - 1)],
        )
        named = {"default": spec, "a": ScheduleSpec("cosine", floor=0.3), "b": ScheduleSpec("linear", warmup=1)}
        scales = [0.75**13, 0.01, 0.3, 1.0]
        groups = tuple(Group(f"g{i}", (f"p{i}",), s, 0.0) for i, s in enumerate(scales))
        table = Plan(groups, 1e-3, named, {"default": OptimizerSpec()}, total).table()
        for lrs in table:
            assert lrs[:-1] == pytest.approx([lrs[-1] * s for s in scales[:-1]], rel=1e-12), spec
