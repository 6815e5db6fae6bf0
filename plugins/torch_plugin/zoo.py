"""Models of timm, torchvision and transformers, and any nn.Module, behind the verbs that declared models have."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from layerwise_lr import framework as core


class Foreign(nn.Module):
    """A model that is not declared: its parameters by bare name, its logits as a tensor."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.norms = {
            core.bare_name(path): module
            for path, module in net.named_modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, classes]."""
        return core.logits(self.net(x), torch.Tensor, self.net)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by bare name; the tensors themselves, tied ones once."""
        return core.arrays_once(self.net.state_dict(keep_vars=True))

    def rest(self, frozen: frozenset[str]) -> None:
        """These batchnorm layers run on their running statistics in the next training step, the others train."""
        for name, norm in self.norms.items():
            norm.train(name not in frozen)


def build(asked: core.ZooModel, make: Callable[..., Any] | None) -> nn.Module:
    """The native model, as its zoo makes it, or `make`."""
    return core.from_zoo(asked, make, BUILDERS, nn.Module, "torch.nn.Module")


def _timm(asked: core.ZooModel) -> nn.Module:
    """A ViT is told the size of the pictures, where it takes one."""
    import timm

    if not timm.is_model(asked.name.split(":")[-1].split(".")[0]) and "/" not in asked.name:
        near = timm.list_models(f"*{asked.name.split('.')[0]}*")[:3] or core.near(asked.name, timm.list_models())
        raise core.UserError(f"timm has no model {asked.name!r}; it has {', '.join(near)}, ... (timm.list_models())")
    given = {"pretrained": asked.pretrained, "num_classes": asked.num_classes, "in_chans": asked.in_channels}
    sized = {} if "img_size" in asked.options else {"img_size": asked.image_size}
    return core.first_that_fits(lambda **more: timm.create_model(asked.name, **given, **asked.options, **more), sized)


def _torchvision(asked: core.ZooModel) -> nn.Module:
    from torchvision import models

    core.check_name(asked, models.list_models())
    if asked.in_channels != 3:
        raise core.UserError(
            f"torchvision's models take 3 channels and the data have {asked.in_channels}: data.channels=3"
        )
    if not asked.pretrained:
        sized = {} if "image_size" in asked.options else {"image_size": asked.image_size}
        return core.first_that_fits(
            lambda **more: models.get_model(asked.name, num_classes=asked.num_classes, **asked.options, **more), sized
        )
    net = models.get_model(asked.name, weights="DEFAULT", **asked.options)
    return core.renew_head(net, asked.num_classes, nn)


def _transformers(asked: core.ZooModel) -> nn.Module:
    """An image classifier: `name` is a model type (vit, swin, resnet), a folder, or a repository of the hub."""
    import transformers

    transformers.logging.set_verbosity_error()  # a head of another size is told by the run
    sizes = {"num_labels": asked.num_classes, "num_channels": asked.in_channels, "image_size": asked.image_size}
    classifier = transformers.AutoModelForImageClassification
    if asked.name in transformers.CONFIG_MAPPING:
        if asked.pretrained:
            raise core.UserError(
                f"weights=pretrained: {asked.name!r} is a type of model; name a folder or a repository of the hub"
            )
        return classifier.from_config(transformers.CONFIG_MAPPING[asked.name](**{**sizes, **asked.options}))
    told = {"trust_remote_code": False, **sizes, **asked.options}  # unsaid, it would ask at the keyboard
    config = transformers.AutoConfig.from_pretrained(asked.name, **told)
    if asked.pretrained:
        return classifier.from_pretrained(asked.name, config=config, ignore_mismatched_sizes=True)
    return classifier.from_config(config)


BUILDERS: Mapping[str, Callable[[core.ZooModel], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}
