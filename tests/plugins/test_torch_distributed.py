"""One run in two processes on the CPU (gloo): the curve of one process, the proof on sharded parameters, files of the
first alone, another number of processes when it goes on, and the end of one that is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import prepared
from layerwise_lr.plugins.torch_plugin.distributed import CLASSES, Distributed
from layerwise_lr.plugins.torch_plugin.plugin import TorchFramework
from safetensors.numpy import load_file
from torch import nn

from layerwise_lr.cli.program import main
from layerwise_lr.framework import Framework, Group, Tree, ZooModel, begin, conformance, proof, take_step
from layerwise_lr.framework.conformance.kit import ADAMW, LAYER_ADAPTIVE, MOMENTUM, MUON, Kit, plan_for, residual_net
from layerwise_lr.models import initial_weights, make_tree
from layerwise_lr.planning import Clip, Plan
from layerwise_lr.run import RunFolder, page, read_lines, read_metrics, reading, resolve, several

LIKE = {"rtol": 2e-4, "atol": 2e-5}
"""Sums in another order, after some steps."""
KIT = ("golden_curve_cnn", "frozen_batchnorm", "unfreezes_on_the_step", "optimizer_state")
RUN = {"steps": 12, "eval_every": 4}
"""RICH: a vit with dropout, augmentation, an average of the weights, groups that thaw; a resume point every second step."""


@pytest.fixture(scope="module", params=CLASSES)
def team(request: pytest.FixtureRequest) -> Iterator[type[Distributed]]:
    """A class whose frameworks share two processes."""

    class Two(CLASSES[request.param]):  # type: ignore[misc]
        def __init__(self, *given: Any, **more: Any) -> None:
            usual = {"device": "auto", "mode": "", "precision": "fp32", "threads": 1, "deterministic": False}
            super().__init__(*{**usual, **dict(zip(usual, given, strict=False)), **more}.values(), processes=2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the other finds `own_net` here
        shared = Two("cpu")
        assert shared.team.size == 2
        yield Two
        shared.close()


@pytest.mark.parametrize("check", KIT)
def test_the_contract_is_kept(team: type[Distributed], check: str) -> None:
    """Against NumPy, on the whole batch in one process: batchnorm among them, frozen and not."""
    outcome = conformance.run_check(Kit("torch", team, "eager"), check)
    assert outcome.result == "passed", outcome.message


def trained(framework: Framework, model: Any, start: Any, plan: Plan, count: int, shape: tuple[int, ...]) -> Any:
    """Losses, gradients of the last step and weights after three steps on batches of `count` pictures."""
    framework.set_weights(model, start)
    state, losses = begin(framework, model, plan), []
    for step in range(3):
        rng = np.random.default_rng(step)
        x = rng.standard_normal((count, *shape)).astype(np.float32)
        result = take_step(framework, state, plan, step, (x, rng.integers(0, 4, count)), 7 + step, gradients=True)
        losses.append(float(result.loss))
    logits = framework.predict(state, x)
    return losses, result.gradients, framework.get_weights(model), logits


def assert_alike(one: Any, other: Any) -> None:
    np.testing.assert_allclose(one[0], other[0], **LIKE)
    for had, has in zip(one[1:3], other[1:3], strict=True):
        assert had.keys() == has.keys()
        for name in had:
            assert had[name].shape == has[name].shape
            assert np.linalg.norm(has[name] - had[name]) < 2e-3 * max(np.linalg.norm(had[name]), 1e-3), name
    np.testing.assert_allclose(other[3], one[3], rtol=1e-3, atol=1e-3)


VIT = make_tree("vit_tiny", 4, 1, 12, patch_size=4, depth=2, embed_dim=24, num_heads=2, dropout=0.3, drop_path=0.5)


@pytest.mark.parametrize(
    ("tree", "count", "accumulate"),
    [(residual_net(0.5), 7, 1), (residual_net(0.5), 9, 3), (make_tree("lenet", 4, 1, 12), 1, 1), (VIT, 5, 1)],
    ids=["uneven", "uneven parts", "one process has none", "vit, dropout and drop_path"],
)
def test_the_step_is_that_of_the_whole_batch(team: type[Distributed], tree: Tree, count: int, accumulate: int) -> None:
    """Dropout masks and statistics too; bounds on the gradient take effect."""
    plan = replace(plan_for(tree, MOMENTUM), accumulate=accumulate, clip=Clip(norm=0.5))
    start, found = initial_weights(tree, 3), []
    for framework in (TorchFramework("cpu"), team("cpu")):
        found.append(trained(framework, framework.make_model(tree), start, plan, count, tree.input_shape))
    assert_alike(*found)


@pytest.mark.parametrize("optimizer", [ADAMW, MUON, LAYER_ADAPTIVE], ids=lambda spec: spec.name)
def test_the_proof_finds_what_it_is_for(
    team: type[Distributed], optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parameters move as planned; where the other process's lr is another, they do not."""
    tree = residual_net()
    framework, start, plan = team("cpu"), initial_weights(tree, 5), plan_for(tree, optimizer)
    model = framework.make_model(tree)
    framework.set_weights(model, start)
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((6, 1, 12, 12)).astype(np.float32), rng.integers(0, 4, 6)
    records = proof.check(framework, model, plan, start, batch, 1)
    assert max(record["max_relative_error"] for record in records) < 1e-3
    if framework.how == "fsdp":
        told = framework.team.together

        @contextmanager
        def wrong(verb: str, *words: Any) -> Iterator[None]:
            if verb == "train_step":
                words = (*words[:2], [2 * lr for lr in words[2]], *words[3:])
            with told(verb, *words):
                yield

        monkeypatch.setattr(framework.team, "together", wrong)
        with pytest.raises(proof.LrMismatch):
            proof.check(framework, model, plan, start, batch, 1)


