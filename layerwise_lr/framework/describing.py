"""What a framework says of a model that nobody declared: a plugin derives from Native and names it in
`Framework.native`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..planning import Module, ParamInfo, Plan, UserError
from .trials import Trial


@dataclass(frozen=True)
class ZooModel:
    """A model that somebody else's package makes.

    Args:
        source: of `Framework.sources`: the package.
        name: the package's name for it.
        num_classes, in_channels, image_size: of the data.
        pretrained: with the package's own weights, from where it fetches and caches them.
        options: what else its maker takes.
    """

    source: str
    name: str
    num_classes: int
    in_channels: int
    image_size: int
    pretrained: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """A native model as data.

    Args:
        rows: its parameters and buffers, by bare name, as declared; tied ones once. `trainable` is requires_grad;
            depths are 0. The layer type of what is never decayed by its author's word is "token".
        modules: its nesting, and who was called when in one traced forward.
        heads: module paths of the classifier, where the model says so itself.
        matcher: timm's group_matcher(coarse=False), where the model carries one.
        notes: what people should know of the trace.
    """

    rows: tuple[ParamInfo, ...]
    modules: tuple[Module, ...]
    heads: tuple[str, ...] = ()
    matcher: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


class Native(ABC):
    """One native model.

    Args:
        model: of the framework's own module class, wrapped or not.
    """

    package: ClassVar[str]
    """The top package of the framework's module classes: a model with such a class among its bases is its own."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @abstractmethod
    def describe(self, batch: Any = None, trace: bool = True) -> Description:
        """Its parameters and its nesting; one forward in evaluation mode leaves everything as it was.

        Args:
            batch: what the model is called with: one input, a mapping of keywords, a tuple of arguments, or a function
                of the model that runs it. None: one is made up from the model's own facts.
            trace: whether the order of calls is wanted.
        """

    @abstractmethod
    def param_groups(self, plan: Plan) -> list[Any]:
        """What the framework's optimizers take, one group per group of the plan; lrs are those of step 0."""

    @abstractmethod
    def scheduler(self, optimizer: Any, plan: Plan, start: int) -> Any:
        """Writes the plan's lrs into `optimizer`: now those of step `start`, and of the next at each `step()`; has
        `state_dict()` and `load_state_dict()`."""

    def trial(self, optimizer: Any, schedulers: Sequence[Any], batch: Any) -> Trial:
        """The model's optimizer on trial.

        Args:
            optimizer: native, wrapped or not.
            schedulers: all that write its lrs.
            batch: (inputs, classes), a mapping with labels, a function of the model that gives the loss, or that puts
                gradients in place itself and gives None; None: gradients are made up.
        """
        raise UserError(f"verify knows no optimizers of {self.package} yet; layerwise-lr verify proves a run of ours")

    @classmethod
    def first_step(cls, run: Callable[[], object], act: Callable[[Any, Any, Sequence[Any], Any], object]) -> None:
        """Runs somebody's script as far as its first optimizer step, gives (model, optimizer, schedulers, batch) to `act`
        there, and ends it. The batch is one of `trial`'s: the gradients as they are."""
        raise UserError(f"verify --script knows no optimizers of {cls.package} yet: write a --factory")
