"""Thinned curves, against loops over every step."""

import json
import random
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from finished_runs import trained

from layerwise_lr.report import report, stretches
from layerwise_lr.report.stretches import Curve, gathered
from layerwise_lr.run import CONFIG


def raw(steps, values):
    return Curve(np.array(steps, float), *[np.array(values, float)] * 3, np.ones(len(steps)))


def by_hand(runs, every):
    """{stretch: (mean step, mean, lowest, highest, count)} over all runs."""
    held = defaultdict(list)
    for run in runs:
        for step, value in run:
            held[step // every].append((step, value))
    return [
        (fmean(s for s, _ in one), fmean(v for _, v in one), min(v for _, v in one), max(v for _, v in one), len(one))
        for _, one in sorted(held.items())
    ]


@pytest.mark.parametrize("every", [1, 2, 7, 100, 1000])
def test_a_stretch_has_the_mean_and_both_extremes_of_its_steps(every):
    rng = random.Random(every)
    runs = []
    for length in (1, 50, 333):  # the first stopped early, one has gaps
        steps = [step for step in range(length) if length != 333 or rng.random() < 0.7]
        rng.shuffle(steps)
        runs.append([(step, rng.gauss(0, 10.0 ** rng.randint(-3, 3))) for step in steps])
    one_by_one = [gathered([raw(*zip(*run, strict=True))], every) for run in runs]
    for curve, expected in (
        (gathered(one_by_one, every), by_hand(runs, every)),
        (one_by_one[2], by_hand(runs[2:], every)),
    ):
        assert np.allclose(np.array(curve).T, expected, rtol=1e-12)
        assert curve.low.min() == min(row[2] for row in expected) and curve.high.max() == max(
            row[3] for row in expected
        )


def test_nothing_gives_nothing():
    assert all(len(part) == 0 for part in gathered([], 1))
    assert all(len(part) == 0 for part in gathered([raw([], [])], 3))


@pytest.fixture
def drawn_out(tmp_path) -> Path:
    """A real run whose log goes on to 30,001 steps, with a spike and a dip of one step each."""
    path, total = trained(tmp_path / "run"), 30_001
    lines = (path / "metrics.jsonl").read_text().splitlines()
    evaluation = json.loads(lines[-1])
    with (path / "metrics.jsonl").open("w") as file:
        file.write(f"{lines[0]}\n")
        for step in range(total):
            loss = {12_345: 77.0, 20_007: 0.001}.get(step, 2.0)
            file.write(json.dumps({"step": step, "loss": loss}) + "\n")
            if (step + 1) % 10 == 0:
                file.write(json.dumps({**evaluation, "step": step + 1}) + "\n")
    config = (path / CONFIG).read_text().splitlines()
    (path / CONFIG).write_text("\n".join(f"steps: {total}" if line.startswith("steps:") else line for line in config))
    return path


def test_a_long_run_s_page_is_small_and_its_extremes_are_in_it(drawn_out):
    made = report.Report.read([drawn_out], None)
    (study,) = made.studies
    (one,) = stretches.told(next(iter(study.best.values())))
    assert len(one.training.steps) <= stretches.MOST and one.training.counts.sum() == 30_001
    spike, dip = one.training.high.argmax(), one.training.low.argmin()
    assert (one.training.high.max(), one.training.low.min()) == (77.0, 0.001)
    assert abs(one.training.steps[spike] - 12_345) < 16 and abs(one.training.steps[dip] - 20_007) < 16
    made.write(drawn_out / "report.html")
    text = (drawn_out / "report.html").read_text()
    assert (
        len(text) < 1e6
        and f"the mean of each of {stretches.MOST:,} stretches; shade: the lowest to the highest" in text
    )


def test_a_short_run_is_drawn_step_by_step(tmp_path):
    path = trained(tmp_path / "run")
    made = report.Report.read([path], None)
    (one,) = stretches.told(next(iter(made.studies[0].best.values())))
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()[1:]]
    assert one.training.mean.tolist() == [record["loss"] for record in records if "loss" in record]
    assert one.training.steps.tolist() == [record["step"] for record in records if "loss" in record]
    assert one.validation.mean.tolist() == [record["val"]["loss"] for record in records if "val" in record]
    made.write(path / "report.html")
    assert "stretches; shade" not in (path / "report.html").read_text()
