"""One experiment in several frameworks: where do learning rates, curves and final weights differ, and from when on?

Reads run folders only. The first framework is what the others are compared with; differences are relative.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..models import kept_checkpoint, walk
from ..planning import UserError, every_shown
from ..run import Config, RunFolder, files, looked_through, measured, weights_in

FIRST_STEPS = 10
DIFFERS = 1e-5
"""A loss that is further off than this differs."""
RESOLUTION = 1.2e-7  # float32's


class RunFacts(NamedTuple):
    """What a run's folder says: losses [steps], lrs [steps that tell them, groups] read back, measured lr error, final weights."""

    label: str
    config: Config
    path: Path
    losses: np.ndarray
    lrs: np.ndarray
    params: str
    lr_error: float | None
    weights: dict[str, np.ndarray]
    accuracy: float
    seconds: float
    device: str


class Difference(NamedTuple):
    """One run against the first: relative where not said otherwise."""

    label: str
    same_table: bool
    lr: float
    lr_error: float | None
    loss_first: float
    loss_all: float
    first_step: int | None
    weights: float
    worst_weight: str
    accuracy: float
    seconds: float


def label_of(config: Config) -> str:
    """ "torch", "oneflow graph", "torch fp64": mode and precision where they are not the usual ones."""
    spec = config.framework
    usual = ("eager", "pynative")
    parts = [spec.name, "" if spec.mode in usual else spec.mode, "" if spec.precision == "fp32" else spec.precision]
    return " ".join(filter(None, parts))


def read_run(path: Path) -> RunFacts:
    """The facts of a finished run."""
    folder, (config, summary) = RunFolder(path), looked_through(path)
    if summary is None:
        raise UserError(f"{path} did not finish ({folder.state()}): see {path / 'log.txt'}")
    found = measured(path, lrs_every=every_shown(config.steps or 1))
    lines = files.records(path, "lr_check.jsonl")
    error = max((line["max_relative_error"] for line in lines if line["resolution"] < 1e-4), default=None)
    if not len(found.steps) or not len(found.lrs):
        raise UserError(
            f"{path / 'metrics.jsonl'}: holds no steps; remove the folder, and the same command trains it again"
        )
    return RunFacts(
        label_of(config),
        config,
        path,
        found.losses,
        found.lrs,
        files.read_text(path, "params.csv") or "",
        error,
        weights_in(kept_checkpoint(path, ("latest",))),
        summary["test"].get("accuracy", float("nan")),
        summary["train_seconds"],
        (folder.read_json("env.json") or {}).get("device", ""),
    )


