"""The page of whatever a run can be: nets with buffers, frozen parts, rates of zero, no proof, one evaluation, odd tables.
Each is two runs, trained by the reference framework; a figure without numbers is left out, nothing else."""

import re
from pathlib import Path

import pytest
from finished_runs import trained

from layerwise_lr.planning import UserError
from layerwise_lr.report import Report

BN = {"model": {"name": "mobilenet_v2"}, "size": {"channels": 3, "image_size": 32, "train_size": 16}, "batch_size": 8}
DECAY = {"strategy": "layer_decay", "layer_decay": 0.5}
KINDS = {
    "buffers": BN,
    "frozen": {"freeze": {"strategy": "only", "match": ["fc1"]}},
    "head first": {"freeze": {"strategy": "head_first", "every": "20%"}},
    "no proof": {"verify": {"start": False, "training": False}},
    "no decay of weights": {"optimizer": {"lr": 3e-3, "weight_decay": 0.0}},
    "an average": {"ema": {"decay": 0.9}, "eval_every": 2},
    "the last step alone": {"checkpoint": {"keep_best": 0}},
    "ends early": {"early_stop": {"patience": 1, "min_delta": 0.9}, "eval_every": 1},
    "a scale of zero": {"grouping": {"strategy": "backbone_head", "backbone_scale": 0.0}},
    "by name": {
        "grouping": {
            "strategy": "by_name",
            "groups": {"first": {"match": ["fc1*"], "lr_scale": 0.1}, "rest": {"match": ["*"]}},
        }
    },
    "momentum": {"optimizer": {"name": "momentum", "lr": 1e-2}},
}


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    changes = dict(KINDS[request.param])
    own = changes.pop("grouping", DECAY)
    for name, grouping in (("flat", {"strategy": "flat"}), ("own", own)):
        trained(tmp_path / name, grouping=grouping, **changes)
    return tmp_path


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_the_page_is_made(pair: Path) -> None:
    Report.read([pair], None).write(pair / "page.html")
    text = (pair / "page.html").read_text()
    assert text.count("<svg") >= 3 and "Which layers really learned" in text
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))


@pytest.mark.parametrize("lr", ["", "fast", "nan", "inf"])
def test_a_group_s_rate_that_is_no_number_leaves_its_run_out(tmp_path: Path, lr: str) -> None:
    for name in ("a", "b"):
        trained(tmp_path / name)
    table = tmp_path / "b" / "params.csv"
    head, first, *rest = table.read_text().splitlines()
    cells = dict(zip(head.split(","), first.split(","), strict=False))
    table.write_text("\n".join([head, ",".join({**cells, "lr": lr}.values()), *rest]) + "\n")
    made = Report.read([tmp_path], None)
    assert [job.path.name for job in made.unfinished] == ["b"] and "params.csv" in made.unfinished[0].why
    made.write(tmp_path / "page.html")
    with pytest.raises(UserError, match=r"params\.csv"):
        Report.read([tmp_path / "b"], None)
