"""Files as they lie about: without a head, behind a prefix, under a key, in shards, in another precision; and hostile."""

import argparse
import json
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from layerwise_lr.models import fitting, make_tree, reading
from layerwise_lr.models.layers import initial_weights
from layerwise_lr.models.weights import WeightsSpec, start_weights
from layerwise_lr.planning.errors import UserError, plain

SMALL = {"depth": 1, "embed_dim": 12, "num_heads": 3, "patch_size": 8}


def vit(classes=5, channels=3, side=32, **more):
    return make_tree("vit_tiny", classes, channels, side, **{**SMALL, **more})


def arrays(tree):
    """Other numbers than any initial ones."""
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=a.shape).astype(np.float32) for name, a in initial_weights(tree, 0).items()}


VIT = vit()
HELD = arrays(VIT)
BODY = {name: a for name, a in HELD.items() if not name.startswith("head.")}
HEAD = ["head.weight", "head.bias"]


def start(tmp_path, held, tree=VIT, name="w.npz", **spec):
    path = tmp_path / name
    if path.suffix == ".npz":
        np.savez(path, **held)
    else:
        import torch

        torch.save(tensors(held), path)
    return start_weights(tree, WeightsSpec("file", str(path), **spec), 7)


def tensors(held):
    import torch

    if isinstance(held, dict):
        return {name: tensors(a) for name, a in held.items()}
    return torch.from_numpy(held) if isinstance(held, np.ndarray) else held


def same(found, expected, names=None):
    for name in names or expected:
        assert np.array_equal(found[name], expected[name]), name


def fresh(found, names, tree=VIT):
    same(found, initial_weights(tree, 7), names)


def refused(tmp_path, held, *words, **more):
    with pytest.raises(UserError) as caught:
        start(tmp_path, held, **more)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert message.isprintable()
    assert len(message) < 1000
    return message


# names


def hugging_face(held, prefix="vit."):
    """The model's arrays as transformers writes them, spelt out."""
    found = {}
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    blocks = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for kind in ("weight", "bias"):
        names |= {f"blocks.0.{own}.{kind}": f"encoder.layer.0.{theirs}.{kind}" for own, theirs in blocks.items()}
        for part, array in zip(("query", "key", "value"), np.split(held[f"blocks.0.attn.qkv.{kind}"], 3), strict=True):
            found[f"{prefix}encoder.layer.0.attention.attention.{part}.{kind}"] = array
    return found | {prefix + theirs: held[own] for own, theirs in names.items()}


def test_hugging_face_s_names_are_read(tmp_path):
    theirs = hugging_face(HELD)
    assert len(theirs) == len(BODY) + 4, "three arrays for each qkv"
    found, notes = start(tmp_path, theirs)
    same(found, BODY)
    fresh(found, HEAD)
    assert "Hugging Face's names of w.npz read as timm's" in notes
    found, notes = start(
        tmp_path, {**theirs, "classifier.weight": HELD["head.weight"], "classifier.bias": HELD["head.bias"]}
    )
    same(found, HELD)
    assert "head head is read from classifier" in notes


def test_hugging_face_s_names_without_a_key_are_refused_as_theirs(tmp_path):
    theirs = hugging_face(HELD)
    del theirs["vit.encoder.layer.0.attention.attention.key.bias"]
    refused(tmp_path, theirs, "those names are Hugging Face's")


# heads and leftovers


def test_without_a_head_the_head_starts_anew(tmp_path):
    found, notes = start(tmp_path, BODY)
    same(found, BODY)
    fresh(found, HEAD)
    assert notes == [f"{len(BODY)} arrays loaded from w.npz", "head head starts from initial values: the file has none"]


def test_a_head_of_equal_size_is_renewed_when_asked(tmp_path):
    found, notes = start(tmp_path, HELD, renew_head=True)
    same(found, BODY)
    fresh(found, HEAD)
    assert "head head starts from initial values: as weights.renew_head says" in notes
    same(start(tmp_path, HELD)[0], HELD)


