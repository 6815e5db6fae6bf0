"""The truth about code that is not ours: `verify(model, optimizer, ...)`."""

from collections.abc import Iterator
from typing import Any

from ...planning import Plan, UserError
from .. import registry
from .diseases import diagnose
from .faults import Case
from .making import ModelPlan
from .measuring import Measured, measure
from .verdict import ModelLrMismatch, Report


def verify(
    model: Any,
    optimizer: Any,
    *given: Any,
    scheduler: Any = None,
    plan: ModelPlan | Plan | None = None,
    batch: Any = None,
    steps: int | None = None,
) -> Report:
    """Does each parameter move by the lr that it should? Measured by displacement, whatever the groups say.

        llr.verify(model, optimizer)                            # what can be seen without a plan
        llr.verify(model, optimizer, plan, batch)               # against the plan, with real gradients
        llr.verify(model, optimizer, scheduler, steps=1000)     # ... and over the next 1000 scheduler steps
        print(llr.verify(...))                                  # the effective lr of every group

    The optimizer itself steps, from the state that it is in and back to it: weights, buffers, optimizer and scheduler
    state, gradients, random generators (MegEngine's cannot be read, so its dropouts rest), flags and hooks are afterwards
    bit by bit what they were. It takes torch's own
    SGD, Adam and AdamW at their formula, any other optimizer at its word: two steps with known lrs tell how far it
    moves by each. Found are: lr_scale that nobody reads, no layer-wise lr at all, schedulers that flatten the groups,
    ratios that a floor or a warm-up destroys, lr that compounds, parameters in no group or in two or no longer the
    model's, frozen ones that move, trainable ones that cannot, decay on gradients that Adam divides out, updates too
    small for bfloat16. What the config meant is known to a plan alone: without one, equal lrs in all groups are no fault.

    Args:
        model: a torch model, wrapped or not, or one of OneFlow (eager), MindSpore or MegEngine.
        optimizer: any that holds its parameters, before or after some training; wrapped or not. MindSpore's own schedules
            and lists of lrs are gone along.
        given: scheduler, plan and batch in any order, recognised by what they are.
        scheduler: anything with step(); several that write the same optimizer as a list.
        plan: of llr.plan. Under its own scheduler the lrs must be the plan's, under another one their ratios.
        batch: (inputs, classes) for a cross-entropy, a mapping with labels for a torch model that gives its loss, or a
            function of the model that gives the loss. None: gradients are drawn from a fixed seed, no forward is run.
        steps: how many scheduler steps to look ahead; None: to the scheduler's end, where it says how long it is.

    Raises:
        ModelLrMismatch: something is wrong; its `report` says what, where, and what to do.
        UserError: it cannot be measured; says why.
    """
    report = examine(model, optimizer, *given, scheduler=scheduler, plan=plan, batch=batch, steps=steps)
    if report.faults:
        raise ModelLrMismatch(report)
    return report


def examine(model: Any, optimizer: Any, *given: Any, steps: int | None = None, **named: Any) -> Report:
    """As `verify`, without raising where something is wrong."""
    asked: dict[str, Any] = {"scheduler": None, "plan": None, "batch": None, **named}
    for one in given:
        kind = _kind(one)
        if one is not None and asked[kind] is not None:
            raise UserError(f"verify: a second {kind}, a {type(one).__name__}, is given; one is enough")
        asked[kind] = one if one is not None else asked[kind]
    if steps is not None and steps < 0:
        raise UserError(f"verify: steps={steps} must be 0 or more")
    given_schedulers = asked["scheduler"] if asked["scheduler"] is not None else ()
    schedulers = given_schedulers if isinstance(given_schedulers, tuple | list) else (given_schedulers,)
    with registry.native(model).trial(optimizer, schedulers, asked["batch"]) as trial:
        measured = measure(trial, steps)
    case = _case(measured, asked["plan"])
    faults = diagnose(case)
    return Report(measured, tuple(faults), tuple(_notes(case, told=bool(faults))))


def _kind(thing: Any) -> str:
    """scheduler, plan or batch."""
    if isinstance(thing, ModelPlan | Plan):
        return "plan"
    several = isinstance(thing, tuple | list) and thing and all(hasattr(one, "step") for one in thing)
    return "scheduler" if several or callable(getattr(thing, "step", None)) else "batch"


def _case(measured: Measured, given: ModelPlan | Plan | None) -> Case:
    """Under the given plan, or the one that the scheduler applies."""
    own, at = measured.subject.planned or (None, 0)
    plan = given.plan if isinstance(given, ModelPlan) else given or own
    return Case(measured, plan, own is not None, at)


def _notes(case: Case, told: bool) -> Iterator[str]:
    """How well it was measured; and what only a plan could tell, where nothing else is told."""
    m = case.m
    if not m.exact:
        yield f"{m.subject.optimizer} does not step in float64: measured in the parameters' own numbers, to 5 %"
    yield from m.subject.notes
    if told or case.plan is not None:
        return
    if len(m.subject.groups) > 1 and m.subject.peaks:
        yield f"{m.subject.scheduler} wrote every group's lr when it was made: give plan= to see what it wrote over"
    elif m.scales is None and len({f"{lr:.2g}" for lr in m.held[0]}) == 1:
        yield "one lr for all: where layers should differ, give plan="
