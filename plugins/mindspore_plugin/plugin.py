"""MindSpore, PyNative and compiled: the verbs in the contract's order."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

os.environ.setdefault("GLOG_v", "3")  # errors only; read once, at import
os.environ.setdefault("MS_OM_PATH", str(Path(tempfile.gettempdir()) / "layerwise_lr_mindspore"))  # else ./rank_0

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from layerwise_lr import framework as core

from . import zoo
from .dropout import Draw
from .layers import Network, Whole
from .lending import Shelf
from .native import MindSporeNative
from .natives import Natives, Optimizers
from .optimizers import Group
from .steps import TrainStep, tensor

_DTYPES = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}
_TARGETS = {"cuda": "GPU", "ascend": "Ascend", "cpu": "CPU"}


class Model:
    """Who holds a network; nobody else has it meanwhile."""

    def __init__(self, network: Whole) -> None:
        self.network = network


class MindSporeScheduler:
    """Assigns the elements of the optimizers' ParameterTuple. `set_data` would read back and change nothing, a
    Python float would be baked into a compiled step (measured)."""

    def __init__(self, lrs: Sequence[Parameter], plan: core.Plan) -> None:
        self._lrs, self._plan = lrs, plan

    def apply(self, index: int) -> None:
        """The plan's lr of every group at step `index`."""
        for parameter, lr in zip(self._lrs, self._plan.lrs(index), strict=True):
            ops.assign(parameter, Tensor(lr, ms.float32))

    def lrs(self) -> list[float]:
        """The Parameters' values."""
        return [float(parameter.asnumpy()) for parameter in self._lrs]


