"""JAX behind layerwise-lr's contract: arrays in a holder, and one compiled step per set of groups that train."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from layerwise_lr import framework as core

from .layers import KINDS, WIDTHS, Arrays, Pass, forward
from .optimizers import DECOUPLED, UNITS, fresh


@dataclass
class Model:
    """A declared tree, and its arrays on the device by canonical name."""

    tree: core.Tree
    arrays: Arrays


class JaxFramework(core.Framework):
    """One device, compiled."""

    contract = 1
    kinds = tuple(KINDS)
    optimizers = tuple(UNITS)
    modes = ("jit",)
    precisions = ("fp32", "bf16", "fp16")

    @staticmethod
    def version() -> str:
        """JAX's and optax's."""
        return f"jax {jax.__version__}, optax {optax.__version__}"

    @staticmethod
    def cuda_devices() -> int:
        """GPUs that JAX sees."""
        return sum(device.platform == "gpu" for device in jax.devices())

    def start(self) -> None:
        """The device, and what the compiler is told of each function: nothing is set for the whole process."""
        kind, _, index = self.device.partition(":")
        self._where = jax.devices(kind)[int(index or 0)]
        cpu, cuda = ("xla_cpu_multi_thread_eigen", self.threads > 1), ("xla_gpu_deterministic_ops", self.deterministic)
        self._how = (self.precision, self.loss_scale, (cpu if kind == "cpu" else cuda,))

    def make_model(self, tree: core.Tree) -> Model:
        """All arrays zero until `set_weights`."""
        return Model(tree, {name: self._put(np.zeros(spec.shape)) for name, spec, _, _ in core.specs(tree)})

    def get_weights(self, model: Model) -> core.Weights:
        """Copies."""
        return {name: np.array(array) for name, array in model.arrays.items()}

    def set_weights(self, model: Model, weights: core.Weights) -> None:
        """Copies."""
        model.arrays = {name: self._put(weights[name]) for name in model.arrays}

    def make_groups(self, model: Model, plan: core.Plan) -> list[dict[str, Any]]:
        """A step is given the lr as a number, which nothing is compiled for."""
        return [{"params": group.params, "lr": 0.0, "rule": plan.rule(group)} for group in plan.groups]

    def make_optimizer(self, model: Model, groups: Sequence[Any], plan: core.Plan) -> Sequence[Any]:
        """The groups: each has its rule; what is kept of each parameter is in `TrainState.compiled`, by its name."""
        return groups

    def make_scheduler(self, optimizer: Sequence[Any], plan: core.Plan, start: int) -> core.GroupScheduler:
        """Writes group["lr"]."""
        return core.GroupScheduler(optimizer, plan)

    def train_step(self, state: core.TrainState, x: np.ndarray, y: np.ndarray, step: core.Step) -> core.StepResult:
        """One compiled call: gradients, update and statistics."""
        arrays, live = state.model.arrays, [g for g, on in zip(state.groups, step.active, strict=True) if on]
        trained = {name: arrays[name] for group in live for name in group["params"]}
        rest = {name: array for name, array in arrays.items() if name not in trained}
        self._hold(state, trained.keys(), {})
        held = {name: state.compiled[name] for name in trained}
        numbers = np.array([g["lr"] for g in live], np.float32), np.array(divmod(step.seed % 2**64, 2**32), np.uint32)
        rules = tuple((tuple(group["params"]), group["rule"]) for group in live)
        compiled = _step(state.model.tree, rules, step.frozen, step.clip, step.accumulate, self._how)
        loss, gradients, new, held = compiled(trained, held, rest, *numbers, self._put(x), self._put(y))
        arrays.update(new)
        state.compiled.update(held)
        return core.StepResult(loss, {n: np.array(g) for n, g in gradients.items()} if step.gradients else None)

    def predict(self, state: core.TrainState, x: np.ndarray) -> np.ndarray:
        """Compiled too, once per shape of x."""
        return np.array(_prediction(state.model.tree, self._how)(state.model.arrays, self._put(x)))

    def get_optimizer_state(self, state: core.TrainState) -> core.Weights:
        """Copies; the keys are torch's already."""
        return {f"{name}/{key}": np.array(a) for name, own in (state.compiled or {}).items() for key, a in own.items()}

    def set_optimizer_state(self, state: core.TrainState, arrays: Mapping[str, np.ndarray]) -> None:
        """A parameter without an entry is begun when it next trains."""
        state.compiled = {}
        self._hold(state, {key.rpartition("/")[0] for key in arrays}, arrays)

    def _hold(self, state: core.TrainState, names: Set[str], arrays: Mapping[str, np.ndarray]) -> None:
        """State of those parameters that have none: what `arrays` has of it, else fresh."""
        state.compiled, rules = state.compiled or {}, {n: g["rule"] for g in state.groups for n in g["params"]}
        for name in (names & rules.keys()) - state.compiled.keys():
            begun = fresh(rules[name].optimizer, state.model.arrays[name].shape)
            state.compiled[name] = {key: self._put(arrays.get(f"{name}/{key}", a)) for key, a in begun.items()}

    def _put(self, array: np.ndarray) -> jax.Array:
        """A copy on the device: of float32, or of integers that fit in 32 bits."""
        return jax.device_put(np.array(array, np.float32 if array.dtype.kind == "f" else np.int32), self._where)


