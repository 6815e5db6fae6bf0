"""Execution order against timm's own groups, no architecture known by name; and what transformers' models come to."""

import re

import numpy as np
import peft
import pytest
import timm
import torch
import transformers
from scipy.stats import spearmanr
from timm.models._manipulate import group_parameters

import layerwise_lr as llr

FAMILIES = [
    "resnet18",
    "resnet50",
    "regnety_002",
    "efficientnet_b0",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "convnext_atto",
    "convnextv2_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "densenet121",
    "vgg11",
    "mixer_s32_224",
    "xcit_nano_12_p16_224",
    "cait_xxs24_224",
    "levit_128s",
    "inception_v3",
    "inception_resnet_v2",
    "dla34",
    "ghostnet_050",
    "repvgg_a0",
    "edgenext_xx_small",
    "focalnet_tiny_srf",
    "davit_tiny",
    "eva02_tiny_patch14_224",
    "dpn68",
    "res2net50_26w_4s",
    "resnest14d",
    "fastvit_t8",
    "tresnet_m",
    "xception41",
    "hiera_tiny_224",
    "tiny_vit_5m_224",
    "rexnet_100",
    "cspresnet50",
    "vovnet39a",
    "selecsls42",
    "convit_tiny",
    "sequencer2d_s",
    "nest_tiny",
    "twins_pcpvt_small",
    "nfnet_l0",
]


def ranks(values):
    """Ties share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def correlation(a, b):
    """Spearman's."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def test_correlation_is_spearmans():
    a, b = [1, 2, 2, 5, 4], [3, 1, 3, 7, 7]
    assert correlation(a, b) == pytest.approx(spearmanr(a, b)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_order_agrees_with_timms_groups(name):
    model = timm.create_model(name)
    plan = llr.plan(model, lr=1e-3, layer_decay=0.75, convention="order")
    ids = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    names = [n for n, _ in model.named_parameters()]
    assert plan.confidence > 0.85
    assert correlation([plan.depths[n] for n in names], [ids[n] for n in names]) >= 0.98


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


def depths_of(model, **parts):
    """Depth of the parameter that each keyword's prefix finds."""
    plan = llr.plan(model, lr=1e-3, layer_decay=0.75, convention="order")
    assert plan.confidence == 1.0, plan.reasons
    found = {}
    for key, prefix in parts.items():
        several = {depth for name, depth in plan.depths.items() if name.startswith(prefix)}
        assert len(several) == 1, (prefix, several)
        found[key] = several.pop()
    return found


def test_bert():
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL))
    layers = {f"l{i}": f"bert.encoder.layer.{i}." for i in range(3)}
    found = depths_of(model, emb="bert.embeddings", **layers, pooler="bert.pooler", head="classifier")
    assert found == {"emb": 0, "l0": 1, "l1": 2, "l2": 3, "pooler": 4, "head": 5}


def test_gpt_with_its_tied_head():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=3, n_head=2))
    found = depths_of(model, wte="transformer.wte", wpe="transformer.wpe", h0="transformer.h.0.", h2="transformer.h.2.")
    assert found == {"wte": 0, "wpe": 0, "h0": 1, "h2": 3}


def test_vit():
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, image_size=32, patch_size=8))
    plan = llr.plan(model, lr=1e-3, layer_decay=0.75)
    depths = {depth for name, depth in plan.depths.items() if ".embeddings." in name}
    assert (depths, plan.depths["classifier.weight"], plan.depths["vit.layernorm.weight"]) == ({0}, 4, 4)


def test_llama():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, vocab_size=100))
    found = depths_of(model, emb="model.embed_tokens", l0="model.layers.0.", l2="model.layers.2.", head="lm_head")
    assert found == {"emb": 0, "l0": 1, "l2": 3, "head": 4}


