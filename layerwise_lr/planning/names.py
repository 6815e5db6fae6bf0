"""Names as the model itself gives them: wrappers and adapters of other libraries change no depth."""

import re
from collections.abc import Sequence

WRAPPER = re.compile(
    r"^(?:module\.)+|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_model\.model)\."
)
"""What DDP, torch.compile, FSDP, activation checkpointing and peft put in front of a name or into it. "module" is taken
off at the start alone: elsewhere it is a name that people give."""
KEPT = re.compile(r"(?<![^.])(?:module|modules_to_save\.\w+|original_module)\.")
"""Where peft keeps the two copies of a layer that trains as a whole."""
HOST = re.compile(r"\.base_layer(?=\.[^.]+$)")
"""peft's name for the layer that an adapter sits on."""
ADAPTER = re.compile(
    r"\.(?:lora|hada|lokr|oft|boft|ia3|vera|vblora|randlora|fourierft|hra|bone|road|shira|ln_tuning)_\w+(?:\.[\w.]+)?$"
)
"""An adapter's own parameters (peft, loralib), below the layer that they sit on."""


def bare_name(name: str) -> str:
    """The parameter's name without wrappers; unequal ones stay unequal.

    >>> bare_name("module._orig_mod.base_model.model.layers.0.q_proj.lora_A.default.weight")
    'layers.0.q_proj.lora_A.default.weight'
    """
    while (shorter := WRAPPER.sub("", name)) != name:
        name = shorter
    return name


def host_name(name: str) -> str:
    """The bare name of what decides the depth: of an adapter its host, of a copy its original.

    >>> host_name("module._orig_mod.base_model.model.layers.0.q_proj.lora_A.default.weight")
    'layers.0.q_proj.weight'
    """
    return ADAPTER.sub(".weight", HOST.sub("", KEPT.sub("", bare_name(name))))


def parts(names: Sequence[str], most: int = 3) -> str:
    """The first parts of a model that names stand for: "reg_token, decoder.0, ..."."""
    heads = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
    return ", ".join(heads[:most]) + (", ..." if len(heads) > most else "")
