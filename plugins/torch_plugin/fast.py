"""AdamW and SGD in place of torch.optim's, at the price of one group whatever the number of groups; layerwise_lr offers them.

They are torch's own classes with another `step`: hooks, param_groups, state_dict (either way), schedulers, GradScaler, pickling
and flags are torch's. Where nobody has chosen foreach or fused, torch's fused kernels are used. Before the first step on a
kind of device a few steps of a small problem tell whether this gives the bits of torch's fused optimizer; if not, torch's
own step is taken.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor

from .grouped import Group, Grouped, Optimizer, bare, take
from .order import Part, Settings, laid_flat

OURS, FUSED, DEFAULT = "one call for equal groups", "torch's, fused", "torch's, not fused"
"""How a step is taken: by this file, or by torch, whose fused kernel may be absent as well."""
_FLAGS = ("fused", "foreach", "differentiable")
_AVERAGE, _SQUARE, _BUFFER = itemgetter("exp_avg"), itemgetter("exp_avg_sq"), itemgetter("momentum_buffer")


class Fast(Grouped):
    """Construction, and trust."""

    def _construct(self, groups: Any, merge: bool, init: Callable[[Any], None]) -> None:
        """By torch's __init__, in a time that grows with the number of groups and no faster."""
        if not isinstance(groups, Tensor):
            groups = list(groups)
            if merge and groups and isinstance(groups[0], dict):
                groups = list(merged(groups))
        self._held = set()
        try:
            init(groups)
        finally:
            self._held = None

    def trusts(self, device: torch.device, dtype: torch.dtype) -> bool:
        """By `way`."""
        return way(self.own, device.type, dtype) == OURS


class _Adams(Fast):
    counts: ClassVar[bool] = True
    read = itemgetter("weight_decay", "betas", "eps", "maximize", "amsgrad", "decoupled_weight_decay", *_FLAGS)

    def usual(self, settings: Settings) -> bool:
        """No amsgrad, plain numbers."""
        _, betas, _, _, amsgrad, decoupled, *flags = settings
        plain = not amsgrad and all(isinstance(beta, float) for beta in betas)
        return plain and decoupled == self.defaults["decoupled_weight_decay"] and _fused(*flags)

    def begin(self, settings: Settings, param: Tensor) -> bool | None:
        """Zeros, as torch's _init_group."""
        if not self.state.get(param):
            if param.grad is None:
                return None
            state = self.state[param]
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return False

    def options(self, settings: Settings, fresh: bool) -> dict[str, Any]:
        """As torch names them."""
        weight_decay, (beta1, beta2), eps, maximize, *_ = settings
        told = {"beta1": beta1, "beta2": beta2, "weight_decay": weight_decay, "eps": eps}
        return {**told, "amsgrad": False, "maximize": maximize}

    def run(self, part: Part, gradients: list[Tensor]) -> None:
        """torch._fused_adamw_, or Adam's."""
        averages, squares = list(map(_AVERAGE, part.states)), list(map(_SQUARE, part.states))
        kernel = torch._fused_adamw_ if self.defaults["decoupled_weight_decay"] else torch._fused_adam_
        for _, _, _, options, a, b, params, steps, places in part.spans:
            lists = params, gradients[a:b], averages[a:b], squares[a:b]
            own, moved, first, second = laid_flat(places, lists) if places else lists
            kernel(own, moved, first, second, [], steps, **options)


class AdamW(_Adams, torch.optim.AdamW):
    """torch.optim.AdamW.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, differentiable, fused: torch's.
        merge: groups that differ in nothing but their parameters and names become one; names are kept in its
            "names" and "param_names". Not for groups whose lrs part later.
    """

    own = torch.optim.AdamW

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        merge: bool = False,
    ) -> None:
        flags: dict[str, Any] = {"maximize": maximize, "foreach": foreach, "capturable": capturable}
        flags |= {"differentiable": differentiable, "fused": fused}
        made = super().__init__
        self._construct(params, merge, lambda groups: made(groups, lr, betas, eps, weight_decay, amsgrad, **flags))


class Adam(_Adams, torch.optim.Adam):
    """torch.optim.Adam, for runs."""

    own = torch.optim.Adam


