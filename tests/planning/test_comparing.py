import pytest

from layerwise_lr.models.layers import param_table
from layerwise_lr.models.trees import make_tree
from layerwise_lr.planning.comparing import Treated, differences
from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import GroupingSpec

VIT = param_table(make_tree("vit_base", 1000, 3, 224))


def compared(first, second, table=VIT, **spec):
    return {d.name: (d.first, d.second) for d in differences(table, GroupingSpec(**spec), (first, second), 1e-3, 0.05)}


def test_mae_and_timm_treat_two_parameters_of_a_vit_differently():
    assert compared("mae", "timm", layer_decay=0.75) == {
        "norm.weight": (Treated(13, 1.0, 0.0), Treated(12, 0.75, 0.0)),
        "norm.bias": (Treated(13, 1.0, 0.0), Treated(12, 0.75, 0.0)),
    }


def test_they_agree_where_the_pool_is_the_average():
    assert not compared("mae", "timm", param_table(make_tree("vit_base", 10, 3, 224, pool="avg")))


def test_dinov2_s_patch_embedding_and_decayed_tokens():
    found = compared("mae", "dinov2", layer_decay=0.9)
    assert set(found) == {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert found["cls_token"] == (Treated(0, 0.9**13, 0.0), Treated(0, 0.9**13, 0.05))
    assert found["patch_embed.proj.weight"][1].lr_scale == pytest.approx(0.2 * 0.9**13)


def test_the_depths_alone_count_too():
    found = compared("tree", "order", param_table(make_tree("lenet", 10, 1, 28)))
    assert not found
    assert compared("mae", "order", layer_decay=1.0)["head.weight"][1].depth > 13


def test_a_grouping_that_reads_no_convention_is_refused():
    with pytest.raises(UserError, match=r"grouping=flat reads no convention"):
        compared("mae", "timm", strategy="flat")


def test_rules_of_one_s_own_stand_aside():
    assert len(compared("mae", "timm", depths={".*": 0})) == 2
