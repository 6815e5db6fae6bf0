"""Depth by execution order, on nestings written by hand; what real models give is in tests/zoo."""

import random

import pytest

from layerwise_lr.planning import Module, execution_order


def nest(*lines):
    """Modules from lines "path kind", "path kind list", arrays after a colon as name=rows x columns; called in this order
    but for those with "!N" (place N) or "!-" (never)."""
    made = []
    for place, line in enumerate(lines):
        head, _, arrays = line.partition(":")
        path, kind, *words = head.split()
        path = "" if path == "." else path
        called = next((None if w == "!-" else float(w[1:]) for w in words if w[0] == "!"), place)
        own = []
        for array in arrays.split():
            name, _, shape = array.partition("=")
            own.append((f"{path}.{name}" if path else name, tuple(map(int, shape.split("x"))) if shape else ()))
        made.append(Module(path, kind, "list" in words, tuple(own), called))
    return made


def linear(path, *words):
    return f"{path} Linear {' '.join(words)}: weight=4x4 bias=4"


def norm(path, *words):
    return f"{path} LayerNorm {' '.join(words)}: weight=4 bias=4"


def block(path, *words, kind="Block"):
    return [f"{path} {kind} {' '.join(words)}", norm(f"{path}.norm"), linear(f"{path}.fc1"), linear(f"{path}.fc2")]


def by_layer(found):
    """Depth of each module that has arrays."""
    depths = {}
    for name, depth in found.depths.items():
        depths.setdefault(name.rpartition(".")[0], set()).add(depth)
    assert all(len(several) == 1 for several in depths.values())
    return {path: several.pop() for path, several in depths.items()}


def vit(blocks=3):
    lines = [". ViT: cls_token=1x1x4 pos_embed=1x5x4", "patch Patch", linear("patch.proj"), "blocks Sequential list"]
    for i in range(blocks):
        lines += block(f"blocks.{i}")
    return [*lines, norm("norm"), linear("head")]


def test_stem_blocks_and_head():
    found = execution_order(nest(*vit()))
    depths = by_layer(found)
    assert (depths[""], depths["patch.proj"]) == (0, 0)
    assert [depths[f"blocks.{i}.fc1"] for i in range(3)] == [1, 2, 3]
    assert depths["blocks.1.norm"] == depths["blocks.1.fc2"] == 2
    assert (depths["norm"], depths["head"]) == (4, 4)
    assert found.head == ("head",)
    assert found.confidence == 1.0
    assert "3 blocks between stem and head" in found.reasons


def test_the_order_is_that_of_the_calls_and_not_that_of_the_declaration():
    lines = [". Net", linear("head", "!90"), "layers ModuleList list !-"]
    for i, at in ((0, 20), (1, 10)):
        lines += block(f"layers.{i}", f"!{at}")
        lines[-3:] = [
            line.replace("LayerNorm", f"LayerNorm !{at + 1}").replace("Linear", f"Linear !{at + 2}")
            for line in lines[-3:]
        ]
    found = by_layer(execution_order(nest(*lines, linear("stem", "!1"))))
    assert (found["stem"], found["layers.1.fc1"], found["layers.0.fc1"], found["head"]) == (0, 1, 2, 3)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_declaration_alone_changes_nothing(seed):
    modules = nest(*vit())
    lists = {m.path: i for i, m in enumerate(modules)}
    shuffled = [m for m in modules if m.path.count(".") == 0]
    random.Random(seed).shuffle(shuffled)
    shuffled = sorted(shuffled, key=lambda m: m.path != "") + [m for m in modules if m.path.count(".")]
    assert len(lists) == len(shuffled)
    assert execution_order(shuffled).depths == execution_order(modules).depths


def test_stages_of_blocks_are_opened_and_a_downsampling_counts_with_the_block_after_it():
    lines = [". Net", linear("stem"), "stages Sequential list"]
    for stage in range(2):
        lines += [f"stages.{stage} Stage", linear(f"stages.{stage}.down"), f"stages.{stage}.blocks Sequential list"]
        for i in range(2):
            lines += block(f"stages.{stage}.blocks.{i}")
    depths = by_layer(execution_order(nest(*lines, linear("head"))))
    assert [depths[f"stages.{s}.blocks.{i}.fc1"] for s in (0, 1) for i in (0, 1)] == [1, 2, 3, 4]
    assert (depths["stages.1.down"], depths["head"]) == (3, 5)


def test_a_norm_after_a_layer_that_follows_the_blocks_counts_with_that_layer():
    lines = [line for line in vit() if not line.startswith(("norm", "head"))]
    depths = by_layer(execution_order(nest(*lines, linear("conv_head"), norm("bn2"), linear("head"))))
    assert (depths["conv_head"], depths["bn2"], depths["head"]) == (4, 4, 5)
    found = execution_order(nest(*lines, linear("conv_head"), norm("bn2"), linear("head")), ("head",))
    assert by_layer(found) == depths


