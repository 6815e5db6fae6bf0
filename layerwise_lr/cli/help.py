"""The help pages. What a key means is read from the docstring of its dataclass, where it is written once."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from textwrap import fill
from typing import Any

from ..planning import GroupSpec
from ..run import Config
from ..sweep import LAUNCHERS, Here, Launch, Search

WIDTH = 80
MEANING = 32  # column where the meanings begin

INTRODUCTIONS = {
    "train": """layerwise-lr train: fine-tune with one learning rate per layer, proved before
step 0. Writes a run folder; with -m, a sweep of them.

  layerwise-lr train
  layerwise-lr train model=vit_tiny weights=none data.image_size=32 epochs=2
  layerwise-lr train -m grouping.layer_decay=0.65,0.75,1.0 seed=0,1,2
  layerwise-lr train data=image_folder data.path=pictures model=mobilenet_v2 \\
    weights=mobilenet_v2_imagenet""",
    "plan": """layerwise-lr plan: what would `train` do, to every parameter, at every step?
Prints it and writes params.csv, plan.json, lrs.csv and lr_heatmap.png. Reads no
pictures and no weights, loads no framework.

  layerwise-lr plan model=vit_base grouping.convention=mae
  layerwise-lr plan model=vit_base --compare mae,timm   what two differ in
  layerwise-lr plan model=resnet50 grouping=backbone_head freeze=head_first""",
    "verify": """layerwise-lr verify: does the framework really apply the plan?
One step from the real weights with the real optimizer; writes lr_check.jsonl;
exit code 1 where a parameter moved otherwise than planned by more than 0.1 %.

  layerwise-lr verify framework=oneflow_graph

Of code that is not ours (verify --script --help tells more):
  layerwise-lr verify --script train.py --epochs 1
  layerwise-lr verify --factory mymodule:make""",
    "lr-find": """layerwise-lr lr-find: the lr range test (Smith 2017). One short training from
the run's own start weights whose base lr rises by an equal factor from step to
step, until the loss diverges; the layers' shares of it stay as planned. Writes
lr_find.json and lr_find.png.

  layerwise-lr lr-find model=lenet grouping.layer_decay=0.65
  layerwise-lr lr-find --from 1e-6 --to 1 --steps 100 optimizer=momentum""",
    "tune": """layerwise-lr tune: lr-find, then a sweep of a third of the suggestion, it and
three times it, with layer_decay 0.65, 0.75, 0.9 and 1 and seeds 0, 1 and 2;
then its report. The same tune into the same hydra.sweep.dir runs what is
missing.

  layerwise-lr tune data=digits
  layerwise-lr tune grouping.layer_decay=0.8,1.0 seed=0,1,2,3,4""",
    "compare": """layerwise-lr compare: the same experiment in several frameworks, one process
each. Prints where plans, learning rates, losses and final weights differ from
the first framework's, and from which step on; writes compare.json, compare.png.

  layerwise-lr compare framework=torch,reference epochs=10""",
}

HYDRA_KEYS = {
    "hydra.run.dir": "the run folder; default outputs/NAME/TIME",
    "resume": "auto: on with the run in hydra.run.dir, where one is; default never",
    "hydra/sweeper": "basic: every combination; optuna: a search, of key=interval(a,b) too (hydra.sweeper...)",
    "hydra/launcher": "jobs: our own processes; joblib, submitit_local, submitit_slurm, ray: engines (hydra.launcher...)",
    "hydra.sweep.dir": "the sweep's folder; the same sweep into the same folder runs what is missing",
}
RUN = ("checkpoint", "early_stop", "ema")
"""Parts of the config that belong to the section of the run."""
FLAGS = """  -m            sweep: key=a,b,c, every combination a job
  --cfg job     print the composed config and stop
  --config-dir  a folder with more options (code: only one that you trust)
  -sc           tab completion: eval "$(layerwise-lr train -sc install=bash)\""""


