"""Dropout and drop_path that follow from a seed, alike in both modes and whatever the parts of a batch."""

from typing import NamedTuple

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype


class Draw(NamedTuple):
    """What is drawn follows from these int32 scalars, which every training step assigns.

    Args:
        seed: the step's.
        first: place in the batch of the first picture at hand: a part of a batch has the masks of the whole one.
    """

    seed: Parameter
    first: Parameter


class Dropout(nn.Cell):
    """dropout whose mask is a hash of (seed, layer, element). MindSpore's own kernels keep a generator that no
    seed resets in graph mode (measured), and their masks differ between the modes; this one is the same in both.

    Args:
        p: what is dropped.
        draw: what the mask follows from.
        layer: tells the dropouts of a model apart. It joins the seed after a hash: the seeds of a run follow one
            another, and a sum would give the next step's first layer the mask of this step's second.
    """

    def __init__(self, p: float, draw: Draw, layer: int) -> None:
        super().__init__(auto_prefix=False)
        self.p, self.layer, self.seed, self.first = p, layer, draw.seed, draw.first

    def construct(self, x: Tensor) -> Tensor:
        """Any shape that begins with the batch; the identity in evaluation."""
        if not self.training or self.p == 0.0:
            return x
        shape, each = self.mask_of(x.shape), 1
        for n in shape[1:]:
            each = each * n
        places = ops.arange(0, shape[0] * each, 1, dtype=mstype.int32) + self.first * each
        bits = _mix(places + _mix(_mix(self.seed) + self.layer))
        uniform = ops.cast(ops.bitwise_and(bits, 0xFFFFFF), mstype.float32) / 16777216.0
        keep = ops.cast(uniform >= self.p, mstype.float32) / (1 - self.p)
        return x * ops.stop_gradient(keep).reshape(shape)

    def mask_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the mask of an input of this shape."""
        return shape


class DropPath(Dropout):
    """drop_path: likewise, whole samples."""

    def mask_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """[B, 1, ...]."""
        return (shape[0],) + (1,) * (len(shape) - 1)


def _mix(h: Tensor) -> Tensor:
    """lowbias32 (Wellons 2018), an integer hash; shifts are masked, int32 has a sign."""
    h = ops.bitwise_xor(h, _shift(h, 16)) * 0x21F0AAAD
    h = ops.bitwise_xor(h, _shift(h, 15)) * 0x735A2D97
    return ops.bitwise_xor(h, _shift(h, 15))


def _shift(h: Tensor, n: int) -> Tensor:
    return ops.bitwise_and(ops.bitwise_right_shift(h, n), (1 << (32 - n)) - 1)
