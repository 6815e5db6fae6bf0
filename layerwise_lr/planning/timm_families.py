"""timm's families by the names of their parameters: each one's `group_matcher(coarse=False)` of timm 1.0.31, as data.

For models that timm did not make or that are not at hand: a declared tree, a checkpoint, a port. A live timm model brings
its own matcher, which `timm_depths` takes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .timm_groups import PREVIOUS, Matcher


class Family(NamedTuple):
    """Names that one matcher explains.

    Args:
        matcher: timm's, its first part being the stem; or what makes one of the bare names.
        head: the first words of the names that it leaves to the head by right.
        sign: a regex that some name must contain; a family with one goes before those without.
    """

    matcher: Mapping[str, Any] | Callable[[Sequence[str]], Matcher]
    head: str
    sign: str = ""


def _staged(stem: str, *blocks: Any) -> dict[str, Any]:
    return {"stem": stem, "blocks": list(blocks)}


def _last(regex: str) -> tuple[str, tuple[int]]:
    """Counted with the last block."""
    return regex, (PREVIOUS,)


def _cait(names: Sequence[str]) -> Matcher:
    """The blocks of the class token alone overlap the last of all."""
    blocks = 1 + max(int(m[1]) for n in names if (m := re.match(r"blocks\.(\d+)", n)))
    late = 1 + max(int(m[1]) for n in names if (m := re.match(r"blocks_token_only\.(\d+)", n)))

    def key(name: str) -> float:
        if re.match("cls_token|pos_embed|patch_embed", name):
            return 0
        if name.startswith("norm."):
            return blocks
        if block := re.match(r"(blocks|blocks_token_only)\.(\d+)", name):
            return int(block[2]) + (1 if block[1] == "blocks" else blocks - late + 1)
        return float("inf")

    return key


CAIT = [(0, "cls_token|pos_embed|patch_embed", None), (1, r"norm\.|(?:blocks|blocks_token_only)\.(\d+)", None)]
"""What `_cait` knows."""
BLOCKS = (r"^blocks\.(\d+)", None)
STAGE_BLOCKS = (r"^stages\.(\d+)\.blocks\.(\d+)", None)
STAGE_DOWN = (r"^stages\.(\d+)\.downsample", (0,))
STAGE_ANY = (r"^stages\.(\d+)\.\w+\.(\d+)", None)
LAYER_DOWN = (r"^layers\.(\d+).downsample", (0,))
LAYER_ANY = (r"^layers\.(\d+)\.\w+\.(\d+)", None)
MOBILE = (r"^blocks\.(\d+)\.(\d+)", None)
NORM = _last(r"^norm")

FAMILIES: Mapping[str, Family] = {
    "vit, eva": Family(
        _staged(r"^cls_token|reg_token|pos_embed|patch_embed|norm_pre", BLOCKS, NORM), "head fc_norm attn_pool rope"
    ),
    "deit": Family(
        _staged(r"^cls_token|pos_embed|patch_embed|dist_token", BLOCKS, NORM), "head head_dist", "^dist_token"
    ),
    "beit": Family(
        _staged(r"^cls_token|pos_embed|patch_embed|rel_pos_bias", BLOCKS, NORM),
        "head fc_norm",
        r"^rel_pos_bias\.|\.attn\.relative_position_bias_table",
    ),
    "vit_relpos": Family(
        _staged(r"^cls_token|patch_embed", BLOCKS, NORM),
        "head fc_norm shared_rel_pos",
        r"\.rel_pos\.|^shared_rel_pos\.",
    ),
    "vit_sam": Family(_staged(r"^pos_embed|patch_embed", BLOCKS, NORM), "head neck", r"^neck\."),
    "hiera": Family(
        _staged(
            r"^pos_embed|pos_embed_spatial|pos_embed_temporal|pos_embed_abs|pos_embed_win|patch_embed", BLOCKS, NORM
        ),
        "head",
        r"^blocks\.\d+\.proj\.",
    ),
    "sam2_hiera": Family(_staged(r"^pos_embed|pos_embed_window|patch_embed", BLOCKS), "head", "^pos_embed_window"),
    "convit": Family(_staged(r"^cls_token|pos_embed|patch_embed", BLOCKS, NORM), "head", r"\.pos_proj\."),
    "crossvit": Family(_staged(r"^cls_token|pos_embed|patch_embed", BLOCKS, NORM), "head", "^pos_embed_0$"),
    "naflexvit": Family(_staged(r"^embeds", BLOCKS, NORM), "head fc_norm attn_pool"),
    "mixer": Family(_staged(r"^stem", BLOCKS, NORM), "head"),
    "convmixer, xception_aligned": Family(_staged(r"^stem", BLOCKS), "head"),
    "tnt": Family(
        _staged(r"^cls_token|patch_pos|pixel_pos|pixel_embed|norm[12]_proj|proj", BLOCKS, NORM), "head", "^pixel_embed"
    ),
    "cait": Family(_cait, "head", r"^blocks_token_only\."),
    "xcit": Family(
        {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": BLOCKS[0],
            "cls_attn_blocks": [(r"^cls_attn_blocks\.(\d+)", None), NORM],
        },
        "head",
        r"^cls_attn_blocks\.",
    ),
    "volo": Family(
        {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^network\.(\d+)\.(\d+)", None), (r"^network\.(\d+)", (0,))],
            "blocks2": [(r"^cls_token", (0,)), (r"^post_network\.(\d+)", None), NORM],
        },
        "head aux_head",
    ),
    "coat": Family(
        {
            "stem1": r"^cls_token1|patch_embed1|crpe1|cpe1",
            "serial_blocks1": r"^serial_blocks1\.(\d+)",
            "stem2": r"^cls_token2|patch_embed2|crpe2|cpe2",
            "serial_blocks2": r"^serial_blocks2\.(\d+)",
            "stem3": r"^cls_token3|patch_embed3|crpe3|cpe3",
            "serial_blocks3": r"^serial_blocks3\.(\d+)",
            "stem4": r"^cls_token4|patch_embed4|crpe4|cpe4",
            "serial_blocks4": r"^serial_blocks4\.(\d+)",
            "parallel_blocks": [(r"^parallel_blocks\.(\d+)", None), _last(r"^norm|aggregate")],
        },
        "head",
    ),
    "swin": Family(_staged(r"^patch_embed", LAYER_DOWN, LAYER_ANY, NORM), "head"),
    "swinv2": Family(_staged(r"^absolute_pos_embed|patch_embed", LAYER_DOWN, LAYER_ANY, NORM), "head"),
    "focalnet": Family(_staged(r"^stem", LAYER_DOWN, LAYER_ANY, NORM), "head"),
    "swinv2_cr": Family(
        _staged(r"^patch_embed", (r"^stages\.(\d+).downsample", (0,)), STAGE_ANY), "head", r"\.meta_mlp\."
    ),
    "tiny_vit": Family(_staged(r"^patch_embed", STAGE_DOWN, STAGE_ANY), "head", r"\.local_conv\."),
    "efficientvit_msra": Family(_staged(r"^patch_embed", STAGE_DOWN, STAGE_ANY), "head", r"\.attn\.qkvs\."),
    "shvit": Family(_staged(r"^patch_embed", STAGE_DOWN, STAGE_BLOCKS), "head", r"\.mixer\.m\.pre_norm\."),
    "fasternet": Family(_staged(r"^patch_embed", STAGE_DOWN, STAGE_BLOCKS, _last(r"^conv_head")), "classifier"),
    "efficientvim": Family(
        _staged(r"^patch_embed", STAGE_BLOCKS, _last(r"^stages\.(\d+)\.downsample"), NORM),
        "weights heads weights_dist heads_dist",
        r"\.hz_proj\.",
    ),
    "pvt_v2": Family(_staged(r"^patch_embed", (r"^stages\.(\d+)", None)), "head", r"\.attn\.kv\."),
    "mvitv2": Family(
        _staged(r"^cls_token|pos_embed|patch_embed", (r"^stages\.(\d+)", None), NORM), "head", r"\.pool_q\."
    ),
    "twins": Family(
        _staged(
            r"^patch_embeds.0", (r"^blocks\.(\d+)\.(\d+)", None), (r"^(?:patch_embeds|pos_block)\.(\d+)", (0,)), NORM
        ),
        "head",
    ),
    "nest": Family(
        _staged(
            r"^patch_embed",
            (r"^levels\.(\d+)\.transformer_encoder\.(\d+)", None),
            (r"^levels\.(\d+)\.(?:pool|pos_embed)", (0,)),
            NORM,
        ),
        "head",
    ),
    "visformer": Family(
        _staged(
            r"^patch_embed1|pos_embed1|stem",
            (r"^stage(\d+)\.(\d+)", None),
            (r"^(?:patch_embed|pos_embed)(\d+)", (0,)),
            NORM,
        ),
        "head",
    ),
    "convnext, edgenext": Family(_staged(r"^stem", STAGE_DOWN, STAGE_BLOCKS, _last(r"^norm_pre")), "head"),
    "hgnet, inception_next, levit, mambaout, repvit": Family(
        _staged(r"^stem", STAGE_DOWN, STAGE_BLOCKS), "head head_dist"
    ),
    "davit": Family(
        _staged(r"^stem", STAGE_DOWN, STAGE_BLOCKS, _last(r"^norm_pre")), "head", r"\.(?:channel|spatial)_block\."
    ),
    "swiftformer": Family(
        _staged(r"^stem", STAGE_DOWN, STAGE_BLOCKS, NORM), "head head_dist", r"\.local_representation\."
    ),
    "sequencer": Family(_staged(r"^stem", STAGE_BLOCKS, STAGE_DOWN, NORM), "head", r"\.rnn_tokens\."),
    "iformer": Family(_staged(r"^stem", STAGE_DOWN, STAGE_BLOCKS, _last(r"^head")), "", r"\.v_gate\."),
    "fastvit": Family(
        _staged(r"^stem", STAGE_DOWN, (r"^stages\.(\d+).pos_emb", (0,)), STAGE_ANY),
        "head final_conv",
        r"\.large_conv\.",
    ),
    "efficientvit_mit": Family(_staged(r"^stem", STAGE_DOWN, STAGE_ANY), "head", r"\.context_module\."),
    "nextvit": Family(_staged(r"^stem", STAGE_BLOCKS, NORM), "head", r"\.e_mhsa\."),
    "resnetv2": Family(_staged(r"^stem", STAGE_BLOCKS, NORM), "head"),
    "vovnet": Family(_staged(r"^stem", (r"^stages\.(\d+).blocks\.(\d+)", None)), "head", r"\.conv_concat\."),
    "maxvit, coatnet": Family(
        _staged(r"^stem", (r"^stages\.(\d+)", None), NORM), "head", r"\.attn_block\.|\.shortcut\.expand\."
    ),
    "efficientformer": Family(
        _staged(r"^stem", (r"^stages\.(\d+)", None), NORM), "head head_dist", r"\.token_mixer\.attention_biases"
    ),
    "gcvit": Family(_staged(r"^stem", (r"^stages\.(\d+)", None)), "head", r"\.global_block\."),
    "cpubone": Family(_staged(r"^stem", (r"^stages\.(\d+)", None)), "head", r"\.total\."),
    "cspnet": Family(
        _staged(r"^stem", STAGE_BLOCKS, _last(r"^stages\.(\d+)\..*transition"), (r"^stages\.(\d+)", (0,))),
        "head",
        r"\.conv_down\.",
    ),
    "cspnext": Family(
        _staged(
            r"^stem",
            (r"^stages\.(\d+)\.\d+\.blocks\.(\d+)", None),
            _last(r"^stages\.(\d+)\.\d+\.(?:attention|final_conv)"),
            (r"^stages\.(\d+)", (0,)),
        ),
        "head",
        r"\.main_conv\.",
    ),
    "nfnet, byobnet": Family(_staged(r"^stem", (r"^stages\.(\d+)\.(\d+)", None), _last(r"^final_conv")), "head"),
    "starnet": Family(_staged(r"^stem\.\d+", (r"^stages\.(\d+)\.(\d+)", None), _last(r"norm")), "head", r"\.dwconv2\."),
    "lcnetv2": Family(_staged(r"^stem", (r"^stages\.(\d+)\.(\d+)", None)), "conv_head classifier"),
    "lowformer": Family(_staged(r"^stem\.\d+", (r"^stages\.(\d+)\.(\d+)", None)), "in_conv pre_classifier classifier"),
    "regnet": Family(_staged(r"^stem", (r"^s(\d+)\.b(\d+)", None)), "head final_conv"),
    "rdnet": Family(_staged(r"^stem", (r"^dense_stages\.(\d+)", None)), "head"),
    "rexnet": Family(_staged(r"^stem", (r"^features\.(\d+)", None)), "head"),
    "selecsls": Family({"stem": r"^stem", "blocks": r"^features\.(\d+)", "blocks_head": r"^head"}, "fc"),
    "resnet": Family(_staged(r"^conv1|bn1|maxpool", (r"^layer(\d+)\.(\d+)", None)), "fc"),
    "senet": Family(_staged(r"^layer0", (r"^layer(\d+)\.(\d+)", None)), "last_linear"),
    "tresnet": Family(_staged(r"^body\.conv1", (r"^body\.layer(\d+)\.(\d+)", None)), "head"),
    "hrnet": Family(
        _staged(
            r"^conv[12]|bn[12]",
            (r"^layer(\d+)\.(\d+)", None),
            (r"^stage(\d+)\.(\d+)", None),
            _last(r"^transition(\d+)"),
        ),
        "incre_modules downsamp_modules final_layer classifier",
    ),
    "dla": Family(
        _staged(
            r"^base_layer", (r"^level(\d+)\.tree(\d+)", None), (r"^level(\d+)\.root", (2,)), (r"^level(\d+)", (1,))
        ),
        "fc",
    ),
    "dpn": Family(
        _staged(r"^features\.conv1", (r"^features\.conv(\d+)_(\d+)", None), _last(r"^features\.conv5_bn_ac")),
        "classifier",
    ),
    "densenet": Family(
        _staged(
            r"^features\.conv[012]|features\.norm[012]|features\.pool[012]",
            (r"^features\.denseblock(\d+)\.denselayer(\d+)", None),
            _last(r"^features\.transition(\d+)"),
        ),
        "features.norm5 classifier",
    ),
    "vgg": Family(_staged(r"^features\.0", (r"^features\.(\d+)", None)), "pre_logits head"),
    "inception_v4": Family(_staged(r"^features\.[012]\.", (r"^features\.(\d+)", None)), "last_linear", r"\.branch0\."),
    "xception": Family(_staged(r"^conv[12]|bn[12]", (r"^block(\d+)", None), (r"^conv[34]|bn[34]", (99,))), "fc"),
    "nasnet": Family(
        _staged(
            r"^conv0|cell_stem_[01]",
            (r"^cell_(\d+)", None),
            (r"^reduction_cell_0", (6,)),
            (r"^reduction_cell_1", (12,)),
        ),
        "last_linear",
    ),
    "pnasnet": Family(_staged(r"^conv_0|cell_stem_[01]", (r"^cell_(\d+)", None)), "last_linear"),
    "efficientnet, mobilenetv2": Family(
        _staged(r"^conv_stem|bn1", MOBILE, _last(r"conv_head|bn2")), "classifier", r"^bn2\."
    ),
    "ghostnet, repghost": Family(_staged(r"^conv_stem|bn1", MOBILE, _last(r"conv_head")), "classifier", r"\.ghost1\."),
    "mobilenetv3": Family(_staged(r"^conv_stem|bn1", MOBILE), "conv_head norm_head classifier"),
    "mobilenetv5": Family(_staged(r"^conv_stem|bn1", MOBILE), "msfa classifier", r"^msfa\."),
}
