"""`export`: a finished run's model as other programs load it."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..run import exporting
from ..sweep import jobs
from . import console
from .asking import opened
from .words import Parser


def export(words: Sequence[str]) -> int:
    """Writes the file and, beside it, its facts."""
    parser = Parser(
        "layerwise-lr export",
        description=(
            "A finished run's model as others load it. torchvision, timm and transformers:\n"
            "weights that their own model takes with strict=True, and the lines that do it;\n"
            "safetensors: the weights under the run's names; onnx: the whole model, tried in\n"
            "onnxruntime. Beside the file, in FILE.json and in its metadata: classes,\n"
            "normalisation, size, what the model's maker is told. Nothing is written before its\n"
            "answers were compared with the run's. RUN may be a sweep's folder.\n\n"
            "  layerwise-lr export outputs/mine --to timm\n"
            "  layerwise-lr export outputs/mine --to onnx --with-normalisation --out cells.onnx"
        ),
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--to", required=True, choices=exporting.TARGETS)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: in the run's folder, below export/")
    parser.add_argument(
        "--with-normalisation", action="store_true", help="onnx: takes uint8 pictures and normalises them itself"
    )
    given = parser.parse_args(words)
    run = opened(given.run, console.text)
    os.environ |= jobs.thread_environment(run.config.framework.threads)
    made = exporting.export(run, given.to, given.out, given.with_normalisation)
    console.text(f"{run.config.model.name}, {run.kept} of {console.relative(run.path)}: {made.facts['checked']}")
    for line in made.facts.get("load", ()):
        console.say(f"  {line.replace(repr(made.path.name), repr(console.relative(made.path)))}")
    for path in (made.path, made.beside):
        console.say(f"{console.relative(path)}  ({path.stat().st_size:,} bytes)")
    return 0