def test_half_a_head_is_refused_and_the_advice_works(tmp_path):
    half = BODY | {"head.weight": HELD["head.weight"]}
    refused(tmp_path, half, "1 missing from the file: head.bias; weights.renew_head=true")
    fresh(start(tmp_path, half, renew_head=True)[0], HEAD)


def test_leftovers_of_other_modules_are_told(tmp_path):
    more = {
        "mask_token": np.zeros(3),
        "head.mlp.0.weight": np.zeros(3),
        "decoder.0.a": np.zeros(1),
        "decoder.0.b": np.zeros(1),
    }
    found, notes = start(tmp_path, {**BODY, **more})
    same(found, BODY)
    assert notes[-1] == "4 arrays of w.npz left out, not the model's: mask_token, head.mlp.0.weight, decoder.0 (2)"


@pytest.mark.parametrize(
    ("file", "model", "words"),
    [
        ({"depth": 2}, {}, ["12 not in the model: blocks.1.", "model.depth=2 fits it"]),
        ({}, {"depth": 2}, ["12 missing from the file: blocks.1.norm1.weight", "model.depth=1 fits it"]),
        ({"layer_scale": 1e-5}, {}, ["2 not in the model: blocks.0.ls1.gamma", "model.layer_scale=1e-05 fits it"]),
        ({}, {"layer_scale": 1e-5}, ["2 missing from the file: blocks.0.ls1.gamma", "model.layer_scale=null fits it"]),
        ({"pre_norm": True}, {}, ["patch_embed.proj.bias", "norm_pre.weight", "model.pre_norm=true fits it"]),
        ({"patch_size": 16}, {}, ["patch_embed.proj.weight [192, 3, 16, 16]", "model.patch_size=16 fits it"]),
        ({}, {"embed_dim": 384}, ["[192] instead of [384]", "model=vit_tiny fits it"]),
    ],
)
def test_layers_that_only_one_has_are_refused_with_words_that_were_tried(tmp_path, file, model, words):
    file, tree = (vit(**{"embed_dim": 192, **options}) for options in (file, model))
    refused(tmp_path, arrays(file), *words, tree=tree)


def test_words_that_would_not_work_are_not_given(tmp_path):
    """A block of 12 numbers: no published model has such, so the depth alone is no remedy."""
    message = refused(tmp_path, arrays(vit(depth=2)), "12 not in the model")
    assert message.endswith("give weights of this very model, or weights=none")


def test_a_smaller_picture_is_not_advised_where_the_patch_does_not_divide_it(tmp_path):
    message = refused(tmp_path, arrays(vit(embed_dim=192)), tree=vit(embed_dim=192, side=30, patch_size=10))
    assert message.endswith("model.patch_size=8 data.image_size=32 fits it, or take weights=none")


def test_a_deeper_resnet_is_no_resnet18(tmp_path):
    message = refused(
        tmp_path, arrays(make_tree("resnet34", 3, 3, 32)), "80 not in the model", tree=make_tree("resnet18", 3, 3, 32)
    )
    assert message.endswith("model=resnet34 fits it, or take weights=none")


def test_the_final_norm_of_another_pool_starts_anew(tmp_path):
    average = vit(pool="avg")
    found, notes = start(tmp_path, BODY, tree=average)
    fresh(found, ["fc_norm.weight", "fc_norm.bias"], average)
    assert "fc_norm starts from initial values: the file has norm, of model.pool=token" in notes
    found, notes = start(tmp_path, arrays(average))
    fresh(found, ["norm.weight", "norm.bias"])
    assert "norm starts from initial values: the file has fc_norm, of model.pool=avg" in notes
    refused(tmp_path, {n: a for n, a in BODY.items() if n != "norm.weight"}, "1 missing from the file: norm.weight")


# prefixes and keys


@pytest.mark.parametrize(
    "prefix", ["module.", "backbone.", "model.", "encoder.", "visual.", "base_model.model.", "_orig_mod.", "a.b.c."]
)
def test_one_prefix_is_taken_off_and_told(tmp_path, prefix):
    found, notes = start(tmp_path, {prefix + name: a for name, a in HELD.items()})
    same(found, HELD)
    assert notes == [f"{len(HELD)} arrays loaded from w.npz", f"prefix {prefix} taken off the names of w.npz"]


