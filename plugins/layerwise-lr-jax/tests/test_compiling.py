"""What XLA compiles in a run: one step per set of groups that train together, and nothing for an lr or a resumed run."""

from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import pytest
from layerwise_lr_jax.framework import JaxFramework

from layerwise_lr.framework import take_step
from layerwise_lr.framework.conformance import Kit
from layerwise_lr.framework.conformance.kit import ADAMW, COSINE, Session, batch

COMPILED: Counter[str] = Counter()
STEPS = 9


def note(event: str, duration: float, **_: Any) -> None:
    """What JAX itself tells of each compilation."""
    COMPILED[event] += 1


jax.monitoring.register_event_duration_secs_listener(note)


def compiled() -> int:
    return COMPILED["/jax/core/compile/backend_compile_duration"]


@pytest.fixture
def session() -> Session:
    """The middle stops at step 3, the stem starts at step 5; another lr at every step, warm-up and cosine."""
    jax.clear_caches()
    kit = Kit("jax", JaxFramework, "jit")
    tree, plan = kit.stop_and_go(ADAMW)
    return Session(kit.make(), tree, replace(plan, schedules={"default": COSINE}))


def test_one_compilation_for_each_set_of_groups_and_none_for_an_lr(session: Session) -> None:
    plan, found = session.plan, []
    for step in range(STEPS):
        before = compiled()
        session.step(step)
        found.append(compiled() - before)
    assert found == [int(step in (0, 3, 5)) for step in range(STEPS)]
    assert len({plan.active(step) for step in range(STEPS)}) == 3
    assert all(plan.lrs(step) != plan.lrs(step + 1) for step in range(STEPS)), "an lr that stays would show nothing"


def test_gradients_compile_nothing(session: Session) -> None:
    session.step(0)
    before = compiled()
    given = batch(session.tree, 1)
    without = take_step(session.framework, session.state, session.plan, 1, given, 7, gradients=False)
    with_them = take_step(session.framework, session.state, session.plan, 1, given, 7, gradients=True)
    assert without.gradients is None and with_them.gradients
    assert compiled() == before


def test_a_resumed_run_compiles_nothing(session: Session) -> None:
    middle = session.train(5)
    whole = [session.step(step) for step in range(5, STEPS)]
    before = compiled()
    framework = JaxFramework("cpu")
    resumed = Session(framework, session.tree, session.plan, 5, middle.weights)
    framework.set_optimizer_state(resumed.state, middle.state)
    again = [resumed.step(step) for step in range(5, STEPS)]
    assert compiled() == before
    assert again == whole
    end, other = session.weights(), resumed.weights()
    assert all(end[name].tobytes() == other[name].tobytes() for name in end)
