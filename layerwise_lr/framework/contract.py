"""The contract that a plugin implements: types and docstrings only.

The core promises: NumPy in (`x` float32 [B, C, H, W], `y` int64 [B]), canonical names, a checked plan,
`scheduler.apply(step)` before every `train_step`, steps counted from 0 without gaps, `reseed` before each step of
a model with dropout. A plugin passes every number explicitly and trusts no default of its framework: BatchNorm
momentum, eps, padding and AdamW all differ between frameworks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ..models import Tree
from ..plan import Plan

Weights = dict[str, np.ndarray]
"""float32 arrays by canonical name, in PyTorch shapes; parameters and buffers."""

LOSS_SCALE = 2.0**7
"""What fp16 multiplies the loss by and every gradient is divided by again, before anything reads it: smaller gradients
would be lost. A power of two, so nothing is rounded; static, because a scaler that adapts leaves steps out, and the
lr of a step is the plan's only where the step takes place. With 2**10 gradients of a mobilenet_v2 without weights
overflow within five steps, with 2**7 and 2**4 they do not; faint ones are 0.4 to 1.5 % off with 2**7, 13 to 50 % without."""


class Scheduler(Protocol):
    """Writes the plan's learning rates into a native optimizer."""

    def apply(self, step: int) -> None:
        """Set every group's lr for `step`; groups that the plan does not train at `step` stop moving."""

    def lrs(self) -> list[float]:
        """What the native optimizer holds now, per group of the plan (a log, not a proof: see verify.py)."""


@dataclass
class TrainState:
    """The one mutable object of a run; the core never looks inside.

    Args:
        model: native model.
        groups: native parameter groups, one per group of the plan.
        optimizer: native optimizer or optimizers.
        scheduler: of the plan.
        compiled: whatever a graph mode keeps.
    """

    model: Any
    groups: Sequence[Any]
    optimizer: Any
    scheduler: Scheduler
    compiled: Any = None


class Framework(Protocol):
    """One framework in one mode on one device."""

    modes: ClassVar[tuple[str, ...]]
    optimizers: ClassVar[tuple[str, ...]]
    kinds: ClassVar[tuple[str, ...]]
    fork_safe: ClassVar[bool]
    """Whether a process may import it, fork, and train in the children."""
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    """All it has; one that a device or a mode lacks is a UserError of `__init__`. In bf16 and fp16 convolutions and
    matrix products are 16 bits wide; weights, optimizer, loss and what `get_gradients` tells stay float32."""
    retry_on_signal: ClassVar[tuple[str, ...]] = ()
    """Modes that a fault of the framework itself may crash now and then: a job of a sweep is then started again."""
    known_failures: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """mode -> conformance check -> why the framework cannot pass it there; what it refuses, it must refuse aloud."""

    def __init__(self, device: str, mode: str, seed: int, precision: str, threads: int, deterministic: bool) -> None:
        """Select device ("cpu", "cuda:0", "ascend:0", "auto"), mode and precision for the process; the last two are
        of `modes` and `precisions`.

        Raises:
            UserError: the device is absent; says which there are. Or it lacks the precision, or the mode does.
        """

    @staticmethod
    def devices() -> list[str]:
        """Devices at hand, best first; "cpu" is last."""

    @staticmethod
    def version() -> str:
        """Version and build, in one line."""

    def reseed(self, seed: int) -> None:
        """What the framework draws at random from here on (dropout) follows from `seed` alone."""

    def make_model(self, tree: Tree) -> Any:
        """The native model of a declared tree; its weights are whatever `set_weights` then puts there."""

    def get_weights(self, model: Any) -> Weights:
        """Copies of all parameters and buffers."""

    def set_weights(self, model: Any, weights: Weights) -> None:
        """Copy all parameters and buffers in, bit by bit."""

    def make_groups(self, model: Any, plan: Plan) -> list[Any]:
        """Native groups, one per plan group, in order, spelled the framework's own way.

        Raises:
            UserError: this mode cannot do what the plan asks; says why, and the ways out.
        """

    def make_optimizer(self, groups: Sequence[Any], plan: Plan) -> Any:
        """Native optimizer; several keys in plan.optimizers become one each, stepped together."""

    def make_scheduler(self, optimizer: Any, plan: Plan, start: int) -> Scheduler:
        """The scheduler of a run that begins at step `start`."""

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray) -> Any:
        """One update. Mean cross-entropy before it, as a native scalar: nothing waits for the device here."""

    def get_gradients(self, state: TrainState) -> Weights:
        """Gradients of the last `train_step` as the loss gave them: before weight decay and centralization, so
        that the proof need not take the plugin's word for those (a graph that cannot tell them apart gives them
        centralized). A parameter that did not train is absent."""

    def predict(self, state: TrainState, x: np.ndarray) -> np.ndarray:
        """float32 logits [B, classes] in evaluation mode; leaves everything as it was."""

    def set_active(self, state: TrainState, active: Sequence[bool]) -> None:
        """Only these groups train from the next step; the others keep weights and optimizer state."""

    def get_optimizer_state(self, state: TrainState) -> Weights:
        """Optimizer state as "parameter/key" -> array, under torch's keys in every framework: momentum_buffer;
        exp_avg, exp_avg_sq, and step where the formula counts. So a run can go on in another framework."""

    def set_optimizer_state(self, state: TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """What `get_optimizer_state` gave; parameters without an entry start fresh."""
