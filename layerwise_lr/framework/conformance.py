"""What "implements Framework" means, as plain functions: CHECKS. Run by `layerwise-lr check NAME`.

Every check trains something small and compares numbers: with the plan, with the reference plugin (NumPy, every
backward pass by hand) or with itself. The first line of a check's docstring is its specification. A failure names
the check, the group or parameter, the step, what was wanted and what was measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..models import Layer, Residual, Seq, Tree, batchnorm, conv, initial_weights, linear, make_tree, param_table
from ..plan import FreezeSpec, GroupingSpec, GroupSpec, OptimizerSpec, Plan, ScheduleSpec, UserError, make_plan
from . import metrics, proof, registry
from .contract import Framework, TrainState, Weights

BATCH, CLASSES = 8, 4
SGD = OptimizerSpec("sgd", lr=0.1, weight_decay=0.0)
MOMENTUM = OptimizerSpec("momentum", lr=0.05, weight_decay=0.01, momentum=0.9)
ADAMW = OptimizerSpec("adamw", lr=3e-3, weight_decay=0.05)
LAYER_ADAPTIVE = OptimizerSpec("layer_adaptive", lr=0.05, weight_decay=0.05)
DECAY = GroupingSpec("layer_decay", layer_decay=0.5)
CONSTANT, COSINE = ScheduleSpec("constant"), ScheduleSpec("cosine", warmup=3, warmup_start=0.25)
NO_FREEZE = FreezeSpec("none")


class Failure(AssertionError):
    """A promise of the contract that the plugin does not keep."""


class NotApplicable(Exception):
    """The check says nothing about this mode; the reason is its text."""


def residual_net(dropout: float = 0.0) -> Tree:
    """A small net with every layer that CNNs are made of: 12x12 grey pictures, depth 0 to 3."""
    body = (conv("conv1", 6, 6, 3), batchnorm("bn1", 6), Layer("relu"), conv("conv2", 6, 6, 3, groups=6))
    nodes = (
        Seq("stem", (conv("conv", 1, 6, 3, 2), batchnorm("bn", 6), Layer("relu6")), depth=0),
        Seq(
            "block",
            (Residual("", body), Layer("gelu"), Layer("maxpool", "", {"kernel": 2, "stride": 2, "padding": 0})),
            depth=1,
        ),
        Seq(
            "mid",
            (Layer("flatten"), linear("fc", 54, 16, depth=2), Layer("gelu"), Layer("dropout", "", {"p": dropout})),
        ),
        linear("head", 16, CLASSES, depth=3),
    )
    return Tree("residual_net", Seq("", nodes), "head", (1, 12, 12), CLASSES)


TREES: Mapping[str, Callable[[], Tree]] = {
    "residual_net": residual_net,
    "lenet": lambda: make_tree("lenet", CLASSES, 1, 12),
    "vit": lambda: make_tree("vit_tiny", CLASSES, 1, 12, patch_size=4, depth=2, embed_dim=24, layer_scale=0.1),
}


def plan_for(
    tree: Tree,
    optimizer: OptimizerSpec,
    grouping: GroupingSpec = DECAY,
    schedule: ScheduleSpec = CONSTANT,
    steps: int = 12,
    freeze: FreezeSpec = NO_FREEZE,
    optimizers: Mapping[str, OptimizerSpec] | None = None,
    schedules: Mapping[str, ScheduleSpec] | None = None,
) -> Plan:
    """A checked plan for one of the small trees."""
    return make_plan(
        param_table(tree),
        grouping,
        {"default": optimizer, **(optimizers or {})},
        {"default": schedule, **(schedules or {})},
        freeze,
        steps,
    )[1]


def batch(tree: Tree, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures that can be learned: float32 [BATCH, C, H, W] and int64 [BATCH], the same for every framework."""
    rng = np.random.default_rng([77, step])
    y = rng.integers(0, CLASSES, BATCH)
    x = 0.7 * rng.standard_normal((BATCH, *tree.input_shape))
    x[np.arange(BATCH), 0, y * 2, :] += 2.0
    return x.astype(np.float32), y


class Trace(NamedTuple):
    """What a short training left behind."""

    losses: list[float]
    weights: Weights
    state: Weights


