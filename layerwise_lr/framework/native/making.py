"""A plan for any model: `plan(model, lr=..., layer_decay=...)`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from ...planning import (
    FOREVER,
    FreezeSpec,
    Group,
    GroupingSpec,
    GroupSpec,
    OptimizerSpec,
    ParamTable,
    Plan,
    ScheduleSpec,
    UserError,
    did_you_mean,
    execution_order,
    make_plan,
    ranges,
    timm_depths,
)
from .. import registry
from ..describing import Description, Native
from .changing import Change

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ModelPlan:
    """The plan of one model: which lr every parameter has at every step. Printed, it is a table.

    Args:
        plan: the plan as data; it hashes, and `to_dict` and `from_dict` make JSON of it.
        table: the model's parameters with their depths.
        native: the framework's side of the model.
        convention: how depths were counted.
        confidence: 1.0 where they were declared or follow a convention; else what the trace is worth.
        reasons: lines that say why.
    """

    plan: Plan
    table: ParamTable
    native: Native
    convention: str
    confidence: float = 1.0
    reasons: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[Group, ...]:
        """Parameters that move alike, by bare name."""
        return self.plan.groups

    @cached_property
    def depths(self) -> dict[str, int]:
        """Depth of every parameter and buffer; 0 is the stem."""
        return {row.name: row.depth for row in self.table}

    def lrs(self, step: int) -> list[float]:
        """lr of each group at `step`, counted from 0; after the last step that of the last."""
        return self.plan.lrs(min(step, self.plan.total_steps - 1))

    def param_groups(self, model: Any = None) -> list[Any]:
        """What an optimizer of the model's framework takes, one group per group of the plan.

        Args:
            model: the one that was planned for, by now wrapped perhaps, or on another device; None: the very object.

        Raises:
            UserError: it is another model: names parameters that one has and the other lacks.
        """
        native = self.native if model is None else registry.native(model)
        there = {row.name for row in native.describe(trace=False).rows if row.trainable}
        planned = {name for group in self.groups for name in group.params}
        if there != planned:
            lacking, new = sorted(planned - there), sorted(there - planned)
            raise UserError(
                "the model is not the one that was planned for: "
                + "; ".join(
                    f"{len(names)} parameters {what} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
                    for what, names in (("are gone or frozen", lacking), ("are new or thawed", new))
                    if names
                )
                + "; make a plan of the model as it is now"
            )
        return native.param_groups(self.plan)

    def scheduler(self, optimizer: Any, start: int = 0) -> Any:
        """Writes the plan's lrs into the optimizer made of `param_groups`: now that of `start`, and at each `step()`
        that of the next optimizer step. It tells at once where somebody else has written another lr."""
        return self.native.scheduler(optimizer, self.plan, start)

    def on(self, old: Plan | Mapping[str, Any], step: int) -> Change:
        """This plan on an optimizer state that was trained under another: what is different, to adopt or to keep.

        Args:
            old: the other plan, or what its `to_dict()` gave.
            step: the next optimizer step, counted from 0.
        """
        return Change(self, old if isinstance(old, Plan) else Plan.from_dict(old), step)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data: what belongs into a checkpoint, for `on`."""
        return self.plan.to_dict()

    def __str__(self) -> str:
        depth = {name: str(self.depths[group.params[0]]) for group in self.groups for name in [group.name]}
        rows = [("group", "depth", "parameters", "lr_scale", "lr", "weight_decay")]
        for g in self.groups:
            lr = self.plan.base_lr * g.lr_scale
            rows.append(
                (g.name, depth[g.name], str(len(g.params)), f"{g.lr_scale:.4g}", f"{lr:.3g}", f"{g.weight_decay:g}")
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )
        told = "".join(f"\n  {reason}" for reason in self.reasons)
        return f"{table}\ndepths: {self.convention}, confidence {self.confidence:.2f}{told}"