@pytest.mark.parametrize(
    ("there", "size", "read"), [("head", 5, True), ("fc", 5, True), ("classifier", 5, True), ("fc", 9, False)]
)
def test_a_prefix_on_the_backbone_alone(tmp_path, there, size, read):
    head = {f"{there}.weight": np.ones((size, 12), np.float32), f"{there}.bias": np.ones(size, np.float32)}
    found, notes = start(tmp_path, {f"backbone.{name}": a for name, a in BODY.items()} | head)
    same(found, BODY)
    assert (found["head.weight"] == 1).all() == read
    assert (f"head head is read from {there}" in notes) == read
    assert ("head head starts from initial values: the file has none" in notes) == (not read)


@pytest.mark.torch
@pytest.mark.parametrize("keys", [["model"], ["state_dict"], ["model_state"], ["ema"], ["weights", "net"], ["0"]])
def test_a_mapping_under_any_key_is_found(tmp_path, keys):
    held = HELD
    for key in reversed(keys):
        held = {key: held, "epoch": 3}
    found, notes = start(tmp_path, held, name="w.pth")
    same(found, HELD)
    assert notes[1] == f"read from key {'.'.join(keys)} of w.pth"


def both(**more):
    other = {name: a + 1 for name, a in BODY.items()}
    return {"student": {f"module.{name}": a for name, a in other.items()}, "teacher": BODY, **more}


@pytest.mark.torch
def test_of_student_and_teacher_the_choice_is_told_and_can_be_made(tmp_path):
    found, notes = start(tmp_path, both(), name="w.pth")
    same(found, BODY)
    assert "student.module and teacher fit: teacher is taken; weights.key=student.module takes the other" in notes
    for key in ("student", "student.module"):
        found, _ = start(tmp_path, both(), name="w.pth", key=key)
        same(found, {name: a + 1 for name, a in BODY.items()})


def test_two_that_nothing_tells_apart_are_asked_for(tmp_path):
    held = {f"{one}.{name}": a for one in ("net_a", "net_b") for name, a in BODY.items()}
    refused(tmp_path, held, "2 sets of weights that fit: net_a, net_b; choose one: weights.key=net_a")
    found, notes = start(tmp_path, held, key="net_b")
    same(found, BODY)
    assert notes[-1] == f"{len(BODY)} arrays of w.npz left out, not the model's: net_a ({len(BODY)})"


def test_a_key_that_leads_nowhere_is_refused_with_what_there_is(tmp_path):
    held = {f"module.{name}": a for name, a in BODY.items()}
    refused(tmp_path, held, "weights.key=teacher", "there are: module", key="teacher")


# precisions


