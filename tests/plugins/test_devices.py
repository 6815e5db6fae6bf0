"""Devices and precisions of one framework (--framework NAME, default torch), each run in a process of its own.

What needs a CUDA or Ascend device is marked so; where there is none it is skipped, and the summary says that it did
not run.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from layerwise_lr.framework import begin, proof, registry, take_step
from layerwise_lr.framework.conformance import TREES
from layerwise_lr.framework.contract import Framework
from layerwise_lr.models.layers import initial_weights, param_table
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import GroupingSpec
from layerwise_lr.planning.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.planning.schedules import ScheduleSpec
from layerwise_lr.run import page
from layerwise_lr.run.schema import Config, FrameworkSpec, ModelSpec

STEPS = 10
HAVE = {  # framework -> device -> 16-bit precisions
    "torch": {"cpu": ("bf16", "fp16"), "cuda": ("bf16", "fp16")},
    "oneflow": {"cpu": (), "cuda": ("fp16",)},
    "mindspore": {"cpu": ("fp16",), "cuda": ("fp16",), "ascend": ("fp16", "bf16")},
    "megengine": {"cpu": ("fp16",), "cuda": ("fp16",)},
}


# --- what runs in the child processes -------------------------------------------------------------------------------


def play(name: str, device: str, precision: str, path: Path) -> None:
    """Per model: the effective-lr proof, 10 steps, logits and gradients of fresh weights whose biases are 0."""
    found = registry.load(name)
    framework = found(device, found.modes[0], precision)
    out = {"held": held(name, framework)}
    for model_name, make in TREES.items():
        tree = make()
        _, plan = make_plan(
            param_table(tree),
            GroupingSpec("layer_decay", layer_decay=0.8),
            {"default": OptimizerSpec("momentum", lr=0.02, weight_decay=0.01)},
            {"default": ScheduleSpec("cosine", warmup=3)},
            FreezeSpec("none"),
            STEPS,
        )
        start = {n: a * 0 if n.endswith(".bias") else a for n, a in initial_weights(tree, 0).items()}
        x, y = batch(tree.input_shape)
        model = framework.make_model(tree)
        framework.set_weights(model, start)
        lines = proof.check(framework, model, plan, start, (x, y), 0)
        out[f"{model_name}/lr"] = max(line["max_relative_error"] for line in lines if line["resolution"] < 1e-4)
        state = begin(framework, model, plan)
        out[f"{model_name}/logits"] = framework.predict(state, x)
        results = [take_step(framework, state, plan, step, (x, y), step) for step in range(STEPS)]
        out[f"{model_name}/losses"] = [float(result.loss) for result in results]
        out |= {f"{model_name}/end/{n}": w for n, w in framework.get_weights(model).items()}
        faint = {n: a * np.float32(1e-3) if n.startswith(tree.head) else a for n, a in start.items()}
        framework.set_weights(model, faint)
        last = take_step(framework, begin(framework, model, plan, 5), plan, 5, (x, y), 5, gradients=True)
        out |= {f"{model_name}/gradient/{n}": g for n, g in last.gradients.items()}
    np.savez(path, **out)


def batch(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((64, *shape)).astype(np.float32), rng.integers(0, 4, 64)


def held(name: str, framework: Framework) -> str:
    """The device that the framework itself says it works on."""
    if name == "mindspore":
        import mindspore as ms

        return f"{ms.get_context('device_target')}:{ms.get_context('device_id')}"
    if name == "megengine":
        import megengine

        return str(megengine.get_default_device())
    return framework.device


def ask(name: str, devices: list[str]) -> None:
    """What is said to whoever asks for these, in every mode; then, that the process still trains."""
    found, told = registry.load(name), []
    for device in devices:
        for mode in found.modes:
            try:
                found(device, mode)
                told.append("taken")
            except UserError as error:
                told.append(str(error))
    tree = TREES["lenet"]()
    framework = found("cpu")
    framework.set_weights(framework.make_model(tree), initial_weights(tree, 0))
    print(json.dumps(told))


# --- the tests ------------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`precision`: those of 16 bits that the framework has on the test's device."""
    if "precision" in metafunc.fixturenames:
        name = metafunc.config.getoption("--framework")
        marks = {mark.name for mark in metafunc.definition.iter_markers()}
        device = next((d for d in ("cuda", "ascend") if d in marks), "cpu")
        none = pytest.param(None, marks=pytest.mark.skip(reason=f"{name} has no 16-bit precision on {device}"))
        metafunc.parametrize("precision", HAVE[name].get(device) or [none])


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--framework")


