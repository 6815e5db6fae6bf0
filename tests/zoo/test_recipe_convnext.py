"""ConvNeXt's recipe plans what its source says, on timm's net."""

import json
from pathlib import Path

import pytest
from finished_runs import said
from PIL import Image


def test_convnext_counts_twelve_groups_of_blocks(tmp_path, monkeypatch):
    """facebookresearch/ConvNeXt@231af909 optim_factory.py: the stem 0, stages 1 and 2 have one group each and the third
    groups of three blocks up to 11, the last stage is 12, norm and head 13; scales are 0.8 ** (13 - id)."""
    monkeypatch.chdir(tmp_path)
    for index in range(800):
        (folder := Path("pictures") / str(index % 2)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / f"{index}.png")
    said(["plan", "experiment=convnext_finetune", "data.path=pictures", "weights=none", "hydra.run.dir=planned"])
    plan = json.loads(Path("planned/plan.json").read_text())
    scales = {name: group["lr_scale"] for group in plan["groups"] for name in group["params"]}
    ids = {"stem.0.weight": 0, "stages.0.blocks.2.conv_dw.weight": 1, "stages.1.blocks.0.conv_dw.weight": 2}
    ids |= {f"stages.2.blocks.{block}.conv_dw.weight": 3 + block // 3 for block in range(27)}
    ids |= {"stages.3.blocks.2.mlp.fc1.weight": 12, "head.fc.weight": 13}
    for name, own in ids.items():
        assert scales[name] == pytest.approx(0.8 ** (13 - own)), name
    assert plan["accumulate"] == 16 and plan["optimizers"]["default"]["lr"] == 5e-5
    assert plan["total_steps"] == 30 * (560 // 512)
