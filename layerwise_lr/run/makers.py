"""What other packages' makers are told so that they make a run's model: theirs by name, or a declared one that they have
under the same names of parameters."""

from collections.abc import Callable, Mapping
from typing import Any

from ..framework import ZooModel
from ..planning import UserError
from .schema import ModelSpec

SIZE = {"timm": "img_size", "torchvision": "image_size", "transformers": "image_size"}
"""What a package's maker calls the side of a picture, where it takes one."""
CALLS = {
    "timm": ("num_classes", "in_chans", "import timm", "timm.create_model({name!r}, {options})"),
    "torchvision": ("num_classes", "", "import torchvision", "torchvision.models.get_model({name!r}, {options})"),
    "transformers": (
        "num_labels",
        "num_channels",
        "from transformers import AutoModelForImageClassification, CONFIG_MAPPING",
        "AutoModelForImageClassification.from_config(CONFIG_MAPPING[{name!r}]({options}))",
    ),
}
"""Per package: its words for classes and channels, and the two lines that make a model."""
REPOSITORY = (
    "from transformers import AutoConfig, AutoModelForImageClassification",
    "AutoModelForImageClassification.from_config(AutoConfig.from_pretrained({name!r}, {options}))",
)


def theirs(spec: ModelSpec, target: str) -> tuple[str, dict[str, Any]]:
    """(the target's name for the model, what else its maker must be told).

    Raises:
        UserError: it has no such model.
    """
    if spec.source == target:
        return spec.name, dict(spec.options)
    if spec.source != "declared":
        raise UserError(
            f"--to {target}: the run's model is {spec.name} of {spec.source}; --to {spec.source} has its names"
        )
    found = DECLARED[target](spec) if target in DECLARED else None
    if found is None:
        others = [f"--to {other}" for other in DECLARED if DECLARED[other](spec)]
        wide = f" of width {spec.width} (no argument changes its 64)" if spec.width and "resnet" in spec.name else ""
        raise UserError(
            f"--to {target}: it has no {spec.name}{wide} of {spec.in_channels} channels under these names; "
            + (f"{others[0]} has" if others else "--to safetensors keeps them, --to onnx runs")
        )
    return found


def _torchvision(spec: ModelSpec) -> tuple[str, dict[str, Any]] | None:
    if spec.in_channels != 3:
        return None
    if spec.name == "mobilenet_v2":
        return spec.name, {} if spec.dropout is None else {"dropout": spec.dropout}
    return _resnet(spec)


def _resnet(spec: ModelSpec) -> tuple[str, dict[str, Any]] | None:
    return (spec.name, {}) if spec.name.startswith("resnet") and spec.width in (None, 64) else None


def _timm(spec: ModelSpec) -> tuple[str, dict[str, Any]] | None:
    """A ViT of any size is timm's of the same name with other arguments; resnets have the same names there."""
    if not spec.name.startswith("vit_"):
        return _resnet(spec)
    usual = {"vit_tiny": (192, 3), "vit_small": (384, 6), "vit_base": (768, 12)}[spec.name]
    name = "vit_base_patch16_clip_224" if spec.pre_norm else f"{spec.name}_patch16_224"
    theirs = (768, 12) if spec.pre_norm else usual
    sizes = {
        "embed_dim": (spec.embed_dim or usual[0], theirs[0]),
        "num_heads": (spec.num_heads or usual[1], theirs[1]),
        "depth": (spec.depth or 12, 12),
        "patch_size": (spec.patch_size or 16, 16),
        "init_values": (spec.layer_scale, None),
        "global_pool": (spec.pool or "token", "token"),
    }
    return name, {key: own for key, (own, there) in sizes.items() if own != there}


DECLARED: Mapping[str, Callable[[ModelSpec], tuple[str, dict[str, Any]] | None]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}
"""Packages that have declared models under the same names."""


def told(asked: ZooModel) -> dict[str, Any]:
    """What the target's maker is told, under its own words."""
    classes, channels, _, _ = CALLS[asked.source]
    sizes = {classes: asked.num_classes} | ({channels: asked.in_channels} if channels else {})
    return sizes | dict(asked.options)


def lines(asked: ZooModel, file: str) -> list[str]:
    """Python that loads the file."""
    _, _, first, call = CALLS[asked.source]
    if asked.source == "transformers" and not asked.name.isidentifier():  # a repository or a folder, not a type
        first, call = REPOSITORY
    options = ", ".join(f"{key}={value!r}" for key, value in told(asked).items())
    return [
        first,
        "from safetensors.torch import load_file",
        f"model = {call.format(name=asked.name, options=options)}",
        f"model.load_state_dict(load_file({file!r}), strict=True)",
    ]
