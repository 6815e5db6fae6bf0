"""What the checks are made of: small nets, plans, batches; a framework under test and the reference beside it;
comparisons that say what was wanted and what was measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ...models import Layer, Residual, Seq, Tree, batchnorm, conv, initial_weights, linear, make_tree, param_table, walk
from ...planning import FreezeSpec, GroupingSpec, GroupSpec, OptimizerSpec, Plan, ScheduleSpec, make_plan
from .. import registry
from ..contract import Framework, TrainState, Weights
from ..offers import GroupScheduler
from ..steps import begin, take_step
from .ladder import NotYet, completed, not_yet

Data = Callable[[Tree, int], tuple[np.ndarray, np.ndarray]]
"""(tree, step) -> (x, y)."""

BATCH, CLASSES = 8, 4
SGD = OptimizerSpec("sgd", lr=0.1, weight_decay=0.0)
MOMENTUM = OptimizerSpec("momentum", lr=0.05, weight_decay=0.01, momentum=0.9)
ADAMW = OptimizerSpec("adamw", lr=3e-3, weight_decay=0.05)
NADAM = OptimizerSpec("nadam", lr=3e-3, weight_decay=0.05, eps=1e-4)
RMSPROP = OptimizerSpec("rmsprop", lr=1e-3, weight_decay=0.05, momentum=0.9, eps=1e-4)
LION = OptimizerSpec("lion", lr=1e-3, weight_decay=0.5, betas=[0.9, 0.99])
MUON = OptimizerSpec("muon", lr=3e-3, weight_decay=0.05, momentum=0.9, nesterov=True, eps=1e-4)
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


def mlp() -> Tree:
    """What a plugin has the layers for that has but begun."""
    return make_tree("mlp", CLASSES, 1, 12, width=8, depth=2)


PARTS = {"residual_net": (["stem"], ["block", "mid"]), "mlp": (["fc1"], ["fc2"])}
"""Of these nets, the modules of the first part and of the middle; the head is the rest."""


TREES: Mapping[str, Callable[[], Tree]] = {
    "residual_net": residual_net,
    "lenet": lambda: make_tree("lenet", CLASSES, 1, 12),
    "vit": lambda: make_tree("vit_tiny", CLASSES, 1, 12, patch_size=4, depth=2, embed_dim=24, layer_scale=0.1),
}


def below_the_head(tree: Tree) -> list[str]:
    """Its modules with parameters, in order, but for the last."""
    return list(dict.fromkeys(row.name.rpartition(".")[0] for row in param_table(tree)))[:-1]


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
    kept: Weights | NotYet

    @property
    def state(self) -> Weights:
        """Of the optimizer; only who asks for it needs the verb."""
        if isinstance(self.kept, NotYet):
            raise self.kept
        return self.kept


@dataclass
class Session:
    """One model under one plan in one framework, step by step, from `weights_given` (the declared initial values if None)
    on the batches of `data`; `gradients` are the last step's."""

    framework: Framework
    tree: Tree
    plan: Plan
    start: int = 0
    weights_given: Weights | None = None
    data: Data = batch

    def __post_init__(self) -> None:
        self.model = self.framework.make_model(self.tree)
        self.initial = initial_weights(self.tree, 5) if self.weights_given is None else self.weights_given
        self.framework.set_weights(self.model, self.initial)
        self._lacks: NotYet | None = None
        try:
            self.state = begin(self.framework, self.model, self.plan, self.start)
        except Exception as error:
            self._lacks = not_yet(error)
            if not self._lacks:
                raise
            # weights go in and out, and predict answers, without it
            self.state = TrainState(self.model, (), None, GroupScheduler((), self.plan))
        self.gradients: Weights = {}

    def step(self, step: int, data_step: int | None = None, seed: int | None = None) -> float:
        """One training step of the plan, as a run takes it; the loss before it."""
        if self._lacks:
            raise self._lacks
        x, y = self.data(self.tree, step if data_step is None else data_step)
        drawn = 1000 + step if seed is None else seed
        result = take_step(self.framework, self.state, self.plan, step, (x, y), drawn, gradients=True)
        self.gradients = result.gradients or {}
        return float(result.loss)

    def weights(self) -> Weights:
        """Now."""
        return self.framework.get_weights(self.model)

    def train(self, stop: int) -> Trace:
        """Steps start .. stop - 1."""
        losses = [self.step(step) for step in range(self.start, stop)]
        try:
            kept: Weights | NotYet = self.framework.get_optimizer_state(self.state)
        except Exception as error:
            missing = not_yet(error)
            if not missing:
                raise
            kept = missing
        return Trace(losses, self.weights(), kept)


