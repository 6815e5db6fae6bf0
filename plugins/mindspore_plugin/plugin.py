"""MindSpore, PyNative and compiled: the verbs in the contract's order."""

import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

os.environ.setdefault("GLOG_v", "3")  # errors only; read once, at import
os.environ.setdefault("MS_OM_PATH", str(Path(tempfile.gettempdir()) / "layerwise_lr_mindspore"))  # else ./rank_0

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from layerwise_lr.framework import KINDS as DECLARED
from layerwise_lr.framework import LOSS_SCALE, OPTIMIZERS, PLAIN_KINDS, Plan, TrainState, Tree, UserError, Weights

from . import graph, layers
from .optimizers import Group, Natives, Optimizers

_DTYPES = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}
_TARGETS = {"cuda": "GPU", "ascend": "Ascend", "cpu": "CPU"}


class MindSporeScheduler:
    """Assigns the elements of the optimizers' ParameterTuple. `set_data` would read back and change nothing, a
    Python float would be baked into a compiled step (measured)."""

    def __init__(self, lrs: Sequence[Parameter], plan: Plan) -> None:
        self._lrs, self._plan = lrs, plan

    def apply(self, step: int) -> None:
        """The plan's lr of every group at `step`."""
        for parameter, lr in zip(self._lrs, self._plan.lrs(step), strict=True):
            ops.assign(parameter, Tensor(lr, ms.float32))

    def lrs(self) -> list[float]:
        """The Parameters' values."""
        return [float(parameter.asnumpy()) for parameter in self._lrs]