def page(command: str, config: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> str:
    """The help of a command whose config Hydra composes.

    Args:
        command: train, plan, verify or compare; the latter three refer to train's for the keys.
        config: composed, as plain data: its values are shown.
        groups: the options of every group.
    """
    parts = [INTRODUCTIONS[command], "\n".join(["Groups: GROUP=OPTION", *_options(groups)])]
    if command != "train":
        return "\n\n".join([*parts, "Takes what train takes; layerwise-lr train --help lists every key."])
    parts.append(
        "Keys: KEY=VALUE, as they stand now; null is none. A length of time is 50\n"
        "(steps), '2 epochs' or 10% (of the run)."
    )
    parts += ["\n".join([title, *lines]) for title, lines in _sections(config)]
    return "\n\n".join([*parts, f"Flags, before the keys\n{FLAGS}"])


def meanings(schema: type) -> dict[str, str]:
    """Field name -> what the "Args:" of the dataclass's docstring say of it."""
    doc = inspect.cleandoc(schema.__doc__ or "")
    _, _, args = doc.partition("Args:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", "\n" + args.partition("\n\n")[0]):
        names, _, text = entry.strip().partition(": ")
        found |= {name.strip(): " ".join(text.split()).rstrip(".") for name in names.split(",")}
    return {field.name: found[field.name] for field in fields(schema) if field.name in found}


def leaves(schema: type, at: str = "") -> Iterator[tuple[str, str]]:
    """(key, meaning) of everything in a schema that takes a value; a meaning that nobody wrote is empty."""
    told = meanings(schema)
    for field in fields(schema):
        key = f"{at}{field.name}"
        if is_dataclass(field.type):
            yield from leaves(field.type, f"{key}.")  # type: ignore[arg-type]
        else:
            yield key, told.get(field.name, "")


def _options(groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A paragraph per group."""
    for group, options in groups.items():
        yield fill(
            " ".join(options),
            WIDTH,
            initial_indent=f"  {group:<12}",
            subsequent_indent=" " * 14,
            break_on_hyphens=False,
        )


def _sections(config: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """(heading, lines): a section for each part of the config, one for the run, one for sweeps."""
    of: dict[str, list[str]] = {}
    for key, meaning in leaves(Config):
        first = key.partition(".")[0]
        place = {"schedules": "scheduler", "optimizers": "optimizer", **dict.fromkeys(RUN, "run")}.get(first, first)
        of.setdefault(place if "." in key or place != first else "run", []).append(
            _entry(key, _value(config, key), meaning)
        )
    of["grouping"] += ["  of each named group, +grouping.groups.NAME={KEY: VALUE}:"]
    of["grouping"] += [_entry(f"  {key}", None, meaning) for key, meaning in leaves(GroupSpec)]
    order = (
        "model",
        "data",
        "augment",
        "weights",
        "grouping",
        "scheduler",
        "optimizer",
        "freeze",
        "framework",
        "verify",
        "logger",
        "run",
    )
    assert set(of) == set(order), set(of) ^ set(order)
    yield from ((f"The {name}" if name == "run" else name.capitalize(), of[name]) for name in order)
    launcher = [
        _entry(f"hydra.launcher.{key}", None, text) for key, text in (meanings(Launch) | meanings(Here)).items()
    ]
    for name, schema in LAUNCHERS.items():
        if own := meanings(schema):
            launcher += [f"  with hydra/launcher={name}:"]
            launcher += [_entry(f"hydra.launcher.{key}", None, text) for key, text in own.items()]
    sweeper = [_entry(f"hydra.sweeper.{key}", None, text) for key, text in meanings(Search).items()]
    yield "Folders and sweeps", [*(_entry(key, None, text) for key, text in HYDRA_KEYS.items()), *launcher, *sweeper]


def _entry(key: str, value: str | None, meaning: str) -> str:
    """A line, or more where the meaning is long."""
    head = f"  {key}" + ("" if value is None else f"={value}")
    head = head if len(head) <= WIDTH else f"{head[: WIDTH - 3]}..."
    text = fill(meaning, WIDTH, initial_indent=" " * MEANING, subsequent_indent=" " * MEANING, break_on_hyphens=False)
    return f"{head}\n{text}" if len(head) >= MEANING - 1 else head + text[len(head) :]


def _value(config: Mapping[str, Any], key: str) -> str:
    """The value as the command line takes it."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return _spelled(value)


def _spelled(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_spelled, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_spelled(entry)}" for key, entry in value.items()) + "}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"'{text}'" if set(text) & set(" $") else text