class SGD(Fast, torch.optim.SGD):
    """torch.optim.SGD.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused: torch's.
        merge: as of AdamW.
    """

    own = torch.optim.SGD
    counts: ClassVar[bool] = False
    read = itemgetter("weight_decay", "momentum", "dampening", "nesterov", "maximize", *_FLAGS)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        merge: bool = False,
    ) -> None:
        flags: dict[str, Any] = {"maximize": maximize, "foreach": foreach, "differentiable": differentiable}
        flags["fused"] = fused
        made = super().__init__
        self._construct(
            params, merge, lambda groups: made(groups, lr, momentum, dampening, weight_decay, nesterov, **flags)
        )

    def usual(self, settings: Settings) -> bool:
        """Plain numbers."""
        return _fused(*settings[-3:]) and not any(isinstance(s, Tensor) for s in settings)

    def begin(self, settings: Settings, param: Tensor) -> bool | None:
        """A buffer that the kernel's first step fills: zeros, which stay where found_inf says that there is no step."""
        if not settings[1]:
            return None if param.grad is None else False
        if (self.state.get(param) or {}).get("momentum_buffer") is not None:
            return False
        if param.grad is None:
            return None
        self.state[param]["momentum_buffer"] = torch.zeros_like(param.grad)
        return True

    def options(self, settings: Settings, fresh: bool) -> dict[str, Any]:
        """As torch names them."""
        weight_decay, momentum, dampening, nesterov, maximize, *_ = settings
        told = {"weight_decay": weight_decay, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        return {**told, "maximize": maximize, "is_first_step": fresh}

    def run(self, part: Part, gradients: list[Tensor]) -> None:
        """torch._fused_sgd_."""
        buffers: list[Any] = list(map(_BUFFER, part.states))
        for _, _, _, options, a, b, params, _, places in part.spans:
            lists = params, gradients[a:b], buffers[a:b] if options["momentum"] else []
            own, moved, kept = laid_flat(places, lists) if places else lists
            torch._fused_sgd_(own, moved, kept, **options)


CLASSES: dict[type[Optimizer], type[Fast]] = {cls.own: cls for cls in (AdamW, Adam, SGD)}


def _fused(fused: bool | None, foreach: bool | None, differentiable: bool) -> bool:
    """Asked for, or nothing is."""
    return not differentiable and not foreach and bool(fused or (fused is None and foreach is None))


def merged(groups: Iterable[Group]) -> Iterator[Group]:
    """The fewest groups: those that differ in nothing but parameters and names become one."""
    found: dict[Any, list[Group]] = {}
    readers: dict[tuple[str, ...], tuple[tuple[str, ...], Any]] = {}
    for index, group in enumerate(groups):
        keys = tuple(group)
        if keys not in readers:
            names = tuple(sorted(set(keys) - {"params", "name", "names"}))
            settings = [name for name in names if name != "param_names"]
            readers[keys] = names, itemgetter(*settings) if settings else len
        names, read = readers[keys]
        try:
            found.setdefault((names, read(group)), []).append(group)
        except TypeError:  # a setting that is a list
            found[index] = [group]
    for same in found.values():
        yield _one(same) if len(same) > 1 else same[0]


def _one(groups: list[Group]) -> Group:
    """All parameters and all names in the first's settings."""
    one = {key: value for key, value in groups[0].items() if key != "name"}
    names: list[Any] = []
    one["params"] = []
    for group in groups:
        own = group["params"]
        one["params"].extend([own] if isinstance(own, Tensor) else own)
        names.extend(group["names"] if "names" in group else [group.get("name")])
    if "param_names" in one:
        one["param_names"] = [name for group in groups for name in group["param_names"]]
    return {**one, "names": names} if any(name is not None for name in names) else one


@cache
def way(own: Any, device: str, dtype: torch.dtype = torch.float32) -> str:
    """How a step of this class of torch's is taken on a kind of device: OURS, FUSED or DEFAULT, found out by trying.

    DEFAULT also where torch's fused kernel is not its for-loop but for rounding: torch 2.13's SGD in bfloat16 on a CPU
    moves half of the momentum only.
    """
    try:
        loop, wanted = (_tried(own, _torchs, device, dtype, fused=fused) for fused in (False, True))
    except Exception:  # whatever it is: nothing is made faster here
        return DEFAULT
    rounding = 32 * torch.finfo(dtype).eps
    if not all(torch.allclose(a, b, rounding, rounding) for a, b in zip(wanted, loop, strict=True)):
        return DEFAULT
    try:
        trial: Any = type(own.__name__, (CLASSES[own],), {"trusts": lambda self, device, dtype: True})
        got = _tried(trial, take, device, dtype, fused=True)
    except Exception:
        return FUSED
    return OURS if all(map(torch.equal, wanted, got)) else FUSED


def _torchs(optimizer: Any) -> None:
    """torch's step; no hook is told of a trial."""
    bare(type(optimizer).step)(optimizer)


@torch.no_grad()
def _tried(
    make: Callable[..., Optimizer], step: Callable[[Any], object], device: str, dtype: torch.dtype, fused: bool
) -> list[Tensor]:
    """Five small parameters in four groups, two of them equal, after four steps, one of them without a gradient: all numbers."""

    def wave(index: int, count: int) -> Tensor:
        return torch.arange(index, index + count, dtype=torch.float32, device=device).mul_(0.37).sin_().to(dtype)

    params = [torch.nn.Parameter(wave(i, count)) for i, count in enumerate((3, 36, 67, 5, 4608))]
    params[4].data = params[4].data.view(32, 16, 3, 3).to(memory_format=torch.channels_last)
    rates = ((params[:2], 0.01, 0.1), (params[2:3], 0.01, 0.0), (params[3:4], 0.01, 0.1), (params[4:], 0.02, 0.1))
    groups = [{"params": own, "lr": lr, "weight_decay": decay} for own, lr, decay in rates]
    momentum = {"momentum": 0.9} if issubclass(make, torch.optim.SGD) else {}  # type: ignore[arg-type]
    optimizer = make(groups, fused=fused, **momentum)
    for count in range(4):
        for index, param in enumerate(params):
            gradient = torch.empty_like(param).copy_(wave(7 * count + index, param.numel()).view(param.shape))
            param.grad = None if (index, count) == (1, 2) else gradient
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        step(optimizer)
    return [*params, *(optimizer.state[p][key] for p in params for key in sorted(optimizer.state[p]))]
