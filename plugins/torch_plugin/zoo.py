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
        out = self.net(x)
        out = getattr(out, "logits", out)
        if isinstance(out, tuple | list):  # an auxiliary head beside the classifier: the classifier is first
            out = out[0]
        if not isinstance(out, torch.Tensor) or out.dim() != 2:
            raise core.UserError(f"{type(self.net).__name__} gives {type(out).__name__}, no logits [B, classes]")
        return out

    def arrays(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by bare name; the tensors themselves, tied ones once."""
        seen, found = set[int](), {}
        for name, tensor in self.net.state_dict(keep_vars=True).items():
            if not name.endswith("num_batches_tracked") and id(tensor) not in seen:
                seen.add(id(tensor))
                found[core.bare_name(name)] = tensor
        return found

    def rest(self, frozen: frozenset[str]) -> None:
        """These batchnorm layers run on their running statistics in the next training step, the others train."""
        for name, norm in self.norms.items():
            norm.train(name not in frozen)


def build(asked: core.ZooModel, make: Callable[..., Any] | None) -> nn.Module:
    """The native model, as its zoo makes it, or `make`.

    Raises:
        UserError: the zoo is not installed, does not know the name, refuses an option or cannot fetch the weights.
    """
    try:
        return BUILDERS[asked.source](asked) if make is None else _own(asked, make)
    except ModuleNotFoundError as error:
        if error.name != asked.source:
            raise
        raise core.UserError(
            f"model={asked.source} needs {asked.source}, which is not installed: pip install {asked.source}"
        ) from None
    except core.UserError:
        raise
    except Exception as error:  # whatever a zoo raises: its own words, in one line
        told = " ".join(str(error).split())[:200] or type(error).__name__
        fetched = (
            "; the weights are the zoo's to fetch: is there a network? weights=none begins without"
            if asked.pretrained
            else ""
        )
        raise core.UserError(f"{asked.source} cannot make model.name={asked.name}: {told}{fetched}") from None


def _timm(asked: core.ZooModel) -> nn.Module:
    """A ViT is told the size of the pictures, where it takes one."""
    import timm

    if not timm.is_model(asked.name.split(":")[-1].split(".")[0]) and "/" not in asked.name:
        near = timm.list_models(f"*{asked.name.split('.')[0]}*")[:3] or core.near(asked.name, timm.list_models())
        raise core.UserError(f"timm has no model {asked.name!r}; it has {', '.join(near)}, ... (timm.list_models())")
    given = {"pretrained": asked.pretrained, "num_classes": asked.num_classes, "in_chans": asked.in_channels}
    sized = {} if "img_size" in asked.options else {"img_size": asked.image_size}
    return _first_that_fits(lambda **more: timm.create_model(asked.name, **given, **asked.options, **more), sized)


def _torchvision(asked: core.ZooModel) -> nn.Module:
    from torchvision import models

    if asked.name not in models.list_models():
        near = core.near(asked.name, models.list_models())
        raise core.UserError(f"torchvision has no model {asked.name!r}; it has {', '.join(near)}, ...")
    if asked.in_channels != 3:
        raise core.UserError(
            f"torchvision's models take 3 channels and the data have {asked.in_channels}: data.channels=3"
        )
    if not asked.pretrained:
        sized = {} if "image_size" in asked.options else {"image_size": asked.image_size}
        return _first_that_fits(
            lambda **more: models.get_model(asked.name, num_classes=asked.num_classes, **asked.options, **more), sized
        )
    net = models.get_model(asked.name, weights="DEFAULT", **asked.options)
    _renew_head(net, asked.num_classes)
    return net


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
    config = transformers.AutoConfig.from_pretrained(asked.name, **{**sizes, **asked.options})
    if asked.pretrained:
        return classifier.from_pretrained(asked.name, config=config, ignore_mismatched_sizes=True)
    return classifier.from_config(config)


def _own(asked: core.ZooModel, make: Callable[..., Any]) -> nn.Module:
    given = {name: getattr(asked, name) for name in ("num_classes", "in_channels", "image_size", "pretrained")}
    net = make(**given, **asked.options)
    if not isinstance(net, nn.Module):
        raise core.UserError(f"model.name={asked.name} makes a {type(net).__name__}, no torch.nn.Module")
    return net


BUILDERS: Mapping[str, Callable[[core.ZooModel], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}


def _first_that_fits(make: Callable[..., nn.Module], sized: Mapping[str, Any]) -> nn.Module:
    """With the size of the pictures, or without where the model takes none."""
    try:
        return make(**sized)
    except TypeError as error:
        if not any(name in str(error) for name in sized):
            raise
        return make()


def _renew_head(net: nn.Module, classes: int) -> None:
    """torchvision's last Linear (or 1x1 convolution) for another number of classes."""
    path, last = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    size = last.out_features if isinstance(last, nn.Linear) else last.out_channels
    if size == classes:
        return
    new = (
        nn.Linear(last.in_features, classes) if isinstance(last, nn.Linear) else nn.Conv2d(last.in_channels, classes, 1)
    )
    parent, _, key = path.rpartition(".")
    setattr(net.get_submodule(parent), key, new)
