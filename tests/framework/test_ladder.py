"""The kit as a ladder: a plugin is checked from its first verb on, and a missing one spoils the checks about it alone."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework

from layerwise_lr.framework import Framework
from layerwise_lr.framework.admission import admitted
from layerwise_lr.framework.conformance import CHECKS, RUNGS, Kit, Outcome, run_check, rung_of, summary

VERBS = sorted(Framework.__abstractmethods__)
WITHOUT = {
    "version": 1,
    "make_model": 80,
    "get_weights": 66,
    "set_weights": 75,
    "make_groups": 73,
    "make_optimizer": 73,
    "make_scheduler": 73,
    "train_step": 73,
    "predict": 25,
    "get_optimizer_state": 10,
    "set_optimizer_state": 9,
}
"""Of how many checks no more can be said without this verb, at most."""


def without(*verbs: str) -> type[Framework]:
    """The reference framework, as it was before these were written."""
    written = {name: getattr(ReferenceFramework, name) for name in ("kinds", "optimizers", "start", "devices")}
    held = {name: ReferenceFramework.__dict__[name] for name in ReferenceFramework.__dict__ if name not in verbs}
    held = {name: value for name, value in held.items() if name not in ("__dict__", "__weakref__")}
    return type("Half", (Framework,), {**written, **held})


@pytest.mark.parametrize(
    ("verb", "stub"), [*((verb, False) for verb in VERBS), ("predict", True), ("make_groups", True)]
)
def test_a_missing_verb_spoils_the_checks_about_it_alone(verb: str, stub: bool) -> None:
    plugin = without(verb)
    if stub:

        def unwritten(*_: object, **__: object) -> None:
            raise NotImplementedError

        unwritten.__name__ = verb
        code = unwritten.__code__.replace(co_name=verb)
        unwritten.__code__ = code
        plugin = type("Stub", (plugin,), {verb: unwritten})
    found = [run_check(Kit("half", plugin, "eager"), check) for check in CHECKS]
    assert {one.message for one in found if one.result == "not yet"} <= {verb}
    counts = Counter(one.result for one in found)
    assert not counts["failed"], [one for one in found if one.result == "failed"]
    assert counts["not yet"] <= WITHOUT[verb]
    assert counts["not yet"] and counts["passed"]


def test_what_the_framework_itself_has_not_is_a_failure_and_says_so() -> None:
    """torch raises NotImplementedError for an operation without a kernel: that is no verb to be written."""

    class Lacks(ReferenceFramework):
        known_failures: ClassVar = {"eager": {"gradients": "no kernel"}}

        def train_step(self, *_: object) -> None:
            def kernel() -> None:
                raise NotImplementedError("could not run aten::foo")

            kernel()

    kit = Kit("lacks", Lacks, "eager")
    for check in ("loss_is_mean_cross_entropy", "kind_relu"):
        found = run_check(kit, check)
        assert found.result == "failed" and "NotImplementedError: could not run aten::foo" in found.message
    assert run_check(kit, "gradients")[:3] == ("gradients", "known failure", "no kernel")


def test_with_four_verbs_the_first_rungs_are_passed() -> None:
    plugin = without(*(set(VERBS) - {"make_model", "get_weights", "set_weights", "predict"}))
    found = {check: run_check(Kit("half", plugin, "eager"), check) for check in CHECKS}
    assert {rung_of(check) for check, one in found.items() if one.result == "passed"} >= {"weights", "predict"}
    assert all(one.result != "failed" for one in found.values())
    assert found["gradients"] == Outcome("gradients", "not yet", "make_groups")


def test_layers_of_an_mlp_are_enough_to_begin_with() -> None:
    class Begun(ReferenceFramework):
        kinds = ("linear", "relu", "flatten")
        optimizers = ("sgd",)

    found = [run_check(Kit("begun", Begun, "eager"), check) for check in CHECKS]
    assert {one.result for one in found} == {"passed", "not applicable"}
    passed = {rung_of(one.check) for one in found if one.result == "passed"}
    assert passed >= {"weights", "predict", "gradients", "sgd", "schedule", "runs"}


def test_every_check_has_its_rung_in_the_order_of_writing() -> None:
    order = [list(RUNGS).index(rung_of(check)) for check in CHECKS]
    assert order == sorted(order) and len(CHECKS) == len(set(CHECKS))
    assert list(RUNGS) == [
        *(
            "weights",
            "predict",
            "gradients",
            "sgd",
            "schedule",
            "freeze",
            "state",
            "resume",
            "kinds",
            "optimizers",
            "runs",
        )
    ]


def test_the_summary_is_a_line() -> None:
    all_of = [Outcome(check, "passed") for check in CHECKS]
    assert summary(all_of) == f"conformant with contract 1: {len(CHECKS)} passed"
    assert summary([*all_of[1:], Outcome("x", "not yet", "predict")]).startswith("not conformant with contract 1: ")
    assert summary([*all_of[1:], Outcome("x", "known failure", "why")]).startswith(
        "conformant in part with contract 1: "
    )
    assert summary(all_of[:3]) == f"3 of {len(CHECKS)} checks: 3 passed"


HALF = """
from layerwise_lr.framework import Framework
from layerwise_lr.framework.admission import admitted
from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework as R

