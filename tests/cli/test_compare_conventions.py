"""`plan --compare`: what a person reads, and the file beside it."""

import pytest


@pytest.mark.parametrize("words", ["--compare mae,timm", "--compare=mae,timm"])
def test_two_parameters_of_a_vit(call, tmp_path, words):
    code, out, err = call(f"plan {words} model=vit_base")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines()[:4])) <= 80
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["mae", "|", "timm", "depth", "lr_scale"]
    assert rows[1] == ["norm.weight", "13", "|", "12", "1", "|", "0.75"]
    assert rows[2][0] == "norm.bias"
    assert "2 of 152 parameters of vit_base differ between mae and timm" in out
    (file,) = tmp_path.rglob("conventions.csv")
    head, *lines = file.read_text().splitlines()
    assert head == "name,depth mae,lr_scale mae,weight_decay mae,depth timm,lr_scale timm,weight_decay timm"
    assert lines == ["norm.weight,13,1.0,0.0,12,0.75,0.0", "norm.bias,13,1.0,0.0,12,0.75,0.0"]


def test_weight_decay_is_shown_where_it_differs(call):
    _, out, _ = call("plan model=vit_base --compare mae,dinov2 grouping.layer_decay=0.9")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:5]}
    assert rows["cls_token"] == ["0", "|", "0", "0.2542", "|", "0.2542", "0", "|", "0.05"]
    assert rows["patch_embed.proj.weight"][3:6] == ["0.2542", "|", "0.05084"]


def test_nothing_differs(call):
    code, out, _ = call("plan --compare tree,order")
    assert code == 0
    assert out.startswith("0 of 10 parameters of lenet differ between tree and order")
