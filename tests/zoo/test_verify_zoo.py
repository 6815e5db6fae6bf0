"""The eight silent failures of docs/silent-failures.md, against the real timm and transformers where they are theirs; what
cannot be installed beside torch is written here as its repository does it, in our words. And healthy set-ups of the zoo."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import transformers
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, PlateauLRScheduler, StepLRScheduler
from torch import nn
from torch.optim import lr_scheduler

import layerwise_lr as llr
from layerwise_lr.framework.native import Report, examine

UNREAD, NONE = "lr_scale that nobody reads", "no layer-wise lr at all"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=5)


@pytest.fixture
def plan(vit: nn.Module) -> llr.ModelPlan:
    return llr.plan(vit, lr=1e-3, layer_decay=0.75, batch=torch.zeros(1, 3, 32, 32))


def layered(model: nn.Module, kind: str = "adamw") -> Any:
    return create_optimizer_v2(model, opt=kind, lr=1e-3, weight_decay=0.05, layer_decay=0.75)


def names(report: Report) -> list[str]:
    return [fault.name for fault in report.faults]


def own_lrs(optimizer: Any, model: nn.Module) -> dict[str, float]:
    """timm's groups by name, multiplied by hand: what the lrs should be."""
    of = {id(p): 1e-3 * g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters()}


# --- 1: timm's groups and no scheduler of timm's


@pytest.mark.parametrize(
    "make",
    [
        lambda o: None,
        lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: lr_scheduler.OneCycleLR(o, 1e-3, total_steps=10),
        lambda o: transformers.get_cosine_schedule_with_warmup(o, 2, 10),
    ],
    ids=["none", "cosine", "one cycle", "transformers"],
)
def test_case_1_timm_groups_with_another_scheduler(vit: nn.Module, make: Callable[[Any], Any]) -> None:
    optimizer = layered(vit)
    report = examine(vit, optimizer, make(optimizer))
    assert names(report) == [UNREAD]
    assert len(report.faults[0].where) == len(optimizer.param_groups) == 8


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lion", "nadamw", "rmsproptf", "lamb", "lars", "adafactorbv", "muon"])
def test_case_1_healthy_timm_scheduler(vit: nn.Module, kind: str) -> None:
    optimizer = layered(vit, kind)
    scheduler = CosineLRScheduler(optimizer, t_initial=10, lr_min=1e-5, warmup_t=2, warmup_lr_init=1e-6)
    scheduler.step(5)
    assert llr.verify(vit, optimizer, scheduler).ok


def test_case_1_healthy_numbers(vit: nn.Module) -> None:
    optimizer = layered(vit)
    report = llr.verify(vit, optimizer, StepLRScheduler(optimizer, decay_t=3))
    assert report.lrs == pytest.approx(own_lrs(optimizer, vit), rel=1e-4)
    assert len(set(own_lrs(optimizer, vit).values())) == 4


# --- 2: timm on a model that it does not know by name


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [Wrapped, nn.DataParallel], ids=["module.", "DataParallel"])
def test_case_2_timm_on_a_wrapped_model(vit: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(vit)
    optimizer = layered(model)
    assert {g["lr_scale"] for g in optimizer.param_groups} == {1.0}
    assert names(examine(model, optimizer)) == [NONE]
    assert names(examine(model, optimizer, CosineLRScheduler(optimizer, t_initial=10))) == [NONE]


def test_case_2_timm_on_a_users_model(plan: llr.ModelPlan, vit: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))
    assert names(examine(model, layered(model))) == [NONE]
    assert llr.verify(vit, torch.optim.AdamW(plan.param_groups(nn.DataParallel(vit))), plan).ok


# --- 4, 5, 7: groups as mindformers, PASSL and BEiT make them


def test_case_4_mindformers_argument_that_is_not_read(vit: nn.Module, plan: llr.ModelPlan) -> None:
    """By reading: two groups by weight decay; layer_decay goes nowhere, and nothing in the groups tells of it."""
    groups = defaultdict(list)
    for name, p in vit.named_parameters():
        groups[p.ndim == 1 or name.endswith(".bias")].append(p)
    optimizer = torch.optim.AdamW(
        [{"params": groups[no], "weight_decay": 0.0 if no else 0.05} for no in (False, True)], lr=1e-3
    )
    report = examine(vit, optimizer)
    assert report.ok and report.notes == ("one lr for all: where layers should differ, give plan=",)
    assert names(examine(vit, optimizer, plan)) == [NONE]