def test_bfloat16_is_exact_without_torch(tmp_path):
    """Bit patterns from the standard: sign, 8 bits of exponent, 7 of mantissa."""
    bits = {0x3FC0: 1.5, 0xC000: -2.0, 0x0080: 2.0**-126, 0x7F7F: 255 * 2.0**120, 0x0001: 2.0**-133}
    raw = np.array(list(bits), "<u2").tobytes()
    header = json.dumps({"a": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw)
    held = reading.read(tmp_path / "w.safetensors").states[""]["a"]
    assert held.dtype == np.float32
    assert held.tolist() == list(bits.values())


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_halves_and_doubles_are_torchs_own_float32(tmp_path, kind, suffix):
    import torch
    from safetensors.torch import save_file as save

    held = {name: torch.from_numpy(a).to(getattr(torch, kind)) for name, a in HELD.items()}
    (torch.save if suffix == ".pth" else save)(held, tmp_path / f"w{suffix}")
    found, _ = start_weights(VIT, WeightsSpec("file", str(tmp_path / f"w{suffix}")), 0)
    same(found, {name: t.float().numpy() for name, t in held.items()})


@pytest.mark.parametrize(
    ("kind", "told"), [(np.int8, "int8 (quantized?)"), (np.complex64, "complex64"), (bool, "bool")]
)
def test_what_is_no_floating_point_is_refused(tmp_path, kind, told):
    name = "blocks.0.attn.qkv.weight"
    refused(tmp_path, HELD | {name: HELD[name].astype(kind)}, f"{name} is of {told}")


def test_nan_and_infinity_are_counted_in_their_array(tmp_path):
    broken = HELD["blocks.0.mlp.fc1.weight"].copy()
    broken.flat[[3, 5]] = np.nan, np.inf
    refused(
        tmp_path,
        HELD | {"blocks.0.mlp.fc1.weight": broken},
        "w.npz: 2 of 576 numbers of blocks.0.mlp.fc1.weight are NaN",
    )
    stem = HELD["patch_embed.proj.weight"].copy()
    stem[0, 0, 0, 0] = np.nan
    refused(
        tmp_path, HELD | {"patch_embed.proj.weight": stem}, "1 of 2304 numbers of patch_embed", tree=vit(channels=1)
    )
    start(tmp_path, HELD | {"head.bias": np.full(5, np.nan)}, renew_head=True)  # nobody reads it


# channels


def test_an_rgb_stem_sees_a_grey_picture_as_it_saw_three_equal_channels(tmp_path):
    found, notes = start(tmp_path, HELD, tree=vit(channels=1))
    held = HELD["patch_embed.proj.weight"]
    assert np.allclose(found["patch_embed.proj.weight"][:, 0], held[:, 0] + held[:, 1] + held[:, 2], atol=1e-6)
    assert "stem: its 3 input channels summed to 1" in notes


@pytest.mark.parametrize(
    ("channels", "told"), [(1, "1 input channels repeated to 3, times 1/3"), (2, "times 2/3"), (4, "times 4/3")]
)
def test_another_stem_on_rgb_is_repeated_and_keeps_its_sum(tmp_path, channels, told):
    file = arrays(vit(channels=channels))
    found, notes = start(tmp_path, file)
    held, stem = file["patch_embed.proj.weight"], found["patch_embed.proj.weight"]
    for channel in range(3):
        assert np.allclose(stem[:, channel], held[:, channel % channels] * channels / 3)
    assert any(told in note for note in notes)


def test_a_stem_without_channels_is_of_another_shape(tmp_path):
    stem = np.zeros((12, 0, 8, 8), np.float32)
    refused(tmp_path, HELD | {"patch_embed.proj.weight": stem}, "patch_embed.proj.weight [12, 0, 8, 8] instead of")


def test_a_name_of_many_dots_takes_no_time(tmp_path):
    refused(tmp_path, {"." * 60_000: np.zeros(1)}, "missing from the file")


def test_only_the_channels_of_a_stem_may_differ(tmp_path):
    refused(
        tmp_path,
        arrays(make_tree("mlp", 5, 3, 8)),
        "fc1.weight [256, 192] instead of [256, 64]",
        tree=make_tree("mlp", 5, 1, 8),
    )


# position embeddings


@pytest.mark.parametrize("new", [3, 7, 8, 16])
def test_another_grid_is_resized_as_pillow_does(tmp_path, new):
    held = np.random.default_rng(0).normal(size=(1, 1 + 64, 4)).astype(np.float32)
    done, note = fitting.fit_pos_embed(held, 1 + new * new, {})
    grid = held[0, 1:].reshape(8, 8, 4)
    planes = [Image.fromarray(grid[:, :, c]).resize((new, new), Image.Resampling.BICUBIC) for c in range(4)]
    assert np.allclose(done[0, 1:].reshape(new, new, 4), np.stack(planes, -1), atol=1e-5)
    assert np.array_equal(done[:, 0], held[:, 0])
    assert new == 8 or note == f"position embedding: resized from 8x8 to {new}x{new}"


def test_a_table_of_another_grid_is_fitted_or_refused_as_asked(tmp_path):
    large = vit(side=64)
    found, notes = start(tmp_path, HELD, tree=large)
    assert found["pos_embed"].shape == (1, 65, 12)
    assert "position embedding: resized from 4x4 to 8x8" in notes
    refused(
        tmp_path, HELD, "4x4 patches instead of 8x8; weights.resize_pos_embed=true", tree=large, resize_pos_embed=False
    )


def table(count):
    return np.random.default_rng(2).normal(size=(1, count, 12)).astype(np.float32)


def test_a_table_without_the_class_token(tmp_path):
    held = table(16)
    found, notes = start(tmp_path, HELD | {"pos_embed": held})
    assert (found["pos_embed"][:, 0] == 0).all()
    assert np.array_equal(found["pos_embed"][:, 1:], held)
    assert "position embedding: no position of the class token in the file: zero" in notes


@pytest.mark.parametrize(("token", "count"), [("dist_token", 1), ("reg_token", 4), ("register_tokens", 4)])
def test_positions_of_tokens_that_the_model_lacks_are_left_out(tmp_path, token, count):
    held = table(1 + count + 16)
    more = {"pos_embed": held, token: np.zeros((1, count, 12), np.float32)}
    found, notes = start(tmp_path, HELD | more)
    assert np.array_equal(found["pos_embed"][0], np.concatenate([held[0, :1], held[0, 1 + count :]]))
    assert f"position embedding: {count} after the class token's left out, of tokens that the model lacks" in notes
    assert notes[-1].endswith(f"not the model's: {token}")


def test_register_tokens_may_have_no_positions(tmp_path):
    """Nine positions are 3x3 patches, though four registers and a class token are there."""
    _, notes = start(tmp_path, HELD | {"pos_embed": table(9), "reg_token": np.zeros((1, 4, 12), np.float32)})
    assert "position embedding: resized from 3x3 to 4x4, no position of the class token in the file: zero" in notes


def test_an_oblong_grid_is_refused_with_what_the_file_holds(tmp_path):
    message = refused(
        tmp_path, HELD | {"pos_embed": table(1 + 4 * 3)}, "pos_embed of 13 positions", "this model's is 4x4"
    )
    assert "resize_pos_embed" not in message


# shards and folders


def shards(folder, change=lambda places: places):
    names = sorted(HELD)
    places = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: HELD[name] for name in names if places[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": change(places)}))
    return index


@pytest.mark.parametrize("by", ["index", "folder"])
def test_shards_with_an_index(tmp_path, by):
    index = shards(tmp_path)
    found, notes = start_weights(VIT, WeightsSpec("file", str(index if by == "index" else tmp_path)), 0)
    same(found, HELD)
    assert notes[0] == f"{len(HELD)} arrays loaded from model.safetensors.index.json"


def test_a_missing_shard_is_named(tmp_path):
    index = shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"1 of 2 shards are missing beside it: model-00002-of-00002\.safetensors"):
        reading.read(index)


@pytest.mark.parametrize(
    "place", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..\\x.safetensors", "C:x.safetensors"]
)
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, place):
    (tmp_path / "in").mkdir()
    index = shards(tmp_path / "in", lambda places: {**places, "head.bias": place})
    save_file({"head.bias": HELD["head.bias"]}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is not a file beside it"):
        reading.read(index)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "[" * 9999]
)
def test_a_faulty_index_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="not an index of weights"):
        reading.read(tmp_path / "model.safetensors.index.json")


