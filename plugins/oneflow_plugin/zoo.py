"""Models of flowvision, and any nn.Module, behind the verbs that declared models have."""

from collections.abc import Callable, Mapping
from typing import Any

import oneflow as flow
from oneflow import Tensor, nn

from layerwise_lr import framework as core

from .layers import Dropout, Whole
from .native import LAYER_TYPES

GET_FLOWVISION = "pip install 'setuptools<81' wheel && pip install --no-build-isolation flowvision tqdm"
"""Its setup.py imports pkg_resources, which newer setuptools lack."""


class Foreign(Whole):
    """A model that is not declared: its parameters by bare name, its logits as a tensor. Its nn.Dropouts become ours,
    which follow the seed of a step."""

    draws = True  # functions that draw are not seen

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.norms = {
            core.bare_name(path): module
            for path, module in net.named_modules()
            if isinstance(module, LAYER_TYPES["batchnorm"])
        }
        self.dropouts = []
        for parent in list(net.modules()):
            for key, module in parent.named_children():
                if type(module) is nn.Dropout and module.p:
                    setattr(parent, key, Dropout(module.p))
                    self.dropouts.append(getattr(parent, key))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        return core.logits(self.net(x), Tensor, self.net)

    def arrays(self) -> dict[str, Tensor]:
        """Parameters and buffers by bare name; the tensors themselves, tied ones once."""
        return core.arrays_once(self.net.state_dict(keep_vars=True))


def build(asked: core.ZooModel, make: Callable[..., Any] | None) -> nn.Module:
    """The native model, as its zoo makes it, or `make`."""
    return core.from_zoo(asked, make, BUILDERS, nn.Module, "oneflow.nn.Module")


def tried(net: nn.Module, asked: core.ZooModel) -> nn.Module:
    """One picture through it in evaluation mode: many of flowvision's models take one size alone.

    Raises:
        UserError: it takes none of the data's, or gives no logits.
    """
    training = net.training
    with flow.no_grad():
        core.check_picture(asked, lambda shape: core.logits(net.eval()(flow.zeros(*shape)), Tensor, net))
    return net.train(training)


def check_graph(net: nn.Module, mode: str) -> None:
    """Refuse what a Graph would draw by itself, whatever the seed of a step: all but nn.Dropout, whose masks we give it.

    Raises:
        UserError: with the way out.
    """
    for path, module in net.named_modules():
        rates = [getattr(module, key, None) for key in ("p", "drop_prob")]
        if "drop" in type(module).__name__.lower() and type(module) is not nn.Dropout and any(rates):
            raise core.UserError(
                f"framework.mode={mode}: {path} ({type(module).__name__}) draws inside the Graph, which keeps a random "
                "state of its own: take framework=oneflow"
            )


def _flowvision(asked: core.ZooModel) -> nn.Module:
    flow.jit._script_if_tracing = lambda function: function  # flowvision 0.2.2 asks for it, OneFlow 0.9 has none
    try:
        from flowvision.models import ModelCreator
    except ModuleNotFoundError as error:
        if error.name != "flowvision":
            raise
        raise core.UserError(f"model=flowvision needs flowvision, which is not installed: {GET_FLOWVISION}") from None
    core.check_name(asked, ModelCreator.model_list())
    if asked.pretrained:  # it loads strictly: the head is that of ImageNet
        net = ModelCreator.create_model(asked.name, pretrained=True, **asked.options)
        return core.renew_head(net, asked.num_classes, nn)
    return ModelCreator.create_model(asked.name, num_classes=asked.num_classes, **asked.options)


BUILDERS: Mapping[str, Callable[[core.ZooModel], nn.Module]] = {"flowvision": _flowvision}
