"""The lr range test: against an ordinary run whose schedule rises as it does, and on curves whose shape is known."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from layerwise_lr.planning import UserError
from layerwise_lr.run import CONFIG, RunFolder, page, resolve
from layerwise_lr.run.range_test import RangeSpec, RangeTest, ramp, range_test
from layerwise_lr.run.reading import from_data

SPEC = RangeSpec(1e-3, 1.0, 30)
CONFIG_OF = {
    "framework": {"name": "reference"},
    "model": {"name": "mlp"},
    "data": {"train_size": 50, "val_size": 60, "test_size": 50},
    "batch_size": 10,
    "eval_every": 1,
    "steps": 30,
}


def curve(low: float = 1e-4, diverges: float = 1.0, end: float = 10.0) -> RangeTest:
    """Falls by the logarithm of the lr around 1e-2, is lowest at 0.1, grows without end behind `diverges`."""
    lrs = np.geomspace(low, end, 101)
    fall = 1 / (1 + np.exp(4 * (np.log10(lrs) + 2)))
    rise = np.where(lrs > diverges, 5 * np.log10(np.maximum(lrs / diverges, 1)), 0.0)
    return RangeTest(tuple(map(float, lrs)), tuple(map(float, 1 + fall + 0.05 * np.abs(np.log10(lrs) + 1) + rise)))


def test_its_losses_are_those_of_a_run_with_that_schedule(tmp_path: Path) -> None:
    config = resolve(from_data(CONFIG_OF))
    folder = RunFolder(tmp_path / "test")
    folder.path.mkdir()
    made = range_test(config, SPEC, folder, lambda line: None, lambda steps, total: steps)

    rises = {"name": "exponential", "gamma": 1000 ** (1 / 29), "every": 1}
    run = resolve(from_data({**CONFIG_OF, "scheduler": rises, "optimizer": {"lr": 1e-3}}))
    other = RunFolder.claim(tmp_path / "run")
    other.write_text(CONFIG, run.to_yaml())
    page.run(other.path, lambda line: None)
    records = [json.loads(line) for line in (other.path / "metrics.jsonl").read_text().splitlines()]
    losses = [record["val"]["loss"] for record in records if "val" in record]
    assert len(made.losses) == 30 or made.ended(made.smoothed)
    assert list(made.losses) == losses[: len(made.losses)]
    assert (folder.path / "lrs.csv").read_text() == (other.path / "lrs.csv").read_text()
    held = json.loads((folder.path / "lr_find.json").read_text())
    assert held["losses"] == list(made.losses) and held["suggestion"] == made.suggestion()
    assert (folder.path / "lr_check.jsonl").read_text(), "the ramp is proved before it is used"


def test_the_ratios_between_layers_stay_and_whoever_trains_later_trains_at_once(tmp_path: Path) -> None:
    freeze = {"strategy": "after", "match": ["fc1"], "at": 10}
    groups = {"grouping": {"layer_decay": 0.5}, "scheduler": {"name": "cosine", "warmup": 5}, "freeze": freeze}
    _, _, plan = page.plan_of(resolve(from_data({**CONFIG_OF, **groups, "model": {"name": "lenet"}})))
    rising = ramp(plan, SPEC)
    table = rising.table()
    scales = np.array([group.lr_scale for group in plan.groups])
    assert len(set(scales)) > 2
    np.testing.assert_allclose(table, np.geomspace(1e-3, 1.0, 30)[:, None] * scales, rtol=1e-12)
    assert rising.total_steps == 30 and all(all(rising.active(step)) for step in range(30))
    assert [(g.params, g.weight_decay) for g in rising.groups] == [(g.params, g.weight_decay) for g in plan.groups]


def test_what_is_frozen_throughout_stays_so() -> None:
    freeze = {"strategy": "only", "match": ["conv1"]}
    _, _, plan = page.plan_of(resolve(from_data({**CONFIG_OF, "model": {"name": "lenet"}, "freeze": freeze})))
    still = [not on for on in plan.active(0)]
    assert any(still) and not all(still)
    assert [not on for on in ramp(plan, SPEC).active(29)] == still


def test_what_is_read_from_a_curve() -> None:
    made = curve()
    assert 0.05 < made.lowest() < 0.2
    assert made.suggestion() == pytest.approx(made.lowest() / 10, rel=0.06)
    assert 0.003 < made.steepest() < 0.03
    assert made.ended(made.smoothed) and made.doubts() == []
    noisy = replace(made, losses=tuple(np.array(made.losses) + 0.02 * np.random.default_rng(0).normal(size=101)))
    assert 0.02 < noisy.lowest() < 0.3 and 0.001 < noisy.steepest() < 0.03


def test_doubts() -> None:
    assert any("go higher" in doubt for doubt in curve(end=0.05).doubts())
    assert any("begin lower" in doubt for doubt in curve(low=0.1, diverges=0.01).doubts())
    flat = RangeTest(curve().lrs, (1.0,) * 101)
    assert any("hardly fell" in doubt for doubt in flat.doubts())


def test_a_loss_that_is_no_number_is_the_end() -> None:
    made = RangeTest(tuple(0.1 * n for n in range(1, 9)), (*(1 - n / 10 for n in range(7)), math.inf))
    assert made.ended(made.smoothed)
    assert all(map(math.isfinite, made.smoothed))
    assert made.to_dict()["losses"][-1] is None


@pytest.mark.parametrize("words", [(0, 1, 50), (1, 0.1, 50), (1e-3, 1e4, 50), (1e-3, 1, 3), (1e-3, 1, 10**6)])
def test_nonsense(words: tuple[float, float, int]) -> None:
    with pytest.raises(UserError, match=r"--from|--steps"):
        RangeSpec(*words)


def test_lrs_csv_is_the_law(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    made = range_test(resolve(from_data(CONFIG_OF)), SPEC, folder, lambda line: None, lambda steps, total: steps)
    rows = list(csv.DictReader((tmp_path / "lrs.csv").read_text().splitlines()))
    head = [float(row[list(row)[-1]]) for row in rows[: len(made.lrs)]]
    assert head == pytest.approx(made.lrs, rel=1e-12)
