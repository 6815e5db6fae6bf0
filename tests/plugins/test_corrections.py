"""Each correction that a plugin makes to its framework, taken out again: a named check of the kit must turn red.

The package is copied, one line of a plugin is put back to what the framework would do by itself, and the kit runs as a
user runs it (`layerwise-lr check NAME --only CHECK`), in a process of its own. --framework chooses the plugin.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Correction(NamedTuple):
    """A line of plugins/<framework>_plugin/<file>, what the framework does without it, the check that sees it."""

    file: str
    ours: str
    theirs: str
    check: str
    mode: str


CORRECTIONS = {
    "torch": {
        "gelu": Correction("layers.py", 'approximate="none"', 'approximate="tanh"', "same_logits", "eager"),
        "requires_grad_ of the parameters": Correction(
            "plugin.py", "param.requires_grad_(on)", "pass", "frozen_keep_state", "eager"
        ),
        "torch's own groups, not copies": Correction(
            "plugin.py",
            "core.GroupScheduler(core.in_plan_order(optimizer, plan), plan)",
            "core.GroupScheduler([dict(group) for group in core.in_plan_order(optimizer, plan)], plan)",
            "schedule_at_every_step",
            "eager",
        ),
        "resting batchnorms": Correction(
            "layers.py", "layer.train(name not in frozen)", "layer.train(True)", "frozen_batchnorm", "eager"
        ),
    },
    "oneflow": {
        "layernorm eps": Correction("layers.py", "variance + self.eps", "variance + 1e-3", "same_logits", "eager"),
        "the live groups: OneFlow copies the dicts that it is given": Correction(
            "plugin.py",
            "[native.param_groups[0] for native in optimizer]",
            "[dict(native.param_groups[0].options) for native in optimizer]",
            "schedule_at_every_step",
            "eager",
        ),
        "lr_scale, which a Graph multiplies": Correction(
            "plugin.py", '{"lr_scale": group.lr_scale} if native', "{} if native", "effective_lr", "graph_native"
        ),
        "batchnorms that rest, read when a Graph is built": Correction(
            "graph.py", "model.rest(self._frozen)", "pass", "frozen_batchnorm", "graph"
        ),
        "rmsprop's eps outside the root": Correction(
            "optimizers.py",
            '(RmsProp, {"alpha": s.alpha, "eps": s.eps, "momentum": s.momentum})',
            '(flow.optim.RMSprop, {"alpha": s.alpha, "eps": s.eps})',
            "effective_lr_others",
            "eager",
        ),
        "drop_path drops whole samples": Correction(
            "layers.py", '"drop_path": DropPath', '"drop_path": Dropout', "kind_drop_path", "graph"
        ),
        "the step count at resume": Correction(
            "optimizers.py",
            'native._state["step"] = steps_in(arrays, group["names"])',
            "pass",
            "resume_is_seamless",
            "eager",
        ),
    },
    "mindspore": {
        "batchnorm momentum": Correction(
            "layers.py", "momentum=1 - momentum", "momentum=momentum", "batchnorm_statistics", "pynative"
        ),
        "gelu": Correction("layers.py", "approximate=False", "approximate=True", "same_logits", "pynative"),
        "set_data instead of assign": Correction(
            "plugin.py",
            "ops.assign(parameter, Tensor(lr, ms.float32))",
            "parameter.set_data(Tensor(lr, ms.float32))",
            "schedule_at_every_step",
            "pynative",
        ),
        "adamw's bias": Correction(
            "optimizers.py",
            "factor = root / -ops.expm1(t * self.logs[0])",
            "factor = root / root",
            "optimizer_adamw",
            "pynative",
        ),
        "nesterov": Correction("optimizers.py", "if spec.nesterov:", "if False:", "optimizer_nesterov", "pynative"),
        "batchnorm layers at rest": Correction(
            "layers.py", "norm.set_train(name not in frozen)", "norm.set_train(True)", "frozen_batchnorm", "pynative"
        ),
        "optimizers that serve again begin anew": Correction(
            "natives.py", "        self.set_state({})", "        self.begun = set()", "same_seed_same_curve", "pynative"
        ),
    },
    "megengine": {
        "batchnorm momentum": Correction(
            "layers.py", "momentum=1 - momentum", "momentum=momentum", "batchnorm_statistics", "eager"
        ),
        "resting batchnorms": Correction(
            "layers.py", " and layer.name not in step.frozen", "", "frozen_batchnorm", "eager"
        ),
        "adamw's weight decay": Correction(
            "optimizers.py", '"adamw": lambda s: (AdamW', '"adamw": lambda s: (Adam', "optimizer_adamw", "eager"
        ),
        "the trained subset": Correction(
            "plugin.py",
            "zip(state.groups, step.active, strict=True) if on for",
            "zip(state.groups, step.active, strict=True) for",
            "frozen_keep_state",
            "eager",
        ),
    },
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per correction of the framework asked for."""
    mine = CORRECTIONS[metafunc.config.getoption("--framework")]
    metafunc.parametrize("correction", mine.values(), ids=mine)


def test_without_it_a_named_check_turns_red(
    correction: Correction, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = request.config.getoption("--framework")
    for source, target in (("layerwise_lr", ""), ("plugins", "plugins"), ("conf", "conf")):
        shutil.copytree(ROOT / source, tmp_path / "layerwise_lr" / target, dirs_exist_ok=True)
    file = tmp_path / "layerwise_lr" / "plugins" / f"{name}_plugin" / correction.file
    text = file.read_text()
    assert text.count(correction.ours) == 1, "the correction stands somewhere else now"
    file.write_text(text.replace(correction.ours, correction.theirs))
    command = [sys.executable, "-m", "layerwise_lr", "check", name, "--mode", correction.mode, "--only"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command, correction.check], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"  failed          {correction.check}" in done.stdout and "measured" in done.stdout, done.stdout