def relative(measured: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """|measured - wanted| / |wanted|, 0 where both are 0."""
    return np.abs(measured - wanted) / np.maximum(np.abs(wanted), 1e-12)


def difference(run: RunFacts, base: RunFacts) -> Difference:
    """`run` against `base`. Weights: the distance of all of an array, over its length."""
    ends, least = len(run.losses), len(base.losses)
    if ends != least and run.config.early_stop.patience is not None:
        raise UserError(
            f"{run.label} stopped after {ends} steps, {base.label} after {least}: early_stop.patience=null lets "
            f"both take all; {run.path}, {base.path}"
        )
    if run.losses.shape != base.losses.shape or run.lrs.shape != base.lrs.shape:
        raise UserError(f"{run.label} and {base.label} ran different plans: {run.path}, {base.path}")
    losses = relative(run.losses, base.losses)
    late = np.flatnonzero(losses > DIFFERS)
    apart = {n: _apart(run.weights[n], w) for n, w in base.weights.items()}
    worst = max(apart, key=lambda n: apart[n])
    return Difference(
        run.label,
        run.params == base.params,
        float(relative(run.lrs, base.lrs).max()),
        run.lr_error,
        float(losses[:FIRST_STEPS].max()),
        float(losses.max()),
        int(late[0]) if len(late) else None,
        float(np.median(list(apart.values()))),
        worst,
        run.accuracy,
        run.seconds,
    )


def _apart(measured: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(measured - wanted) / max(float(np.linalg.norm(wanted)), 1e-12))


@dataclass(frozen=True)
class Comparison:
    """All runs of one experiment and seed, the first framework's first."""

    runs: tuple[RunFacts, ...]

    @classmethod
    def read(cls, folders: Sequence[Path]) -> "Comparison":
        """From run folders, in the order given.

        Raises:
            UserError: fewer than two runs, or one that did not finish.
        """
        if len(folders) < 2:
            raise UserError("compare needs two frameworks or more: framework=torch,reference")
        return cls(tuple(read_run(path) for path in folders))

    def differences(self) -> list[Difference]:
        """Every run against the first."""
        return [difference(run, self.runs[0]) for run in self.runs[1:]]

    def by_design(self) -> list[str]:
        """Why runs may differ though every plugin is right; nothing where they may not."""
        reasons, first = [], self.runs[0].config
        declared = first.model.source == "declared"
        layers = [layer for _, layer, _ in walk(first.tree().root)] if declared else []
        for kind in ("dropout", "drop_path"):
            rate = max((layer.options["p"] for layer in layers if layer.kind == kind), default=0)
            if rate:
                reasons.append(
                    f"{kind} {rate:g} is on, and every framework draws masks of its own: model.{kind}=0 to compare"
                )
        devices = {run.device for run in self.runs if run.device.startswith(("cuda", "ascend"))}
        if devices and not all(run.config.framework.deterministic for run in self.runs):
            reasons.append(
                f"on {', '.join(sorted(devices))} sums have no fixed order: framework.deterministic=true, where it can"
            )
        return reasons

    def noise(self) -> Difference | None:
        """The first run against its own twin in float64: what rounding alone makes of this experiment."""
        first = self.runs[0].config.framework
        twin = next(
            (
                r
                for r in self.runs[1:]
                if r.config.framework.precision == "fp64"
                and (r.config.framework.name, r.config.framework.mode) == (first.name, first.mode)
            ),
            None,
        )
        return difference(twin, self.runs[0]) if twin else None

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows for 80 columns; with the float64 twin, each loss also as a multiple of its difference."""
        noise = self.noise()
        rows = [_row(d, noise) for d in self.differences()]
        base = self.runs[0]
        ends = [f"{base.accuracy:.3f}", f"{base.seconds:.1f}"]
        first = [base.label, "-", _exp(base.lr_error), *["-"] * (len(rows[0]) - 5), *ends]
        times = ["x64"] if noise else []
        return (
            ["framework", "lr", "proof", f"loss {FIRST_STEPS}", *times, "loss", *times, "from", "end", "test", "s"],
            [first, *rows],
        )

    def plans(self) -> str:
        """Whether all parameters, groups and scales are the first run's."""
        other = [d.label for d in self.differences() if not d.same_table]
        return f"ANOTHER parameter table: {', '.join(other)}" if other else "parameter tables: identical"


LEGEND = (
    f"Against the first. lr: largest relative difference of the lrs read back; proof: largest error of the measured lr; "
    f"loss {FIRST_STEPS}, loss: largest relative difference of the training loss over the first {FIRST_STEPS} and over "
    f"all steps; from: first step that differs by more than {DIFFERS:g}; end: median over the arrays of the distance "
    "of the final weights; test: accuracy; s: seconds of training steps."
)
LEGEND_NOISE = (
    " x64: that difference over the one between the first run and its float64 twin, which is rounding alone "
    "(but at least float32's own 1e-7)."
)


def _row(d: Difference, noise: Difference | None) -> list[str]:
    def times(value: float, rounding: float) -> list[str]:
        return [f"{value / max(rounding, RESOLUTION):.1f}"] if noise else []

    first, whole = (noise.loss_first, noise.loss_all) if noise else (0.0, 0.0)
    return [
        d.label,
        _exp(d.lr),
        _exp(d.lr_error),
        _exp(d.loss_first),
        *times(d.loss_first, first),
        _exp(d.loss_all),
        *times(d.loss_all, whole),
        "never" if d.first_step is None else str(d.first_step),
        _exp(d.weights),
        f"{d.accuracy:.3f}",
        f"{d.seconds:.1f}",
    ]


def _exp(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"
