"""Optimizer names as MindSpore optimizers over native parameter groups (seed document 003), torch's formulas.

All of them are nn.Optimizer: group dicts, `order_params`, and a `learning_rate` that is a ParameterTuple whose
elements `ops.assign` changes, in PyNative and in compiled steps alike. nn.Momentum and nn.SGD agree with torch to
rounding; nn.Momentum's nesterov is another formula, so nesterov is nn.SGD's. Adam is written here: nn.Adam and
experimental.optim.Adam put eps outside the bias correction, nn.AdamWeightDecay corrects no bias at all, and
experimental.optim.AdamW counts one step for all parameters, which is wrong for what thaws late. So are rmsprop
(nn.RMSProp puts eps inside the root and the lr inside the momentum), nadam (experimental.optim.NAdam, one step for all
again), and lion, muon and layer_adaptive, which MindSpore lacks.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf, log
from typing import Any, ClassVar

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from layerwise_lr.framework import OptimizerSpec

Group = dict[str, Any]


class Counted(nn.Optimizer):
    """Keeps numbers of each parameter beside its arrays, as one float32 Parameter for all of them.

    Args:
        starts: attribute -> what it is before the first step; one of them is `steps`.
    """

    starts: ClassVar[Mapping[str, float]] = {"steps": 0.0}

    def __init__(self, params: Sequence[Group], learning_rate: float) -> None:
        super().__init__(learning_rate, list(params), weight_decay=0.0)
        count = len(self._parameters)
        for name, value in self.starts.items():
            setattr(self, name, Parameter(Tensor(np.full(count, value, np.float32)), name=name, requires_grad=False))
        self.count(range(count), {name: getattr(self, name) for name in self.starts})

    def count(self, at: Sequence[int], numbers: Mapping[str, Parameter]) -> None:
        """This optimizer's parameters are counted in these `numbers`, at these places."""
        for name, held in numbers.items():
            setattr(self, name, held)
        ones = np.zeros(self.steps.shape, np.float32)
        ones[list(at)] = 1
        self.at, self.ones = tuple(at), Tensor(ones)

    def counted(self):
        """The steps of all parameters with this one."""
        t = self.steps + self.ones
        ops.assign(self.steps, t)
        return t


class Adam(Counted):
    """torch's Adam (L2) and AdamW (decoupled) over MindSpore's fused kernel.

    The kernel's own bias correction is switched off (beta powers 0); ours goes in by lr and eps:
    lr / c1 * m / (sqrt(v) / sqrt(c2) + eps) = lr * sqrt(c2) / c1 * m / (sqrt(v) + eps * sqrt(c2)), c = 1 - beta**t,
    where beta is the float32 that the kernel multiplies with and c comes from expm1: 1 - 0.999 in float32 is 5e-5 off.

    Args:
        betas, eps: as torch's.
        decoupled: AdamW.
    """

    def __init__(
        self, params: Sequence[Group], learning_rate: float, betas: Sequence[float], eps: float, decoupled: bool
    ) -> None:
        super().__init__(params, learning_rate)
        self.decoupled, self.eps = decoupled, eps
        self.betas = tuple(float(np.float32(beta)) for beta in betas)
        self.logs = tuple(log(beta) if beta else -inf for beta in self.betas)
        self.exp_avg = self._parameters.clone(prefix="exp_avg", init="zeros")
        self.exp_avg_sq = self._parameters.clone(prefix="exp_avg_sq", init="zeros")
        self.adam = ops.Adam(use_locking=False, use_nesterov=False)

    @ms.jit
    def construct(self, gradients):
        """One step of every parameter."""
        if not self.decoupled:
            gradients = self.decay_weight(gradients)
        lr, t = self.get_lr(), self.counted()
        root = ops.sqrt(-ops.expm1(t * self.logs[1]))
        factor = root / -ops.expm1(t * self.logs[0])
        eps = root * self.eps
        for i in range(len(self.at)):
            p, m, v, k = self._parameters[i], self.exp_avg[i], self.exp_avg_sq[i], self.at[i]
            if self.decoupled and self.decay_flags[i]:
                ops.assign(p, p * (1.0 - lr[i] * self.weight_decay[i]))
            rate, beta1, beta2 = lr[i] * factor[k], self.betas[0], self.betas[1]
            self.adam(p, m, v, 0.0, 0.0, rate, beta1, beta2, eps[k], gradients[i])
        return True


