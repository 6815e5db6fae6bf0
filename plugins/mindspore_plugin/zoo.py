"""Models of mindcv, and any Cell, behind the verbs that declared models have."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from layerwise_lr import framework as core

from .dropout import Draw, Dropout
from .layers import Whole
from .native import LAYER_TYPES, as_it_was, modules


class Foreign(Whole):
    """A model that is not declared: its parameters by bare name, its logits as a tensor. Its nn.Dropouts become ours,
    which follow the seed of a step; functions that draw are not seen.

    Args:
        net: of any kind.
        draw: of the dropouts.
    """

    def __init__(self, net: nn.Cell, draw: Draw) -> None:
        super().__init__(draw)
        self.net = net
        self.named |= core.tensors(modules(net), buffers=True)
        for path, cell in list(net.cells_and_names()):
            if isinstance(cell, LAYER_TYPES["batchnorm"]):
                self.norms[core.bare_name(path)] = cell
            for place, (key, child) in enumerate(list(cell._cells.items())):
                if isinstance(child, nn.Dropout):
                    self.dropouts += 1
                    ours = Dropout(_rate(child), draw, self.dropouts)
                    if isinstance(cell, nn.SequentialCell | nn.CellList):  # they call a list of their own
                        cell[place] = ours
                    else:
                        setattr(cell, key, ours)
        self._made()

    def construct(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes]; an auxiliary head beside the classifier is second."""
        out = self.net(x)
        return out[0] if isinstance(out, (tuple, list)) else out


def build(asked: core.ZooModel, make: Callable[..., Any] | None) -> nn.Cell:
    """The native model, as its zoo makes it, or `make`."""
    return core.from_zoo(asked, make, BUILDERS, nn.Cell, "mindspore.nn.Cell")


def tried(net: nn.Cell, asked: core.ZooModel) -> nn.Cell:
    """One picture through it, in PyNative and evaluation mode: many of mindcv's models take one size alone.

    Raises:
        UserError: it takes none of the data's, or gives no logits.
    """
    with as_it_was(net.set_train(False)):
        core.check_picture(asked, lambda shape: core.logits(net(Tensor(np.zeros(shape, np.float32))), Tensor, net))
    return net


@contextmanager
def compiling(network: Whole, mode: str) -> Iterator[None]:
    """Around a training step: not every model of another's can be compiled.

    Raises:
        UserError: with the way out.
    """
    try:
        yield
    except Exception as error:  # whatever the compiler raises
        if mode != "graph" or not isinstance(network, Foreign):
            raise
        told = core.plain(error, 120)
        raise core.UserError(
            f"framework.mode=graph: MindSpore cannot compile {type(network.net).__name__} ({told}): take framework=mindspore"
        ) from None


def _mindcv(asked: core.ZooModel) -> nn.Cell:
    """A transformer is told the size of the pictures, where it takes one."""
    import mindcv

    core.check_name(asked, mindcv.list_models())
    given = {"num_classes": asked.num_classes, "in_channels": asked.in_channels, "pretrained": asked.pretrained}
    sized = {} if "image_size" in asked.options else {"image_size": asked.image_size}
    return core.first_that_fits(lambda **more: mindcv.create_model(asked.name, **given, **asked.options, **more), sized)


def _rate(dropout: nn.Dropout) -> float:
    """By p, or by the older keep_prob."""
    return 1.0 - dropout.keep_prob if dropout.p is None else dropout.p


BUILDERS: Mapping[str, Callable[[core.ZooModel], nn.Cell]] = {"mindcv": _mindcv}
