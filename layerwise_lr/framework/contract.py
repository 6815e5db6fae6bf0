"""The contract that a plugin implements. Four verbs are its heart: make_groups, make_optimizer, make_scheduler,
train_step.

Who calls what when. The core calls, in this order and once each: `__init__`, `make_model`, `set_weights`,
`make_groups`, `make_optimizer`, `make_scheduler`; on a resumed run `set_optimizer_state`; then for every step, counted
from 0 (or from `start`) without gaps, `scheduler.apply(index)` and `train_step`. Between two steps, and before the
first, it may call `predict`, `get_weights`, `set_weights`, `get_optimizer_state`, `set_optimizer_state` and
`scheduler.lrs`; none of them changes what the next step does, but for what was set. One framework object may make
several models, and several states of one model, one after the other. The core promises: NumPy in, canonical names, a
checked plan, only kinds, optimizers, modes and precisions that the class lists.

A plugin passes every number explicitly and trusts no default of its framework: BatchNorm momentum, eps, padding and
AdamW all differ between frameworks. It holds no learning-rate arithmetic: lrs come from the plan.

The formulas are torch's; in NumPy, to be read, they are plugins/reference_plugin/layers.py and optimizers.py. Where
frameworks are known to differ:

- batchnorm: in training normalised by the batch's mean and biased variance, over batch and pixels; the running
  variance takes the *unbiased* one: new = (1 - momentum) * old + momentum * batch. A layer that `Step.frozen` names
  uses its running statistics as in evaluation and leaves them as they are.
- attention: `qkv` gives [B, T, 3, heads, dim / heads] in this order of axes, q scaled by (dim / heads) ** -0.5.
- gelu: the exact one, by erf. maxpool: the first of equal maxima takes the gradient. dropout: the kept are divided by
  1 - p. avgpool has no padding.
- momentum: buffer = momentum * buffer + g, at first g; the lr stays outside. adam: L2 in the gradient; adamw: decay
  decoupled, p * (1 - lr * weight_decay); both correct the bias by steps counted per parameter, eps outside the root.
- layer_adaptive: Adam's moments of g + weight_decay * p, no bias correction, and one step size per parameter,
  p - lr * mean(|m| / (sqrt(v) + eps)) * m (seed document 002).
- nadam: torch.optim.NAdam's, L2 in the gradient. rmsprop: torch.optim.RMSprop's, not centered, eps outside the root,
  momentum over what is divided. lion (Chen et al. 2023): p * (1 - lr * weight_decay) - lr * sign(b1 * m + (1 - b1) * g),
  then m = b2 * m + (1 - b2) * g.
- muon (Jordan 2024, for hidden matrices alone, see planning/optimizers.py): torch.optim.Muon's with
  adjust_lr_fn="match_rms_adamw", but in float32: m = lerp(g, buffer, momentum) with nesterov, else the buffer, over its
  Frobenius norm (at least 1e-7), five Newton-Schulz steps of (3.4445, -4.7750, 2.0315) on the wide side; p * (1 - lr *
  weight_decay) - lr * 0.2 * sqrt(longer side) * m.
- soft targets: loss = -mean over pictures of sum over classes of y * log_softmax(logits); rows of y need not sum to 1.
- accumulate: the pictures are cut into this many equal parts, in order; each goes forward and backward by itself
  (batchnorm layers see the part), and loss and gradients are the parts' means.
- clip, of the gradients of the groups that train, before centralization: `Clip` says how.
- grad_centralization (Yong et al. 2020): g loses its mean over `central_axes(shape)`, before weight decay of any kind.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from ..models import Tree, Weights
from ..planning import NO_CLIP, Clip, OptimizerSpec, Plan, UserError
from .describing import Native, ZooModel

CONTRACT = 1
"""The version of what stands here. It grows when a plugin that kept the contract would keep it no more."""
LOSS_SCALE = 2.0**7
"""What fp16 multiplies the loss by and every gradient is divided by again, before anything reads it: smaller gradients
would be lost. A power of two, so nothing is rounded; static, because a scaler that adapts leaves steps out, and the
lr of a step is the plan's only where the step takes place. With 2**10 gradients of a mobilenet_v2 without weights
overflow within five steps, with 2**7 and 2**4 they do not; faint ones are 0.4 to 1.5 % off with 2**7, 13 to 50 % without."""


@dataclass(frozen=True)
class Step:
    """All that the core knows of one training step; it says so in the call, and nothing else does.

    Args:
        index: counted from 0.
        active: per group of the plan, whether it trains. The others do not move at all and keep their optimizer state.
        frozen: canonical names of the batchnorm layers that run on their running statistics and keep them.
        seed: what is drawn at random in this step (dropout) follows from it alone, in every mode.
        gradients: whether the caller wants them.
        clip: what bounds them; the same in every step of a run.
        accumulate: how many parts the pictures are cut into; likewise.
    """

    index: int
    active: tuple[bool, ...]
    frozen: frozenset[str]
    seed: int
    gradients: bool = False
    clip: Clip = NO_CLIP
    accumulate: int = 1


class StepResult(NamedTuple):
    """What a step gave.

    Args:
        loss: mean cross-entropy of all pictures before the update, a native scalar: nothing waits for the device.
        gradients: float32 by canonical name, where `Step.gradients` asked for them: of the parameters that trained, as
            the loss gave them, before clipping, weight decay and centralization, so that the proof need not take the plugin's
            word for those. (A graph that cannot tell them apart gives them centralized.)
    """

    loss: Any
    gradients: Weights | None = None


class Scheduler(Protocol):
    """Writes the plan's learning rates into a native optimizer, and does nothing else."""

    def apply(self, index: int) -> None:
        """Set every group's lr for step `index`."""

    def lrs(self) -> list[float]:
        """What the native optimizer holds now, per group of the plan (a log, not a proof: see proof.py)."""