def own_net(num_classes: int, in_channels: int, **_: Any) -> nn.Module:
    """torch's own modules, one of which the loss does not reach."""
    body = [nn.Conv2d(in_channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout2d(0.3), nn.Flatten()]
    net = nn.Sequential(*body, nn.Dropout(0.5), nn.Linear(600, num_classes))
    net.register_parameter("unused", nn.Parameter(torch.ones(3)))
    return net


def test_a_model_that_nobody_declared(team: type[Distributed]) -> None:
    """Each process makes its own."""
    asked = ZooModel("own", "net", 4, 1, 12, False, {})
    names = [name for name, _ in own_net(4, 1).named_parameters() if name != "unused"]
    group = Group("all", tuple(names), 1.0, 0.0)
    found = []
    for framework in (TorchFramework("cpu"), team("cpu")):
        model = framework.adopt(type(framework).build(asked, 3, own_net))
        start = framework.get_weights(model)
        plan = replace(plan_for(residual_net(), MOMENTUM), groups=(group,), batchnorms={})
        found.append(trained(framework, model, start, plan, 5, (1, 12, 12)))
    assert_alike(*found)


def launched(path: Path, processes: int) -> "subprocess.Popen[str]":
    """torchrun ... -m layerwise_lr run PATH."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*words, "-m", "layerwise_lr", "run", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def losses(path: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(path / "metrics.jsonl") if "loss" in record]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RICH in one process without a word of distribution."""
    path = prepared(tmp_path_factory.mktemp("whole") / "run", **RUN)
    page.run(path, lambda line: None)
    return path


def alone(monkeypatch: pytest.MonkeyPatch, size: int = 1) -> dict[str, str]:
    """This process is the first of `size` that a launcher has started; what the others are told but their rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "LOCAL_RANK": "0"}
    for name, value in {**told, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    return told


def files(path: Path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*") if each.is_file()}


def stop_at(step: int) -> Callable[[Iterable[int], int], Iterator[int]]:
    def track(steps: Iterable[int], total: int) -> Iterator[int]:
        for now in steps:
            if now == step:
                raise KeyboardInterrupt
            yield now

    return track


def assert_same_run(path: Path, whole: Path) -> None:
    """To rounding: every loss, the kept weights and what the other files tell; nothing is written twice or by others."""
    np.testing.assert_allclose(losses(path), losses(whole), **LIKE)
    assert files(path) == files(whole)
    had, has = (load_file(str(each / "checkpoints/step_12/model.safetensors")) for each in (whole, path))
    assert {n: a.shape for n, a in had.items()} == {n: a.shape for n, a in has.items()}
    for name in had:
        np.testing.assert_allclose(has[name], had[name], rtol=1e-3, atol=1e-4, err_msg=name)
    proofs = [[(r["when"], r["step"]) for r in read_lines(each / "lr_check.jsonl")] for each in (whole, path)]
    assert proofs[0] == proofs[1]
    assert max(record["max_relative_error"] for record in read_lines(path / "lr_check.jsonl")) < 1e-3
    summary = RunFolder(path).read_json("summary.json")
    assert summary["proof"]["mismatches"] == 0


def test_a_run_begun_by_one_goes_on_in_two(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharded; the other process is one that a launcher has started with the run's folder."""
    path = prepared(tmp_path / "run", **{**RUN, "framework": {"distributed": "fsdp"}})
    alone(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        page.run(path, lambda line: None, stop_at(6))
    assert RunFolder(path).read_json("env.json")["processes"] == 1
    told = alone(monkeypatch, 2)
    words = [sys.executable, "-m", "layerwise_lr", "run", str(path)]
    other = subprocess.Popen(words, env={**os.environ, **told, "RANK": "1", "LOCAL_RANK": "1"})
    said: list[str] = []
    page.run(path, said.append)
    assert other.wait(30) == 0
    assert "goes on after step 6 of 12" in said
    assert RunFolder(path).read_json("env.json")["processes"] == 2
    assert_same_run(path, whole)


def test_a_killed_process_ends_the_run_which_goes_on_in_one(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepared(tmp_path / "run", **{**RUN, "framework": {"distributed": "ddp"}})
    process = launched(path, 2)
    second, until = 0, time.monotonic() + 120
    while not list((path / "checkpoints/resume").glob("step_*")) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[0]
        second = second or rank_one(path)
        time.sleep(0.002)
    os.kill(second, signal.SIGKILL)
    said = process.communicate(timeout=60)[0]
    status = RunFolder(path).read_json("status.json")
    assert (process.returncode, status["state"]) == (1, "failed"), (said, status)
    assert status["error"]["message"].startswith("of 2 processes that train together one is gone")
    assert f"error: {status['error']['message']}" in said.splitlines()
    assert not (path / "summary.json").exists()
    alone(monkeypatch)
    told: list[str] = []
    page.run(path, told.append)
    assert any(line.startswith("goes on after step") for line in told)
    assert_same_run(path, whole)


def rank_one(path: Path) -> int:
    """The second process's number; 0: it has not begun."""
    for place in Path("/proc").glob("[1-9]*"):
        with suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(path) in words and b"RANK=1" in (place / "environ").read_bytes().split(b"\0"):
                return int(place.name)
    return 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "a launcher has started 2 processes, and framework.distributed=none trains in one"),
        (["train", "framework=reference"], "a launcher has started 2 processes, and reference trains in one: start it"),
        (["train", "-m", "seed=0,1", "framework.distributed=ddp"], "a sweep starts its jobs' processes itself"),
        (["report", "outputs"], "report is one process's"),
        (
            ["train", "framework.distributed=ddp", "framework.processes=3"],
            "framework.processes=3, and the launcher has",
        ),
        (["train", "framework=reference", "framework.distributed=ddp"], "framework reference trains in one process"),
    ],
)
def test_what_several_processes_do_not_do(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line of the first; the others end without a word; nothing is written."""
    monkeypatch.chdir(tmp_path)
    alone(monkeypatch, 2)
    assert refused(words) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
    if said.startswith("a launcher has"):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setattr(several, "PATIENCE", 0.1)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        assert refused(words) == 2
        assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


def test_the_first_says_so_before_the_launcher_ends_it(tmp_path: Path) -> None:
    """torchrun ends all as soon as one has ended."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "layerwise_lr", "train"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if line.startswith("layerwise-lr: ")]
    assert len(said) == 1 and "a launcher has started 2 processes" in said[0], done.stderr
    assert not list(tmp_path.iterdir())


def test_threads_are_shared_among_the_processes() -> None:
    data = {"framework": {"threads": "auto", "distributed": "ddp", "processes": 2}}
    assert resolve(reading.from_data(data)).framework.threads == max((os.cpu_count() or 1) // 2, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["framework.distributed=ddp"], "framework.processes is missing: without a GPU"),
        (["framework.processes=2"], "framework.processes would be ignored"),
        (["framework.distributed=dp"], "framework.distributed=dp must be none, ddp or fsdp"),
        (["framework.distributed=ddp", "framework.processes=2", "framework.mode=compile"], "is eager"),
        (["framework.distributed=ddp", "framework.processes=2", "framework.device=cuda:1"], "takes auto, cuda or cpu"),
    ],
)
def test_what_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(["train", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def refused(words: list[str]) -> object:
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code
