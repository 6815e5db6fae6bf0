"""The lists of a step, in the order of its calls: who moves with whom, kept from one step to the next."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

State = dict[str, Any]
Settings = tuple[Any, ...]
STEP = itemgetter("step")
LARGE = 4096
"""Numbers in a tensor from which on a view of it takes less time than it saves."""
STATELESS: State = {"momentum_buffer": None}
"""Stands for the state of a parameter that needs none."""


class Span(NamedTuple):
    """What one call moves: parameters of one device and one kind of numbers, in groups of equal settings.

    Args:
        group: the first of its groups.
        fresh: they have no momentum yet.
        device: theirs.
        options: the kernel's keywords.
        start, stop: where they stand among all.
        params, steps: theirs.
        strided: places of those for which `laid_flat` is worth its time.
    """

    group: int
    fresh: bool
    device: torch.device
    options: dict[str, Any]
    start: int
    stop: int
    params: list[Tensor]
    steps: list[Tensor]
    strided: list[int]


class Part(NamedTuple):
    """What a step moves.

    Args:
        live: of all parameters, which.
        spans: the calls.
        states: in their order.
        growth: per device what its counter grows by, 1 for each of them.
        fresh: one of the calls is of parameters that have no momentum yet.
    """

    live: list[bool]
    spans: list[Span]
    states: list[State]
    growth: dict[torch.device, Tensor]
    fresh: bool


class Order:
    """The lists, and by what it is known whether they still hold.

    Args:
        lrs, settings: of each group.
        partition: indices of the groups that share a call.
        spans: the calls, where every parameter has a gradient.
        states: in the spans' order.
        resting: parameters that have neither a gradient nor a state.
        counts: whether states have a "step".
    """

    def __init__(
        self,
        lrs: list[Any],
        settings: list[Settings],
        partition: list[list[int]],
        spans: list[Span],
        states: list[State],
        resting: list[Tensor],
        counts: bool,
    ) -> None:
        self.lrs, self.settings, self.partition, self.resting = lrs, settings, partition, resting
        self.params = [param for span in spans for param in span.params]
        self.whole = self.last = Part([True] * len(states), spans, states, {}, any(span.fresh for span in spans))
        self.counters: dict[torch.device, Tensor] = {}
        for device in {span.device for span in spans} if counts else ():
            self._count(device)
        self.counted = states if counts else []
        self.places = list(map(Tensor.data_ptr, map(STEP, self.counted)))
        self.stamp: list[int] = []

    def _count(self, device: torch.device) -> None:
        """The counts of all parameters of a device become one tensor."""
        spans = [span for span in self.whole.spans if span.device == device]
        states = [state for span in spans for state in self.whole.states[span.start : span.stop]]
        counter = torch.stack([state["step"].to(device, torch.float32) for state in states])
        self.counters[device], self.whole.growth[device] = counter, torch.ones_like(counter)
        views = iter(counter.unbind())
        for state in states:
            state["step"] = next(views)
        for span in spans:
            span.steps.extend(state["step"] for state in self.whole.states[span.start : span.stop])

    def part(self, live: list[bool]) -> Part:
        """Those that have a gradient; the last answer is kept."""
        if self.last.live != live:
            spans: list[Span] = []
            flags: dict[torch.device, list[bool]] = {device: [] for device in self.counters}
            for span in self.whole.spans:
                own = live[span.start : span.stop]
                flags.get(span.device, []).extend(own)
                start = spans[-1].stop if spans else 0
                if any(own):
                    params, steps = picked(span.params, own), picked(span.steps, own)
                    spans.append(Span(*span[:4], start, start + sum(own), params, steps, strided(params)))
            growth = {device: torch.tensor(own, dtype=torch.float32, device=device) for device, own in flags.items()}
            self.last = Part(live, spans, picked(self.whole.states, live), growth, self.whole.fresh)
        return self.last


def strided(params: Sequence[Tensor]) -> list[int]:
    """Places of large channels_last parameters."""
    return [
        i for i, p in enumerate(params) if p.is_cpu and p.dim() == 4 and p.numel() >= LARGE and not p.is_contiguous()
    ]


def laid_flat(places: Sequence[int], columns: Sequence[list[Tensor]]) -> Sequence[list[Tensor]]:
    """Parameters, gradients and states for a kernel: where all of a parameter's are channels_last, views of them that are
    contiguous, number by number the same memory. torch's kernels take four times as long for the tensors themselves.
    """
    columns = [list(column) for column in columns]
    for place in places:
        own = [column[place] for column in columns if column]
        if all(each.is_contiguous(memory_format=torch.channels_last) for each in own):
            for column, each in zip(columns, own, strict=False):  # plain SGD has no state
                column[place] = each.permute(0, 2, 3, 1)
    return columns


def picked(items: Sequence[Any], flags: Sequence[bool]) -> list[Any]:
    """Those whose flag is set; of no items none."""
    return [item for item, on in zip(items, flags, strict=False) if on]
