"""A finished run's model as others load it: weights under their names, and beside them all that makes them answer alike
(classes, how a picture is made ready, what the model's maker is told). Nothing is written before it was tried."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from .. import __version__
from ..framework import Framework, Weights, ZooModel, registry
from ..planning import UserError
from . import makers, page
from .asking import PREPARATION, Model, answers, bare, own_parts
from .files import inside, read_json, refuse_over
from .finished import Finished
from .folder import RunFolder
from .onnx_file import finish

TARGETS = ("safetensors", "onnx", "torchvision", "timm", "transformers")
CLOSE = 1e-4
"""How far logits may be from the model's own, as a share of the largest (of 1 where all are smaller)."""
TRIED = 64
"""Pictures that an export is tried on."""


class Exported(NamedTuple):
    """What an export came to.

    Args:
        path: the file.
        beside: its facts as JSON.
        facts: these.
    """

    path: Path
    beside: Path
    facts: Mapping[str, Any]


def export(run: Finished, target: str, out: Path | None, scaled: bool) -> Exported:
    """Write the run's model for `target`, after it was tried.

    Args:
        run: whose.
        target: of TARGETS.
        out: the file; None: in the run's folder, below export/.
        scaled: the file itself computes a picture's normalisation (onnx).

    Raises:
        UserError: the target has no such model, what it needs is not installed, or its answers are not the run's.
    """
    suffix = ".onnx" if target == "onnx" else ".safetensors"
    out = out or inside(run.path, "export") / f"{'model' if target == suffix[1:] else target}{suffix}"
    if out.suffix != suffix or out.is_dir():
        raise UserError(f"--out {out}: --to {target} writes a file whose name ends in {suffix}")
    refuse_over(out, lambda held: _sha_beside(out) == hashlib.sha256(held).hexdigest())
    refuse_over(out.with_name(f"{out.name}.json"), lambda held: _sha_beside(out) is not None)
    if scaled and target != "onnx":
        raise UserError(f"--with-normalisation: weights compute nothing; it is --to onnx's, not --to {target}'s")
    facts: dict[str, Any] = _facts(run, scaled)
    if target == "onnx":
        held, checked = _onnx(run, facts, scaled)
    else:
        held, checked = _weights(run, target, facts, out.name)
    facts |= {"checked": checked, "sha256": hashlib.sha256(held).hexdigest()}
    out.parent.mkdir(parents=True, exist_ok=True)
    home = RunFolder(out.parent)
    home.write_whole(out.name, held)
    home.write_json(f"{out.name}.json", facts)
    return Exported(out, out.with_name(f"{out.name}.json"), facts)


def _sha_beside(out: Path) -> str | None:
    """What an earlier export says of its file; None: there was none."""
    held = read_json(out.parent, f"{out.name}.json")
    ours = isinstance(held, dict) and str(held.get("made_by")).startswith("layerwise-lr ")
    return str(held.get("sha256")) if ours else None


def _facts(run: Finished, scaled: bool) -> dict[str, Any]:
    """All but what is known after the export."""
    config = run.config
    ready = "uint8, 0 to 255" if scaled else "float32, (pixel / 255 - mean) / std"
    return {
        "made_by": f"layerwise-lr {__version__}",
        "experiment": config.name,
        "config_sha256": config.sha256(),
        "seed": config.seed,
        "step": run.step,
        "weights": run.weights_file.stem,
        "model": {"source": config.model.source, "name": config.model.name},
        "classes": list(run.classes),
        "pictures": {key: getattr(config.data, key) for key in PREPARATION},
        "input": f"[batch, channels, image_size, image_size] {ready}",
        "output": "logits [batch, classes]",
    }


def _weights(run: Finished, target: str, facts: dict[str, Any], name: str) -> tuple[bytes, str]:
    """(a safetensors file, how it was tried)."""
    if target == "safetensors":
        spec = bare(run.config, run.config.framework)
        weights, checked = run.weights(page.plan_of(spec)[1]), "the run's own, under the names of params.csv"
        told = {key: value for key, value in asdict(spec.model).items() if value not in (None, {})}
        facts["model"]["arguments"] = {key: value for key, value in told.items() if key not in ("source", "name")}
    else:
        model = Model(run, _at_home(target), device="cpu", precision="fp32")
        weights = model.framework.get_weights(model.state.model)
        asked, checked = _tried(model, weights, target)
        facts["model"] = {"source": target, "name": asked.name, "arguments": makers.told(asked)}
        facts["load"] = makers.lines(asked, name)
    metadata = {"format": "pt", "layerwise_lr": json.dumps(facts)}  # "pt": what transformers and timm ask for
    return save({n: np.asarray(a, order="C") for n, a in weights.items()}, metadata), checked