class MindSporeFramework(core.Framework):
    """MindSpore on CPU, GPU or Ascend.

    pynative: forward and backward op by op, each optimizer's update compiled as MindSpore does it itself.
    graph: the whole step compiled, once per set of active groups and resting batchnorm layers. Where the batch comes in
    parts, a part is one graph and the update another.
    """

    kinds: ClassVar[tuple[str, ...]] = (*core.KINDS, *core.PLAIN_KINDS)
    optimizers: ClassVar[tuple[str, ...]] = core.OPTIMIZERS
    modes: ClassVar[tuple[str, ...]] = ("pynative", "graph")
    precisions: ClassVar[tuple[str, ...]] = tuple(_DTYPES)
    sources: ClassVar[tuple[str, ...]] = tuple(zoo.BUILDERS)
    starts_first: ClassVar[bool] = True
    fork_safe: ClassVar[bool] = False  # its executor threads do not survive a fork

    def start(self) -> None:
        """Device, mode and what MindSpore takes once per process."""
        kind, _, index = self.device.partition(":")
        target = _TARGETS[kind]
        if self.precision == "bf16" and target != "Ascend":  # conv2d and matmul: "Unsupported data type"
            raise core.UserError(
                "framework.precision='bf16': MindSpore has the kernels for it on Ascend alone; take fp16"
            )
        ms.set_device(target, int(index or 0))
        ms.set_context(mode=ms.GRAPH_MODE if self.mode == "graph" else ms.PYNATIVE_MODE)
        _start(target, self.threads)
        if self.deterministic:
            ms.set_deterministic(True)
        names = ("dropout_seed", "dropout_first")
        self._draw = Draw(*(Parameter(Tensor(0, ms.int32), name=name, requires_grad=False) for name in names))
        self._networks: Shelf[Network] = Shelf()

    @classmethod
    def devices(cls) -> list[str]:
        """Ascend or CUDA devices that this build of MindSpore can use, then the CPU."""
        found = []
        for name in ("ascend", "cuda"):
            if ms.hal.is_available(_TARGETS[name]):
                found += [f"{name}:{i}" for i in range(ms.hal.device_count(_TARGETS[name]))]
        return [*found, "cpu"]

    @staticmethod
    def native() -> type[core.Native]:
        """Any Cell."""
        return MindSporeNative

    @staticmethod
    def version() -> str:
        """MindSpore's version."""
        return f"mindspore {ms.__version__}"

    def make_model(self, tree: core.Tree) -> Model:
        """In training mode; of equal trees it may be a network whose run is over."""
        return self._networks.lend(tree, lambda: Network(tree, self._draw, _DTYPES[self.precision]), Model)

    @classmethod
    def build(cls, asked: core.ZooModel, seed: int | None, make: Callable[..., Any] | None = None) -> nn.Cell:
        """mindcv's, or who makes it. Without a seed it has numbers too, and is tried on a picture."""
        if seed is not None:
            ms.set_seed(seed)
            return zoo.build(asked, make)
        return zoo.tried(zoo.build(replace(asked, pretrained=False), make), asked)

    def check_native(self, native: nn.Cell) -> None:
        """fp32 alone."""
        if self.precision != "fp32":
            raise core.UserError(
                f"framework.precision={self.precision}: a {type(native).__name__} that is not declared trains in fp32 here: "
                "framework.precision=fp32"
            )

    def adopt(self, native: nn.Cell) -> Model:
        """Any Cell that gives logits, in fp32."""
        self.check_native(native)
        return Model(zoo.Foreign(native, self._draw))

    def get_weights(self, model: Model) -> core.Weights:
        """Copies by canonical name."""
        return {name: np.array(p.asnumpy(), np.float32) for name, p in model.network.named.items()}

    def set_weights(self, model: Model, weights: core.Weights) -> None:
        """In place: optimizers and compiled steps keep their Parameters."""
        for name, parameter in model.network.named.items():
            ops.assign(parameter, Tensor(np.ascontiguousarray(weights[name]), parameter.dtype))

    def make_groups(self, model: Model, plan: core.Plan) -> list[Group]:
        """MindSpore's group dicts; it takes no other keys than these, and no numpy floats. Gradients are centralized by
        the training step (see there), so the native key is off."""
        return [
            {
                "params": [model.network.named[n] for n in g.params],
                "lr": float(plan.base_lr * g.lr_scale),
                "weight_decay": float(g.weight_decay),
                "grad_centralization": False,
            }
            for g in plan.groups
        ]

    def make_optimizer(self, model: Model, groups: Sequence[Group], plan: core.Plan) -> Optimizers:
        """One native optimizer per name in use, fresh. They serve again, with what was compiled for them, where rules
        and parameters are the same and their run is over (the effective-lr proof asks several times)."""
        rules = tuple((g.optimizer, plan.rule(g), g.params) for g in plan.groups)
        return model.network.natives.lend(rules, lambda: Natives(groups, plan), Optimizers)

    def make_scheduler(self, optimizer: Optimizers, plan: core.Plan, start: int) -> MindSporeScheduler:
        """Groups in the plan's order, across all optimizers."""
        return MindSporeScheduler(optimizer.natives.lrs, plan)

    def train_step(self, state: core.TrainState, x: np.ndarray, y: np.ndarray, step: core.Step) -> core.StepResult:
        """The step of the active groups and resting batchnorm layers, the clipping and the parts; it is made once."""
        network, natives = state.model.network, state.optimizer.natives
        key = (step.active, step.frozen, step.clip, step.accumulate)
        if key not in natives.steps:
            optimizers, compiled = natives.over(step.active), self.mode == "graph"
            rest = (natives.centralized, compiled, self.loss_scale, step.clip, step.accumulate)
            natives.steps[key] = TrainStep(network, optimizers, *rest)
        train = natives.steps[key]
        network.rest(step.frozen)
        if network.dropouts:
            ops.assign(self._draw.seed, Tensor(np.array(step.seed % 2**32, np.uint32).view(np.int32)))
        with zoo.compiling(network, self.mode):
            loss, gradients = train(x, y)
        state.optimizer.begun.update(train.names)
        if not step.gradients:
            return core.StepResult(loss)
        return core.StepResult(loss, {n: np.array(g.asnumpy()) for n, g in zip(train.names, gradients, strict=True)})

    def predict(self, state: core.TrainState, x: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode."""
        network = state.model.network.set_train(False)
        logits = np.array(network(tensor(x)).asnumpy())
        network.set_train(True)
        return logits

    def get_optimizer_state(self, state: core.TrainState) -> core.Weights:
        """By "parameter/exp_avg" and so on."""
        return state.optimizer.state()  # type: ignore[no-any-return]

    def set_optimizer_state(self, state: core.TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """The reverse."""
        state.optimizer.set_state(arrays)


@cache
def _start(target: str, threads: int) -> None:
    """What MindSpore takes once per process."""
    ms.runtime.dispatch_threads_num(threads)
    if target == "GPU":
        ms.device_context.gpu.op_precision.conv_allow_tf32(False)  # the default rounds fp32 to 10 bits
    if target == "Ascend":
        ms.device_context.ascend.op_precision.conv_allow_hf32(False)  # the default rounds fp32 to 11 bits
        ms.device_context.ascend.op_precision.precision_mode("must_keep_origin_dtype")  # before 2.9 force_fp16 on some
    if target == "CPU":  # no other device to run ahead of, and waiting threads spin: a third of a compiled run's time
        os.environ.setdefault("MS_DEV_HOST_BLOCKING_RUN", "1")  # read once, at the first operator
        ms.runtime.launch_blocking()
        _fast_convolutions()


def _fast_convolutions() -> None:
    """On AVX-512 the oneDNN in MindSpore 2.9 takes its reference convolution (verbose: "jit_uni_ncsp:conv+ref:any"),
    50 times slower than the AVX2 one. It reads the variable once, at its first use: here; other libraries of the
    process, which read the same one, are left as they were."""
    name, before = "DNNL_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA")
    os.environ[name] = before or "AVX2"
    one = Tensor(np.ones((1, 1, 3, 3), np.float32))
    ops.conv2d(one, one).asnumpy()
    if before is None:
        del os.environ[name]
