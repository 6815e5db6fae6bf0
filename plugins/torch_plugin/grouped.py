"""What AdamW, Adam and SGD of `fast` share: one call of torch's fused kernel for all groups of equal settings.

torch's step makes its lists anew for every group, counts every parameter's steps by itself and calls a kernel per group.
Here the lists are kept from step to step, the counts are one tensor (each state["step"] is a view of one number of it),
and groups that agree in lr, weight decay and all else share a call. The kernels are torch's, and so are the bits.

Before the lists are used it is looked whether they still hold: parameters, states, where both are, settings. What is
unusual is left to torch's own step: amsgrad, differentiable, foreach=True, fused=False, sparse or complex numbers,
subclasses of Tensor.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from operator import attrgetter, is_not, itemgetter
from typing import Any, ClassVar

import torch
import torch._dynamo  # the first optimizer imports it anyway; here a forked job finds it imported
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

from .order import STATELESS, STEP, Order, Part, Settings, Span, picked, strided

Group = dict[str, Any]
Optimizer = torch.optim.Optimizer
DEVICES = ("cpu", "cuda")
_GRAD, _PARAMS, _LR = attrgetter("grad"), itemgetter("params"), itemgetter("lr")
_HOOKS = [getattr(torch_optimizer, f"_global_optimizer_{when}_hooks", (None,)) for when in ("pre", "post")]


class Grouped(Optimizer, ABC):
    """A mixin; torch's own class comes behind it."""

    own: ClassVar[Any]
    """torch's class."""
    read: ClassVar[Any]
    """A group's settings but its lr: all that a call depends on, and flags."""
    counts: ClassVar[bool]
    """Whether its states have a "step"."""
    _order: Order | None = None
    _held: set[int] | None = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, with hooks and profile as torch's. Returns the closure's loss, if there is one."""
        if torch.compiler.is_compiling():
            return bare(self.own.step)(self, closure)
        hooked = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or any(_HOOKS)
        if hooked or torch.autograd._profiler_enabled():
            return _with_hooks(self, closure)
        return take(self, closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch need not wrap it

    @abstractmethod
    def trusts(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the kernel does there what it should."""

    @abstractmethod
    def usual(self, settings: Settings) -> bool:
        """Whether this file's way is right for a group of plain parameters."""

    @abstractmethod
    def begin(self, settings: Settings, param: Tensor) -> bool | None:
        """See to a parameter's state; True: it has no momentum yet; None: it has no gradient and never had one."""

    @abstractmethod
    def options(self, settings: Settings, fresh: bool) -> dict[str, Any]:
        """Keywords of the kernel, but the lr."""

    @abstractmethod
    def run(self, part: Part, gradients: list[Tensor]) -> None:
        """Call the kernel for each span."""

    def add_param_group(self, param_group: Group) -> None:
        """As torch's, which looks at all earlier groups again for each: 12,000 of them take it 20 seconds."""
        if self._held is None:
            super().add_param_group(param_group)
            return
        groups = self.param_groups
        self.param_groups = groups[:1]
        try:
            super().add_param_group(param_group)
        finally:
            self.param_groups = groups
        new = {id(param) for param in param_group["params"]}
        if not self._held.isdisjoint(new):
            raise ValueError("some parameters appear in more than one parameter group")
        self._held |= new
        groups.append(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's."""
        super().__setstate__(state)
        self._order = None

    def _fast(self) -> bool:
        """This file's step; False: nothing is done, torch's has to."""
        lrs, settings = list(map(_LR, self.param_groups)), list(map(self.read, self.param_groups))
        order = self._order
        if order is None or not self._holds(order, lrs, settings):
            order = self._order = self._ordered(lrs, settings)
            if order is None:
                return False
        gradients, part = list(map(_GRAD, order.params)), order.whole
        if not all(map(is_not, gradients, repeat(None))):
            part = order.part([gradient is not None for gradient in gradients])
            gradients = picked(gradients, part.live)
        for device, growth in part.growth.items():
            order.counters[device].add_(growth)
        scale, inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        self.run(part if scale is None and inf is None else _scaled(part, scale, inf), gradients)
        if inf is not None:
            for device, growth in part.growth.items():
                order.counters[device].sub_(growth * inf.to(device))
        if part.fresh:
            self._order = None
        return True

    def _holds(self, order: Order, lrs: list[Any], settings: list[Settings]) -> bool:
        """Whether the lists are still right."""
        if settings != order.settings or self._stamp() != order.stamp:
            return False
        if lrs != order.lrs:
            if _partition(lrs, settings) != order.partition:
                return False
            order.lrs = lrs
            for span in order.whole.spans:
                span.options["lr"] = lrs[span.group]
        if any(map(is_not, map(_GRAD, order.resting), repeat(None))):
            return False
        try:
            return list(map(Tensor.data_ptr, map(STEP, order.counted))) == order.places
        except KeyError:  # a state was emptied
            return False

    def _stamp(self) -> list[int]:
        """Which parameters and states are there, and where in memory."""
        params = list(chain.from_iterable(map(_PARAMS, self.param_groups)))
        return [*map(id, params), *map(Tensor.data_ptr, params), *map(id, self.state.values())]

    def _ordered(self, lrs: list[Any], settings: list[Settings]) -> Order | None:
        """The lists of this step; None where it is torch's."""
        groups = list(map(_PARAMS, self.param_groups))
        if not all(map(self.usual, settings)) or not all(map(_plain, chain.from_iterable(groups))):
            return None
        kinds = {(param.device, param.dtype) for param in chain.from_iterable(groups)}
        if not all(self.trusts(*kind) for kind in kinds) or not all(_fits(lr, {d for d, _ in kinds}) for lr in lrs):
            return None
        begun = [[self.begin(own, param) for param in params] for own, params in zip(settings, groups, strict=True)]
        found: dict[tuple[Any, ...], list[Tensor]] = {}
        resting, partition = [], _partition(lrs, settings)
        for first, index in ((indices[0], index) for indices in partition for index in indices):
            for param, fresh in zip(groups[index], begun[index], strict=True):
                if fresh is None:
                    resting.append(param)
                else:
                    found.setdefault((first, fresh, param.device, param.dtype), []).append(param)
        spans: list[Span] = []
        for (first, fresh, device, _), params in found.items():
            start, options = spans[-1].stop if spans else 0, {**self.options(settings[first], fresh), "lr": lrs[first]}
            spans.append(Span(first, fresh, device, options, start, start + len(params), params, [], strided(params)))
        needed = "step" if self.counts else "momentum_buffer"  # others may keep things of theirs there
        held = [self.state.get(param, {}) for span in spans for param in span.params]
        states = [state if needed in state else STATELESS for state in held]
        order = Order(lrs, settings, partition, spans, states, resting, self.counts)
        order.stamp = self._stamp()
        return order


def take(optimizer: Grouped, closure: Callable[[], Any] | None = None) -> Any:
    """The step without its hooks."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)  # torch.no_grad() takes a microsecond
    try:
        if not optimizer._fast():
            bare(optimizer.own.step)(optimizer)
    finally:
        torch._C._set_grad_enabled(before)
    return loss


_with_hooks = Optimizer.profile_hook_step(take)


def bare(step: Callable[..., Any]) -> Callable[..., Any]:
    """torch's step without hooks: those are called once."""
    while getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    return step


def _partition(lrs: Iterable[Any], settings: Iterable[Settings]) -> list[list[int]]:
    """Indices of equal groups."""
    found: dict[Any, list[int]] = {}
    for index, own in enumerate(zip(lrs, settings, strict=True)):
        found.setdefault(own, []).append(index)
    return list(found.values())


def _scaled(part: Part, scale: Tensor | None, inf: Tensor | None) -> Part:
    """The same calls, told what GradScaler tells."""

    def more(device: torch.device) -> dict[str, Any]:
        told = {"grad_scale": scale, "found_inf": inf}
        return {key: None if number is None else number.to(device) for key, number in told.items()}

    return part._replace(spans=[span._replace(options={**span.options, **more(span.device)}) for span in part.spans])


def _plain(param: Tensor) -> bool:
    """What a fused kernel may take as it is."""
    known = type(param) in (Tensor, torch.nn.Parameter) and param.is_floating_point() and param.device.type in DEVICES
    return known and (param.grad is None or param.grad.layout is torch.strided)


def _fits(lr: Any, devices: set[torch.device]) -> bool:
    """A number, or a tensor that every kernel can read where it is."""
    return not isinstance(lr, Tensor) or (lr.dim() == 0 and (lr.is_cpu or {lr.device} == devices))