def test_an_index_names_what_its_shard_lacks(tmp_path):
    index = shards(tmp_path, lambda places: {**places, "more": "model-00001-of-00002.safetensors"})
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors lacks more"):
        reading.read(index)


def a_run(folder, steps=(9, 10)):
    for step in steps:
        (folder / "checkpoints" / f"step_{step}").mkdir(parents=True)
        save_file({n: a + step for n, a in HELD.items()}, folder / "checkpoints" / f"step_{step}" / "model.safetensors")
    folder.mkdir(exist_ok=True)
    (folder / "config.resolved.yaml").touch()
    return folder


def test_a_run_folder_means_its_last_checkpoint(tmp_path):
    run = a_run(tmp_path / "run")
    (run / "checkpoints" / "step_x").mkdir()
    found, notes = start_weights(VIT, WeightsSpec("file", str(run)), 0)
    same(found, {n: a + 10 for n, a in HELD.items()})
    assert notes[1] == f"weights.path={run} is a folder: checkpoints/step_10/model.safetensors is read"


def test_a_run_folder_means_the_checkpoint_that_it_kept(tmp_path):
    run = a_run(tmp_path / "run")
    (run / "checkpoints" / "latest").write_text("step_10\n")
    save_file({n: a - 5 for n, a in HELD.items()}, run / "checkpoints" / "step_9" / "ema.safetensors")
    for best, moved in [("step_9/model.safetensors", 9), ("step_9/ema.safetensors", -5)]:
        (run / "checkpoints" / "best").write_text(f"{best}\n")
        for named in (run, run / "checkpoints"):
            found, notes = start_weights(VIT, WeightsSpec("file", str(named)), 0)
            same(found, {n: a + moved for n, a in HELD.items()})
            assert notes[1].endswith(f"{best} is read")
    (run / "checkpoints" / "best").write_text("step_9/../../../else.safetensors\n")
    with pytest.raises(UserError, match="names no checkpoint"):
        start_weights(VIT, WeightsSpec("file", str(run)), 0)