def test_clip_has_two_towers():
    text, vision = (
        dict(SMALL, num_hidden_layers=2, vocab_size=100, eos_token_id=1),
        dict(SMALL, image_size=32, patch_size=8),
    )
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    found = depths_of(
        model,
        text="text_model.embeddings",
        vision="vision_model.embeddings",
        last_text="text_model.encoder.layers.1.",
        last_vision="vision_model.encoder.layers.2.",
        to_text="text_projection",
        to_vision="visual_projection",
        scale="logit_scale",
    )
    assert found == {"text": 1, "vision": 0, "last_text": 3, "last_vision": 3, "to_text": 4, "to_vision": 4, "scale": 4}


def test_t5_has_two_towers_and_a_shared_embedding():
    small = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 16}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**small, vocab_size=100))
    found = depths_of(model, emb="shared", e0="encoder.block.0.", e1="encoder.block.1.", d1="decoder.block.1.")
    assert found == {"emb": 0, "e0": 1, "e1": 2, "d1": 2}


def test_detr_has_three_towers():
    small = {"encoder_layers": 2, "decoder_layers": 3, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    backbone = {
        "backbone": "resnet18",
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "backbone_config": None,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5}
    model = transformers.DetrForObjectDetection(transformers.DetrConfig(**small, **backbone, **heads))
    plan = llr.plan(model, lr=1.0, layer_decay=0.5, batch={"pixel_values": torch.zeros(1, 3, 64, 64)})
    depths = plan.depths
    last = ("model.backbone.model.layer4.1.conv1", "model.encoder.layers.1.fc1", "model.decoder.layers.2.fc1")
    found = {depth for name, depth in depths.items() if name.startswith(last) and name.endswith("weight")}
    assert found == {8}
    assert depths["model.backbone.model.conv1.weight"] == 0
    assert depths["class_labels_classifier.weight"] == depths["bbox_predictor.layers.0.weight"] == 9
    assert any("3 towers" in reason for reason in plan.reasons)


def test_a_language_model_behind_a_vision_tower():
    vision = transformers.CLIPVisionConfig(**SMALL, image_size=32, patch_size=8)
    text = transformers.LlamaConfig(**dict(SMALL, num_hidden_layers=2), vocab_size=100)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=99)
    words = torch.tensor([[1, *[99] * 16, 2, 3]])
    batch = {"pixel_values": torch.zeros(1, 3, 32, 32), "input_ids": words}
    plan = llr.plan(transformers.LlavaForConditionalGeneration(config), lr=1.0, layer_decay=0.5, batch=batch)
    depths = plan.depths
    assert depths["model.vision_tower.encoder.layers.2.mlp.fc1.weight"] == 3
    assert depths["model.language_model.layers.1.mlp.up_proj.weight"] == 3
    assert (depths["model.vision_tower.embeddings.patch_embedding.weight"], depths["lm_head.weight"]) == (0, 4)
    assert depths["model.language_model.embed_tokens.weight"] == 1
    assert depths["model.multi_modal_projector.linear_1.weight"] == 4


@pytest.mark.parametrize("targets", [["qkv"], ["qkv", "fc1", "proj"]])
def test_adapters_have_their_hosts_depth(targets):
    model = timm.create_model("vit_tiny_patch16_224", depth=3)
    before = llr.plan(model, lr=1e-3, layer_decay=0.75, convention="order").depths
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, modules_to_save=["head"], r=2))
    plan = llr.plan(adapted, lr=1e-3, layer_decay=0.75, convention="order")
    trained = {n for g in plan.groups for n in g.params}
    assert trained == {n.removeprefix("base_model.model.") for n, p in adapted.named_parameters() if p.requires_grad}
    assert any(".lora_A." in n for n in trained)
    for name, depth in plan.depths.items():
        host = re.sub(r"\.(base_layer|original_module|modules_to_save\.default)\b", "", name)
        host = re.sub(r"\.lora_[AB]\.default", "", host)
        assert depth == before[host], name
