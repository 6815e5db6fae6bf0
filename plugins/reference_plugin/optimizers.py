"""The optimizers' formulas in NumPy, as torch documents them; state under torch's keys.

`update(spec, p, g, state, lr, weight_decay)` returns the new parameter and changes `state`. All in float64.
"""

from collections.abc import Callable, Mapping

import numpy as np

from layerwise_lr.framework import OptimizerSpec

Array = np.ndarray
State = dict[str, Array]
Update = Callable[[OptimizerSpec, Array, Array, State, float, float], Array]


def sgd(spec: OptimizerSpec, p: Array, g: Array, state: State, lr: float, weight_decay: float) -> Array:
    """p - lr (g + wd p)."""
    return p - lr * (g + weight_decay * p)


def momentum(spec: OptimizerSpec, p: Array, g: Array, state: State, lr: float, weight_decay: float) -> Array:
    """b = mu b + g (b = g at first); p - lr b, or p - lr (g + mu b) with nesterov. lr stays outside the buffer."""
    g = g + weight_decay * p
    buffer = spec.momentum * state["momentum_buffer"] + g if "momentum_buffer" in state else g
    state["momentum_buffer"] = buffer
    return p - lr * (g + spec.momentum * buffer if spec.nesterov else buffer)


def adam(spec: OptimizerSpec, p: Array, g: Array, state: State, lr: float, weight_decay: float) -> Array:
    """Kingma and Ba 2015, L2 weight decay in the gradient; steps are counted per parameter."""
    return _adam_step(spec, p, g + weight_decay * p, state, lr)


def adamw(spec: OptimizerSpec, p: Array, g: Array, state: State, lr: float, weight_decay: float) -> Array:
    """Loshchilov and Hutter 2019: decay by lr * wd, apart from the gradient."""
    return _adam_step(spec, p * (1 - lr * weight_decay), g, state, lr)


def nadam(spec: OptimizerSpec, p: Array, g: Array, state: State, lr: float, weight_decay: float) -> Array:
    """Dozat 2016 as torch.optim.NAdam has it: Adam whose momentum grows to betas[0] and looks one step ahead."""
    g, step = g + weight_decay * p, float(state.get("step", np.zeros(()))) + 1
    mu = spec.betas[0] * (1 - 0.5 * 0.96 ** (step * spec.momentum_decay))
    following = spec.betas[0] * (1 - 0.5 * 0.96 ** ((step + 1) * spec.momentum_decay))
    product = float(state.get("mu_product", np.ones(()))) * mu
    state["step"], state["mu_product"] = np.array(step), np.array(product)
    _moments(spec, g, state)
    denominator = np.sqrt(state["exp_avg_sq"] / (1 - spec.betas[1] ** step)) + spec.eps
    p = p - lr * (1 - mu) / (1 - product) * g / denominator
    return p - lr * following / (1 - product * following) * state["exp_avg"] / denominator


def rmsprop(spec: OptimizerSpec, p: Array, g: Array, state: State, lr: float, weight_decay: float) -> Array:
    """Hinton's, as torch.optim.RMSprop has it, not centered: v = alpha v + (1 - alpha) g g; p - lr g / (sqrt(v) + eps),
    with momentum over the quotient."""
    g = g + weight_decay * p
    state["step"] = state.get("step", np.zeros(())) + 1
    state["square_avg"] = spec.alpha * state.get("square_avg", np.zeros_like(p)) + (1 - spec.alpha) * g * g
    quotient = g / (np.sqrt(state["square_avg"]) + spec.eps)
    if spec.momentum:
        quotient = spec.momentum * state.get("momentum_buffer", np.zeros_like(p)) + quotient
        state["momentum_buffer"] = quotient
    return p - lr * quotient


def lion(spec: OptimizerSpec, p: Array, g: Array, state: State, lr: float, weight_decay: float) -> Array:
    """Chen et al. 2023: p (1 - lr wd) - lr sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g."""
    (beta1, beta2), m = spec.betas, state.get("exp_avg", np.zeros_like(p))
    state["exp_avg"] = beta2 * m + (1 - beta2) * g
    return p * (1 - lr * weight_decay) - lr * np.sign(beta1 * m + (1 - beta1) * g)


def muon(spec: OptimizerSpec, p: Array, g: Array, state: State, lr: float, weight_decay: float) -> Array:
    """Jordan 2024, as torch.optim.Muon has it with adjust_lr_fn="match_rms_adamw": the momentum's singular values are
    brought near 1 by Newton-Schulz steps, and the update to AdamW's usual size."""
    buffer = state["momentum_buffer"] = (
        spec.momentum * state.get("momentum_buffer", np.zeros_like(p)) + (1 - spec.momentum) * g
    )
    update = spec.momentum * buffer + (1 - spec.momentum) * g if spec.nesterov else buffer
    update = newton_schulz(update / max(np.sqrt((update**2).sum()), 1e-7))
    return p * (1 - lr * weight_decay) - lr * 0.2 * np.sqrt(max(p.shape)) * update


def newton_schulz(x: Array) -> Array:
    """[A, B] of norm 1 -> a x + (b x x^T + c (x x^T)^2) x, five times, on its wide side."""
    if len(x) > len(x[0]):
        return newton_schulz(x.T).T
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    return x


def layer_adaptive(spec: OptimizerSpec, p: Array, g: Array, state: State, lr: float, weight_decay: float) -> Array:
    """p - s m with one step size per parameter, s = lr * mean(|m| / (sqrt(v) + eps)); m, v are Adam's moments.

    After the class LayerAdaptiveLR of seed document 002, with its formula: no bias is corrected, so s is large in the
    first steps (3.2 lr at the first, for the default betas) and nothing depends on a step count: none is kept. Its
    faults are left out: it ignores weight_decay (here L2, as in torch's Adam, which it extends), sorts param_groups
    by memory address (a checkpoint's groups come back in another order), waits for the device once per parameter and
    step (.item()), writes through p.data, and calls a closure with gradients on or off as the caller left them.
    """
    _moments(spec, g + weight_decay * p, state)
    ratio = np.abs(state["exp_avg"]) / (np.sqrt(state["exp_avg_sq"]) + spec.eps)
    return p - lr * ratio.mean() * state["exp_avg"]


def _adam_step(spec: OptimizerSpec, p: Array, g: Array, state: State, lr: float) -> Array:
    beta1, beta2 = spec.betas
    step = float(state.get("step", np.zeros(()))) + 1
    state["step"] = np.array(step)
    _moments(spec, g, state)
    denominator = np.sqrt(state["exp_avg_sq"] / (1 - beta2**step)) + spec.eps
    return p - lr * (state["exp_avg"] / (1 - beta1**step)) / denominator


def _moments(spec: OptimizerSpec, g: Array, state: State) -> None:
    """Adam's, after this gradient."""
    beta1, beta2 = spec.betas
    state["exp_avg"] = beta1 * state.get("exp_avg", np.zeros_like(g)) + (1 - beta1) * g
    state["exp_avg_sq"] = beta2 * state.get("exp_avg_sq", np.zeros_like(g)) + (1 - beta2) * g * g


UPDATES: Mapping[str, Update] = {
    "sgd": sgd,
    "momentum": momentum,
    "adam": adam,
    "adamw": adamw,
    "nadam": nadam,
    "rmsprop": rmsprop,
    "lion": lion,
    "muon": muon,
    "layer_adaptive": layer_adaptive,
}