class Half(Framework):
    modes = ("quick", "quicker")
    kinds, optimizers = R.kinds, R.optimizers
    version, make_model = staticmethod(lambda: "half 1"), R.make_model
    get_weights = R.get_weights

    def set_weights(self, model, weights):
        R.set_weights(self, model, {name: 2 * array for name, array in weights.items()})
"""


def test_the_command_says_what_comes_next(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(HALF)
    info = tmp_path / "half-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[layerwise_lr.frameworks]\nhalf = half:Half\n")

    def ask(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "layerwise_lr", "check", "half", *words]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    code, said = ask("--mode", "quick", "--until", "gradients", "--traceback")
    lines = said.splitlines()
    assert code == 1 and lines[0] == "half quick on cpu"
    assert lines[1].split() == ["passed", "names_and_shapes"]
    assert lines[2].split()[:2] == ["failed", "weights_round_trip"] and "Traceback" in said
    assert "not yet: predict same_logits" in " ".join(said.split())
    assert "kind_conv" not in said and "soft_targets" in said
    assert lines[-1].startswith(
        "next: mend weights_round_trip: set_weights then get_weights gives the same bits. (docs/plu"
    )
    code, said = ask("--json", "--only", "names_and_shapes", "same_logits")
    told = json.loads(said)
    assert code == 1 and (told["framework"], told["contract"]) == ("half", 1)
    assert [mode["mode"] for mode in told["modes"]] == ["quick", "quicker"]
    assert [(c["rung"], c["check"], c["result"]) for c in told["modes"][1]["checks"]] == [
        ("weights", "names_and_shapes", "passed"),
        ("predict", "same_logits", "not yet"),
    ]


def test_the_guide_s_plugin_is_conformant_and_its_sections_are_the_rungs() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    module: dict[str, object] = {"__name__": "tiny"}
    exec(re.search(r"^```python\n# tiny\.py\n(.*?)^```", guide, flags=re.DOTALL | re.MULTILINE)[1], module)  # type: ignore[index]
    tiny = admitted("tiny", module["TinyFramework"])
    found = [run_check(Kit("tiny", tiny, "eager"), check) for check in CHECKS]
    assert [one for one in found if one.result not in ("passed", "not applicable")] == []
    count = re.search(r"(\d+) of the checks ask something of it", guide)
    assert count and sum(one.result == "passed" for one in found) == int(count[1])
    headings = [line[3:].lower() for line in guide.splitlines() if line.startswith("## ")]
    assert [heading for heading in headings if heading in RUNGS] == list(RUNGS)
    named = {
        name for row in re.findall(r"^\| (`.+?`) \|", guide, flags=re.MULTILINE) for name in re.findall(r"\w+", row)
    }
    assert len(named) > 20 and named <= set(CHECKS)
