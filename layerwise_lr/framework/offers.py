"""What the core offers to plugins, so that none writes it again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ..models import Layer, Node, Residual, Tree, join
from ..planning import Plan

T = TypeVar("T")

STATE_KEYS: Mapping[str, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq", "step"),
    "adamw": ("exp_avg", "exp_avg_sq", "step"),
    "nadam": ("exp_avg", "exp_avg_sq", "mu_product", "step"),
    "rmsprop": ("momentum_buffer", "square_avg", "step"),
    "lion": ("exp_avg",),
    "muon": ("momentum_buffer",),
    "layer_adaptive": ("exp_avg", "exp_avg_sq"),
}
"""torch's keys of what each optimizer keeps for a parameter (rmsprop its momentum_buffer only where its momentum is
above 0); `step` and `mu_product` are scalars, the others have its shape."""


def in_order(parts: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """x through `parts`, one after the other; no parts are the identity."""

    def forward(x: Any) -> Any:
        for part in parts:
            x = part(x)
        return x

    return forward


def added(body: Callable[[Any], Any], shortcut: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """body(x) + shortcut(x)."""
    return lambda x: body(x) + shortcut(x)


def fold(
    tree: Tree,
    layer: Callable[[str, Layer], T],
    seq: Callable[[Sequence[T]], T] = in_order,  # type: ignore[assignment]
    residual: Callable[[T, T], T] = added,  # type: ignore[assignment]
) -> T:
    """A whole model out of its layers: the plugin does one layer, Seq and Residual are done here.

    Args:
        tree: declared.
        layer: called once per layer in execution order with its canonical name ("layer1.0.bn1"; layers without
            arrays may share their parent's) and its declaration.
        seq: several parts as one; by default Python's composition of functions. A compiler that must see code in
            place (MindSpore reads source, OneFlow's Graph wraps modules) is given a class of its own.
        residual: the sum of body and shortcut, likewise; an empty shortcut is `seq([])`.
    """

    def visit(node: Node, prefix: str) -> T:
        name = join(prefix, node.name)
        if isinstance(node, Layer):
            return layer(name, node)
        if isinstance(node, Residual):
            return residual(*(seq([visit(child, name) for child in part]) for part in (node.body, node.shortcut)))
        return seq([visit(child, name) for child in node.children])

    return visit(tree.root, "")


def by_optimizer(groups: Sequence[T], plan: Plan) -> dict[str, list[T]]:
    """Native groups (in the plan's order) by the name of the optimizer that steps them."""
    found: dict[str, list[T]] = {}
    for native, group in zip(groups, plan.groups, strict=True):
        found.setdefault(group.optimizer, []).append(native)
    return found


class _Optimizer(Protocol):
    param_groups: Any


def in_plan_order(optimizers: Iterable[_Optimizer], plan: Plan) -> list[Any]:
    """The live param_groups of native optimizers, in the order of the plan, by their key "name"."""
    named = {group["name"]: group for native in optimizers for group in native.param_groups}
    return [named[group.name] for group in plan.groups]


class GroupScheduler:
    """Writes group["lr"]: for frameworks whose optimizers read that key at every step.

    Args:
        groups: live native groups, in the plan's order.
        plan: whose lrs they get.
    """

    def __init__(self, groups: Sequence[Any], plan: Plan) -> None:
        self._groups, self._plan = groups, plan

    def apply(self, index: int) -> None:
        """The plan's lr of every group at step `index`."""
        self._plan.write_lrs(index, self._groups)

    def lrs(self) -> list[float]:
        """group["lr"] as the framework holds it."""
        return [float(group["lr"]) for group in self._groups]


def central_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes over which gradient centralization takes the mean of a gradient of this shape (PyTorch's order): all
    but the first; none, and no mean is taken, for biases and norms."""
    return tuple(range(1, len(shape)))