def test_siblings_with_numbers_are_a_list():
    lines = [". Net", linear("conv1")]
    for i in (1, 2, 3):
        lines += block(f"layer{i}")
    depths = by_layer(execution_order(nest(*lines, linear("fc"))))
    assert [depths[f"layer{i}.fc1"] for i in (1, 2, 3)] == [1, 2, 3]


def test_a_list_inside_a_block_is_part_of_it():
    lines = [". Net", linear("stem"), "blocks ModuleList list !-"]
    for i in range(2):
        lines += [f"blocks.{i} Block", f"blocks.{i}.layer ModuleList list !-"]
        for j, kind in enumerate(("Attention", "MLP")):
            lines += block(f"blocks.{i}.layer.{j}", kind=kind)
    depths = by_layer(execution_order(nest(*lines)))
    assert depths["blocks.0.layer.0.fc1"] == depths["blocks.0.layer.1.fc1"] == 1
    assert depths["blocks.1.layer.1.fc2"] == 2


def test_without_blocks_each_weight_layer_has_a_depth_and_less_is_claimed():
    lines = [". Net", "features Sequential list"]
    for i in range(4):
        lines += [linear(f"features.{2 * i}"), norm(f"features.{2 * i + 1}")]
    found = execution_order(nest(*lines, linear("classifier")))
    depths = by_layer(found)
    assert [depths[f"features.{i}"] for i in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert depths["classifier"] == 4
    assert found.confidence == 0.9


def towers(first=2, second=4):
    lines = [". Clip: logit_scale="]
    for name, kind, n in (("text", "Text", first), ("image", "Image", second)):
        lines += [f"{name} {kind}", linear(f"{name}.embed"), f"{name}.layers ModuleList list !-"]
        for i in range(n):
            lines += block(f"{name}.layers.{i}")
        lines.append(norm(f"{name}.norm"))
    return [*lines, linear("text_projection"), linear("image_projection")]


def test_towers_are_aligned_at_their_last_blocks():
    found = execution_order(nest(*towers()))
    depths = by_layer(found)
    assert depths["text.layers.1.fc1"] == depths["image.layers.3.fc1"] == 4
    assert (depths["text.embed"], depths["image.embed"]) == (2, 0)
    assert depths["text_projection"] == depths["image_projection"] == depths[""] == 5
    assert "2 towers, aligned at their last blocks: text, image" in found.reasons


def test_a_tower_alone_has_the_depths_that_it_has_beside_another():
    both = by_layer(execution_order(nest(*towers())))
    alone = by_layer(execution_order(nest(*towers(4, 4))))
    top, top_alone = both["text_projection"], alone["text_projection"]
    assert top - both["text.layers.0.fc1"] == 2
    assert top_alone - alone["text.layers.2.fc1"] == 2


def test_an_adapter_has_its_hosts_depth_and_makes_no_block_of_a_layer():
    host = ["head.base_layer Linear: weight=4x4", "head.lora_A Linear: weight=2x4", "head.lora_B Linear: weight=4x2"]
    lines = [line for line in vit() if not line.startswith("head")]
    plain, adapted = execution_order(nest(*vit())), execution_order(nest(*lines, "head Lora", *host))
    assert adapted.depths["head.lora_A.weight"] == plain.depths["head.weight"] == 4
    lines = [
        *(line for line in lines if not line.startswith("blocks.1.fc1")),
        "blocks.1.fc1 Lora !12",
        *(line.replace("head", "blocks.1.fc1").replace("Linear", "Linear !12") for line in host),
    ]
    assert execution_order(nest(*lines)).depths["blocks.1.fc1.lora_B.weight"] == 2


def test_heads_that_the_model_names_have_one_depth_whatever_ran_last():
    lines = [*vit(), linear("head_dist")]
    assert by_layer(execution_order(nest(*lines)))["head_dist"] == 5
    found = execution_order(nest(*lines), ("head", "head_dist"))
    assert by_layer(found)["head"] == by_layer(found)["head_dist"] == by_layer(found)["norm"] == 4
    assert found.head == ("head", "head_dist")


def test_what_did_not_run_stands_where_it_is_declared_and_costs_confidence():
    lines = [*vit()[:3], linear("unused", "!-"), *vit()[3:]]
    found = execution_order(nest(*lines))
    assert by_layer(found)["unused"] == 0
    assert any("placed where they are declared: unused" in reason for reason in found.reasons)
    numbers = sum(
        4 * 4 + 4 if "fc" in line or "proj" in line or "head" in line else 8 for line in vit() if ": weight" in line
    )
    assert found.confidence == pytest.approx(numbers / (numbers + 20))


def test_every_array_has_a_depth_and_depths_leave_no_number_out():
    for lines in (vit(), towers(), towers(3, 1)):
        modules = nest(*lines)
        depths = execution_order(modules).depths
        assert set(depths) == {name for m in modules for name, _ in m.arrays}
        assert set(depths.values()) == set(range(max(depths.values()) + 1))