def test_folders_without_weights_say_what_to_name(tmp_path):
    sweep = tmp_path / "sweep"
    a_run(sweep / "seed=0")
    a_run(sweep / "seed=1", ())
    (sweep / "sweep.json").touch()
    for folder, word in [
        (sweep, f"a folder of 1 runs; name one of them: 'weights.path=\"{sweep / 'seed=0'}\"'"),
        (sweep / "seed=1", "is a run folder without a checkpoint; this trains it: layerwise-lr run "),
        (tmp_path, "is a folder with none of model.safetensors"),
    ]:
        with pytest.raises(UserError, match=re.escape(word)):
            start_weights(VIT, WeightsSpec("file", str(folder)), 0)
    same(start_weights(VIT, WeightsSpec("file", str(sweep / "seed=0")), 0)[0], {n: a + 10 for n, a in HELD.items()})


# what is no file of weights, and what means harm


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
def test_a_namespace_is_left_unread_and_told(tmp_path, legacy):
    import torch

    args = argparse.Namespace(lr=1e-3, path=Path("x"))
    torch.save({"model": tensors(HELD), "args": args}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    found, notes = start_weights(VIT, WeightsSpec("file", str(tmp_path / "w.pth")), 0)
    same(found, HELD)
    assert notes[-1] == "left unread in w.pth: objects of argparse.Namespace, pathlib.PosixPath"


class Loud:
    """Tells when anything of it runs."""

    ran: ClassVar[list[str]] = []

    def __init__(self, *_):
        self.ran.append("init")

    def __setstate__(self, state):
        self.ran.append("state")

    def __reduce__(self):
        return Loud, (1,), {"a": 1}


class Runs:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
def test_no_class_of_a_file_is_imported_or_run(tmp_path, legacy):
    import torch

    torch.save({"model": tensors(HELD), "loud": Loud()}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    Loud.ran.clear()
    found, notes = start_weights(VIT, WeightsSpec("file", str(tmp_path / "w.pth")), 0)
    same(found, HELD)
    assert "Loud" in notes[-1]
    assert Loud.ran == []


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("function", [eval, exec, print, open, getattr, __import__])
def test_what_runs_code_is_refused_and_not_run(tmp_path, legacy, function, capsys):
    import torch

    ran = tmp_path / "ran"
    harm = Runs(function, str(ran), "w") if function is open else Runs(function, f"open({str(ran)!r}, 'w')")
    torch.save({"model": tensors(HELD), "args": harm}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="runs code: nothing of it was run"):
        start_weights(VIT, WeightsSpec("file", str(tmp_path / "w.pth")), 0)
    assert not ran.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.torch
def test_a_whole_pickled_model_is_refused_with_its_class(tmp_path):
    import torch

    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"objects of torch\.nn\.modules\.linear\.Linear, .* model\.state_dict\(\)"):
        start_weights(VIT, WeightsSpec("file", str(tmp_path / "w.pth")), 0)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("held", "word"),
    [
        (np.zeros(3), "one array without a name"),
        ({}, "holds no arrays"),
        ({"epoch": 3}, "holds no arrays"),
        ({"state": {0: {"exp_avg": np.zeros(3)}}, "param_groups": []}, "those names are an optimizer's"),
        (
            {"vit.layers.0.attention.q_proj.weight": np.zeros(3)},
            "those names are Hugging Face's, model vit_tiny reads timm's",
        ),
        ({"blocks.0.attn.qkv.lora_A.weight": np.zeros(3)}, "merge it first"),
        ({"encoder.layers.encoder_layer_0.ln_1.weight": np.zeros(3)}, "those names are torchvision's"),
    ],
)
def test_torch_files_of_other_things(tmp_path, held, word):
    refused(tmp_path, held, word, name="w.pth")


