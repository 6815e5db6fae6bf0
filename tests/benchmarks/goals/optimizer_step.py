"""The optimizer's step under layer_decay, what making it costs, and the lr update: no forward or backward pass."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from .timing import Case, ratio, side_by_side

GOALS = {
    "G1": "AdamW and momentum step under layer_decay / torch.optim fused with one flat group",
    "G2": "AdamW step under layer_decay / torch's default optimizer with the same groups, as timm makes them",
    "G3": "G1 with one group per parameter",
    "G4": "lr update of 28 groups / timm's scheduler, / LambdaLR",
    "G9": "optimizer from 12,000 one-parameter groups, merged / torch's with one group",
}
NEEDS = ("torch",)
DEVICES = ("cpu", "cuda")
DECAY = 0.05
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "width": 256},
    "lenet": {"name": "lenet"},
    "vit28": {"name": "vit_tiny", "embed_dim": 64, "depth": 4, "num_heads": 4, "patch_size": 7},
    "resnet18": {"name": "resnet18"},
    "mobilenet_v2": {"name": "mobilenet_v2"},
    "vit_tiny": {"name": "vit_tiny", "image_size": 224},
}
PLACES = 4
"""How often all are made anew: where in memory the tensors of a large model lie is worth a fifth of its step."""
LOW = ("lenet", "vit28", "mobilenet_v2")
"""Models of the lower target."""


def measure(device: str) -> Iterator[Case]:
    """All of them."""
    for model in MODELS:
        for kind in ("adamw", "momentum"):
            yield from steps(model, kind, device)
    if device == "cpu":
        yield from updates()
        yield from construction()


def steps(name: str, kind: str, device: str) -> Iterator[Case]:
    """G1, G2, G3 of one model and optimizer."""
    import torch

    import layerwise_lr as llr

    own, native, options = (
        (llr.AdamW, torch.optim.AdamW, {}) if kind == "adamw" else (llr.SGD, torch.optim.SGD, {"momentum": 0.9})
    )
    kinds: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
        "ours": lambda groups: own(groups, lr=1e-3, **options),
        "flat": lambda groups: native(
            [p for g in groups for p in g["params"]], lr=1e-3, weight_decay=DECAY, fused=True, **options
        ),
        "default": lambda groups: native(groups, lr=1e-3, **options),
        "each": lambda groups: own([{**g, "params": [p]} for g in groups for p in g["params"]], lr=1e-3, **options),
        "apart": lambda groups: own(
            [
                {"params": [p], "lr": 1e-3 * (1 + i / 1000), "weight_decay": DECAY}
                for i, p in enumerate(p for g in groups for p in g["params"])
            ],
            **options,
        ),
    }
    finish = torch.cuda.synchronize if device.startswith("cuda") else None
    took: dict[str, list[float]] = {key: [] for key in kinds}
    for _ in range(PLACES):
        optimizers = {key: make(ready(MODELS[name], device)) for key, make in kinds.items()}
        calls = {key: optimizer.step for key, optimizer in optimizers.items()}
        for key, column in side_by_side(calls, rounds=11, finish=finish).items():
            took[key] += column
    case = f"{name}, {kind}"
    yield ratio("G1", case, took["ours"], took["flat"], 0.75 if name in LOW else 1.0)
    yield ratio("G2", case, took["ours"], took["default"], 0.33 if kind == "adamw" else None)
    yield ratio("G3", case, took["each"], took["flat"], 1.0)
    yield ratio("G3", f"{case}, another lr for every parameter", took["apart"], took["flat"], None)


def ready(model: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """param_groups of a declared model under layer_decay 0.75, with gradients."""
    import torch

    from layerwise_lr.framework import registry
    from layerwise_lr.run import page, reading, resolve

    given = {"data": {"name": "digits", "image_size": model.get("image_size", 28)}, "steps": 100, "model": model}
    given["optimizer"] = {"name": "adamw", "lr": 1e-3, "weight_decay": DECAY}
    given["grouping"] = {"strategy": "layer_decay", "layer_decay": 0.75}
    subject, _, plan = page.plan_of(resolve(reading.from_data(given)))
    framework = registry.load("torch")(device)
    torch.manual_seed(0)
    native = framework.make_model(subject.tree)
    groups = framework.make_groups(native, plan)
    made = [
        {"params": [p for _, p in g["params"]], **{k: g[k] for k in ("lr", "weight_decay", "name")}} for g in groups
    ]
    with torch.no_grad():
        for param in (p for group in made for p in group["params"]):
            param.normal_(std=0.02)
            param.grad = torch.randn_like(param) * 1e-3
    return made


def updates(count: int = 28, steps: int = 10**6, warmup: int = 100) -> Iterator[Case]:
    """G4: warm-up is over, half a cosine is under way."""
    import torch

    import layerwise_lr as llr

    def native() -> tuple[Any, Any, torch.optim.Optimizer]:
        net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(count // 2)))
        given = {"lr": 1e-3, "layer_decay": 0.75, "weight_decay": DECAY, "schedule": "cosine"}
        plan = llr.plan(net, warmup=warmup, steps=steps, **given)
        optimizer = torch.optim.SGD(plan.param_groups(net))
        assert len(optimizer.param_groups) == count
        return net, plan, optimizer

    def half_cosine(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    _, plan, own = native()
    others = [native()[2] for _ in range(2)]
    calls: dict[str, Callable[[], object]] = {
        "ours": plan.scheduler(own).step,
        "LambdaLR": torch.optim.lr_scheduler.LambdaLR(others[0], half_cosine).step,
    }
    try:
        from timm.scheduler import CosineLRScheduler
    except ImportError:
        pass
    else:
        theirs = CosineLRScheduler(others[1], steps, warmup_t=warmup, warmup_prefix=True, t_in_epochs=False)
        counted = iter(range(warmup, steps))
        calls["timm's"] = lambda: theirs.step_update(next(counted))
    for optimizer in (own, *others):
        optimizer.step()
    for call in calls.values():
        for _ in range(2 * warmup):
            call()
    took = side_by_side(calls)
    for name, target in (("timm's", 0.20), ("LambdaLR", 0.15)):
        if name in took:
            yield ratio("G4", name, took["ours"], took[name], target)


def construction(count: int = 12_000) -> Iterator[Case]:
    """G9: lr and weight decay of 28 kinds among 12,000 parameters."""
    import torch

    import layerwise_lr as llr

    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]

    def groups() -> list[dict[str, Any]]:
        return [
            {"params": [p], "lr": 1e-3 * 0.75 ** (i % 14), "weight_decay": DECAY * (i % 28 < 14), "name": f"p{i}"}
            for i, p in enumerate(params)
        ]

    merged = llr.AdamW(groups(), merge=True)
    assert len(merged.param_groups) == 28 and sum(len(g["names"]) for g in merged.param_groups) == count
    calls: dict[str, Callable[[], object]] = {
        "groups": groups,
        "merged": lambda: llr.AdamW(groups(), merge=True),
        "kept": lambda: llr.AdamW(groups()),
        "one": lambda: torch.optim.AdamW(params),
    }
    took = side_by_side(calls, rounds=15)
    bare = {
        name: [all_ - made for all_, made in zip(took[name], took["groups"], strict=True)]
        for name in ("merged", "kept")
    }
    yield ratio("G9", "merged to 28 groups", bare["merged"], took["one"], 5.0)
    yield ratio("G9", "all 12,000 groups kept", bare["kept"], took["one"], None)