class NAdam(Counted):
    """torch.optim.NAdam, its formula as in the reference plugin: L2 weight decay.

    Args:
        betas, eps: as Adam's.
        momentum_decay: how fast the momentum grows to betas[0].
    """

    starts: ClassVar[Mapping[str, float]] = {"steps": 0.0, "mu_product": 1.0}

    def __init__(
        self, params: Sequence[Group], learning_rate: float, betas: Sequence[float], eps: float, momentum_decay: float
    ) -> None:
        super().__init__(params, learning_rate)
        self.betas, self.eps, self.growth = tuple(betas), eps, log(0.96) * momentum_decay
        self.log = log(betas[1]) if betas[1] else -inf
        self.exp_avg = self._parameters.clone(prefix="exp_avg", init="zeros")
        self.exp_avg_sq = self._parameters.clone(prefix="exp_avg_sq", init="zeros")

    @ms.jit
    def construct(self, gradients):
        """One step of every parameter."""
        gradients = self.decay_weight(gradients)
        lr, t = self.get_lr(), self.counted()
        mu, following = self._momentum(t), self._momentum(t + 1.0)
        product = self.mu_product * ops.select(self.ones > 0.0, mu, ops.ones_like(mu))
        ops.assign(self.mu_product, product)
        root = ops.sqrt(-ops.expm1(t * self.log))
        now, ahead = (1.0 - mu) / (1.0 - product), following / (1.0 - product * following)
        for i in range(len(self.at)):
            p, g, k = self._parameters[i], gradients[i], self.at[i]
            average = self.betas[0] * self.exp_avg[i] + (1 - self.betas[0]) * g
            square = self.betas[1] * self.exp_avg_sq[i] + (1 - self.betas[1]) * g * g
            ops.assign(self.exp_avg[i], average)
            ops.assign(self.exp_avg_sq[i], square)
            ops.assign(p, p - lr[i] * (now[k] * g + ahead[k] * average) / (ops.sqrt(square) / root[k] + self.eps))
        return True

    def _momentum(self, t):
        """At step t."""
        return self.betas[0] * (1.0 - 0.5 * ops.exp(t * self.growth))


class RMSProp(Counted):
    """torch.optim.RMSprop, not centered: eps outside the root, momentum over the quotient, L2 weight decay.

    Args:
        alpha: what the mean of squares keeps at each step.
        eps: as Adam's.
        momentum: 0: none, and no buffer.
    """

    def __init__(
        self, params: Sequence[Group], learning_rate: float, alpha: float, eps: float, momentum: float
    ) -> None:
        super().__init__(params, learning_rate)
        self.alpha, self.eps, self.keeps = alpha, eps, momentum
        self.square_avg = self._parameters.clone(prefix="square_avg", init="zeros")
        if momentum:
            self.momentum_buffer = self._parameters.clone(prefix="momentum_buffer", init="zeros")

    @ms.jit
    def construct(self, gradients):
        """One step of every parameter."""
        gradients = self.decay_weight(gradients)
        lr, _ = self.get_lr(), self.counted()
        for i in range(len(self.at)):
            p, g = self._parameters[i], gradients[i]
            square = self.alpha * self.square_avg[i] + (1 - self.alpha) * g * g
            ops.assign(self.square_avg[i], square)
            quotient = g / (ops.sqrt(square) + self.eps)
            if self.keeps:
                quotient = self.keeps * self.momentum_buffer[i] + quotient
                ops.assign(self.momentum_buffer[i], quotient)
            ops.assign(p, p - lr[i] * quotient)
        return True


class Lion(nn.Optimizer):
    """Chen et al. 2023, decay decoupled: its formula as in the reference plugin.

    Args:
        betas: of the step and of what is kept.
    """

    def __init__(self, params: Sequence[Group], learning_rate: float, betas: Sequence[float]) -> None:
        super().__init__(learning_rate, list(params), weight_decay=0.0)
        self.betas = tuple(betas)
        self.exp_avg = self._parameters.clone(prefix="exp_avg", init="zeros")

    @ms.jit
    def construct(self, gradients):
        """One step of every parameter."""
        lr = self.get_lr()
        for i in range(len(self._parameters)):
            p, g, average = self._parameters[i], gradients[i], self.exp_avg[i]
            move = ops.sign(self.betas[0] * average + (1 - self.betas[0]) * g)
            decayed = p * (1.0 - lr[i] * self.weight_decay[i]) if self.decay_flags[i] else p
            ops.assign(average, self.betas[1] * average + (1 - self.betas[1]) * g)
            ops.assign(p, decayed - lr[i] * move)
        return True