@dataclass
class TrainState:
    """The one mutable object of a run; the core never looks inside.

    Args:
        model: native model.
        groups: native parameter groups, one per group of the plan.
        optimizer: native optimizer or optimizers.
        scheduler: of the plan.
        compiled: whatever the plugin keeps from step to step.
    """

    model: Any
    groups: Sequence[Any]
    optimizer: Any
    scheduler: Scheduler
    compiled: Any = None


class Framework(ABC):
    """One framework in one mode on one device. A plugin derives from it; what is abstract here it must have."""

    contract: ClassVar[int] = 1
    """The CONTRACT that it was written for; one that does not say so was for the first."""
    kinds: ClassVar[tuple[str, ...]]
    """Layers it can build, of KINDS and PLAIN_KINDS. A model with another is refused before the run."""
    optimizers: ClassVar[tuple[str, ...]]
    """Of OPTIMIZERS; likewise."""
    modes: ClassVar[tuple[str, ...]] = ("eager",)
    """The first is what the others are compared with."""
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    """All it has; one that a device or a mode lacks is a UserError of `__init__`. In bf16 and fp16 convolutions and
    matrix products are 16 bits wide; weights, optimizer, loss and the gradients of a StepResult stay float32."""
    distributions: ClassVar[tuple[str, ...]] = ()
    """Ways to train one run in several processes: `among` gives the class of each."""
    processes: int = 1
    """That train together."""
    sources: ClassVar[tuple[str, ...]] = ()
    """Packages of models that it can load beside declared ones: `build` makes one, `adopt` puts it behind the verbs."""
    starts_first: ClassVar[bool] = False
    """Whether even a model that is only looked at runs its kernels, after which it takes no device and no threads: so one
    is made, as the run will have it, before `build` is called."""
    fork_safe: ClassVar[bool] = False
    """Whether a process may import it, fork, and train in the children."""
    retry_on_signal: ClassVar[tuple[str, ...]] = ()
    """Modes that a fault of the framework itself may crash now and then: a job of a sweep is then started again."""
    known_failures: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """mode -> conformance check -> why the framework cannot pass it there; what it refuses, it must refuse aloud."""

    def __init__(
        self,
        device: str = "auto",
        mode: str = "",
        precision: str = "fp32",
        threads: int = 1,
        deterministic: bool = False,
    ) -> None:
        """Select for this process.

        Args:
            device: "cpu", "cuda:0", "ascend:0", "auto" (the best there is); `self.device` is what was found.
            mode: of `modes`; "" is the first.
            precision: of `precisions`.
            threads: what the framework may use for one operation; 1 where several runs share the machine.
            deterministic: only algorithms whose sums have one order: two runs are equal to the last bit on this
                machine. Where a framework has no such switch and is not so by itself, a UserError.

        Raises:
            UserError: the device is absent; says which there are. Or it lacks the precision, or the mode does.
        """
        self.device, self.mode, self.precision = self.choose_device(device), mode or self.modes[0], precision
        self.threads, self.deterministic = threads, deterministic
        self.loss_scale = LOSS_SCALE if precision == "fp16" else 1.0
        self.start()

    def start(self) -> None:  # noqa: B027 (nothing to do is a right answer)
        """Tell the framework what `__init__` has chosen; nothing to do by default.

        Raises:
            UserError: device, mode and precision do not go together.
        """

    def close(self) -> None:  # noqa: B027 (nothing to do is a right answer)
        """The run is over: what was begun beside this process ends."""

    @classmethod
    def among(cls, how: str) -> "Callable[..., Framework]":
        """What makes the framework of a run in several processes, by one of `distributions`: takes what `__init__` does and
        `processes`, how many to start where no launcher has (None: one for each accelerator). Only the first process
        calls the verbs, and with the whole batch; a step is that of the whole batch, in rounding alone another.

        Raises:
            UserError: it has none.
        """
        raise UserError(f"framework.distributed={how}: this framework trains in one process")

    @classmethod
    def follow(cls) -> int:
        """In every other process that a launcher has started: does as the first says until that is done; the exit code.

        Raises:
            UserError: it trains in one process.
        """
        raise UserError("this framework trains a run in one process")

    @classmethod
    def choose_device(cls, asked: str) -> str:
        """One of `devices()`; "auto" is the first, "cuda" is "cuda:0".

        Raises:
            UserError: it is not there; says what is.
        """
        there = cls.devices()
        wanted = there[0] if asked == "auto" else f"{asked}:0" if asked in ("cuda", "ascend") else asked
        if wanted not in there:
            raise UserError(f"framework.device={wanted!r} is not here; {cls.version()} sees: {', '.join(there)}")
        return wanted

    @classmethod
    def devices(cls) -> list[str]:
        """Devices at hand, best first; "cpu" is last."""
        return [*(f"cuda:{i}" for i in range(cls.cuda_devices())), "cpu"]

    @staticmethod
    def cuda_devices() -> int:
        """How many the framework sees; none by default."""
        return 0

    @staticmethod
    def native() -> type[Native] | None:
        """Its side of models that nobody declared; None, the default, where it takes declared ones only."""
        return None

    @staticmethod
    @abstractmethod
    def version() -> str:
        """Name, version and build, in one line."""

    def stepping(self, spec: OptimizerSpec) -> str:
        """How a step of this optimizer is taken here, where the framework has several ways to the same numbers: for
        env.json. "": it has one."""
        return ""

    @abstractmethod
    def make_model(self, tree: Tree) -> Any:
        """The native model of a declared tree; its weights are whatever `set_weights` then puts there."""

    @classmethod
    def build(cls, asked: ZooModel, seed: int | None, make: Callable[..., Any] | None = None) -> Any:
        """A model of one of `sources`, as its package makes it.

        Args:
            asked: which.
            seed: of the initial values; None: without numbers, where the framework can: it is only looked at.
            make: who makes it, called with the fields of `asked` but source and name; None: the package.

        Raises:
            UserError: the package is absent, or refuses.
        """
        raise UserError(f"model={asked.source}: this framework takes declared models only")

    def check_native(self, native: Any) -> None:  # noqa: B027 (nothing to refuse is a right answer)
        """Asked of a sketch before the run's folder is claimed, and again by `adopt`; by default nothing is refused.

        Raises:
            UserError: this mode or precision cannot train it; says the way out.
        """

    def adopt(self, native: Any) -> Any:
        """A native model, behind the verbs that declared ones have, on the device, with the weights that it holds."""
        raise UserError("this framework takes declared models only")

    @abstractmethod
    def get_weights(self, model: Any) -> Weights:
        """Copies of all parameters and buffers."""

    @abstractmethod
    def set_weights(self, model: Any, weights: Weights) -> None:
        """Copy all parameters and buffers in, bit by bit."""

    @abstractmethod
    def make_groups(self, model: Any, plan: Plan) -> list[Any]:
        """Native groups, one per plan group, in order, spelled the framework's own way.

        Raises:
            UserError: this mode cannot do what the plan asks; says why, and the ways out.
        """

    @abstractmethod
    def make_optimizer(self, model: Any, groups: Sequence[Any], plan: Plan) -> Any:
        """Native optimizer; several keys in plan.optimizers become one each, stepped together."""

    @abstractmethod
    def make_scheduler(self, optimizer: Any, plan: Plan, start: int) -> Scheduler:
        """The scheduler of a run that begins at step `start`. Its lrs are this plan's: one optimizer may be given several
        schedulers, of plans that differ in base_lr (the proof does)."""

    @abstractmethod
    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray, step: Step) -> StepResult:
        """One update.

        Args:
            state: as made; the lrs of this step are written already.
            x: float32 [B, C, H, W] or int64 [B, T].
            y: int64 [B], or float32 [B, classes]: soft targets; one of the two throughout a run.
            step: which groups train, which batchnorm layers rest, the seed, whether gradients are wanted, clipping.
        """

    @abstractmethod
    def predict(self, state: TrainState, x: np.ndarray) -> np.ndarray:
        """float32 logits [B, classes] in evaluation mode; leaves everything as it was."""

    def to_onnx(self, model: Any, shape: tuple[int, ...], scale: tuple[np.ndarray, np.ndarray] | None) -> bytes:
        """The model in evaluation mode as an ONNX file: "pictures" [batch, *shape] to "logits" [batch, classes], the
        batch of any size. Leaves the model as it was; by default no framework can.

        Args:
            model: native.
            shape: [C, H, W] of a picture.
            scale: mean and std, float32 [C, 1, 1]: pictures are uint8 and the file computes (x / 255 - mean) / std;
                None: they are float32, as a training step takes them.

        Raises:
            UserError: it cannot, or what it needs is not installed.
        """
        raise UserError(
            f"--to onnx: {self.version()} writes no ONNX file; torch does, of declared models and its own; "
            "--to safetensors keeps the weights of any"
        )

    @abstractmethod
    def get_optimizer_state(self, state: TrainState) -> Weights:
        """Optimizer state as "parameter/key" -> array, under torch's keys (STATE_KEYS) in every framework, of the
        parameters that have trained. So a run can go on in another framework."""

    @abstractmethod
    def set_optimizer_state(self, state: TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """What `get_optimizer_state` gave; parameters without an entry start fresh, so that {} resets all."""