def plan(
    model: Any,
    *,
    lr: float,
    layer_decay: float | None = None,
    weight_decay: float = 0.0,
    schedule: str | Mapping[str, Any] = "constant",
    warmup: float | int = 0,
    steps: int | None = None,
    floor: float = 0.0,
    convention: str | None = None,
    depths: Mapping[str, int] | None = None,
    stages: int | None = None,
    stem_scale: float | None = None,
    decay_per_12_layers: float | None = None,
    min_scale: float = 0.0,
    head_scale: float = 1.0,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    strategy: str | None = None,
    backbone_scale: float | None = None,
    no_weight_decay: bool = True,
    freeze: Mapping[str, Any] | None = None,
    batch: Any = None,
) -> ModelPlan:
    """Layer-wise learning rates for any model of an installed framework; its type decides which.

        plan = plan(model, lr=1e-3, layer_decay=0.75, weight_decay=0.05, schedule="cosine", warmup=0.05, steps=1000)
        optimizer = torch.optim.AdamW(plan.param_groups(model))
        scheduler = plan.scheduler(optimizer)          # step() after each optimizer step

    The law: lr(step, group) = lr * lr_scale(group) * schedule(step), with lr_scale = layer_decay ** (num_layers - depth),
    1 for the head. Parameters with requires_grad=False are in no group; they count in the depths.

    Args:
        model: a torch, oneflow, mindspore or megengine model, wrapped (compiled, data parallel, peft) or not.
        lr: of the head, per optimizer step.
        layer_decay: 1 or None: every layer has `lr`.
        weight_decay: as the optimizer means it; none for biases, norms, tokens and what the model itself exempts.
        schedule: constant, linear, cosine, polynomial, step, multistep, exponential, one_cycle; or a mapping of
            ScheduleSpec's keys.
        warmup: optimizer steps, or below 1 a share of `steps`: how long the lr rises from 0.
        steps: optimizer steps of the run; needed by all schedules but constant.
        floor: share of the lr that is left at the end; each layer keeps its ratio to the others.
        convention: how depths are counted. None: as timm's group_matcher says where the model carries one, else
            "order": by one traced forward, with a confidence. Others: mae, beit, timm, ...
        depths: instead of a convention: regex -> depth, the first that matches wins.
        stages: depths below the head, gathered into so many of equal count.
        stem_scale: instead of layer_decay: the lr_scale of depth 0.
        decay_per_12_layers: instead of layer_decay: that of a net of 12 blocks with the same stem's lr_scale.
        min_scale: no lr_scale below.
        head_scale: multiplies the head's lr_scale.
        groups: named groups: name -> GroupSpec's keys (match, lr, lr_scale, weight_decay, start, stop, ...).
        strategy: layer_decay (the default where a decay is given), flat, backbone_head, by_name, by_module,
            by_layer_type.
        backbone_scale: of backbone_head.
        no_weight_decay: False: decay all.
        freeze: FreezeSpec's keys, in steps: an lr of 0 outside a parameter's window.
        batch: example input for the traced forward, as the model is called: a tensor, a tuple of arguments, a mapping
            of keywords, or a function of the model that runs it. None: made up from the model's facts.

    Raises:
        UserError: says what and where.
    """
    said = {"layer_decay": layer_decay, "stem_scale": stem_scale, "decay_per_12_layers": decay_per_12_layers}
    decay: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    if len(decay) > 1:
        raise UserError(f"{' and '.join(f'{k}={v}' for k, v in decay.items())} say the same: give one of them")
    native = registry.native(model)
    total, warm = _steps(schedule, warmup, steps)
    given = {"layer_decay": 1.0, **decay} | ({} if backbone_scale is None else {"backbone_scale": backbone_scale})
    grouping = GroupingSpec(
        strategy=strategy or ("layer_decay" if decay else "flat"),
        min_scale=min_scale,
        allow_above_one=True,
        head_scale=head_scale,
        depths=dict(depths or {}),
        stages=stages,
        no_weight_decay=no_weight_decay,
        groups={name: _spec(GroupSpec, keys, f"groups[{name!r}]") for name, keys in (groups or {}).items()},
        **given,
    )
    described = native.describe(batch, trace=convention in (None, "order") and not depths)
    found = placed(described, convention, bool(depths))
    grouping.convention = found.convention
    named = {"name": schedule} if isinstance(schedule, str) else schedule
    spec = _spec(ScheduleSpec, {"every": 1, "floor": floor, **named, "warmup": warm}, "schedule")
    freezing = _spec(FreezeSpec, {"every": max(total // 10, 1), "at": total // 2, **(freeze or {})}, "freeze")
    optimizer = OptimizerSpec(lr=lr, weight_decay=weight_decay)
    ranges.check_spec(optimizer)
    ranges.check_spec(grouping)
    table, made = make_plan(found.table, grouping, {"default": optimizer}, {"default": spec}, freezing, total)
    return ModelPlan(made, table, native, found.counted, found.confidence, found.reasons)


def _spec(kind: Callable[..., T], keys: Mapping[str, Any], where: str) -> T:
    """The spec with these keys.

    Raises:
        UserError: it has no such key.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in keys:
        if key not in known:
            raise UserError(f"{where} has no {key!r}; there are: {', '.join(known)}{did_you_mean(key, known)}")
    spec = kind(**keys)
    ranges.check_spec(spec, f"{where}.")
    return spec


def _steps(schedule: Any, warmup: float | int, steps: int | None) -> tuple[int, int]:
    """(steps of the run, steps of the warm-up)."""
    if steps is None and (schedule != "constant" or 0 < warmup < 1):
        raise UserError(f"steps is missing: schedule={schedule!r} with warmup={warmup} needs the length of the run")
    total = FOREVER - 1 if steps is None else steps
    if total < 1:
        raise UserError(f"steps={steps} must be at least 1")
    rises = round(warmup * total) if 0 < warmup < 1 else int(warmup)
    if not 0 <= rises < total:
        raise UserError(f"warmup={warmup} must be a share of the run or less than its {total} steps")
    return total, rises


class Placed(NamedTuple):
    """A table with depths, and how they came about.

    Args:
        table: of the model.
        convention: what is left for the grouping to do: "tree" where the table has its depths.
        counted: how, for people.
        confidence, reasons: as in ModelPlan.
    """

    table: ParamTable
    convention: str
    counted: str
    confidence: float
    reasons: tuple[str, ...]


def placed(described: Description, convention: str | None, ruled: bool = False) -> Placed:
    """The depths of a model that nobody declared.

    Args:
        described: the model.
        convention: None: as its own group_matcher says, else in order of execution.
        ruled: rules of the user's say it all.
    """
    names = [row.name for row in described.rows if row.role != "buffer"]
    head = described.heads[0] if described.heads else names[-1].rpartition(".")[0]
    table = ParamTable(described.rows, head)
    if ruled:
        return Placed(table, "tree", "rules", 1.0, ())
    if convention in (None, "timm") and described.matcher is not None:
        depths = timm_depths(names, described.matcher)
        layers = {name.rpartition(".")[0]: depth for name, depth in depths.items()}
        of = {row.name: depths.get(row.name, layers.get(row.name.rpartition(".")[0], 0)) for row in described.rows}
        return Placed(table.with_depths(of), "tree", "timm, by the model's own group_matcher", 1.0, ())
    if convention in (None, "order"):
        found = execution_order(described.modules, described.heads)
        table = ParamTable(described.rows, found.head[0] if found.head else head).with_depths(found.depths)
        return Placed(table, "tree", "order of execution", found.confidence, (*found.reasons, *described.notes))
    return Placed(table, str(convention), str(convention), 1.0, ())
