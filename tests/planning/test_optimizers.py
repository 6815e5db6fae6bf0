"""Which parameters Muon takes, and which the AdamW beside it."""

from dataclasses import replace

import pytest

from layerwise_lr.models import make_tree, param_table
from layerwise_lr.planning import FreezeSpec, GroupingSpec, GroupSpec, OptimizerSpec, ScheduleSpec, UserError, make_plan

MUON = OptimizerSpec("muon", lr=0.5, weight_decay=0.1, betas=[0.8, 0.9], eps=1e-3)


def plan_of(tree, grouping, optimizers):
    return make_plan(param_table(tree), grouping, optimizers, {"default": ScheduleSpec()}, FreezeSpec(), 10)[1]


def test_hidden_matrices_of_a_vit_go_to_muon_and_the_rest_to_adamw():
    tree = make_tree("vit_tiny", 3, 1, 8, patch_size=4, depth=2, embed_dim=24)
    grouping = GroupingSpec("layer_decay", layer_decay=0.5)
    plan, plain = (plan_of(tree, grouping, {"default": spec}) for spec in (MUON, replace(MUON, name="adamw")))
    of, before = plan.group_of(), plain.group_of()
    by_hand = {
        f"blocks.{block}.{name}.weight" for block in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert {name for name, group in of.items() if plan.optimizers[group.optimizer].name == "muon"} == by_hand
    beside = {group.optimizer for name, group in of.items() if name not in by_hand}
    assert beside == {"default_adamw"} and plan.optimizers["default_adamw"] == replace(MUON, name="adamw")
    for name, group in of.items():
        assert (group.lr_scale, group.weight_decay, group.active) == (
            before[name].lr_scale,
            before[name].weight_decay,
            before[name].active,
        ), "who updates a parameter changes nothing of its lr"
    assert len({group.name for group in plan.groups}) == len(plan.groups)


def test_of_a_named_optimizer_only_its_own_groups():
    tree = make_tree("lenet", 3, 1, 12)
    groups = {"dense": GroupSpec(["fc*"], optimizer="m")}
    plan = plan_of(tree, GroupingSpec("flat", groups=groups), {"default": OptimizerSpec("sgd"), "m": MUON})
    names = {name: plan.optimizers[group.optimizer].name for name, group in plan.group_of().items()}
    assert {n for n, optimizer in names.items() if optimizer == "muon"} == {"fc1.weight", "fc2.weight"}
    assert {n for n, optimizer in names.items() if optimizer == "adamw"} == {"fc1.bias", "fc2.bias"}
    assert names["conv1.weight"] == names["classifier.weight"] == "sgd"


def test_a_net_without_hidden_matrices_is_told():
    with pytest.raises(UserError, match=r"none of its 62 parameters is a hidden matrix.*optimizer=adamw"):
        plan_of(make_tree("resnet18", 3, 3, 32), GroupingSpec("flat"), {"default": MUON})