@pytest.fixture(scope="module")
def played(request, tmp_path_factory):
    """(device, precision) -> what `play` saved."""
    name = request.config.getoption("--framework")

    @cache
    def result(device: str, precision: str) -> dict[str, np.ndarray]:
        path = tmp_path_factory.mktemp("played") / "out.npz"
        child("play", name, device, precision, str(path))
        with np.load(path) as saved:
            return dict(saved)

    return result


def child(*words: str) -> str:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def test_an_absent_device_is_an_error_that_says_what_is_there(name):
    there = registry.load(name).devices()
    absent = [d for d in ("cuda:97", "ascend:0", "ascend:97", "gpu", "cuda:x", "cpu:3", "tpu", "") if d not in there]
    modes = registry.load(name).modes
    told = json.loads(child("ask", name, *absent))
    assert len(told) == len(absent) * len(modes)
    for device, line in zip([d for d in absent for _ in modes], told, strict=True):
        assert f"framework.device={device!r}" in line and name in line and "\n" not in line
        assert line.endswith("sees: " + ", ".join(there))


def test_the_command_line_says_it_in_one_line(name, tmp_path):
    words = ["train", f"framework={name}", "framework.device=cuda:97"]
    done = subprocess.run([sys.executable, "-m", "layerwise_lr", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "framework.device='cuda:97' is not here" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("config.resolved.yaml")), "no folder was claimed"


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_that_overflows_says_so(name, tmp_path, steps):
    """Seen at the evaluation after its only step, or in the loss of the second; in fp16 that may be the fault."""
    for precision in ("fp32", *(p for p in HAVE[name]["cpu"] if p == "fp16")):
        words = [
            f"framework={name}",
            f"framework.precision={precision}",
            "optimizer=sgd",
            "optimizer.lr=1e30",
            "scheduler=constant",
            "weights=none",
            "verify=off",
            f"steps={steps}",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "layerwise_lr", "train", *words], cwd=tmp_path, text=True, capture_output=True
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr and f"at step {min(steps - 1, 1)}: lower optimizer.lr" in done.stderr
        assert ("framework.precision=fp32" in done.stderr) == (precision == "fp16")


def test_precisions_are_those_that_are_tested(name):
    found = registry.load(name)
    ours = dict.fromkeys(p for own in HAVE[name].values() for p in own)
    assert set(found.precisions) - {"fp64"} == {"fp32", *ours}


def test_what_a_device_or_framework_lacks_is_said(name):
    lacking = [p for p in ("bf16", "fp16") if p not in HAVE[name]["cpu"]]
    for precision in (*lacking, "fp8", "FP32"):
        spec = FrameworkSpec(name=name, mode=registry.load(name).modes[0], device="cpu", precision=precision)
        with pytest.raises(UserError, match=rf"^framework\.precision='{precision}'") as caught:
            page.make_framework(Config(framework=spec, model=ModelSpec(num_classes=2, in_channels=1, image_size=32)))
        assert "\n" not in str(caught.value)
    if name == "oneflow":  # a device or a precision to take instead
        with pytest.raises(UserError, match="framework=torch"):
            registry.load(name)("cpu", "eager", "fp16")


def test_fp32_is_proved_and_learns(played):
    seen = played("cpu", "fp32")
    for model in TREES:
        assert seen[f"{model}/lr"] < 1e-4
        assert seen[f"{model}/losses"][-1] < seen[f"{model}/losses"][0]


def test_16_bits_are_computed_with(played, precision):
    """Logits of a model without biases are what the last product gives: numbers that 16 bits can hold."""
    for model in TREES:
        low, full = (played("cpu", p)[f"{model}/logits"] for p in (precision, "fp32"))
        assert fits(low, precision) and not fits(full, precision)
        assert distance(low, full) < (3e-2 if precision == "bf16" else 5e-3)


def test_16_bits_leave_weights_and_optimizer_alone(played, precision):
    """The effective lr is proved as in fp32; the weights use all of float32; the loss follows that of fp32."""
    for model in TREES:
        low, full = (played("cpu", p) for p in (precision, "fp32"))
        assert low[f"{model}/lr"] < 1e-4
        ends = [low[f"{model}/end/{n}"] for n in initial_weights(TREES[model](), 0)]
        assert not any(fits(w, precision) for w in ends if w.ndim > 1)
        difference = np.abs(low[f"{model}/losses"] / full[f"{model}/losses"] - 1)
        assert 0 < difference.max() < (5e-2 if precision == "bf16" else 1e-2)


def test_small_gradients_are_not_lost(played, precision):
    """With a head of 1e-3 its usual size the gradients that flow back are near 1e-7, where float16 ends: measured
    1.5e-2 off in torch, MindSpore and MegEngine alike, and 1.3e-1 without the loss scale; bf16 9e-2."""
    for model in TREES:
        low, full = (played("cpu", p) for p in (precision, "fp32"))
        keys = [k for k in full if k.startswith(f"{model}/gradient/")]
        assert set(keys) == {k for k in low if k.startswith(f"{model}/gradient/")}
        body = [k for k in keys if not k.startswith(f"{model}/gradient/{TREES[model]().head}")]
        one, other = (np.concatenate([seen[k].ravel() for k in body]) for seen in (low, full))
        assert distance(one, other) < (1.5e-1 if precision == "bf16" else 3e-2)


def accelerator_equals_cpu(played, device, precision):
    cpu, other = played("cpu", "fp32"), played(device, precision)
    for model in TREES:
        assert other[f"{model}/lr"] < 1e-4
        difference = np.abs(other[f"{model}/losses"] / cpu[f"{model}/losses"] - 1)
        assert difference.max() < {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}[precision]
        if precision != "fp32":
            assert fits(other[f"{model}/logits"], precision)


@pytest.mark.cuda
def test_cuda_trains_like_the_cpu(played):
    accelerator_equals_cpu(played, "cuda:0", "fp32")


@pytest.mark.cuda
def test_cuda_in_16_bits(played, precision):
    accelerator_equals_cpu(played, "cuda:0", precision)


@pytest.mark.ascend
def test_ascend_trains_like_the_cpu(played):
    accelerator_equals_cpu(played, "ascend:0", "fp32")


@pytest.mark.ascend
def test_ascend_in_16_bits(played, precision):
    accelerator_equals_cpu(played, "ascend:0", precision)


@pytest.mark.cuda
def test_auto_takes_cuda(played):
    assert str(played("auto", "fp32")["held"]) in ("cuda:0", "gpu0", "GPU:0")


@pytest.mark.ascend
def test_auto_takes_ascend(played):
    assert str(played("auto", "fp32")["held"]) == "Ascend:0"


def test_auto_takes_the_best_there_is(name, played):
    best = registry.load(name).devices()[0]
    assert str(played(best, "fp32")["held"]) == str(played("auto", "fp32")["held"])


def fits(array: np.ndarray, precision: str) -> bool:
    """Whether every number is one of the precision's: nothing is lost on the way there and back."""
    if precision == "fp16":
        return bool((array == array.astype(np.float16)).all())
    return not (np.ascontiguousarray(array).view(np.uint32) & 0xFFFF).any()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(float) - b) / np.linalg.norm(b.astype(float)))


if __name__ == "__main__":
    if sys.argv[1] == "play":
        play(*sys.argv[2:5], Path(sys.argv[5]))
    else:
        ask(sys.argv[2], sys.argv[3:])
