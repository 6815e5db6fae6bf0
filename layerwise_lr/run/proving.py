"""The proof of one run, before it and during it, into lr_check.jsonl: a line per measured step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..framework import Framework, TrainState, Weights, proof
from ..planning import Plan
from . import files
from .checkpoints import Mark
from .folder import RunFolder
from .schema import VerifySpec

LOG = "lr_check.jsonl"
FAINT = 0.5
"""A step whose resolution is above this was too small for float32 to show."""


class Prover:
    """Measures the steps that are due and keeps every measurement.

    Args:
        spec: when, and what a mismatch does.
        folder: lr_check.jsonl is begun in it.
        framework, plan: of the run.
        say: told a line now and then.
        memory: of a run that goes on.
    """

    def __init__(
        self,
        spec: VerifySpec,
        folder: RunFolder,
        framework: Framework,
        plan: Plan,
        say: Callable[[str], None],
        memory: Mapping[str, Any] | None = None,
    ) -> None:
        self.spec, self.framework, self.plan, self.say = spec, framework, plan, say
        self.records: list[dict[str, Any]] = []
        """Of the rehearsal; those of the training are counted, and kept in the log alone."""
        self.mismatches = self.evaluations = self._training = self._faint = 0
        self._started, self._worst = False, 0.0
        kept = Mark(*memory["files"][LOG]) if memory and LOG in memory["files"] else None
        self._log = folder.lines(LOG, kept) if spec.start or spec.training else None
        if memory:
            for record in files.records(folder.path, LOG):
                self._count(record)
            self.mismatches, self.evaluations = memory["mismatches"], memory["evaluations"]
        self._before: tuple[Weights, Weights] = {}, {}

    def rehearse(self, model: Any, start: Weights, batch: tuple[np.ndarray, np.ndarray], seed: int) -> None:
        """Before step 0, where the spec asks for it; says what was proved.

        Raises:
            LrMismatch: and the spec says stop.
        """
        if not self.spec.start:
            return
        try:
            self._keep(proof.check(self.framework, model, self.plan, start, batch, seed))
        except proof.LrMismatch as mismatch:
            self._keep(mismatch.records)
            self._mismatch(mismatch)
            return
        count, worst = sum(len(g.params) for g in self.plan.groups), self.worst()
        self.say(
            f"effective lr proved: {count} parameters in {len(self.plan.groups)} groups move as planned "
            f"(largest error {worst:.0e})"
        )

    def due(self, step: int, evaluation: bool) -> bool:
        """Whether this step is measured; `evaluation`: one follows it."""
        every = self.spec.every
        self.evaluations += evaluation
        return self.spec.training and (evaluation or (every is not None and (step + 1) % every == 0))

    def hold(self, state: TrainState) -> Weights:
        """Keep what the step's movement is measured from, weights and optimizer state before it; gives the weights."""
        self._before = self.framework.get_weights(state.model), self.framework.get_optimizer_state(state)
        return self._before[0]

    def compare(self, step: int, after: Weights, gradients: Weights) -> None:
        """The step that was held for, against the plan.

        Raises:
            LrMismatch: and the spec says stop.
        """
        (before, held), self._before = self._before, ({}, {})
        made: list[dict[str, Any]] = []
        try:
            proof.add(made, "training", step, proof.measure(self.plan, step, before, after, gradients, held))
        except proof.LrMismatch as mismatch:
            self._keep(made)
            self._mismatch(mismatch)
            return
        self._keep(made)

    def worst(self) -> float:
        """The largest error so far; 0.0 where nothing was measured."""
        return self._worst

    def summary(self) -> dict[str, Any]:
        """For summary.json: how often it was measured in training, how often that was not as planned."""
        return {
            "start": self._started,
            "training": self._training,
            "faint": self._faint,
            "evaluations": self.evaluations,
            "mismatches": self.mismatches,
            "max_relative_error": self.worst(),
        }

    def memory(self) -> dict[str, Any]:
        """What cannot be read in the log."""
        return {"mismatches": self.mismatches, "evaluations": self.evaluations}

    def mark(self) -> dict[str, Mark]:
        """How far the log is written, where there is one."""
        return {LOG: self._log.mark()} if self._log else {}

    def close(self) -> None:
        """No more records."""
        if self._log:
            self._log.close()

    def _keep(self, records: Sequence[dict[str, Any]]) -> None:
        for record in records:
            self._count(record)
            if self._log:
                self._log.write(record)

    def _count(self, record: dict[str, Any]) -> None:
        self._worst = max(self._worst, record["max_relative_error"])
        if record["when"] == "training":
            self._training += 1
            self._faint += record["resolution"] > FAINT
        else:
            self._started = True
            self.records.append(record)

    def _mismatch(self, mismatch: proof.LrMismatch) -> None:
        self.mismatches += 1
        if self.spec.on_mismatch == "stop":
            raise mismatch
        self.say(f"WARNING: {mismatch}; the run goes on (verify.on_mismatch=warn)")
