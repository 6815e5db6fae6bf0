"""timm's own ids, from timm itself: the live matcher of each family's smallest model, and the table of names."""

import pytest

from layerwise_lr.planning import UserError, timm_depths
from layerwise_lr.planning.timm_names import family_depths

BY_NAMES = """
beit_base_patch16_224 cait_xxs24_224 coat_lite_tiny convit_tiny convmixer_1024_20_ks9_p14 cpubone_nano crossvit_9_240
cspnext_tiny darknet17 davit_tiny deit_tiny_distilled_patch16_224 densenet121 dla34 dpn48b edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvim_m1_dist efficientvit_b0 efficientvit_l1
efficientvit_m2 ese_vovnet19b_slim fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hgnet_tiny
hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto inception_v4 lcnet_035 lcnetv2_small legacy_seresnet18
legacy_xception levit_128s levit_512_s8 lowformer_e1 mixer_s16_224 mobilenetv2_100 mobilenetv5_base mvitv2_tiny
naflexvit_base_patch16_siglip nasnetalarge nest_tiny nextvit_small nf_resnet26 pnasnet5large pvt_v2_b0 rdnet_tiny
regnetx_002 repghostnet_050 repvit_m2 resnet10t resnetv2_18 rexnet_100 sam2_hiera_tiny samvit_base_patch16_224
selecsls42 sequencer2d_s shvit_s1 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
swinv2_tiny_window8_256 test_byobnet test_coatnet test_convnext3 test_efficientnet test_mambaout test_vit
test_vit_relpos tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny
vit_pe_spatial_tiny_patch16_512 volo_d1_224 xception41p xcit_nano_12_p8_224
vit_base_patch16_clip_224 vit_so400m_patch14_siglip_224 eva02_tiny_patch14_224 cspresnet50 maxvit_rmlp_pico_rw_256
"""
LIVE_ONLY = ["deepseek_vit_412m", "gemma4_vit_167m", "qwen3_vit_88m", "inception_v3", "inception_resnet_v2"]
NOT_TIMM_S = ["poolformer_s12", "caformer_s18", "pit_ti_224", "csatv2"]


def made(name):
    import timm
    import torch

    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def ids(model):
    from timm.models import group_parameters

    return group_parameters(model, model.group_matcher(coarse=False), reverse=True)


@pytest.mark.parametrize("name", [*BY_NAMES.split(), *LIVE_ONLY])
def test_ids_are_timm_s_own(name):
    model = made(name)
    names, expected = [n for n, _ in model.named_parameters()], ids(model)
    assert timm_depths(names, model.group_matcher(coarse=False)) == expected
    if name in LIVE_ONLY:
        with pytest.raises(UserError, match="use grouping"):
            family_depths(names)
    else:
        assert family_depths(names) == expected


@pytest.mark.parametrize("name", NOT_TIMM_S)
def test_what_timm_cannot_group_is_refused(name):
    model = made(name)
    assert not hasattr(model, "group_matcher")
    with pytest.raises(UserError, match=r"grouping\.convention=timm knows"):
        family_depths([n for n, _ in model.named_parameters()])


def test_a_wrapped_model_s_ids_are_the_model_s():
    import torch

    model = made("test_vit")
    wrapped = [f"module.{n}" for n, _ in torch.compile(model).named_parameters()]
    assert all("_orig_mod" in n for n in wrapped)
    matcher = model.group_matcher(coarse=False)
    assert list(timm_depths(wrapped, matcher).values()) == list(ids(model).values())
    assert list(family_depths(wrapped).values()) == list(ids(model).values())
