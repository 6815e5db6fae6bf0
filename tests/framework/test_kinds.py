"""The checks of kinds bite: every fault of tests/saboteurs_kinds.py is caught, for every option of every kind."""

import inspect

import pytest
from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework
from saboteurs_kinds import FAULTS, PLUGINS, Fault

from layerwise_lr.framework import KINDS, PLAIN_KINDS, UserError
from layerwise_lr.framework.conformance import CHECKS, Kit, dropout, nets, run_check
from layerwise_lr.models import walk


def options(kind: str) -> set[str]:
    """Of a kind, as declared; a convolution's stride and padding stand in its comment and in its nets."""
    if kind in PLAIN_KINDS:
        return set(PLAIN_KINDS[kind])
    return (set(inspect.signature(KINDS[kind]).parameters) - {"_"}) | (
        {"stride", "padding"} if kind == "conv" else set()
    )


def values(kind: str) -> dict[str, set[object]]:
    """Option -> what the nets have of it."""
    trees = [net.tree for each in nets.NETS.values() for net in each] + [
        tree for tree, _, _ in (*dropout.NETS, *dropout.PATHS)
    ]
    found: dict[str, set[object]] = {}
    for tree in trees:
        for _, layer, _ in walk(tree.root):
            for option, value in layer.options.items() if layer.kind == kind else ():
                found.setdefault(option, set()).add(value)
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kind}-{f.option}-{f.name}".replace(" ", "_"))
def test_fault_is_caught(fault: Fault) -> None:
    outcome = run_check(Kit("saboteur", fault.plugin, "eager"), fault.check)
    assert outcome.result == "failed", outcome
    assert "wanted" in outcome.message and ("measured ValueError" in outcome.message) == fault.crashes, outcome


@pytest.mark.parametrize(("check", "plugin"), PLUGINS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_faulty_plugin_is_caught(check: str, plugin: type[ReferenceFramework]) -> None:
    outcome = run_check(Kit("saboteur", plugin, "eager"), check)
    assert outcome.result == "failed" and "wanted" in outcome.message and "measured" in outcome.message, outcome


@pytest.mark.parametrize("kind", [*KINDS, *PLAIN_KINDS])
def test_every_kind_has_a_check_and_every_option_a_fault_and_two_values(kind: str) -> None:
    assert f"kind_{kind}" in CHECKS
    faults = [fault for fault in FAULTS if fault.kind == kind]
    assert faults
    assert {fault.option for fault in faults} - {""} == options(kind)
    found = values(kind)
    assert set(found) == options(kind)
    assert all(len(some) > 1 for some in found.values()), found


@pytest.mark.parametrize("check", [name for name in CHECKS if name.startswith("kind_")])
def test_a_kind_that_is_not_listed_is_not_asked_for(check: str) -> None:
    kind = check.removeprefix("kind_")

    class Without(ReferenceFramework):
        kinds = tuple(k for k in ReferenceFramework.kinds if k != kind)

    assert run_check(Kit("without", Without, "eager"), check)[:3] == (
        check,
        "not applicable",
        f"it lists no {kind} in kinds",
    )


def test_what_is_refused_on_this_device_is_not_applicable_in_its_own_words() -> None:
    class Refuses(ReferenceFramework):
        precisions = ("fp32", "bf16")

        def __init__(self, device="auto", mode="", precision="fp32", threads=1, deterministic=False) -> None:  # type: ignore[no-untyped-def]
            if precision == "bf16" or deterministic:
                raise UserError("not on this device")
            super().__init__(device, mode, precision, threads, deterministic)

    for check in ("precision_bf16", "deterministic"):
        assert run_check(Kit("refuses", Refuses, "eager"), check)[:3] == (check, "not applicable", "not on this device")
    assert run_check(Kit("refuses", Refuses, "eager"), "precision_fp64").message == "it lists no fp64 in precisions"
