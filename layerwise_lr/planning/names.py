"""Names of parameters as the model's author wrote them, whatever the model is wrapped in."""

import re

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_model.model")
"""DistributedDataParallel, torch.compile, FSDP, activation checkpointing, peft: what each puts into a name."""

_WRAPPED = re.compile("^base_model\\.model\\.|" + "|".join(rf"(?:^|(?<=\.)){re.escape(w)}\." for w in WRAPPERS[1:4]))
_DATA_PARALLEL = re.compile(r"^(?:module\.)+")


def bare_name(name: str) -> str:
    """`name` without what wrappers put into it: "module._orig_mod.fc.weight" is fc.weight. "module" is taken off at the
    start alone: elsewhere it is a name that people give."""
    while (shorter := _WRAPPED.sub("", _DATA_PARALLEL.sub("", name))) != name:
        name = shorter
    return name
