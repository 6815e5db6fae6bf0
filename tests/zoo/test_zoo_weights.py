"""state_dicts of the real timm, torchvision and transformers into the declared models; nothing is downloaded."""

import numpy as np
import pytest

from layerwise_lr.data import fetch
from layerwise_lr.models import make_tree
from layerwise_lr.models.fitting import fit_channels, fit_pos_embed
from layerwise_lr.models.layers import initial_weights
from layerwise_lr.models.weights import WeightsSpec, start_weights
from layerwise_lr.planning.errors import UserError


def timm_state(name, **options):
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **options)
    with torch.no_grad():
        for parameter in model.parameters():  # zeros and ones would hide an exchange
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model.eval()


def start(tmp_path, state, tree, name="w.pth", **spec):
    import torch

    torch.save(state, tmp_path / name)
    return start_weights(tree, WeightsSpec("file", str(tmp_path / name), **spec), 3)


def vit(name="vit_tiny", classes=10, channels=3, side=224, **options):
    return make_tree(name, classes, channels, side, **options)


def predict(tree, weights, x):
    import torch
    from layerwise_lr.plugins.torch_plugin.plugin import TorchFramework

    framework = TorchFramework("cpu")
    model = framework.make_model(tree)
    framework.set_weights(model, weights)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(x)).numpy()


def check(found, state, names):
    for name in names:
        assert np.array_equal(found[name], state[name].numpy()), name


