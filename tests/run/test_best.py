"""What a run keeps: the best step by validation, the average of its weights; and when it ends before its time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerwise_lr.data import batches
from layerwise_lr.framework import begin, metrics, registry
from layerwise_lr.run import CONFIG, RunFolder, page, read_metrics, reading, resolve
from layerwise_lr.run.best import Best, Ema
from layerwise_lr.run.reading import from_data
from layerwise_lr.run.schema import EarlyStopSpec, EmaSpec


def val(accuracy: float, loss: float = 1.0) -> dict[str, dict[str, float]]:
    return {"model": {"accuracy": accuracy, "loss": loss}}


def test_the_highest_is_kept_and_of_equal_ones_the_lower_loss() -> None:
    best = Best("accuracy", 1, EarlyStopSpec())
    offers = [(10, 0.5, 1.0), (20, 0.7, 0.9), (30, 0.7, 0.8), (40, 0.7, 0.8), (50, 0.6, 0.1)]
    told = [best.offer(step, val(accuracy, loss)) for step, accuracy, loss in offers]
    assert told == [True, True, True, False, False]
    assert [(kept.step, kept.weights) for kept in best.kept] == [(30, "model")]


def test_as_many_as_asked_for_the_best_first() -> None:
    best = Best("accuracy", 2, EarlyStopSpec())
    for step, accuracy in enumerate([0.1, 0.9, 0.5, 0.7]):
        best.offer(step, val(accuracy))
    assert [kept.step for kept in best.kept] == [1, 3]
    none = Best("accuracy", 0, EarlyStopSpec())
    assert not none.offer(0, val(1.0)) and not none.kept


def test_the_average_may_be_the_better_one() -> None:
    best = Best("accuracy", 1, EarlyStopSpec())
    best.offer(10, {**val(0.5), "ema": {"accuracy": 0.6, "loss": 1.0}})
    assert (best.kept[0].weights, best.kept[0].val["accuracy"]) == ("ema", 0.6)


@pytest.mark.parametrize(
    ("patience", "min_delta", "ends"), [(None, 0.0, None), (2, 0.0, 4), (3, 0.0, None), (2, 0.15, 3)]
)
def test_patience_counts_evaluations_without_an_improvement(
    patience: int | None, min_delta: float, ends: int | None
) -> None:
    best, stalled = Best("accuracy", 1, EarlyStopSpec(patience, min_delta)), None
    for number, accuracy in enumerate([0.5, 0.6, 0.6, 0.55, 0.7], 0):
        best.offer(number, val(accuracy))
        if best.stalled and stalled is None:
            stalled = number + 1
    assert stalled == ends


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_the_weighted_sum_that_it_says(warmup: bool) -> None:
    rng = np.random.default_rng(0)
    series = rng.standard_normal((7, 3)).astype(np.float32)
    ema = Ema(EmaSpec(0.6, warmup), {"w": series[0]})
    for step, weights in enumerate(series[1:]):
        ema.update(step, {"w": weights})
    decays = [min(0.6, (1 + n) / (10 + n)) if warmup else 0.6 for n in range(6)]
    shares = [np.prod(decays)] + [(1 - d) * np.prod(decays[i + 1 :]) for i, d in enumerate(decays)]
    assert sum(shares) == pytest.approx(1)
    np.testing.assert_allclose(ema.weights["w"], np.array(shares) @ series, rtol=1e-5)
    assert series[0].tolist() != ema.weights["w"].tolist(), "a copy, not the weights themselves"


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
def test_the_average_of_what_is_frozen_is_it_to_the_bit(decay: float) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal(50).astype(np.float32)}
    ema = Ema(EmaSpec(decay, False), weights)
    for step in range(20_000):
        ema.update(step, weights)
    np.testing.assert_array_equal(ema.weights["w"], weights["w"])


# --- whole runs

SMALL = {
    "framework": {"name": "reference"},
    "model": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"train_size": 40, "val_size": 60, "test_size": 60},
    "optimizer": {"lr": 0.02},
    "batch_size": 10,
    "steps": 24,
    "eval_every": 3,
}


def trained(path: Path, **changes: Any) -> tuple[RunFolder, dict[str, Any], list[str]]:
    folder, lines = RunFolder.claim(path), list[str]()
    folder.write_text(CONFIG, resolve(from_data({**SMALL, **changes})).to_yaml())
    return folder, page.run(path, lines.append), lines


def measured(folder: RunFolder, file: str, part: str) -> dict[str, float]:
    """Metrics of a checkpoint's file, by a framework and a data set of one's own."""
    config = reading.read(folder.path / CONFIG)
    streams = json.loads((folder.path / "seed.json").read_text())["streams"]
    split = getattr(batches.load(config.data, streams["subset"]), part)
    of, _, plan = page.plan_of(config)
    framework = registry.load("reference")("cpu")
    model = of.start(framework, config, 0)[0]
    step, _, weights = file.partition("/")
    framework.set_weights(model, folder.checkpoint(int(step[5:]), weights.removesuffix(".safetensors")))
    dataset = batches.load(config.data, streams["subset"])
    logits = framework.predict(begin(framework, model, plan), dataset.normalise(split.x))
    return metrics.measure(logits, split.y)


def evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    return [record for record in read_metrics(folder.path / "metrics.jsonl") if "val" in record]


def test_the_result_is_the_best_step_by_validation_and_its_test(tmp_path: Path) -> None:
    folder, summary, lines = trained(tmp_path / "run", ema={"decay": 0.9})
    found = [
        ((record[key]["accuracy"], -record[key]["loss"]), record["step"], weights)
        for record in evaluations(folder)
        for key, weights in (("val", "model"), ("val_ema", "ema"))
    ]
    score, step, weights = max(found, key=lambda one: one[0])
    assert summary["kept"] == {"step": step, "weights": weights}
    assert summary["val"]["accuracy"] == score[0]
    named = (folder.path / "checkpoints/best").read_text().strip()
    assert named == f"step_{step}/{weights}.safetensors"
    for part in ("val", "test"):
        assert measured(folder, named, part) == pytest.approx(summary[part], rel=1e-6)
    last = evaluations(folder)[-1]
    assert summary["last"] == {"step": 24, "val": last["val"], "test": last["test"]}
    assert measured(folder, "step_24/model.safetensors", "test") == pytest.approx(last["test"], rel=1e-6)
    kept = [line for line in lines if line.startswith("kept: ")]
    assert len(kept) == (step != 24 or weights != "model")
    there = {path.name for path in (folder.path / "checkpoints").iterdir()}
    assert there == {"best", "latest", f"step_{step}", "step_24"}
    told = [line.rpartition("the average's accuracy ")[2] for line in lines if line.startswith("step ")]
    assert told == [f"{record['val_ema']['accuracy']:.4f}" for record in evaluations(folder)]


def test_keep_best_0_keeps_the_end(tmp_path: Path) -> None:
    folder, summary, lines = trained(tmp_path / "run", checkpoint={"keep_best": 0})
    assert summary["kept"] == {"step": 24, "weights": "model"}
    assert (summary["val"], summary["test"]) == (summary["last"]["val"], summary["last"]["test"])
    assert {path.name for path in (folder.path / "checkpoints").iterdir()} == {"latest", "step_24"}
    assert not [line for line in lines if line.startswith("kept")]


def test_keeping_changes_nothing_of_the_training(tmp_path: Path) -> None:
    plain, _, _ = trained(tmp_path / "plain", checkpoint={"keep_best": 0})
    kept, _, _ = trained(tmp_path / "kept", checkpoint={"keep_best": 2}, ema={"decay": 0.9})
    for one, other in zip(evaluations(plain), evaluations(kept), strict=True):
        assert one["val"] == other["val"] and one["groups"] == other["groups"]
    ends = [folder.checkpoint(24, "model") for folder in (plain, kept)]
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_average_of_a_run_is_that_of_its_weights(tmp_path: Path) -> None:
    folder, _, _ = trained(tmp_path / "run", ema={"decay": 0.9}, checkpoint={"every": 1, "keep": 99})
    series = [folder.checkpoint(step, "model") for step in range(1, 25)]
    start = {name: array.astype(np.float64) for name, array in series[0].items()}
    for number, weights in enumerate(series[1:], 1):
        decay = min(0.9, (1 + number) / (10 + number))
        start = {name: decay * start[name] + (1 - decay) * weights[name] for name in start}
    # the first step's share begins with the start weights, which no checkpoint holds: what is left of them is known
    left = np.prod([min(0.9, (1 + n) / (10 + n)) for n in range(24)])
    for name, array in folder.checkpoint(24, "ema").items():
        np.testing.assert_allclose(array, start[name], atol=10 * left + 1e-4)


def test_a_run_that_stalls_ends_and_says_so(tmp_path: Path) -> None:
    folder, summary, _ = trained(tmp_path / "run", optimizer={"lr": 1e-12}, early_stop={"patience": 2})
    assert summary["stopped_early"] and summary["steps"] == 9, "the first evaluation, and two without a better one"
    assert [record["step"] for record in evaluations(folder)] == [3, 6, 9]
    assert summary["kept"]["step"] in (3, 6, 9) and summary["last"]["test"]
    assert folder.state() == "completed"
    assert len([r for r in read_metrics(folder.path / "metrics.jsonl") if "loss" in r]) == 9


def test_accumulated_batches_are_the_large_batch(tmp_path: Path) -> None:
    """The same pictures in the same order, so the same curve within rounding."""
    large, _, _ = trained(tmp_path / "large", batch_size=20, optimizer={"name": "sgd", "lr": 0.1})
    parts, _, _ = trained(tmp_path / "parts", batch_size=5, accumulate=4, optimizer={"name": "sgd", "lr": 0.1})
    losses = [[r["loss"] for r in read_metrics(f.path / "metrics.jsonl") if "loss" in r] for f in (large, parts)]
    assert len(losses[0]) == len(losses[1]) == 24
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