@dataclass
class Session:
    """One model under one plan in one framework, step by step."""

    framework: Framework
    tree: Tree
    plan: Plan
    start: int = 0

    def __post_init__(self) -> None:
        self.model = self.framework.make_model(self.tree)
        self.initial = initial_weights(self.tree, 5)
        self.framework.set_weights(self.model, self.initial)
        self.state: TrainState = proof.make_state(self.framework, self.model, self.plan, self.start)
        self.active = self.plan.active(self.start)

    def step(self, step: int, data_step: int | None = None) -> float:
        """One training step of the plan, as run.py takes it."""
        if self.plan.active(step) != self.active:
            self.active = self.plan.active(step)
            self.framework.set_active(self.state, self.active)
        self.framework.reseed(1000 + step)
        self.state.scheduler.apply(step)
        x, y = batch(self.tree, step if data_step is None else data_step)
        return float(self.framework.train_step(self.state, x, y))

    def weights(self) -> Weights:
        """Now."""
        return self.framework.get_weights(self.model)

    def train(self, stop: int) -> Trace:
        """Steps start .. stop - 1."""
        losses = [self.step(step) for step in range(self.start, stop)]
        return Trace(losses, self.weights(), self.framework.get_optimizer_state(self.state))


@dataclass
class Kit:
    """The framework under test in one mode, and the reference beside it."""

    name: str
    framework_class: type[Framework]
    mode: str
    device: str = "cpu"

    def make(self, mode: str | None = None) -> Framework:
        """A fresh instance."""
        return self.framework_class(self.device, mode or self.mode, 0, "fp32", 1, False)

    @cached_property
    def framework(self) -> Framework:
        """The one that most checks share."""
        return self.make()

    @cached_property
    def reference(self) -> Framework:
        """NumPy."""
        return registry.load("reference")("cpu", "eager", 0, "fp32", 1, False)

    def session(self, tree: Tree, plan: Plan, start: int = 0) -> Session:
        """Under test."""
        return Session(self.framework, tree, plan, start)

    def both(self, tree: Tree, plan: Plan, steps: int) -> tuple[Trace, Trace]:
        """(under test, reference) after `steps`."""
        return self.session(tree, plan).train(steps), Session(self.reference, tree, plan).train(steps)


def need(good: bool, where: str, wanted: object, measured: object) -> None:
    """Fail with what, where, wanted and measured."""
    if not good:
        raise Failure(f"{where}: wanted {wanted}, measured {measured}")


def close(where: str, measured: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], tolerance: float) -> None:
    """Arrays by name, each within `tolerance` of its largest value (or of 1e-3, where it is all but zero)."""
    need(set(measured) == set(wanted), f"{where}: names", sorted(wanted)[:3], sorted(set(measured) ^ set(wanted))[:6])
    for name, array in wanted.items():
        need(measured[name].shape == array.shape, f"{where}: shape of {name}", array.shape, measured[name].shape)
        error = float(np.abs(measured[name].astype(np.float64) - array).max(initial=0))
        limit = tolerance * max(float(np.abs(array).max(initial=0)), 1e-3)
        need(error <= limit, f"{where}: {name}", f"within {limit:.1e}", f"{error:.1e} off")