@pytest.mark.torch
def test_tensors_that_numpy_has_not(tmp_path):
    import torch

    name, value = "blocks.0.mlp.fc1.weight", torch.ones(48, 12)
    for tensor, told in [
        (value.to(torch.float8_e4m3fn), "float8_e4m3fn (quantized?)"),
        (value.to_sparse(), "sparse float32"),
        (value.to("meta"), "meta float32"),
    ]:
        torch.save(tensors(HELD) | {name: tensor}, tmp_path / "w.pth")
        with pytest.raises(UserError, match=f"{name} is of ") as caught:
            start_weights(VIT, WeightsSpec("file", str(tmp_path / "w.pth")), 0)
        assert told in str(caught.value)


def test_scalars_and_odd_shapes(tmp_path):
    refused(tmp_path, HELD | {"norm.weight": np.float32(1)}, "norm.weight [] instead of [12]")
    refused(tmp_path, HELD | {"pos_embed": table(17)[0]}, "pos_embed [17, 12] instead of [1, 17, 12]")


@pytest.mark.parametrize("path", ["x" * 5000 + ".npz", "~nobody_of_this_name/w.npz"])
def test_a_path_that_cannot_be_is_one_line(path):
    with pytest.raises(UserError, match=r"weights\.path=") as caught:
        start_weights(VIT, WeightsSpec("file", path), 0)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", pytest.param(".pth", marks=pytest.mark.torch)])
@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_short(tmp_path, suffix, share):
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(HELD, path)
    elif suffix == ".npz":
        np.savez(path, **HELD)
    else:
        import torch

        torch.save(tensors(HELD), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=path.name) as caught:
        start_weights(VIT, WeightsSpec("file", str(path)), 0)
    assert str(caught.value).isprintable()


def test_empty_arrays_and_an_encrypted_zip(tmp_path):
    save_file({"a": np.zeros((0, 3), np.float32), "b": np.zeros((), np.float32)}, tmp_path / "w.safetensors")
    held = reading.read(tmp_path / "w.safetensors").states[""]
    assert {name: a.shape for name, a in held.items()} == {"a": (0, 3), "b": ()}
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    data = bytearray((tmp_path / "w.npz").read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1  # the flag of encryption
    (tmp_path / "w.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"not a readable \.npz file .*encrypted"):
        reading.read(tmp_path / "w.npz")


HOSTILE = "a\n\x1b[31mb\x07\u202e\x00c." + "x" * 500


def test_hostile_names_are_shown_as_one_short_line(tmp_path):
    save_file({HOSTILE: np.zeros(1, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        start_weights(VIT, WeightsSpec("file", str(tmp_path / "w.safetensors")), 0)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700
    save_file(HELD | {HOSTILE: np.zeros(1, np.float32)}, tmp_path / "w.safetensors")
    _, notes = start_weights(VIT, WeightsSpec("file", str(tmp_path / "w.safetensors")), 0)
    assert all(note.isprintable() and len(note) < 300 for note in notes)


def test_plain_text():
    assert plain("a\nb\t c") == "a b c"
    assert plain("\x1b[1mbold\x1b[0m \x1b]0;title\x07") == "bold \\x1b]0;title\\x07"
    assert plain("\u202egnp.exe") == "\\u202egnp.exe"
    assert plain("é漢") == "é漢"
    assert len(plain("x" * 10**6)) == 80
    assert plain("x" * 80) == "x" * 80
