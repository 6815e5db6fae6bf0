"""Published conventions: the depth of every parameter as the named code base counts it, bit for bit.

A convention is data: which names are the stem, which are numbered blocks, which come after them. Whatever it does not
name is refused, also where the source falls back to the head in silence. `lr_scale` is `layer_decay ** (num_layers -
depth)` for each of them; what a source does besides (a factor, its own weight-decay exceptions) stands in its entry.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from .errors import UserError, unknown
from .names import bare_name, parts
from .numbering import Blocks, Numbering, convnext, mmpretrain, swin_mm
from .params import ParamInfo


def vectors_and_tokens(row: ParamInfo) -> bool:
    """This house's rule, and that of a convention whose source leaves weight decay to the config: 1-D and tokens."""
    return len(row.shape) <= 1 or row.layer_type == "token"


def _vectors_and(*listed: str) -> Callable[[ParamInfo], bool]:
    return lambda row: len(row.shape) <= 1 or bare_name(row.name) in listed


def _dinov2_no_decay(row: ParamInfo) -> bool:
    return row.name.endswith(".bias") or "norm" in row.name or "gamma" in row.name


def _detectron2_no_decay(row: ParamInfo) -> bool:
    return row.layer_type.endswith("norm") or row.name.rpartition(".")[2] == "pos_embed"


def _bert_no_decay(row: ParamInfo) -> bool:
    return re.search(r"LayerNorm|layer_norm|bias", row.name) is not None


def _xlnet_no_decay(row: ParamInfo) -> bool:
    return _bert_no_decay(row) and not re.search(r"r_[srw]_bias", row.name)


@dataclass(frozen=True)
class Convention:
    """One code base's way to count.

    Args:
        source: repository@commit and file.
        models: which it is for.
        number: bare names -> depths.
        outer: a prefix that its names may have or lack.
        no_decay: which parameters have no weight decay there.
        factors: regex -> what multiplies lr_scale besides.
    """

    source: str
    models: str
    number: Numbering
    outer: str = ""
    no_decay: Callable[[ParamInfo], bool] = vectors_and_tokens
    factors: Mapping[str, float] = field(default_factory=dict)