@pytest.mark.parametrize(
    ("zoo", "options", "tree"),
    [
        ("vit_tiny_patch16_224", {"num_classes": 0}, vit()),
        ("vit_tiny_patch16_224", {"num_classes": 0, "global_pool": "avg"}, vit(pool="avg")),
        ("vit_small_patch14_dinov2", {"img_size": 224}, vit("vit_small", patch_size=14, layer_scale=1e-5)),
        ("vit_base_patch16_clip_224", {"num_classes": 0}, vit("vit_base", pre_norm=True)),
        ("vit_small_patch16_224", {"num_classes": 21}, vit("vit_small")),
        ("resnet18", {"num_classes": 0}, make_tree("resnet18", 7, 3, 64)),
        ("resnet34", {"num_classes": 7}, make_tree("resnet34", 5, 3, 64)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_timm_backbone_is_taken_whole(tmp_path, zoo, options, tree):
    state = timm_state(zoo, **options).state_dict()
    found, notes = start(tmp_path, state, tree)
    head = {f"{tree.head}.weight", f"{tree.head}.bias"}
    check(found, state, set(found) - head)
    fresh = initial_weights(tree, 3)
    assert all(np.array_equal(found[name], fresh[name]) for name in head)
    assert any(note.startswith(f"head {tree.head} starts from initial values: ") for note in notes)
    assert not any("left out" in note for note in notes)


def test_a_distilled_deit_loses_its_distillation_token(tmp_path):
    state = timm_state("deit_tiny_distilled_patch16_224").state_dict()
    found, notes = start(tmp_path, state, vit())
    held = state["pos_embed"].numpy()
    assert np.array_equal(found["pos_embed"], np.delete(held, 1, axis=1))
    check(found, state, ["cls_token", "blocks.11.mlp.fc2.weight", "norm.bias"])
    assert notes[-1] == "3 arrays of w.pth left out, not the model's: dist_token, head_dist (2)"


def test_dinov2_with_registers_in_another_size(tmp_path):
    import torch
    from timm.layers import resample_abs_pos_embed

    state = timm_state("vit_small_patch14_reg4_dinov2").state_dict()
    found, notes = start(tmp_path, state, vit("vit_small", patch_size=14, layer_scale=1e-5))
    expected = resample_abs_pos_embed(state["pos_embed"], [16, 16], num_prefix_tokens=0).numpy()
    assert np.allclose(found["pos_embed"][:, 1:], expected, atol=1e-5)
    assert not found["pos_embed"][:, 0].any()
    assert "position embedding: resized from 37x37 to 16x16, no position of the class token in the file: zero" in notes
    assert notes[-1] == "1 array of w.pth left out, not the model's: reg_token"
    assert torch.equal(state["cls_token"], torch.from_numpy(found["cls_token"]))


@pytest.mark.parametrize("new", [7, 13, 14, 24, 37])
def test_resizing_is_timms(new):
    import torch
    from timm.layers import resample_abs_pos_embed

    held = np.random.default_rng(0).normal(size=(1, 1 + 14 * 14, 6)).astype(np.float32)
    expected = resample_abs_pos_embed(torch.from_numpy(held), [new, new]).numpy()
    assert np.allclose(fit_pos_embed(held, 1 + new * new, {})[0], expected, atol=1e-5)


@pytest.mark.parametrize(("held", "want"), [(3, 1), (1, 3), (2, 3), (4, 3), (4, 1)])
def test_channels_are_timms(held, want):
    import torch
    from timm.models._manipulate import adapt_input_conv

    weight = np.random.default_rng(0).normal(size=(5, held, 4, 4)).astype(np.float32)
    expected = adapt_input_conv(want, torch.from_numpy(weight), base_chans=held).numpy()
    assert np.allclose(fit_channels(weight, want)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("zoo", "options", "tree"),
    [
        ("vit_base_patch16_clip_224", {}, {"name": "vit_base", "pre_norm": True}),
        ("vit_tiny_patch16_224", {}, {}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, {"pool": "avg"}),
        ("deit3_small_patch16_224", {}, {"name": "vit_small", "layer_scale": 1e-6}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_was_taken_computes_what_timms_model_computes(tmp_path, zoo, options, tree):
    import torch
    from layerwise_lr.plugins.torch_plugin.plugin import TorchFramework

    from layerwise_lr.framework import begin
    from layerwise_lr.models import param_table
    from layerwise_lr.planning import FreezeSpec, GroupingSpec, OptimizerSpec, ScheduleSpec, make_plan

    theirs, tree = timm_state(zoo, num_classes=10, **options), vit(**tree)
    found, _ = start(tmp_path, theirs.state_dict(), tree)
    framework = TorchFramework("cpu")
    model = framework.make_model(tree)
    framework.set_weights(model, found)
    specs = {"default": OptimizerSpec()}, {"default": ScheduleSpec()}
    plan = make_plan(param_table(tree), GroupingSpec(), *specs, FreezeSpec(), 1)[1]
    x = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    assert np.allclose(framework.predict(begin(framework, model, plan), x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_torchvisions_own_names(tmp_path, name):
    import torchvision

    state = getattr(torchvision.models, name)(weights=None).state_dict()
    found, notes = start(
        tmp_path, {"state_dict": {f"module.{n}": t for n, t in state.items()}}, make_tree(name, 1000, 3, 64)
    )
    check(found, state, found)
    assert notes[1:] == ["read from key state_dict of w.pth", "prefix module. taken off the names of w.pth"]


def refused(tmp_path, state, tree, *words):
    with pytest.raises(UserError) as caught:
        start(tmp_path, state, tree)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).isprintable()


def test_other_libraries_names_are_refused_by_whose_they_are(tmp_path):
    import torchvision
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    state = ResNetForImageClassification(config).state_dict()
    refused(tmp_path, state, make_tree("resnet18", 10, 3, 64), "Hugging Face's", "resnet18 reads torchvision's")
    refused(tmp_path, torchvision.models.vit_b_16(weights=None).state_dict(), vit("vit_base"), "torchvision's ViT's")
    mobile = timm_state("mobilenetv2_100").state_dict()
    refused(tmp_path, mobile, make_tree("mobilenet_v2", 10, 3, 64), "timm's MobileNets'", "reads torchvision's")


def test_other_models_are_refused_with_the_words_for_them(tmp_path):
    refused(tmp_path, timm_state("resnet34").state_dict(), make_tree("resnet18", 7, 3, 64), "model=resnet34 fits it")
    clip = timm_state("vit_base_patch16_clip_224").state_dict()
    refused(tmp_path, clip, vit("vit_base"), "norm_pre.weight", "model.pre_norm=true fits it")
    small = timm_state("vit_small_patch14_dinov2", img_size=224).state_dict()
    refused(tmp_path, small, vit(), "model=vit_small model.patch_size=14 model.layer_scale=1e-05 fits it")
    refused(
        tmp_path, timm_state("beit_base_patch16_224").state_dict(), vit("vit_base"), "missing from the file: pos_embed"
    )


@pytest.mark.network
def test_the_fetched_dinov2_is_timm_s_to_the_last_array():
    """Its features were compared with the ONNX file's own by hand: at equal position embedding they differ by 3e-5."""
    import timm
    from safetensors.torch import load_file

    held = load_file(fetch.fetch("dinov2_vits14") / "model.safetensors")
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0)
    assert str(model.load_state_dict(held, strict=True)) == "<All keys matched successfully>"


@pytest.mark.parametrize("saved", [True, False], ids=["in its files", "in memory"])
@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_hugging_face_s_vits_are_read_and_compute_the_same(tmp_path, kind, saved):
    """The names that transformers writes, and those that its modules have; the features, by its own code."""
    import torch
    import transformers

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    more = {"intermediate_size": 96} if kind == "ViT" else {}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more, layer_norm_eps=1e-6, num_labels=5)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tree = vit("vit_tiny", 5, 3, 32, embed_dim=24, num_heads=3, depth=2, patch_size=8)
    if kind == "Dinov2":
        tree = vit("vit_tiny", 5, 3, 32, embed_dim=24, num_heads=3, depth=2, patch_size=8, layer_scale=1e-5)
    path = tmp_path / "w.pth"
    if saved:
        model.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:
        torch.save(model.state_dict(), path)
    found, notes = start_weights(tree, WeightsSpec("file", str(path)), 3)
    assert any("Hugging Face's names" in note for note in notes)
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).last_hidden_state[:, 0]
    logits = expected.numpy() @ found["head.weight"].T + found["head.bias"]
    assert np.allclose(predict(tree, found, x), logits, atol=1e-5)
