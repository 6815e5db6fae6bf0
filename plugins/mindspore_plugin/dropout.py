"""Dropout that follows from a seed, alike in both modes."""

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype


class Dropout(nn.Cell):
    """dropout whose mask is a hash of (seed, layer, element). MindSpore's own kernels keep a generator that no
    seed resets in graph mode (measured), and their masks differ between the modes; this one is the same in both.

    Args:
        p: what is dropped.
        seed: int32 scalar, which every `train_step` assigns.
        layer: tells the dropouts of a model apart. It joins the seed after a hash: the seeds of a run follow one
            another, and a sum would give the next step's first layer the mask of this step's second.
    """

    def __init__(self, p: float, seed: Parameter, layer: int) -> None:
        super().__init__(auto_prefix=False)
        self.p, self.layer, self.seed = p, layer, seed

    def construct(self, x: Tensor) -> Tensor:
        """Any shape; the identity in evaluation."""
        if not self.training or self.p == 0.0:
            return x
        size = 1
        for n in x.shape:
            size = size * n
        bits = _mix(ops.arange(0, size, 1, dtype=mstype.int32) + _mix(_mix(self.seed) + self.layer))
        uniform = ops.cast(ops.bitwise_and(bits, 0xFFFFFF), mstype.float32) / 16777216.0
        keep = ops.cast(uniform >= self.p, mstype.float32) / (1 - self.p)
        return x * ops.stop_gradient(keep).reshape(x.shape)


def _mix(h: Tensor) -> Tensor:
    """lowbias32 (Wellons 2018), an integer hash; shifts are masked, int32 has a sign."""
    h = ops.bitwise_xor(h, _shift(h, 16)) * 0x21F0AAAD
    h = ops.bitwise_xor(h, _shift(h, 15)) * 0x735A2D97
    return ops.bitwise_xor(h, _shift(h, 15))


def _shift(h: Tensor, n: int) -> Tensor:
    return ops.bitwise_and(ops.bitwise_right_shift(h, n), (1 << (32 - n)) - 1)