MAE = Blocks(r"cls_token$|pos_embed$|patch_embed\.", r"blocks\.(\d+)\.", r"(?:norm|fc_norm|head)\.|mask_token$")
PUBLISHED: Mapping[str, Convention] = {
    # the final norm and mask_token count with the head; 1-D parameters and the two position names have no weight decay
    "mae": Convention(
        "facebookresearch/mae@efb2a806 util/lr_decay.py", "ViT", MAE, no_decay=_vectors_and("cls_token", "pos_embed")
    ),
    # get_layer_idx_for_vit of OneFlow's tutorial; the source's weight decay is the same as MAE's
    "oneflow_vit": Convention(
        "Oneflow-Inc/libai@9dcbe3b2 projects/MAE/utils/lr_decay.py",
        "ViT",
        MAE,
        no_decay=_vectors_and("cls_token", "pos_embed"),
    ),
    # mask_token is the stem, a shared rel_pos_bias the head; weight_decay=0 drops layer decay in the source, not here
    "beit": Convention(
        "microsoft/unilm@768a3c87 beit/optim_factory.py",
        "BEiT and ViT",
        Blocks(
            r"(?:cls_token|mask_token|pos_embed)$|patch_embed\.",
            r"blocks\.(\d+)\.",
            r"(?:norm|fc_norm|head|lm_head|rel_pos_bias)\.",
        ),
        no_decay=_vectors_and("cls_token", "pos_embed"),
    ),
    "convnext": Convention("facebookresearch/ConvNeXt@048efcea optim_factory.py", "ConvNeXt", convnext),
    # weight decay is the config's paramwise_cfg there (swin: none for the relative position table): not taken over
    "swin_mm": Convention(
        "open-mmlab/mmpretrain@ee7f2e88 mmpretrain/models/backbones/swin_transformer.py", "Swin", swin_mm, "backbone."
    ),
    # scale = rate ** (max_id - layer_id - 1), and the head's layer_id is max_id - 1
    "mmpretrain": Convention(
        "open-mmlab/mmpretrain@ee7f2e88 mmpretrain/engine/optimizers/layer_decay_optim_wrapper_constructor.py, "
        "get_layer_depth of models/backbones/{vision_transformer,swin_transformer,convnext,resnet}.py",
        "ViT, BEiT, Swin, ConvNeXt and ResNet-50, 101, 152, 200",
        mmpretrain,
        "backbone.",
    ),
    # all outside `backbone.` has scale 1, and so has cls_token inside it (ViTDet has none); no weight decay of norms
    # and pos_embed is the common config's (weight_decay_norm=0, overrides), biases are decayed
    "detectron2": Convention(
        "facebookresearch/detectron2@02b5c4e2 detectron2/modeling/backbone/vit.py",
        "ViTDet",
        Blocks(
            r"backbone.*\.(?:pos_embed|patch_embed)",
            r"backbone(?:\.\w+)*?\.blocks\.(\d+)\.(?!(?:.*\.)?residual\.)",
            r"backbone\.(?:simfp_|(?:\w+\.)?(?:norm\.|cls_token$|blocks\.))|proposal_generator\.|\w*heads?\.",
        ),
        no_decay=_detectron2_no_decay,
    ),
    # patch_embed_lr_mult is ssl_default_config.yaml's; the tokens and pos_embed are decayed. Not taken over: the head's
    # last layer has a schedule of its own
    "dinov2": Convention(
        "facebookresearch/dinov2@b8931f7b dinov2/utils/param_groups.py",
        "DINOv2's ViT",
        Blocks(
            r".*(?:pos_embed|patch_embed|mask_token|cls_token|register_tokens)",
            r"blocks\.(?:\d+\.)?(\d+)\.(?!(?:.*\.)?residual\.)",
            r"(?:norm|head|dino_head|ibot_head|mlp|last_layer)\.|blocks\.",
        ),
        "backbone.",
        _dinov2_no_decay,
        {"patch_embed": 0.2},
    ),
    # depth n + 1 is left out between the last block and the task: the source's n_layers + 2 (google-research/electra#51)
    "electra": Convention(
        "google-research/electra@8a46635f model/optimization.py",
        "ELECTRA",
        Blocks(
            r"(?:\w+[./])?embeddings(?:_project)?[./]",
            r"(?:\w+[./])?encoder[./]layer[._](\d+)[./]",
            r"task_specific/|(?:classifier|qa_outputs|sequence_summary|\w+_predictions|start_logits|end_logits)\.",
            last=2,
        ),
        no_decay=_bert_no_decay,
    ),
    # the last block has scale 1, and so have the embeddings and the head; the source multiplies gradients by it, which
    # Adam undoes: here it is the lr that is multiplied
    "xlnet": Convention(
        "zihangdai/xlnet@bbaa3a6f model_utils.py",
        "XLNet",
        Blocks(
            r"(?!)",
            r"(?:model/transformer/layer_|(?:transformer\.)?layer\.)(\d+)[./]",
            r"model/|(?:transformer\.)?(?:word_embedding\.|mask_emb$)"
            r"|(?:sequence_summary|logits_proj|lm_loss|qa_outputs|classifier|\w+_logits|answer_class)\.",
            first=0,
            last=-1,
        ),
        no_decay=_xlnet_no_decay,
    ),
}
"""Names as in the source, or as its port to timm or transformers has them."""


def published_depths(names: Sequence[str], convention: str, needed: Collection[str]) -> tuple[dict[str, int], int]:
    """Depth of every name, and num_layers.

    Args:
        names: of all parameters and buffers: what is frozen counts in the depth of the whole.
        convention: a key of `PUBLISHED`.
        needed: those that are trained; any other that the convention does not know goes with the head.

    Raises:
        UserError: a needed name that the convention does not know.
    """
    chosen = PUBLISHED[convention]
    inner = {name: bare_name(name).removeprefix(chosen.outer) for name in names}
    found = chosen.number(list(dict.fromkeys(inner.values())))
    if found is None:
        raise UserError(unknown(convention, f"{chosen.models} only and finds no such blocks here"))
    of, top = found
    if lost := [name for name in names if of[inner[name]] is None and name in needed]:
        raise UserError(unknown(convention, f"{chosen.models} only, and not {parts(lost)}"))
    return {name: top if (depth := of[inner[name]]) is None else depth for name in names}, top


def undecayed(row: ParamInfo, convention: str) -> bool:
    """Whether the convention's source gives a parameter no weight decay."""
    return (PUBLISHED[convention].no_decay if convention in PUBLISHED else vectors_and_tokens)(row)


def factor(name: str, convention: str) -> float:
    """What multiplies a parameter's lr_scale in the convention's source, besides its depth."""
    factors = PUBLISHED[convention].factors if convention in PUBLISHED else {}
    return next((f for regex, f in factors.items() if re.search(regex, bare_name(name))), 1.0)
