"""Convolution on the CPU with a backward of our own, from operators whose CPU kernels are fast.

MegEngine 1.13's backward kernels for convolutions are naive on x86. Measured against them (forward and backward,
batch 25, one thread, in ms): 3x3, 16 channels, 32x32: 118 -> 12; 3x3, 64 channels, 16x16: 381 -> 21; 1x1, 32 to 96
channels, 32x32: 172 -> 11; 3x3 of stride 2, 64 to 128 channels: 192 -> 14; 3x3 depthwise, 144 channels: 49 -> 22.
Results differ from the native ones by the order of summation only (1e-6).

x: float32 [B, C, H, W]; y: float32 [B, O, H', W'].
"""

from abc import abstractmethod
from math import prod

import megengine.functional as F
from megengine import Tensor
from megengine.autodiff import Function
from megengine.core._imperative_rt.core2 import get_grad_key

FEW_PIXELS = 4
"""Of an output. Up to here MegEngine's forward kernels are slow too: 3x3, 512 channels, 1x1: 228 ms, in columns 5."""


class Convolution(Function):
    """A convolution, square kernel and stride, the backward left to the subclasses.

    Args:
        stride, padding: of the convolution.
        needs: whether the gradient of the input, and of the weight, is wanted.
    """

    def __init__(self, stride: int, padding: int, needs: tuple[bool, bool]) -> None:
        super().__init__()
        self.stride, self.padding, self.needs = stride, padding, needs

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, H', W']."""
        self.x, self.w, self.kernel = x, w, w.shape[-1]
        return F.conv2d(x, w, None, self.stride, self.padding, 1, _groups(w), "cross_correlation")

    def backward(self, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of (x, w), None where nobody asked."""
        return self.input_gradient(dy) if self.needs[0] else None, self.weight_gradient(dy) if self.needs[1] else None

    def input_gradient(self, dy: Tensor) -> Tensor:
        """Of a stride of 1: the convolution of dy with the turned kernel, its channels exchanged."""
        turned = _swap(self.w)[..., ::-1, ::-1] * 1.0  # the kernels want a contiguous filter
        return F.conv2d(dy, turned, None, 1, self.kernel - 1 - self.padding, 1, _groups(self.w), "cross_correlation")

    @abstractmethod
    def weight_gradient(self, dy: Tensor) -> Tensor:
        """Gradient of w: what the cases below differ in."""


class Dense(Convolution):
    """Stride 1, one group: the weight's gradient is the convolution of x with dy, batch and channels exchanged."""

    def weight_gradient(self, dy: Tensor) -> Tensor:
        """[O, C, K, K]; a kernel of 1 is a matrix product."""
        if self.kernel == 1 and not self.padding:
            product = F.matmul(_flat(dy), _flat(self.x), transpose_b=True)
            return product.reshape(*product.shape, 1, 1)
        return _swap(F.conv2d(_swap(self.x), _swap(dy), None, 1, self.padding, 1, 1, "cross_correlation"))


class Columns(Convolution):
    """One group: the windows as columns, then matrix products over the whole batch; forward too."""

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, H', W']."""
        self.x, self.w, self.kernel = x, w, w.shape[-1]
        windows = F.nn.sliding_window(x, *self._window())  # [B, C, H', W', K, K]
        b, c, height, width, *_ = windows.shape
        self.columns = windows.transpose(1, 4, 5, 0, 2, 3).reshape(c * self.kernel**2, -1)
        product = F.matmul(w.reshape(w.shape[0], -1), self.columns)
        return _swap(product.reshape(-1, b, height, width))

    def input_gradient(self, dy: Tensor) -> Tensor:
        """[B, C, H, W]: every column back to its place."""
        (b, c, height, width), k = self.x.shape, self.kernel
        product = F.matmul(self.w.reshape(self.w.shape[0], -1), _flat(dy), transpose_a=True)
        windows = product.reshape(c, k, k, b, *dy.shape[2:]).transpose(3, 0, 4, 5, 1, 2)
        return F.nn.sliding_window_transpose(windows, (height, width), *self._window())

    def weight_gradient(self, dy: Tensor) -> Tensor:
        """[O, C, K, K]."""
        return F.matmul(_flat(dy), self.columns, transpose_b=True).reshape(self.w.shape)

    def _window(self) -> tuple[tuple[int, int], ...]:
        return tuple((n, n) for n in (self.kernel, self.padding, self.stride, 1))


class Depthwise(Convolution):
    """One filter per channel, w: [C, 1, 1, K, K]. A stride becomes zeros between the elements of dy."""

    def backward(self, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of (x, w)."""
        return super().backward(self._spread(dy) if self.stride > 1 else dy)

    def weight_gradient(self, dy: Tensor) -> Tensor:
        """The convolution of x with dy, one group per channel, the batch as its channels."""
        b, c, height, width = self.x.shape
        x, filters = _swap(self.x).reshape(1, c * b, height, width), _swap(dy).reshape(c, 1, b, *dy.shape[2:])
        return F.conv2d(x, filters, None, 1, self.padding, 1, c, "cross_correlation").reshape(self.w.shape)

    def _spread(self, dy: Tensor) -> Tensor:
        height, width = (n + 2 * self.padding - self.kernel + 1 for n in self.x.shape[2:])
        spread = F.zeros((*dy.shape[:2], height, width), device=dy.device)
        spread[:, :, :: self.stride, :: self.stride] = dy
        return spread


def conv2d(x: Tensor, w: Tensor, stride: int, padding: int) -> Tensor:
    """The convolution of a layer with one group, or with one filter per channel."""
    pixels = prod((n + 2 * padding - w.shape[-1]) // stride + 1 for n in x.shape[2:])
    kind = Depthwise if w.ndim == 5 else Dense if stride == 1 and pixels > FEW_PIXELS else Columns
    needs = (get_grad_key([x]) is not None, get_grad_key([w]) is not None)
    return kind(stride, padding, needs)(x, w)


def _groups(w: Tensor) -> int:
    """MegEngine writes grouped weights as [groups, O / groups, C / groups, K, K]."""
    return w.shape[0] if w.ndim == 5 else 1


def _swap(x: Tensor) -> Tensor:
    """The first two axes exchanged, of a grouped weight those within a group."""
    return x.transpose(0, 2, 1, 3, 4) if x.ndim == 5 else x.transpose(1, 0, 2, 3)


def _flat(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [C, B * H * W]."""
    return x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
