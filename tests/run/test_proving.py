"""The proof in training: when it measures, what it catches that a rehearsal cannot, and what it leaves alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saboteurs
from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework
from layerwise_lr.plugins.torch_plugin.plugin import TorchFramework

from layerwise_lr.framework import Framework, proof, registry
from layerwise_lr.framework.conformance.kit import (
    ADAMW,
    COSINE,
    LAYER_ADAPTIVE,
    LION,
    MOMENTUM,
    MUON,
    NADAM,
    RMSPROP,
    SGD,
    Session,
    batch,
    plan_for,
    residual_net,
)
from layerwise_lr.planning import FreezeSpec, GroupingSpec, GroupSpec, OptimizerSpec, Plan, ScheduleSpec, UserError
from layerwise_lr.run import CONFIG, RunFolder, page, resolve
from layerwise_lr.run.folder import read_lines, read_metrics
from layerwise_lr.run.proving import FAINT, Prover
from layerwise_lr.run.reading import from_data
from layerwise_lr.run.schema import VerifySpec

STEPS, EVALUATE = 24, 4
STOPS = 10
OPTIMIZERS = {
    "sgd": replace(SGD, weight_decay=0.05),
    "momentum": MOMENTUM,
    "nesterov": replace(MOMENTUM, nesterov=True),
    "adam": replace(ADAMW, name="adam"),
    "adamw": ADAMW,
    "nadam": NADAM,
    "rmsprop": RMSPROP,
    "lion": LION,
    "muon": MUON,
    "layer_adaptive": LAYER_ADAPTIVE,
}


def stopping(optimizer: OptimizerSpec) -> Plan:
    """The stem stops at step STOPS; warm-up and cosine."""
    groups = {"stem": GroupSpec(["stem"], lr_scale=0.5, stop=STOPS), "rest": GroupSpec(["*"])}
    return plan_for(residual_net(), optimizer, GroupingSpec("by_module", groups=groups), COSINE, steps=STEPS)


def train(framework: Framework, plan: Plan, spec: VerifySpec, path: Path, dropout: float = 0.0) -> Prover:
    """A run of the small net, proved as a run is."""
    prover = Prover(spec, RunFolder.claim(path), framework, plan, lambda line: None)
    tree = residual_net(dropout)
    session = Session(framework, tree, plan)
    prover.rehearse(session.model, session.initial, batch(tree), 0)
    for step in range(plan.total_steps):
        if proved := prover.due(step, (step + 1) % EVALUATE == 0):
            prover.hold(session.state)
        session.step(step)
        if proved:
            prover.compare(step, session.weights(), session.gradients)
    return prover


# --- saboteurs

IN_TRAINING = {  # class: (whether the rehearsal catches it, the step at which training does)
    saboteurs.BakesTheFirst: (True, 3),
    saboteurs.BakesAtABoundary: (True, 11),
    saboteurs.StatisticsMove: (True, 11),
    saboteurs.FrozenDriftsLate: (False, 15),
    saboteurs.ResetsState: (False, 15),
    saboteurs.StopsDecay: (False, 15),
    saboteurs.StaleGradients: (False, 15),
}


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("saboteur", IN_TRAINING, ids=lambda saboteur: saboteur.__name__)
def test_who_is_caught_when(saboteur: type[Framework], optimizer: str, tmp_path: Path) -> None:
    rehearsed, step = IN_TRAINING[saboteur]
    plan = stopping(OPTIMIZERS[optimizer])
    with pytest.raises(proof.LrMismatch) as caught:
        train(saboteur("cpu"), plan, VerifySpec(start=False), tmp_path / "unrehearsed")
    assert (caught.value.records[-1]["when"], caught.value.records[-1]["step"]) == ("training", step)
    with pytest.raises(proof.LrMismatch) as caught:
        train(saboteur("cpu"), plan, VerifySpec(), tmp_path / "rehearsed")
    assert caught.value.records[-1]["when"] == ("start" if rehearsed else "training")


def test_a_fault_of_one_step_is_caught_where_that_step_is_measured(tmp_path: Path) -> None:
    """Afterwards all moves as the plan says, from the state there is."""
    plan = stopping(MOMENTUM)
    train(saboteurs.ResetsOnce("cpu"), plan, VerifySpec(), tmp_path / "unseen")
    with pytest.raises(proof.LrMismatch) as caught:
        train(saboteurs.ResetsOnce("cpu"), plan, VerifySpec(every=1), tmp_path / "seen")
    assert caught.value.records[-1]["step"] == 12


COUNTED = {  # class: (step at which it is caught, steps that the state counts, steps that were trained)
    saboteurs.ResetsOnce: (15, 3, 15),
    saboteurs.ForgetsState: (7, 2, 7),
    saboteurs.FreezesByLrAlone: (7, 7, 2),
}


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("saboteur", COUNTED, ids=lambda saboteur: saboteur.__name__)
def test_or_later_by_the_steps_that_the_state_counts(saboteur: type[Framework], optimizer: str, tmp_path: Path) -> None:
    step, counted, trained = COUNTED[saboteur]
    groups = {"block": GroupSpec(["block"], start=5), "rest": GroupSpec(["*"])}
    plan = plan_for(residual_net(), OPTIMIZERS[optimizer], GroupingSpec("by_module", groups=groups), COSINE, STEPS)
    with pytest.raises(proof.LrMismatch, match=r"/step is off by ") as caught:
        train(saboteur("cpu"), plan, VerifySpec(), tmp_path / "run")
    line = caught.value.records[-1]
    assert (line["when"], line["step"]) == ("training", step)
    assert line["max_relative_error"] == pytest.approx(abs(counted - trained) / trained)
    for row in line["groups"]:
        assert row["measured"] == pytest.approx(row["planned"], rel=1e-3 + row["resolution"]), "the lr is right"


def test_a_drift_of_the_statistics_is_named(tmp_path: Path) -> None:
    with pytest.raises(proof.LrMismatch, match=r"group batchnorm statistics .*stem\.bn\.running_mean is off"):
        train(saboteurs.StatisticsMove("cpu"), stopping(MOMENTUM), VerifySpec(), tmp_path / "run")


# --- no false alarm

SCHEDULES = {
    "constant": ScheduleSpec(),
    "warm-up": COSINE,
    "to zero": ScheduleSpec("cosine"),
    "steps": ScheduleSpec("exponential", gamma=0.1, every=4),
}
FREEZES = {
    "none": FreezeSpec(),
    "progressive": FreezeSpec("progressive", every=3, stages=["block", "mid", "head"]),
    "after": FreezeSpec("after", at=9, match=["stem"]),
}


@pytest.mark.parametrize("framework", [ReferenceFramework, TorchFramework], ids=["reference", "torch"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_honest_framework_is_not_accused(
    framework: type[Framework], optimizer: str, schedule: str, tmp_path: Path
) -> None:
    """Decays of 0.5 to 1, with freezing and dropout."""
    for layer_decay, freeze in ((0.5, "none"), (0.75, "after"), (1.0, "progressive")):
        grouping = GroupingSpec("layer_decay", layer_decay=layer_decay)
        tree, spec = residual_net(0.3), OPTIMIZERS[optimizer]
        plan = plan_for(tree, spec, grouping, SCHEDULES[schedule], STEPS, FREEZES[freeze])
        prover = train(framework("cpu"), plan, VerifySpec(every=1), tmp_path / freeze, dropout=0.3)
        summary = prover.summary()
        assert (summary["mismatches"], summary["training"], summary["evaluations"]) == (0, STEPS, STEPS // EVALUATE)
        records = read_lines(tmp_path / freeze / "lr_check.jsonl")
        faint = [r for r in records if r["when"] == "training" and r["resolution"] > FAINT]
        assert summary["faint"] == len(faint)
        assert not faint or schedule != "constant"


@pytest.mark.parametrize("precision", ["fp64", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_nor_in_another_precision(optimizer: str, precision: str, tmp_path: Path) -> None:
    plan = stopping(OPTIMIZERS[optimizer])
    prover = train(TorchFramework("cpu", "eager", precision), plan, VerifySpec(every=1), tmp_path / "run")
    assert prover.mismatches == 0


def test_training_that_diverges_is_told_as_such(tmp_path: Path) -> None:
    options = {"framework": {"name": "torch"}, "optimizer": {"name": "sgd", "lr": 1e6}, "verify": {"every": 1}}
    folder = run_folder(tmp_path / "run", **options)
    with pytest.raises(UserError, match=r"at step \d+: lower optimizer\.lr"):
        page.run(folder.path, say=lambda line: None)


# --- when it measures, and what a run tells of it


def run_folder(path: Path, **changes: Any) -> RunFolder:
    """A run of 6 steps with 3 evaluations."""
    data = {"name": "digits", "image_size": 12, "train_size": 60, "val_size": 30, "test_size": 30}
    short = {"framework": {"name": "reference"}, "data": data, "batch_size": 20, "steps": 6, "eval_every": 2}
    folder = RunFolder.claim(path)
    folder.write_text(CONFIG, resolve(from_data({**short, **changes})).to_yaml())
    return folder


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    """lr_check.jsonl."""
    return [json.loads(line) for line in (folder.path / "lr_check.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        ({}, [3, 7, 11]),
        ({"every": 5}, [3, 4, 7, 9, 11]),
        ({"every": 4}, [3, 7, 11]),
        ({"every": 1}, [*range(12)]),
        ({"start": False}, [3, 7, 11]),
        ({"training": False}, []),
    ],
)
def test_the_steps_that_are_measured(spec: dict[str, Any], steps: list[int], tmp_path: Path) -> None:
    prover = Prover(
        VerifySpec(**spec),
        RunFolder.claim(tmp_path / "run"),
        ReferenceFramework("cpu"),
        stopping(SGD),
        lambda line: None,
    )
    assert [step for step in range(12) if prover.due(step, (step + 1) % EVALUATE == 0)] == steps
    assert prover.summary()["evaluations"] == 3


def test_a_run_writes_a_line_for_every_measured_step(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", verify={"every": 3})
    said: list[str] = []
    summary = page.run(folder.path, say=said.append)
    trained = [line for line in lines(folder) if line["when"] == "training"]
    assert [line["step"] for line in trained] == [1, 2, 3, 5]
    assert 1 <= len(lines(folder)) - len(trained) <= 3
    assert summary["proof"] == {
        "start": True,
        "training": 4,
        "faint": 0,
        "evaluations": 3,
        "mismatches": 0,
        "max_relative_error": max(line["max_relative_error"] for line in lines(folder)),
    }
    assert sum("effective lr proved" in line for line in said) == 1


def test_off_measures_nothing(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", verify={"start": False, "training": False})
    proved = page.run(folder.path, say=lambda line: None)["proof"]
    assert (proved["start"], proved["training"], proved["evaluations"]) == (False, 0, 3)
    assert not (folder.path / "lr_check.jsonl").exists()


def test_a_mismatch_that_is_only_told_of_goes_on_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda name: saboteurs.BakesTheFirst)
    options = {"scheduler": {"name": "cosine", "warmup": 0}}
    folder = run_folder(tmp_path / "warned", verify={"on_mismatch": "warn"}, **options)
    said: list[str] = []
    summary = page.run(folder.path, say=said.append)
    wrong = [line for line in lines(folder) if line["max_relative_error"] > proof.TOLERANCE]
    assert [line["when"] for line in wrong] == ["start", "training", "training", "training"]
    assert summary["proof"]["mismatches"] == len(wrong) == sum(line.startswith("WARNING: group ") for line in said)
    assert len(read_metrics(folder.path / "metrics.jsonl")) == 6 + 3

    stopped = run_folder(tmp_path / "stopped", verify={"start": False}, **options)
    with pytest.raises(proof.LrMismatch):
        page.run(stopped.path, say=lambda line: None)
    assert [line["step"] for line in lines(stopped)] == [1]
    assert stopped.state() == "failed" and not (stopped.path / "summary.json").exists()


def test_a_bad_spec_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="on_mismatch"):
        resolve(from_data({"verify": {"on_mismatch": "shrug"}}))


def test_nothing_of_the_measured_step_is_kept(tmp_path: Path) -> None:
    plan = stopping(ADAMW)
    prover = train(ReferenceFramework("cpu"), plan, VerifySpec(), tmp_path / "run")
    assert prover._before == ({}, {})
    assert {record["when"] for record in prover.records} == {"start"}
    assert len(json.dumps(prover.records)) < 1e5 and not any(
        isinstance(part, np.ndarray) for part in vars(prover).values()
    )