@dataclass
class Kit:
    """The framework under test in one mode, and the reference beside it."""

    name: str
    framework_class: type[Framework]
    mode: str
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.framework_class = completed(self.framework_class)

    def make(self, mode: str | None = None, **others: Any) -> Framework:
        """A fresh instance; `others` as `Framework.__init__` takes them."""
        return self.framework_class(self.device, mode or self.mode, **others)

    @cached_property
    def framework(self) -> Framework:
        """The one that most checks share."""
        return self.make()

    @cached_property
    def reference(self) -> Framework:
        """NumPy."""
        return registry.load("reference")("cpu")

    def trees(self) -> list[tuple[str, Tree]]:
        """The small nets that the plugin has the layers for.

        Raises:
            NotApplicable: there is none.
        """
        made = [(name, make()) for name, make in TREES.items()]
        found = [(name, tree) for name, tree in made if not self._lacking(tree)] or [("mlp", mlp())]
        if lacking := self._lacking(found[0][1]):
            raise NotApplicable(f"it lists no {lacking[0]} in kinds")
        return found

    def plain_tree(self) -> Tree:
        """Without batchnorm and dropout: lenet, or for a plugin that lacks a layer of it an mlp."""
        return mlp() if self._lacking(TREES["lenet"]()) else TREES["lenet"]()

    def net(self) -> Tree:
        """With every layer that CNNs are made of, or for a plugin that lacks one an mlp."""
        return mlp() if self._lacking(residual_net()) else residual_net()

    def stop_and_go(self, optimizer: OptimizerSpec) -> tuple[Tree, Plan]:
        """The middle stops at step 3; the first part starts at step 5; 9 steps."""
        tree = self.net()
        first, middle = PARTS[tree.name]
        groups = {"stem": GroupSpec(first, start=5), "block": GroupSpec(middle, stop=3), "head": GroupSpec(["*"])}
        return tree, plan_for(tree, optimizer, GroupingSpec("by_module", groups=groups), steps=9)

    def some(self, *specs: OptimizerSpec) -> list[OptimizerSpec]:
        """Those of `specs` that the plugin has, or sgd at the first one's numbers."""
        first = specs[0]
        found = [spec for spec in specs if spec.name in self.framework_class.optimizers]
        return found or [replace(SGD, lr=first.lr, weight_decay=first.weight_decay)]

    def optimizers(self, *specs: OptimizerSpec) -> list[OptimizerSpec]:
        """Those of `specs` that the plugin has.

        Raises:
            NotApplicable: there is none.
        """
        found = [spec for spec in specs if spec.name in self.framework_class.optimizers]
        if not found:
            raise NotApplicable(f"it lists no {specs[0].name} in optimizers")
        return found

    def session(
        self, tree: Tree, plan: Plan, start: int = 0, weights: Weights | None = None, data: Data = batch
    ) -> Session:
        """Under test.

        Raises:
            NotApplicable: the plugin does not list a layer or an optimizer of it.
        """
        if lacking := self._lacking(tree):
            raise NotApplicable(f"it lists no {lacking[0]} in kinds")
        for spec in plan.optimizers.values():
            self.optimizers(spec)
        return Session(self.framework, tree, plan, start, weights, data)

    def both(self, tree: Tree, plan: Plan, steps: int) -> tuple[Trace, Trace]:
        """(under test, reference) after `steps`."""
        return self.session(tree, plan).train(steps), Session(self.reference, tree, plan).train(steps)

    def _lacking(self, tree: Tree) -> list[str]:
        return [layer.kind for _, layer, _ in walk(tree.root) if layer.kind not in self.framework_class.kinds]


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