def test_case_5_passl_scales_by_the_keys_of_a_dict(vit: nn.Module, plan: llr.ModelPlan) -> None:
    """By running its function: scales are looked up under the first letter of "params", so every one is 1."""
    stages = {"stem": ["cls_token", "pos_embed", "patch_embed"], "blocks": ["blocks"], "head": ["norm", "head"]}
    of = {
        s: {"params": [(n, p) for n, p in vit.named_parameters() if n.startswith(tuple(b))]} for s, b in stages.items()
    }
    scales = {key[0]: 0.5 ** (len(of) - i) for i, own in enumerate(of.values()) for key in own}
    groups = [
        {"params": [p for _, p in own["params"]], "lr_scale": scales.get(own["params"][0][0], 1.0), "group_name": stage}
        for stage, own in of.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    report = examine(vit, optimizer)
    assert names(report) == [NONE] and report.faults[0].where == ("stem", "blocks", "head")
    assert names(examine(vit, optimizer, plan)) == [NONE]


def beit_optimizer(model: nn.Module, weight_decay: float) -> Any:
    """By reading: groups with lr_scale where there is weight decay, else the bare parameters."""
    if not weight_decay:
        return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, p in model.named_parameters():
        stem = name.startswith(("cls_token", "pos_embed", "patch_embed"))
        layer = 0 if stem else int(name.split(".")[1]) + 1 if name.startswith("blocks") else 3
        groups[layer, p.ndim == 1].append(p)
    made = [
        {"params": own, "weight_decay": 0.0 if flat else weight_decay, "lr_scale": 0.75 ** (3 - layer)}
        for (layer, flat), own in groups.items()
    ]
    return torch.optim.AdamW(made, lr=1e-3)


class BeitLoop:
    """BEiT's engine writes schedule[step] * lr_scale into every group."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.at = optimizer, -1
        self.step()

    def step(self) -> None:
        self.at += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-3 * 0.99**self.at * group.get("lr_scale", 1.0)


def test_case_7_beit_without_weight_decay(vit: nn.Module, plan: llr.ModelPlan) -> None:
    sick = beit_optimizer(vit, 0.0)
    assert names(examine(vit, sick, BeitLoop(sick), plan)) == [NONE]
    healthy = beit_optimizer(vit, 0.05)
    assert names(examine(vit, healthy)) == [UNREAD]  # before its own loop has written any lr
    assert llr.verify(vit, healthy, BeitLoop(healthy)).ok


# --- 8: XLNet scales gradients, then Adam


def test_case_8_xlnet_decay_on_gradients(vit: nn.Module) -> None:
    """Its optimizer is TensorFlow's: here the same decay as hooks on the gradients, and under SGD, where it counts."""
    for name, p in vit.named_parameters():
        depth = 0 if name.startswith(("cls", "pos", "patch")) else 1 if name.startswith("blocks.0") else 2
        p.register_hook(lambda g, scale=0.75 ** (2 - depth): g * scale)
    told = examine(vit, torch.optim.Adam(vit.parameters(), lr=1e-3, eps=1e-12))
    assert names(told) == ["decay on gradients that the optimizer divides out"]
    sgd = examine(vit, torch.optim.SGD(vit.parameters(), lr=1e-3))
    assert names(sgd) == []
    assert sgd.lrs["cls_token"] == pytest.approx(1e-3 * 0.75**2, rel=1e-4)


# --- what transformers and timm do besides


def bert() -> Any:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50
        )
    )


def words() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 50, (2, 7)), "labels": torch.tensor([0, 1])}


@pytest.mark.parametrize("given", [None, words()], ids=["drawn", "batch"])
def test_transformers_model_schedule_and_loss(given: Any) -> None:
    model = bert()
    plan = llr.plan(model, lr=1e-3, layer_decay=0.75, weight_decay=0.01)
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, 3, 30)
    report = llr.verify(model, optimizer, scheduler, plan, given)
    assert report.measured.steps[-1] == 30


def test_transformers_adafactor() -> None:
    model = bert()
    relative = transformers.Adafactor(model.parameters(), lr=None, relative_step=True)
    assert names(examine(model, relative)) == ["lr that the optimizer does not read"]
    lrs = llr.verify(
        model, transformers.Adafactor(model.parameters(), lr=1e-3, relative_step=False, scale_parameter=False)
    ).lrs
    assert lrs["classifier.weight"] == pytest.approx(1e-3)


def test_timm_lookahead(vit: nn.Module) -> None:
    assert llr.verify(vit, create_optimizer_v2(vit, opt="lookahead_adamw", lr=1e-3)).ok


def test_timm_plateau_and_updates(vit: nn.Module) -> None:
    optimizer = layered(vit)
    assert llr.verify(vit, optimizer, PlateauLRScheduler(optimizer, patience_t=1)).ok
    optimizer = layered(vit)
    assert llr.verify(
        vit, optimizer, CosineLRScheduler(optimizer, t_initial=10, t_in_epochs=False), batch=_pictures()
    ).ok


def _pictures() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 32, 32), torch.tensor([0, 4])


def test_our_plan_under_timm_scheduler(vit: nn.Module, plan: llr.ModelPlan) -> None:
    optimizer = torch.optim.AdamW(plan.param_groups(vit))
    assert llr.verify(vit, optimizer, CosineLRScheduler(optimizer, t_initial=10), plan, _pictures()).ok
