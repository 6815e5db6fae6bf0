from dataclasses import replace

import pytest

from layerwise_lr.planning import ScheduleSpec, UserError
from layerwise_lr.run import resolve
from layerwise_lr.run.durations import steps_of


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (50, 50),
        (0, 0),
        ("50", 50),
        ("50 steps", 50),
        ("1 step", 1),
        ("7st", 7),
        ("2 epochs", 80),
        ("1 epoch", 40),
        ("3ep", 120),
        ("0.5 epochs", 20),
        ("10%", 20),
        ("12.5 %", 25),
        ("100%", 200),
        ("0%", 0),
        (" 5 % ", 10),
    ],
)
def test_durations(duration, steps):
    assert steps_of(duration, "k", total=200, per_epoch=40) == steps


@pytest.mark.parametrize(
    "duration",
    [
        -1,
        "-5%",
        "x",
        "",
        None,
        True,
        False,
        "5 weeks",
        "5 epochs 3",
        "1e3",
        0.5,
        "2.5 steps",
        1.5,
        float("nan"),
        float("inf"),
        [5],
        {"epochs": 3},
        "٣ steps؟",
        "10%%",
        "150%",
    ],
)
def test_what_is_no_duration_is_refused_with_its_key(duration):
    with pytest.raises(UserError, match=r"^some\.key="):
        steps_of(duration, "some.key", 200, 40)


def test_every_duration_of_a_config_becomes_steps(rich):
    final = resolve(rich)  # 10 steps an epoch, 3 epochs
    assert final.steps == 30
    assert final.eval_every == 15
    assert (final.scheduler.warmup, final.schedules["s"].every) == (3, 20)
    assert resolve(replace(rich, scheduler=ScheduleSpec(interval="1 epoch"))).scheduler.interval == 10
    assert final.schedules["m"].milestones == [15, 25]
    assert final.schedules["j"].starts == [10]
    assert (final.grouping.groups["stem"].start, final.grouping.groups["stem"].stop) == (10, 24)
    assert (final.freeze.every, final.checkpoint.every) == (5, 10)
    assert final.model.num_classes == 10
    assert (final.model.in_channels, final.model.image_size) == (3, 32)