class MindSporeFramework:
    """MindSpore on CPU, GPU or Ascend.

    pynative: forward and backward op by op, each optimizer's update compiled as MindSpore does it itself.
    graph: the whole step compiled, once per set of active groups.
    """

    modes: ClassVar[tuple[str, ...]] = ("pynative", "graph")
    optimizers: ClassVar[tuple[str, ...]] = OPTIMIZERS
    kinds: ClassVar[tuple[str, ...]] = (*DECLARED, *PLAIN_KINDS)
    fork_safe: ClassVar[bool] = False  # its executor threads do not survive a fork
    precisions: ClassVar[tuple[str, ...]] = tuple(_DTYPES)

    def __init__(self, device: str, mode: str, seed: int, precision: str, threads: int, deterministic: bool) -> None:
        if mode not in self.modes:
            raise UserError(f"framework.mode={mode!r}: mindspore has {', '.join(self.modes)}")
        target, index = _device(device)
        if precision == "bf16" and target != "Ascend":  # conv2d and matmul: "Unsupported data type"
            raise UserError("framework.precision='bf16': MindSpore has the kernels for it on Ascend alone; take fp16")
        ms.set_device(target, index)
        ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
        _start(target, threads)
        if deterministic:
            ms.set_deterministic(True)
        self.mode, self._dtype = mode, _DTYPES[precision]
        self._scale = LOSS_SCALE if precision == "fp16" else 1.0
        self._kept: tuple[Natives | None, Callable[[], Optimizers | None]] = (None, lambda: None)
        self._seed = Parameter(Tensor(0, ms.int32), name="dropout_seed", requires_grad=False)
        self.reseed(seed)

    @staticmethod
    def devices() -> list[str]:
        """Ascend or CUDA devices that this build of MindSpore can use, then the CPU."""
        found = []
        for name in ("ascend", "cuda"):
            if ms.hal.is_available(_TARGETS[name]):
                found += [f"{name}:{i}" for i in range(ms.hal.device_count(_TARGETS[name]))]
        return [*found, "cpu"]

    @staticmethod
    def version() -> str:
        """MindSpore's version."""
        return str(ms.__version__)

    def reseed(self, seed: int) -> None:
        """Dropout is all that is drawn, and its masks are ours (layers.Dropout)."""
        self._stream = np.random.SeedSequence(seed)

    def make_model(self, tree: Tree) -> nn.Cell:
        """A cell in training mode; `named` holds its Parameters by canonical name."""
        return layers.Builder(self._seed, self._dtype).tree(tree)

    def get_weights(self, model: nn.Cell) -> Weights:
        """Copies by canonical name."""
        return {name: np.array(p.asnumpy()) for name, p in model.named.items()}

    def set_weights(self, model: nn.Cell, weights: Weights) -> None:
        """In place: optimizers and compiled steps keep their Parameters."""
        for name, parameter in model.named.items():
            ops.assign(parameter, Tensor(np.ascontiguousarray(weights[name], np.float32)))

    def make_groups(self, model: nn.Cell, plan: Plan) -> list[Group]:
        """MindSpore's group dicts; it takes no other keys than these, and no numpy floats."""
        return [
            {
                "params": [model.named[n] for n in g.params],
                "lr": float(plan.base_lr * g.lr_scale),
                "weight_decay": float(g.weight_decay),
                "grad_centralization": g.grad_centralization,
            }
            for g in plan.groups
        ]

    def make_optimizer(self, groups: Sequence[Group], plan: Plan) -> Optimizers:
        """One native optimizer per name in use. The last ones are reused, fresh, where the same are asked for and
        their run is over: what was compiled for them serves again (the effective-lr proof asks several times)."""
        natives, user = self._kept
        if natives is None or user() is not None or not natives.serve(groups, plan):
            natives = Natives(groups, plan)
        made = Optimizers(natives)
        self._kept = natives, weakref.ref(made)
        return made

    def make_scheduler(self, optimizer: Optimizers, plan: Plan, start: int) -> MindSporeScheduler:
        """Groups in the plan's order, across all optimizers."""
        scheduler = MindSporeScheduler(optimizer.natives.lrs, plan)
        scheduler.apply(start)
        return scheduler

    def train_step(self, state: TrainState, x: np.ndarray, y: np.ndarray) -> Tensor:
        """The step of the active groups."""
        if state.compiled is None:
            self.set_active(state, [True] * len(state.groups))
        if state.model.dropouts:
            (child,) = self._stream.spawn(1)
            ops.assign(self._seed, Tensor(int(child.generate_state(1)[0] >> 1), ms.int32))
        loss = state.compiled(_tensor(x), Tensor(y.astype(np.int32)))
        state.optimizer.begun |= state.compiled.gradients.keys()
        return loss  # type: ignore[no-any-return]

    def get_gradients(self, state: TrainState) -> Weights:
        """What the last step kept."""
        return {name: np.array(g.asnumpy()) for name, g in state.compiled.gradients.items()}

    def predict(self, state: TrainState, x: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode."""
        state.model.set_train(False)
        logits = np.array(state.model(_tensor(x)).asnumpy())
        state.model.set_train(True)
        return logits

    def set_active(self, state: TrainState, active: Sequence[bool]) -> None:
        """Takes up the step of these groups; it is made once."""
        compiled = self.mode == "graph"
        state.compiled = state.compiled or graph.Steps(state.model, state.optimizer.natives, compiled, self._scale)
        state.compiled.take(tuple(active))

    def get_optimizer_state(self, state: TrainState) -> Weights:
        """By "parameter/exp_avg" and so on."""
        return state.optimizer.state()

    def set_optimizer_state(self, state: TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """The reverse."""
        state.optimizer.set_state(arrays)


def _device(asked: str) -> tuple[str, int]:
    """Target and index for `set_device`, which raises pages of text where the device is absent."""
    there = MindSporeFramework.devices()
    wanted = there[0] if asked == "auto" else asked
    wanted = f"{wanted}:0" if wanted in ("cuda", "ascend") else wanted
    if wanted not in there:
        raise UserError(f"framework.device={asked!r} is not here; mindspore {ms.__version__} sees: {', '.join(there)}")
    name, _, index = wanted.partition(":")
    return _TARGETS[name], int(index or 0)


@cache
def _start(target: str, threads: int) -> None:
    """What MindSpore takes once per process."""
    ms.runtime.dispatch_threads_num(threads)
    if target == "GPU":
        ms.device_context.gpu.op_precision.conv_allow_tf32(False)  # the default rounds fp32 to 10 bits
    if target == "Ascend":
        ms.device_context.ascend.op_precision.conv_allow_hf32(False)  # the default rounds fp32 to 11 bits
        ms.device_context.ascend.op_precision.precision_mode("must_keep_origin_dtype")  # before 2.9 force_fp16 on some
    if target == "CPU":
        ms.runtime.launch_blocking()  # no other device to run ahead of: waiting threads spin, 3 ms for each wait
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


def _tensor(x: np.ndarray) -> Tensor:
    """float32 as it is; tokens as int32, which every kernel takes."""
    return Tensor(x if x.dtype == np.float32 else x.astype(np.int32))