@lru_cache(maxsize=64)
def _prediction(tree: core.Tree, how: Any) -> Any:
    return jax.jit(lambda arrays, x: forward(Pass(arrays, WIDTHS[how[0]]), tree, x), compiler_options=dict(how[2]))


@lru_cache(maxsize=64)
def _step(tree: core.Tree, live: Any, frozen: frozenset[str], clip: core.Clip, accumulate: int, how: Any) -> Any:
    """What is compiled. One function for all states of equal trees and rules: a run that is resumed in this process
    compiles nothing. Gradients are always given, so that asking for them compiles nothing either.

    Args:
        tree: of the model.
        live: of each group that trains, its parameters and its UpdateRule.
        frozen: batchnorm layers that rest.
        clip: of the gradients.
        accumulate: parts of the batch.
        how: precision, loss scale, and the compiler's options.
    """
    precision, scale, options = how
    statistics = [name for name, spec, _, _ in core.specs(tree) if spec.role == "buffer"]

    def loss_of(trained: Arrays, rest: Arrays, key: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        run = Pass({**rest, **trained}, WIDTHS[precision], key, frozen)
        log_p = jax.nn.log_softmax(forward(run, tree, x))
        loss = -((jax.nn.one_hot(y, log_p.shape[1]) if y.ndim == 1 else y) * log_p).sum() / len(x)
        return loss * scale, (loss, {name: run.arrays[name] for name in statistics})

    def step(trained: Arrays, held: Any, rest: Arrays, lrs: Any, seed: Any, x: jax.Array, y: jax.Array) -> Any:
        def part(carried: Any, given: Any) -> Any:
            (total, sums, buffers), (index, *batch) = carried, given
            key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), index)
            slopes, (loss, buffers) = jax.grad(loss_of, has_aux=True)(trained, rest | buffers, key, *batch)
            sums = jax.tree.map(lambda total, g: total + g / (scale * accumulate), sums, slopes)
            return (total + loss / accumulate, sums, buffers), None

        cut = jnp.arange(accumulate), *(a.reshape(accumulate, -1, *a.shape[1:]) for a in (x, y))
        begun = jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained), {name: rest[name] for name in statistics}
        # on a CPU XLA's convolutions take twice as long within a loop: one part needs none
        (loss, gradients, new), _ = part(begun, [a[0] for a in cut]) if accumulate == 1 else lax.scan(part, begun, cut)
        bounded, kept = _clipped(gradients, clip), {}
        for (names, rule), lr in zip(live, lrs, strict=True):
            for name in names:
                new[name], kept[name] = _updated(rule, lr, trained[name], bounded[name], held[name])
        return loss, gradients, new, kept

    return jax.jit(step, donate_argnums=(0, 1), compiler_options=dict(options))


def _clipped(gradients: Arrays, clip: core.Clip) -> Arrays:
    """Over all that train."""
    factor = 1.0 if clip.norm is None else jnp.minimum(1.0, clip.norm / (optax.global_norm(gradients) + 1e-6))
    bound = jnp.inf if clip.value is None else clip.value
    return {name: jnp.clip(g * factor, -bound, bound) for name, g in gradients.items()}


def _updated(rule: Any, lr: Any, p: jax.Array, g: jax.Array, held: Any) -> Any:
    """(new parameter, new state)."""
    if rule.grad_centralization and (axes := core.central_axes(g.shape)):
        g = g - g.mean(axes, keepdims=True)
    decay, apart = rule.weight_decay * p, rule.optimizer.name in DECOUPLED
    unit, kept = UNITS[rule.optimizer.name](rule.optimizer, g if apart else g + decay, held)
    return p - lr * (unit + decay if apart else unit), kept
