"""One run in several processes: each takes its rows of every batch, and the step is that of the whole batch.

The first process holds the run, with its pictures, its folder and every decision; each of its verbs is told to the others,
which do the same on their own model (follower.py). ddp: every process has the whole model, gradients are summed by
DistributedDataParallel. fsdp: every process has a shard of each parameter and of the optimizer's state (fully_shard,
"FSDP2"), put together where the core asks for weights, gradients or state: so the proof and the checkpoints see whole arrays.
"""

import gc
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from layerwise_lr import framework as core

from . import optimizers, zoo
from .layers import Model
from .plugin import Group, M, TorchFramework
from .team import Head, Team, lead
from .together import Together

_teams: list[Team] = []
"""The one that this process is in, if any: several framework objects may share it."""


class Optimizers(list[torch.optim.Optimizer]):
    """Those of a run, and the number by which the other processes know theirs."""

    number = 0


class Distributed(TorchFramework):
    """PyTorch in several processes.

    Args:
        spec: as of any framework.
        processes: how many to start where no launcher has; None: one for each GPU.
        team: of a process that does what the first says.
    """

    how: ClassVar[str]
    built: ClassVar[tuple[Any, ...]] = ()
    """What the last native model was made of: the others make theirs of it."""

    def __init__(self, *spec: Any, processes: int | None = None, team: Team | None = None) -> None:
        launched = int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 0
        self.asked, self.processes, self._own = spec, launched or processes or torch.cuda.device_count(), team
        if not self.processes:
            raise core.UserError(
                "framework.processes is missing: without a GPU, say how many train together: framework.processes=2"
            )
        self.number, self._rows = 0, 0  # of the whole batch that is going through the model
        super().__init__(*spec)

    def start(self) -> None:
        """The mode is eager."""
        if self.mode != "eager":
            raise core.UserError(f"framework.distributed={self.how} is eager: framework.mode=eager")
        super().start()

    @classmethod
    def choose_device(cls, asked: str) -> str:
        """Each process its own GPU, by its number on the machine."""
        there, local = cls.devices(), int(os.environ.get("LOCAL_RANK", "0"))
        if asked not in ("auto", "cuda"):
            if asked != "cpu":
                raise core.UserError(
                    f"framework.device={asked}: framework.distributed={cls.how} takes auto, cuda or cpu"
                )
            return asked
        if there[0] == "cpu" and asked == "auto":
            return "cpu"
        if f"cuda:{local}" not in there:
            raise core.UserError(
                f"process {local} on this machine has no GPU of its own; there are: {', '.join(there)}"
            )
        return f"cuda:{local}"

    @property
    def team(self) -> Team:
        """Begun where it is first needed."""
        if self._own is None:
            if not _teams:
                _teams.append(lead(self.processes))
            self._own = _teams[0]
            self._own.name(self, self._own.next())
            with self._own.together("framework", self.number, self.how, self.asked):
                pass
        return self._own

    def close(self) -> None:
        """The others end."""
        while _teams:
            _teams.pop().end()
        self._own = None

    @classmethod
    def build(cls, asked: core.ZooModel, seed: int | None, make: Callable[..., Any] | None = None) -> nn.Module:
        """Remembered, for the others."""
        if seed is not None:
            Distributed.built = (asked, seed, make)
        return super().build(asked, seed, make)

    def make_model(self, tree: core.Tree) -> Model:
        """In every process."""
        return self._made("make_model", lambda: super(Distributed, self).make_model(tree), tree)

    def adopt(self, native: nn.Module) -> zoo.Foreign:
        """In every process."""
        return self._made("adopt", lambda: super(Distributed, self).adopt(native), *self.built)

    def _made(self, verb: str, make: Callable[[], M], *words: Any) -> M:
        """A model with its number."""
        team = self.team  # which is told of this framework first
        number = team.next()
        with team.together(verb, number, self.number, *words):
            model = make()
        team.name(model, number)
        return model

    def make_optimizer(self, model: Model, groups: Sequence[Group], plan: core.Plan) -> list[torch.optim.Optimizer]:
        """In every process; the lrs that follow from schedules come with every step."""
        number = self.team.next()
        with self.team.together("make_optimizer", number, model.number, replace(plan, schedules={})):
            made = Optimizers(self._make_optimizer(model, groups, plan))
        self.team.name(made, number)
        return made

    def _make_optimizer(self, model: Model, groups: Sequence[Group], plan: core.Plan) -> list[torch.optim.Optimizer]:
        return super().make_optimizer(model, groups, plan)

    @torch.no_grad()
    def set_weights(self, model: Model, weights: core.Weights) -> None:
        """In every process."""
        with self.team.together("set_weights", model.number):
            for name, tensor in model.arrays().items():
                head = Head(tuple(tensor.shape), np.dtype(np.float32))
                tensor.copy_(self._placed(tensor, self.team.spread(weights.get(name), head)))

    def train_step(self, state: core.TrainState, x: np.ndarray, y: np.ndarray, step: core.Step) -> core.StepResult:
        """Every process its rows; the gradient is that of the mean over the whole batch, however its rows are dealt."""
        lrs = [float(group["lr"]) for group in state.groups]
        with self.team.together("train_step", state.optimizer.number, step, lrs, Head.of(x), Head.of(y)):
            return self.follow_step(state, x, y, step)

    def follow_step(
        self, state: core.TrainState, x: np.ndarray | Head, y: np.ndarray | Head, step: core.Step
    ) -> core.StepResult:
        """This process's part of a step."""
        self._rows = x.shape[0] // step.accumulate
        mine = self.team.deal(x, step.accumulate), self.team.deal(y, step.accumulate)
        result = super().train_step(state, *mine, step)
        loss = result.loss / self.team.size
        dist.all_reduce(loss)
        return result._replace(loss=loss)

    def _loss(self, model: Model, pictures: np.ndarray, targets: np.ndarray) -> torch.Tensor:
        """Of our rows, so that the mean over processes is the mean over the batch's pictures."""
        with Together(self._rows, *self.team.bounds(self._rows)):
            logits = self._forward(self._wrapped(model), pictures)
        total = functional.cross_entropy(logits, self._tensor(targets), reduction="sum")
        return total * (self.team.size / self._rows)

    def _wrapped(self, model: Model) -> Any:
        """What is called in training."""
        return model

    def predict(self, state: core.TrainState, x: np.ndarray) -> np.ndarray:
        """Every process its rows."""
        with self.team.together("predict", state.optimizer.number, Head.of(x)):
            return self.follow_predict(state, x)

    def follow_predict(self, state: core.TrainState, x: np.ndarray | Head) -> np.ndarray:
        """This process's part."""
        return self.team.collect(super().predict(state, self.team.deal(x)), x.shape[0])

    @torch.no_grad()
    def set_optimizer_state(self, state: core.TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """In every process."""
        heads = {key: Head.of(np.asarray(array)) for key, array in arrays.items()}
        with self.team.together("set_optimizer_state", state.optimizer.number, heads):
            self.follow_state(state, heads, arrays)

    def follow_state(
        self, state: core.TrainState, heads: Mapping[str, Head], arrays: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """This process's part."""
        held = {key: self.team.spread(arrays[key] if arrays else None, head) for key, head in heads.items()}
        super().set_optimizer_state(state, held)

    def _placed(self, like: torch.Tensor, array: np.ndarray) -> torch.Tensor:
        """An array as a tensor that `like` can take."""
        return torch.from_numpy(array)


class Ddp(Distributed):
    """The whole model in every process."""

    how: ClassVar[str] = "ddp"
    _held: tuple[Any, ...] = (None, None, None)

    def _wrapped(self, model: Model) -> Any:
        """DistributedDataParallel wants to know what trains: made anew where that has changed."""
        trains = tuple(parameter.requires_grad for parameter in model.parameters())
        if self._held[:2] != (model, trains):
            self._held = (None, None, None)
            gc.collect()  # the one before has hooks on the same parameters
            wrapped: Any = model
            if any(trains):
                wrapped = DistributedDataParallel(
                    model, init_sync=False, find_unused_parameters=isinstance(model, zoo.Foreign)
                )
            self._held = (model, trains, wrapped)
        return self._held[2]

    def _part(self, model: Model, last: bool) -> AbstractContextManager[Any]:
        """Gradients are summed over processes once a step."""
        wrapped = self._wrapped(model)
        return nullcontext() if last or wrapped is model else wrapped.no_sync()


class Fsdp(Distributed):
    """A shard of every parameter, of its gradient and of the optimizer's state in every process."""

    how: ClassVar[str] = "fsdp"

    def _ready(self, model: M) -> M:
        """On the device and sharded, what stands in a list (a layer, a block) at a time."""
        model = model.to(self.device, self.dtype).train()
        if isinstance(model, Model):  # which changes nothing in place
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        for unit in _units(model):
            fully_shard(unit, reshard_after_forward=True)
        fully_shard(model, reshard_after_forward=True)
        return model

    def _make_optimizer(self, model: Model, groups: Sequence[Group], plan: core.Plan) -> list[torch.optim.Optimizer]:
        """torch's, not fused: most of its kernels know no shards."""
        made = []
        for name, own in core.by_optimizer(groups, plan).items():
            native, options = optimizers.NATIVE[plan.optimizers[name].name](plan.optimizers[name])
            made.append(native(list(own), lr=plan.optimizers[name].lr, **options))
        return made

    def get_weights(self, model: Model) -> core.Weights:
        """Whole arrays."""
        with self.team.together("get_weights", model.number):
            return super().get_weights(model)

    def get_optimizer_state(self, state: core.TrainState) -> core.Weights:
        """Whole arrays."""
        with self.team.together("get_optimizer_state", state.optimizer.number):
            return super().get_optimizer_state(state)

    def _copy(self, tensor: torch.Tensor) -> np.ndarray:
        """Whole."""
        return super()._copy(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)

    def _placed(self, like: torch.Tensor, array: np.ndarray) -> torch.Tensor:
        """Our shard, where it is a parameter's."""
        whole = torch.from_numpy(array)
        if not isinstance(like, DTensor):
            return whole
        whole = whole.to(like.device, like.dtype)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


CLASSES: Mapping[str, type[Distributed]] = {"ddp": Ddp, "fsdp": Fsdp}


def _units(model: nn.Module) -> list[nn.Module]:
    """The outermost modules with parameters that stand in a list."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            found += [each for each in child if any(True for _ in each.parameters())]
        else:
            found += _units(child)
    return found