class Muon(nn.Optimizer):
    """torch.optim.Muon in float32, decay decoupled: its formula as in the reference plugin.

    Args:
        momentum, nesterov: of the buffer, an average of gradients.
    """

    def __init__(self, params: Sequence[Group], learning_rate: float, momentum: float, nesterov: bool) -> None:
        super().__init__(learning_rate, list(params), weight_decay=0.0)
        self.keeps, self.nesterov = momentum, nesterov
        self.momentum_buffer = self._parameters.clone(prefix="momentum_buffer", init="zeros")

    @ms.jit
    def construct(self, gradients):
        """One step of every parameter."""
        lr = self.get_lr()
        for i in range(len(self._parameters)):
            p, g = self._parameters[i], gradients[i]
            buffer = self.keeps * self.momentum_buffer[i] + (1 - self.keeps) * g
            ops.assign(self.momentum_buffer[i], buffer)
            move = self._orthogonal(self.keeps * buffer + (1 - self.keeps) * g if self.nesterov else buffer)
            decayed = p * (1.0 - lr[i] * self.weight_decay[i]) if self.decay_flags[i] else p
            ops.assign(p, decayed - lr[i] * (0.2 * max(p.shape) ** 0.5) * move)
        return True

    def _orthogonal(self, x):
        """[A, B] with its singular values brought near 1, by five Newton-Schulz steps on its wide side."""
        tall = x.shape[0] > x.shape[1]
        if tall:
            x = x.T
        x = x / ops.maximum(ops.sqrt((x * x).sum()), 1e-7)
        for _ in range(5):
            square = ops.matmul(x, x.T)
            x = 3.4445 * x + ops.matmul(2.0315 * ops.matmul(square, square) - 4.7750 * square, x)
        return x.T if tall else x


class LayerAdaptive(nn.Optimizer):
    """Seed document 002's LayerAdaptiveLR, its formula as in the reference plugin.

    Args:
        betas, eps: as Adam's.
    """

    def __init__(self, params: Sequence[Group], learning_rate: float, betas: Sequence[float], eps: float) -> None:
        super().__init__(learning_rate, list(params), weight_decay=0.0)
        self.betas, self.eps = tuple(betas), eps
        self.exp_avg = self._parameters.clone(prefix="exp_avg", init="zeros")
        self.exp_avg_sq = self._parameters.clone(prefix="exp_avg_sq", init="zeros")

    @ms.jit
    def construct(self, gradients):
        """One step of every parameter."""
        gradients = self.decay_weight(gradients)
        lr = self.get_lr()
        for i in range(len(self._parameters)):
            p, g = self._parameters[i], gradients[i]
            average = self.betas[0] * self.exp_avg[i] + (1 - self.betas[0]) * g
            square = self.betas[1] * self.exp_avg_sq[i] + (1 - self.betas[1]) * g * g
            ops.assign(self.exp_avg[i], average)
            ops.assign(self.exp_avg_sq[i], square)
            ratio = ops.mean(ops.abs(average) / (ops.sqrt(square) + self.eps))
            ops.assign(p, p - lr[i] * ratio * average)
        return True


def _momentum(spec: OptimizerSpec, groups: list[Group]) -> nn.Optimizer:
    if spec.nesterov:
        return nn.SGD(
            groups, spec.lr, momentum=spec.momentum, dampening=0.0, weight_decay=0.0, nesterov=True, loss_scale=1.0
        )
    return nn.Momentum(groups, spec.lr, momentum=spec.momentum, weight_decay=0.0, loss_scale=1.0, use_nesterov=False)


NATIVE: Mapping[str, Callable[[OptimizerSpec, list[Group]], nn.Optimizer]] = {
    "sgd": lambda s, g: nn.SGD(g, s.lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, loss_scale=1.0),
    "momentum": _momentum,
    "adam": lambda s, g: Adam(g, s.lr, s.betas, s.eps, decoupled=False),
    "adamw": lambda s, g: Adam(g, s.lr, s.betas, s.eps, decoupled=True),
    "nadam": lambda s, g: NAdam(g, s.lr, s.betas, s.eps, s.momentum_decay),
    "rmsprop": lambda s, g: RMSProp(g, s.lr, s.alpha, s.eps, s.momentum),
    "lion": lambda s, g: Lion(g, s.lr, s.betas),
    "muon": lambda s, g: Muon(g, s.lr, s.momentum, s.nesterov),
    "layer_adaptive": lambda s, g: LayerAdaptive(g, s.lr, s.betas, s.eps),
}