def _at_home(target: str) -> str:
    """The framework that has the target's models."""
    for name, found in registry.loadable():
        if target in found.sources:
            return name
    raise UserError(f"--to {target}: no installed framework has its models, to try the weights in: pip install torch")


def _tried(model: Model, weights: Weights, target: str) -> tuple[ZooModel, str]:
    """The target's own model under these weights: what its maker is told, and how far its logits are."""
    spec = model.config.model
    name, options = makers.theirs(spec, target)
    assert spec.num_classes and spec.in_channels and spec.image_size
    asked = ZooModel(target, name, spec.num_classes, spec.in_channels, spec.image_size, False, options)
    asked, native = _made(type(model.framework), asked)
    theirs = model.framework.adopt(native)
    held = model.framework.get_weights(theirs)
    unlike = sorted(
        n
        for n in held.keys() | weights.keys()
        if n not in held or n not in weights or held[n].shape != weights[n].shape
    )
    if unlike:
        raise UserError(
            f"--to {target}: its {name} has other parameters than this run's {spec.name}: {', '.join(unlike[:3])}; "
            "--to safetensors keeps them as they are"
        )
    x, which = pictures_to_try(model.run)
    own = model.logits(x)
    model.framework.set_weights(theirs, weights)
    there = answers(model.framework, replace(model.state, model=theirs), x, model.config.data)
    told = f"{target} {version(target)} makes this model, all {len(weights)} arrays are its own"
    return asked, f"{told}; {close(own, there, which)}"


def _made(framework: type[Framework], asked: ZooModel) -> tuple[ZooModel, Any]:
    """With the side of the pictures said, where the maker takes it."""
    sized = replace(asked, options={**asked.options, makers.SIZE[asked.source]: asked.image_size})
    try:
        return sized, framework.build(sized, 0)
    except UserError as error:
        if makers.SIZE[asked.source] not in str(error):
            raise
    return asked, framework.build(asked, 0)


def _onnx(run: Finished, facts: Mapping[str, Any], scaled: bool) -> tuple[bytes, str]:
    """(an ONNX file, how it was tried)."""
    model = Model(run, _exporter(run), device="cpu", precision="fp32")
    data = run.config.data
    mean, std = (
        np.broadcast_to(np.array(each, np.float32).reshape(-1, 1, 1), (data.channels, 1, 1)).copy()
        for each in (data.mean, data.std)
    )
    shape = (data.channels, data.image_size, data.image_size)
    made = model.framework.to_onnx(model.state.model, shape, (mean, std) if scaled else None)
    x, which = pictures_to_try(run)
    held, answers, by = finish(made, facts, x, None if scaled else data)
    return held, f"{by}: {close(model.logits(x), answers, which)}"


def _exporter(run: Finished) -> str:
    """A framework that writes ONNX files and has the run's model; else the run's own, which says what it lacks."""
    own = run.config.framework.name
    for name, found in registry.loadable():
        has = name == own or run.config.model.source in ("declared", *found.sources)
        if has and found.to_onnx is not Framework.to_onnx:
            return name
    return own


def pictures_to_try(run: Finished) -> tuple[np.ndarray, str]:
    """(uint8 [N, C, S, S], what they are): of the run's test part, or made up where it is not here."""
    data = run.config.data
    try:
        x = np.asarray(own_parts(run)[-1].x[:TRIED])
        return x, f"{len(x)} of the run's test pictures"
    except UserError:
        shape = (TRIED, data.channels, data.image_size, data.image_size)
        x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return x, f"{TRIED} pictures of noise (the run's own are not here)"


def close(own: np.ndarray, there: np.ndarray, which: str) -> str:
    """A sentence on two sets of logits.

    Raises:
        UserError: they are further apart than CLOSE.
    """
    apart = float(np.abs(own - there).max()) / max(1.0, float(np.abs(own).max()))
    told = f"logits on {which} {f'within {apart:.0e}' if apart else 'equal'} (limit {CLOSE:g})"
    if not apart <= CLOSE:
        raise UserError(f"the export does not answer as the run's model: {told}; nothing was written")
    return told
