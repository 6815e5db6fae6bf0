"""What a layer must know of the whole batch, though each process has its rows of it alone.

A model is not changed for that: while it runs, torch's own functions are answered otherwise. Batchnorm takes its statistics
over all processes, as torch.nn.SyncBatchNorm does (which knows GPUs alone); dropout and stochastic depth draw for the whole
batch and take their rows. So the curve is that of one process.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional
from torch.overrides import TorchFunctionMode

DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)
"""What multiplies by a mask."""


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """In all processes the same."""
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Every process's loss hangs on it."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class Together(TorchFunctionMode):
    """While it is entered, the model runs on rows `begin` to `end` of a batch of `rows`.

    Args:
        rows: of the batch in all processes.
        begin, end: this process's.
    """

    def __init__(self, rows: int, begin: int, end: int) -> None:
        super().__init__()
        self.rows, self.begin, self.end = rows, begin, end

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """torch's, but for what looks at the whole batch."""
        kwargs = kwargs or {}
        if func is functional.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if func in DROPOUTS:
            return self._dropout(func, *args, **kwargs)
        if func is Tensor.bernoulli_ and len(args[0]) == self.end - self.begin:
            return args[0].copy_(self._drawn(args[0], lambda whole: func(whole, *args[1:], **kwargs)))
        return func(*args, **kwargs)

    def _drawn(self, like: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Our rows of what is drawn for the batch; laid out as `like`, so that one process draws the same."""
        shape = (self.rows, *like.shape[1:])
        last = like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        whole = torch.ones(shape, dtype=like.dtype, device=like.device).contiguous(memory_format=layout)
        return draw(whole)[self.begin : self.end]

    def _dropout(
        self, drop: Callable[..., Tensor], input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0 or len(input) != self.end - self.begin:
            return drop(input, p, training, inplace)
        with torch.no_grad():
            mask = self._drawn(input, lambda whole: drop(whole, p, True))
        return input.mul_(mask) if inplace else input * mask

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return functional.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        x = input if input.dtype == torch.float64 else input.float()
        axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        mean, variance, count = _statistics(x, axes)
        with torch.no_grad():
            for running, own in ((running_mean, mean), (running_var, variance * (count / (count - 1)))):
                if running is not None:
                    running.lerp_(own.to(running.dtype), momentum)
        scale = torch.rsqrt(variance + eps) if weight is None else torch.rsqrt(variance + eps) * weight
        out = (x - mean.view(shape)) * scale.view(shape)
        return (out if bias is None else out + bias.view(shape)).to(input.dtype)


def _statistics(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count of each channel over all processes, put together from each one's own (Chan et al.
    1979): one exchange, and no difference of large squares."""
    count = x.new_tensor(x.numel() // x.shape[1])
    mean = x.sum(axes) / count.clamp(min=1)
    off = ((x - mean.view([1, -1, *[1] * (x.dim() - 2)])) ** 2).sum(axes)
    own = torch.cat([count.reshape(1), mean, off])
    table = _Sum.apply(own * _mine(own).unsqueeze(1))
    counts, means, offs = table[:, :1], table[:, 1 : 1 + len(mean)], table[:, 1 + len(mean) :]
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    variance = (offs + counts * (means - mean) ** 2).sum(0) / total
    return mean, variance, total


def _mine(like: Tensor) -> Tensor:
    """1 in this process's row, 0 in the others'."""
    row = like.new_zeros(dist.get_world_size())
    row[dist.get_rank()] = 1
    return row
