"""What each optimizer subtracts from a parameter per unit of lr: optax where it has torch's formula, else jnp.

`UNITS[name](spec, g, held)` -> (unit, new state); g, unit: of one parameter; held: its state under STATE_KEYS.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from layerwise_lr.framework import STATE_KEYS, OptimizerSpec

State = dict[str, jax.Array]
Found = tuple[jax.Array, State]
DECOUPLED = ("adamw", "lion", "muon")
"""Those whose weight decay does not pass through the gradient."""


def fresh(spec: OptimizerSpec, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The state of a parameter that has not trained yet."""
    start, unused = {"step": np.zeros(()), "mu_product": np.ones(())}, ("rmsprop", 0.0, "momentum_buffer")
    keys = [key for key in STATE_KEYS[spec.name] if (spec.name, spec.momentum, key) != unused]
    return {key: start.get(key, np.zeros(shape)) for key in keys}


def momentum(spec: OptimizerSpec, g: jax.Array, held: State) -> Found:
    """optax.trace, from zero."""
    unit, new = optax.trace(spec.momentum, spec.nesterov).update(g, optax.TraceState(held["momentum_buffer"]))
    return unit, {"momentum_buffer": new.trace}


def adam(spec: OptimizerSpec, g: jax.Array, held: State) -> Found:
    """optax's moments; the bias is corrected here: optax's 1 - 0.999 ** 1 is off by 1e-5 in float32."""
    kept = _moments(spec, g, held)
    return kept["exp_avg"] / _rest(spec.betas[0], kept["step"]) / _root(spec, kept), kept


def nadam(spec: OptimizerSpec, g: jax.Array, held: State) -> Found:
    """torch.optim.NAdam's; optax has another."""
    kept = _moments(spec, g, held)
    mu, then = (spec.betas[0] * (1 - 0.5 * 0.96 ** ((kept["step"] + i) * spec.momentum_decay)) for i in (0, 1))
    product = kept["mu_product"] = held["mu_product"] * mu
    mixed = (1 - mu) / (1 - product) * g + then / (1 - product * then) * kept["exp_avg"]
    return mixed / _root(spec, kept), kept


def rmsprop(spec: OptimizerSpec, g: jax.Array, held: State) -> Found:
    """optax.scale_by_rms with eps outside of the root, and momentum over it."""
    rule = optax.scale_by_rms(spec.alpha, spec.eps, eps_in_sqrt=False)
    unit, new = rule.update(g, optax.ScaleByRmsState(held["square_avg"]))
    buffer = {"momentum_buffer": spec.momentum * held["momentum_buffer"] + unit} if spec.momentum else {}
    return buffer.get("momentum_buffer", unit), {"square_avg": new.nu, "step": held["step"] + 1, **buffer}


def lion(spec: OptimizerSpec, g: jax.Array, held: State) -> Found:
    """optax.scale_by_lion, which counts steps for nobody."""
    unit, new = optax.scale_by_lion(*spec.betas).update(g, optax.ScaleByLionState(jnp.int32(0), held["exp_avg"]))
    return unit, {"exp_avg": new.mu}


def muon(spec: OptimizerSpec, g: jax.Array, held: State) -> Found:
    """Five Newton-Schulz steps on the wide side, in float32."""
    buffer = optax.tree.update_moment(g, held["momentum_buffer"], spec.momentum, 1)
    x = optax.tree.update_moment(g, buffer, spec.momentum, 1) if spec.nesterov else buffer
    x, tall = x / jnp.maximum(jnp.sqrt((x * x).sum()), 1e-7), len(x) > x.shape[1]
    x = x.T if tall else x
    with jax.default_matmul_precision("highest"):
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return 0.2 * max(x.shape) ** 0.5 * (x.T if tall else x), {"momentum_buffer": buffer}


def layer_adaptive(spec: OptimizerSpec, g: jax.Array, held: State) -> Found:
    """One step size for the whole parameter."""
    kept = _moments(spec, g, held)
    return (jnp.abs(kept["exp_avg"]) / (jnp.sqrt(kept["exp_avg_sq"]) + spec.eps)).mean() * kept["exp_avg"], kept


def _moments(spec: OptimizerSpec, g: jax.Array, held: State) -> State:
    """Adam's state after this gradient."""
    (beta1, beta2), moment = spec.betas, optax.tree.update_moment
    after = {"exp_avg": moment(g, held["exp_avg"], beta1, 1), "exp_avg_sq": moment(g, held["exp_avg_sq"], beta2, 2)}
    return {**after, "step": held["step"] + 1} if "step" in held else after


def _root(spec: OptimizerSpec, kept: State) -> jax.Array:
    return jnp.sqrt(kept["exp_avg_sq"] / _rest(spec.betas[1], kept["step"])) + spec.eps


def _rest(beta: float, step: jax.Array) -> jax.Array:
    """1 - beta ** step without cancellation."""
    return -jnp.expm1(step * float(np.log(beta))) if beta else jnp.ones(())


UNITS: Mapping[str, Callable[[OptimizerSpec, jax.Array, State], Found]] = {
    "sgd": lambda spec, g, held: (g, {}),
    "adamw": adam,
    **{unit.__name__: unit for unit in (momentum, adam, nadam, rmsprop, lion, muon, layer_adaptive)},
}
