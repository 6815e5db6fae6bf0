"""What each optimizer subtracts from a parameter per unit of lr, in NumPy: torch's formulas, from the state before.

w, g: the parameter and its gradient (before weight decay), one shape. held: the state under STATE_KEYS, {} for a
parameter that has not trained yet. NaN: cannot be told. The plugin's arithmetic is measured against these; the reference plugin has its own.
"""

from collections.abc import Callable, Mapping

import numpy as np

from ..planning import OptimizerSpec

Held = Mapping[str, np.ndarray]
CANCELLED = 1e-5
"""A sum smaller than this, in its terms, has a sign that rounding and the norm of a clipping may turn."""
Unit = Callable[[OptimizerSpec, np.ndarray, np.ndarray, float, Held], np.ndarray]


def _momentum(spec: OptimizerSpec, w: np.ndarray, g: np.ndarray, weight_decay: float, held: Held) -> np.ndarray:
    g = g + weight_decay * w
    buffer = spec.momentum * held["momentum_buffer"] + g if "momentum_buffer" in held else g
    return g + spec.momentum * buffer if spec.nesterov else buffer


def _moments(spec: OptimizerSpec, g: np.ndarray, held: Held) -> tuple[np.ndarray, np.ndarray]:
    """(exp_avg, exp_avg_sq) after the step."""
    beta1, beta2 = spec.betas
    return (
        beta1 * held.get("exp_avg", 0.0) + (1 - beta1) * g,
        beta2 * held.get("exp_avg_sq", 0.0) + (1 - beta2) * g * g,
    )


def _adam(spec: OptimizerSpec, g: np.ndarray, held: Held) -> np.ndarray:
    average, square = _moments(spec, g, held)
    step = float(held.get("step", 0.0)) + 1
    corrected = square / (1 - spec.betas[1] ** step)
    return average / (1 - spec.betas[0] ** step) / (np.sqrt(corrected) + spec.eps)


def _nadam(spec: OptimizerSpec, g: np.ndarray, held: Held) -> np.ndarray:
    average, square = _moments(spec, g, held)
    step = float(held.get("step", 0.0)) + 1
    mu, following = (spec.betas[0] * (1 - 0.5 * 0.96 ** (at * spec.momentum_decay)) for at in (step, step + 1))
    product = float(held.get("mu_product", 1.0)) * mu
    mixed = (1 - mu) / (1 - product) * g + following / (1 - product * following) * average
    return mixed / (np.sqrt(square / (1 - spec.betas[1] ** step)) + spec.eps)


def _rmsprop(spec: OptimizerSpec, g: np.ndarray, held: Held) -> np.ndarray:
    square = spec.alpha * held.get("square_avg", 0.0) + (1 - spec.alpha) * g * g
    return spec.momentum * held.get("momentum_buffer", 0.0) + g / (np.sqrt(square) + spec.eps)


def _lion(spec: OptimizerSpec, g: np.ndarray, held: Held) -> np.ndarray:
    """NaN where the two terms cancel to less than rounding: the sign cannot be told."""
    kept, new = spec.betas[0] * held.get("exp_avg", np.zeros_like(g)), (1 - spec.betas[0]) * g
    size = np.abs(kept) + np.abs(new)
    return np.where((np.abs(kept + new) > CANCELLED * size) | (size == 0), np.sign(kept + new), np.nan)


def _muon(spec: OptimizerSpec, g: np.ndarray, held: Held) -> np.ndarray:
    buffer = spec.momentum * held.get("momentum_buffer", 0.0) + (1 - spec.momentum) * g
    m = spec.momentum * buffer + (1 - spec.momentum) * g if spec.nesterov else buffer
    m, tall = m / max(float(np.linalg.norm(m)), 1e-7), len(m) > m.shape[1]
    m = m.T if tall else m
    for _ in range(5):
        square = m @ m.T
        m = 3.4445 * m + (-4.7750 * square + 2.0315 * square @ square) @ m
    return 0.2 * max(m.shape) ** 0.5 * (m.T if tall else m)


def _layer_adaptive(spec: OptimizerSpec, g: np.ndarray, held: Held) -> np.ndarray:
    average, square = _moments(spec, g, held)
    return (np.abs(average) / (np.sqrt(square) + spec.eps)).mean() * average


UNITS: Mapping[str, Unit] = {
    "sgd": lambda spec, w, g, weight_decay, held: g + weight_decay * w,
    "momentum": _momentum,
    "adam": lambda spec, w, g, weight_decay, held: _adam(spec, g + weight_decay * w, held),
    "adamw": lambda spec, w, g, weight_decay, held: _adam(spec, g, held) + weight_decay * w,
    "nadam": lambda spec, w, g, weight_decay, held: _nadam(spec, g + weight_decay * w, held),
    "rmsprop": lambda spec, w, g, weight_decay, held: _rmsprop(spec, g + weight_decay * w, held),
    "lion": lambda spec, w, g, weight_decay, held: _lion(spec, g, held) + weight_decay * w,
    "muon": lambda spec, w, g, weight_decay, held: _muon(spec, g, held) + weight_decay * w,
    "layer_adaptive": lambda spec, w, g, weight_decay, held: _layer_adaptive(spec, g + weight_decay * w, held),
}

WHOLE = ("layer_adaptive", "muon")
"""Those that need all of a parameter at once; the others can be given some of its rows."""