def same_bits(where: str, measured: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    """Arrays by name, bit by bit."""
    need(set(measured) == set(wanted), f"{where}: names", sorted(wanted)[:3], sorted(set(measured) ^ set(wanted))[:6])
    for name, array in wanted.items():
        need(measured[name].shape == array.shape, f"{where}: shape of {name}", array.shape, measured[name].shape)
        off = float(np.abs(measured[name].astype(np.float64) - array).max(initial=0))
        need(np.array_equal(measured[name], array), f"{where}: {name}", "the same bits", f"{off:.1e} off")


def curve(where: str, measured: Sequence[float], wanted: Sequence[float], tolerance: float) -> None:
    """Losses step by step, relative."""
    for step, (mine, theirs) in enumerate(zip(measured, wanted, strict=True)):
        need(
            abs(mine - theirs) <= tolerance * max(abs(theirs), 1e-2),
            f"{where}: loss at step {step}",
            f"{theirs:.7f}",
            f"{mine:.7f}",
        )


def check_names_and_shapes(kit: Kit) -> None:
    """get_weights has exactly the declared names, in float32 and in PyTorch shapes."""
    for name, tree in _trees():
        weights = kit.framework.get_weights(kit.framework.make_model(tree))
        wanted = {row.name: row.shape for row in param_table(tree)}
        need(set(weights) == set(wanted), f"{name}: names", sorted(wanted)[:3], sorted(set(weights) ^ set(wanted))[:6])
        for key, shape in wanted.items():
            need(weights[key].shape == shape, f"{name}: shape of {key}", shape, weights[key].shape)
            need(weights[key].dtype == np.float32, f"{name}: type of {key}", "float32", weights[key].dtype)


def check_weights_round_trip(kit: Kit) -> None:
    """set_weights then get_weights gives the same bits."""
    for name, tree in _trees():
        session = kit.session(tree, plan_for(tree, SGD))
        same_bits(name, session.weights(), session.initial)


def check_weights_are_copies(kit: Kit) -> None:
    """Neither what get_weights gave nor what set_weights took is tied to the model."""
    tree = residual_net()
    session = kit.session(tree, plan_for(tree, SGD))
    given = {name: array.copy() for name, array in session.initial.items()}
    kit.framework.set_weights(session.model, given)
    taken = session.weights()
    for array in [*given.values(), *taken.values()]:
        array += 1
    same_bits("after changing the arrays outside", session.weights(), session.initial)
    session.step(0)
    close("arrays taken before a step", taken, {n: a + 1 for n, a in session.initial.items()}, 1e-6)


def check_same_logits(kit: Kit) -> None:
    """The same weights give the reference's logits in evaluation mode."""
    for name, tree in _trees():
        plan, x = plan_for(tree, SGD), batch(tree)[0]
        mine, theirs = kit.session(tree, plan), Session(kit.reference, tree, plan)
        got = kit.framework.predict(mine.state, x)
        need(got.dtype == np.float32, f"{name}: type of the logits", "float32", got.dtype)
        close(name, {"logits": got}, {"logits": kit.reference.predict(theirs.state, x)}, 2e-5)


def check_loss_is_mean_cross_entropy(kit: Kit) -> None:
    """train_step returns the mean cross-entropy of the batch before its update."""
    tree = TREES["lenet"]()  # no BatchNorm: training and evaluation see the same
    plan = plan_for(tree, SGD)
    session = kit.session(tree, plan)
    x, y = batch(tree)
    wanted = metrics.cross_entropy(kit.framework.predict(session.state, x), y)
    curve("lenet", [session.step(0)], [wanted], 1e-5)


def check_gradients(kit: Kit) -> None:
    """get_gradients gives the reference's gradients of the last step."""
    for name, tree in _trees():
        plan = plan_for(tree, MOMENTUM)
        mine, theirs = kit.session(tree, plan), Session(kit.reference, tree, plan)
        mine.step(0), theirs.step(0)
        close(name, kit.framework.get_gradients(mine.state), kit.reference.get_gradients(theirs.state), 2e-4)


def check_gradients_are_cleared(kit: Kit) -> None:
    """A step's gradient owes nothing to the steps before it."""
    tree = TREES["lenet"]()
    session = kit.session(tree, plan_for(tree, SGD))
    seen = []
    for step in range(3):
        kit.framework.set_weights(session.model, session.initial)
        session.step(step, data_step=0)
        seen.append(kit.framework.get_gradients(session.state))
    close("third step from the same weights", seen[2], seen[0], 1e-5)


def check_predict_changes_nothing(kit: Kit) -> None:
    """predict leaves weights, BatchNorm statistics, randomness and training mode as they were."""
    tree = residual_net(dropout=0.3)
    plan = plan_for(tree, MOMENTUM)
    disturbed, quiet = kit.session(tree, plan), kit.session(tree, plan)
    for step in range(3):
        for session in (disturbed, quiet):
            session.step(step)
        before = disturbed.weights()
        kit.framework.predict(disturbed.state, batch(tree, 50 + step)[0])
        same_bits(f"step {step}", disturbed.weights(), before)
    same_bits("three steps with and without predict between them", disturbed.weights(), quiet.weights())


def check_batchnorm_statistics(kit: Kit) -> None:
    """Running mean and (unbiased) variance follow the batches as in torch, momentum 0.1."""
    tree = residual_net()
    mine, theirs = kit.both(tree, plan_for(tree, replace(SGD, lr=1e-6)), 3)
    buffers = [row.name for row in param_table(tree) if row.role == "buffer"]
    close("3 steps", {n: mine.weights[n] for n in buffers}, {n: theirs.weights[n] for n in buffers}, 1e-5)


def check_lrs_read_back(kit: Kit) -> None:
    """scheduler.lrs() tells the plan's lr of every group at every step, in the plan's order."""
    tree = residual_net()
    plan = plan_for(tree, MOMENTUM, schedule=COSINE)
    session = kit.session(tree, plan)
    for step in range(5):
        session.step(step)
        for group, got, wanted in zip(plan.groups, session.state.scheduler.lrs(), plan.lrs(step), strict=True):
            need(abs(got - wanted) <= 1e-6 * wanted, f"group {group.name}, step {step}", wanted, got)


def check_effective_lr(kit: Kit) -> None:
    """Every parameter moves by its group's lr: measured by displacement, in each of torch's optimizers."""
    _effective_lr(kit, (SGD, MOMENTUM, replace(MOMENTUM, nesterov=True), replace(ADAMW, name="adam"), ADAMW))


def check_effective_lr_layer_adaptive(kit: Kit) -> None:
    """The same under layer_adaptive."""
    _effective_lr(kit, (LAYER_ADAPTIVE,))


def _effective_lr(kit: Kit, optimizers: Sequence[OptimizerSpec]) -> None:
    for name, tree in _trees():
        for optimizer in optimizers:
            plan = plan_for(tree, optimizer, schedule=COSINE)
            session = kit.session(tree, plan)
            try:
                proof.check(kit.framework, session.model, plan, session.initial, batch(tree), 0)
            except proof.LrMismatch as mismatch:
                worst = proof.table(mismatch.report)[0]
                raise Failure(
                    f"{name}, {optimizer.name}: group {worst[0]}, step {worst[1]}: wanted lr {worst[2]}, "
                    f"measured {worst[3]} ({worst[5]})"
                ) from None


def check_schedule_at_every_step(kit: Kit) -> None:
    """lr(step) = base_lr * lr_scale * schedule(step) at every step, not one early or late."""
    tree = TREES["lenet"]()
    _displacements(kit, tree, plan_for(tree, SGD, schedule=COSINE))


def check_schedule_per_group(kit: Kit) -> None:
    """Each group follows its own schedule."""
    tree = TREES["lenet"]()
    groups = {"early": GroupSpec(["conv1", "conv2"], lr_scale=0.5, schedule="falling"), "late": GroupSpec(["*"])}
    grouping = GroupingSpec("by_module", groups=groups)
    schedules = {"falling": ScheduleSpec("exponential", gamma=0.5, every=2)}
    _displacements(kit, tree, plan_for(tree, SGD, grouping, COSINE, schedules=schedules))


def check_lr_does_not_compound(kit: Kit) -> None:
    """Under a constant schedule the lr of the last step is that of the first."""
    tree = TREES["lenet"]()
    _displacements(kit, tree, plan_for(tree, SGD, schedule=CONSTANT))


def check_zero_lr_moves_nothing(kit: Kit) -> None:
    """Where the plan's lr is 0 nothing moves, weight decay and momentum included."""
    tree = residual_net()
    grouping = GroupingSpec(
        "by_module", groups={"still": GroupSpec(["stem", "block"], lr=0.0), "rest": GroupSpec(["*"])}
    )
    for optimizer in (MOMENTUM, ADAMW):
        plan = plan_for(tree, optimizer, grouping)
        session = kit.session(tree, plan)
        for step in range(3):
            session.step(step)
        names = [n for g in plan.groups if g.lr_scale == 0 for n in g.params]
        now = session.weights()
        same_bits(optimizer.name, {n: now[n] for n in names}, {n: session.initial[n] for n in names})


def check_weight_decay_per_group(kit: Kit) -> None:
    """Each group decays by its own weight decay, and no other."""
    tree = residual_net()
    groups = {
        "strong": GroupSpec(["block"], weight_decay=0.5),
        "none": GroupSpec(["mid"], weight_decay=0.0),
        "rest": GroupSpec(["*"]),
    }
    grouping = GroupingSpec("by_module", groups=groups, no_weight_decay=False)
    for optimizer in (MOMENTUM, ADAMW):
        mine, theirs = kit.both(tree, plan_for(tree, optimizer, grouping), 4)
        close(optimizer.name, mine.weights, theirs.weights, 1e-3)


def _optimizer_check(label: str, spec: OptimizerSpec, grouping: GroupingSpec = DECAY) -> Callable[[Kit], None]:
    def check(kit: Kit) -> None:
        tree = TREES["lenet"]()
        mine, theirs = kit.both(tree, plan_for(tree, spec, grouping, COSINE), 5)
        curve(label, mine.losses, theirs.losses, 1e-5)
        close(label, mine.weights, theirs.weights, 2e-4)

    check.__doc__ = f"{label} equals its NumPy formula for 5 steps, per-group lr and weight decay included."
    return check


check_optimizer_sgd = _optimizer_check("sgd", replace(SGD, weight_decay=0.01))
check_optimizer_momentum = _optimizer_check("momentum", MOMENTUM)
check_optimizer_nesterov = _optimizer_check("nesterov", replace(MOMENTUM, nesterov=True))
check_optimizer_adam = _optimizer_check("adam", replace(ADAMW, name="adam", eps=1e-4))
check_optimizer_adamw = _optimizer_check("adamw", replace(ADAMW, eps=1e-4))
check_optimizer_layer_adaptive = _optimizer_check(  # several parameters in a group: each has a step size of its own
    "layer_adaptive", replace(LAYER_ADAPTIVE, eps=1e-4), GroupingSpec("backbone_head", backbone_scale=0.5)
)


def check_two_optimizers(kit: Kit) -> None:
    """Groups under different optimizers are each stepped by their own, together."""
    tree = TREES["lenet"]()
    groups = {"conv": GroupSpec(["conv1", "conv2"], optimizer="slow"), "fc": GroupSpec(["*"])}
    plan = plan_for(
        tree, replace(ADAMW, eps=1e-4), GroupingSpec("by_module", groups=groups), optimizers={"slow": MOMENTUM}
    )
    mine, theirs = kit.both(tree, plan, 5)
    close("momentum for conv, adamw for the rest", mine.weights, theirs.weights, 2e-4)


def check_grad_centralization(kit: Kit) -> None:
    """A group that asks for it has each output's gradient mean removed; the others keep theirs."""
    tree = TREES["lenet"]()
    groups = {"conv": GroupSpec(["conv1", "fc1"], grad_centralization=True), "rest": GroupSpec(["*"])}
    mine, theirs = kit.both(tree, plan_for(tree, MOMENTUM, GroupingSpec("by_module", groups=groups)), 4)
    close("4 steps", mine.weights, theirs.weights, 2e-4)


def _stop_and_go(optimizer: OptimizerSpec) -> tuple[Tree, Plan]:
    """The middle stops at step 3; the stem starts at step 5; 9 steps."""
    tree = residual_net()
    groups = {
        "stem": GroupSpec(["stem"], start=5),
        "block": GroupSpec(["block", "mid"], stop=3),
        "head": GroupSpec(["head"]),
    }
    return tree, plan_for(tree, optimizer, GroupingSpec("by_module", groups=groups), steps=9)


def check_frozen_do_not_move(kit: Kit) -> None:
    """Outside its window a group does not move at all: no decay, no drift of momentum."""
    for optimizer in (MOMENTUM, ADAMW, LAYER_ADAPTIVE):
        tree, plan = _stop_and_go(optimizer)
        session = kit.session(tree, plan)
        for step in range(9):
            before = session.weights()
            session.step(step)
            now = session.weights()
            frozen = [n for g, on in zip(plan.groups, plan.active(step), strict=True) if not on for n in g.params]
            same_bits(f"{optimizer.name}, step {step}", {n: now[n] for n in frozen}, {n: before[n] for n in frozen})


def check_frozen_keep_state(kit: Kit) -> None:
    """A frozen group's optimizer state stays as it was, bit by bit."""
    for optimizer in (MOMENTUM, ADAMW, LAYER_ADAPTIVE):
        tree, plan = _stop_and_go(optimizer)
        session = kit.session(tree, plan)
        held = {k: a for k, a in session.train(3).state.items() if k.startswith(("block", "mid"))}
        need(bool(held), f"{optimizer.name}: state of the group that stops", "some arrays", "none")
        for step in range(3, 5):
            session.step(step)
        now = kit.framework.get_optimizer_state(session.state)
        same_bits(f"{optimizer.name}, steps 3 and 4", {k: now.get(k, np.zeros(0)) for k in held}, held)


def check_unfreezes_on_the_step(kit: Kit) -> None:
    """A group moves from the first step of its window, not one early or late."""
    tree, plan = _stop_and_go(MOMENTUM)
    session = kit.session(tree, plan)
    moved: dict[str, list[int]] = {group.name: [] for group in plan.groups}
    for step in range(9):
        before = session.weights()
        session.step(step)
        now = session.weights()
        for group in plan.groups:
            if any(not np.array_equal(now[n], before[n]) for n in group.params):
                moved[group.name].append(step)
    for group in plan.groups:
        wanted = [s for s in range(9) if group.active[0] <= s < group.active[1]]
        need(moved[group.name] == wanted, f"group {group.name}: steps with movement", wanted, moved[group.name])


def check_late_start(kit: Kit) -> None:
    """A group that thaws late takes its optimizer's first step then: bias correction counts per parameter."""
    tree, plan = _stop_and_go(replace(ADAMW, eps=1e-4))
    mine, theirs = kit.both(tree, plan, 9)
    stem = [n for n in mine.weights if n.startswith("stem") and "running" not in n]
    close(
        "adamw, 4 steps after the thaw", {n: mine.weights[n] for n in stem}, {n: theirs.weights[n] for n in stem}, 2e-3
    )


def check_resume_is_seamless(kit: Kit) -> None:
    """10 steps = 5 steps, weights and optimizer state into a fresh model, 5 steps."""
    _resume(kit, (MOMENTUM, ADAMW))


def check_resume_layer_adaptive(kit: Kit) -> None:
    """The same under layer_adaptive, whose state comes under torch's keys and is exp_avg and exp_avg_sq alone."""
    state = _resume(kit, (LAYER_ADAPTIVE,))
    keys = {key.rpartition("/")[2] for key in state}
    need(keys == {"exp_avg", "exp_avg_sq"}, "keys of the state", "exp_avg, exp_avg_sq", sorted(keys))


def _resume(kit: Kit, optimizers: Sequence[OptimizerSpec]) -> Weights:
    """State at the end, of the last optimizer."""
    for optimizer in optimizers:
        tree = residual_net(dropout=0.3)
        plan = plan_for(tree, optimizer, schedule=COSINE)
        whole = kit.session(tree, plan).train(10)
        half = kit.session(tree, plan).train(5)
        second = kit.session(tree, plan, start=5)
        kit.framework.set_weights(second.model, half.weights)
        kit.framework.set_optimizer_state(second.state, half.state)
        rest = second.train(10)
        curve(optimizer.name, rest.losses, whole.losses[5:], 1e-6)
        close(optimizer.name, rest.weights, whole.weights, 1e-5)
    return rest.state


def check_optimizer_state(kit: Kit) -> None:
    """Optimizer state comes by canonical parameter name under torch's keys, with torch's values."""
    for optimizer in (MOMENTUM, ADAMW):
        tree = TREES["lenet"]()
        mine, theirs = kit.both(tree, plan_for(tree, optimizer), 3)
        close(optimizer.name, mine.state, theirs.state, 1e-3)


def check_same_seed_same_curve(kit: Kit) -> None:
    """Two runs of the same plan, weights and batches are the same, bit by bit, dropout included."""
    tree = residual_net(dropout=0.3)
    plan = plan_for(tree, ADAMW)
    first, second = (kit.session(tree, plan).train(6) for _ in range(2))
    need(first.losses == second.losses, "losses of 6 steps", first.losses, second.losses)
    same_bits("weights after 6 steps", second.weights, first.weights)


def check_dropout_follows_reseed(kit: Kit) -> None:
    """What dropout draws follows from the last reseed alone; another seed draws otherwise."""
    tree = residual_net(dropout=0.5)
    plan = plan_for(tree, replace(SGD, lr=1e-7))
    x, y = batch(tree)
    session = kit.session(tree, plan)
    losses = []
    for seed in (3, 4, 3):
        kit.framework.set_weights(session.model, session.initial)
        kit.framework.reseed(seed)
        losses.append(float(kit.framework.train_step(session.state, x, y)))
    need(abs(losses[0] - losses[2]) < 1e-6, "loss under seed 3, drawn again", losses[0], losses[2])
    need(abs(losses[0] - losses[1]) > 1e-4, "loss under another seed", "another", losses[1])


def check_mode_equals_first_mode(kit: Kit) -> None:
    """A graph or traced mode trains as the framework's first mode does, freezing included."""
    first = kit.framework_class.modes[0]
    if kit.mode == first:
        raise NotApplicable(f"{first} is the first mode")
    tree, plan = _stop_and_go(MOMENTUM)
    mine, theirs = kit.session(tree, plan).train(9), Session(kit.make(first), tree, plan).train(9)
    curve("9 steps", mine.losses, theirs.losses, 2e-5)


def check_absent_device(kit: Kit) -> None:
    """A device that is not there is a UserError that says what is."""
    absent = "cuda:97"
    try:
        kit.framework_class(absent, kit.mode, 0, "fp32", 1, False)
    except UserError as error:
        need("cpu" in str(error) and absent in str(error), "message", f"names {absent} and what is there", str(error))
        return
    raise Failure(f"device {absent}: wanted a UserError, measured none")


def check_golden_curve_cnn(kit: Kit) -> None:
    """40 steps of a residual net with BatchNorm, momentum, weight decay, layer_decay, warm-up and cosine."""
    _golden(kit, residual_net(), MOMENTUM, 5e-5, 2e-3)


def check_golden_curve_vit(kit: Kit) -> None:
    """40 steps of a small ViT with layer scale under adamw, layer_decay, warm-up and cosine."""
    _golden(kit, TREES["vit"](), replace(ADAMW, lr=1e-2), 1e-5, 5e-4)


def _golden(kit: Kit, tree: Tree, optimizer: OptimizerSpec, early: float, late: float) -> None:
    plan = plan_for(tree, optimizer, GroupingSpec(layer_decay=0.75), COSINE, steps=40)
    mine, theirs = kit.both(tree, plan, 40)
    need(theirs.losses[-1] < 0.7 * theirs.losses[0], "the reference", "learns", theirs.losses[-1])
    curve("first 10 steps", mine.losses[:10], theirs.losses[:10], early)
    curve("40 steps", mine.losses, theirs.losses, late)


def _trees() -> Iterator[tuple[str, Tree]]:
    return ((name, make()) for name, make in TREES.items())


def _displacements(kit: Kit, tree: Tree, plan: Plan) -> None:
    """Plain sgd from the same weights and batch at every step: each group's lr is <-dw, g> / <g, g>."""
    session = kit.session(tree, plan)
    for step in range(plan.total_steps):
        kit.framework.set_weights(session.model, session.initial)
        session.step(step, data_step=0)
        now, gradients = session.weights(), kit.framework.get_gradients(session.state)
        for group, wanted in zip(plan.groups, plan.lrs(step), strict=True):
            g = np.concatenate([gradients[n].ravel().astype(np.float64) for n in group.params])
            moved = np.concatenate([(session.initial[n] - now[n]).ravel().astype(np.float64) for n in group.params])
            measured = float(moved @ g / (g @ g))
            need(
                abs(measured - wanted) <= 2e-3 * plan.base_lr * group.lr_scale,
                f"group {group.name}, step {step}: lr",
                f"{wanted:.6g}",
                f"{measured:.6g}",
            )


CHECKS: Mapping[str, Callable[[Kit], None]] = {
    name.removeprefix("check_"): function for name, function in list(globals().items()) if name.startswith("check_")
}


class Outcome(NamedTuple):
    """One check in one mode: passed | failed | known failure | not applicable."""

    check: str
    result: str
    message: str = ""


def run_check(kit: Kit, name: str) -> Outcome:
    """Never raises for a plugin's fault: whatever it raises is its failure. One that the plugin knows of and gives
    its framework's reason for is a known failure; one that it knows of and that passes is a failure too."""
    known = getattr(kit.framework_class, "known_failures", {}).get(kit.mode, {}).get(name)
    try:
        CHECKS[name](kit)
    except NotApplicable as reason:
        return Outcome(name, "not applicable", str(reason))
    except Failure as failure:
        return Outcome(name, "known failure" if known else "failed", known or str(failure))
    except Exception as error:
        return Outcome(name, "known failure" if known else "failed", known or f"{type(error).__name__}: {error}")
    return Outcome(name, "failed", f"listed as known, but it passes: {known}") if known else Outcome(name, "passed")


def specification(name: str) -> str:
    """First line of the check's docstring."""
    return (CHECKS[name].__doc__ or "").strip().splitlines()[0]
