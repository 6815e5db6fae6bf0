import csv
import io

import pytest

from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.params import ParamInfo, ParamTable


def row(name, shape=(2, 3), depth=0, trainable=True):
    return ParamInfo(name, shape, "linear", "weight" if trainable else "buffer", depth, trainable)


def table(*names, head="fc"):
    return ParamTable(tuple(row(n, depth=i) for i, n in enumerate(names)), head)


def test_a_name_given_twice_is_refused_and_said():
    with pytest.raises(UserError, match=r"not unique: b\.weight$"):
        table("a.weight", "b.weight", "b.weight")


@pytest.mark.parametrize(
    ("name", "is_head"),
    [
        ("fc", True),
        ("fc.weight", True),
        ("fc.1.bias", True),
        ("fc2.weight", False),
        ("fc2", False),
        ("f", False),
        ("body.fc.weight", False),
        ("fcx.fc.weight", False),
        ("", False),
    ],
)
def test_the_head_ends_at_a_dot(name, is_head):
    assert table("fc.weight").is_head(name) is is_head


def test_a_dotted_head_is_a_prefix_too():
    held = table("classifier.1.weight", head="classifier.1")
    assert held.is_head("classifier.1.bias")
    assert not held.is_head("classifier.10.bias")
    assert not held.is_head("classifier.0.bias")


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4), (8, 3, 5, 5)])
def test_numel_counts_the_elements(shape):
    import numpy as np

    assert row("w", shape).numel == np.zeros(shape).size


def test_csv_reads_back_row_by_row():
    held = ParamTable((row("a", (4, 3, 5, 5)), row('odd,"name"', (7,), 1), row("buf", (), 2, False)), "b")
    text = held.csv({"group": {"a": "g,1", "buf": 0}, "lr": {"a": 0.1}})
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [line["name"] for line in lines] == ["a", 'odd,"name"', "buf"]
    assert [tuple(int(n) for n in line["shape"].split("x") if n) for line in lines] == [(4, 3, 5, 5), (7,), ()]
    assert [int(line["numel"]) for line in lines] == [300, 7, 1]
    assert [int(line["depth"]) for line in lines] == [0, 1, 2]
    assert [line["trainable"] for line in lines] == ["True", "True", "False"]
    assert [line["group"] for line in lines] == ["g,1", "", "0"]
    assert [line["lr"] for line in lines] == ["0.1", "", ""]
    assert "\r" not in text


def test_trainable_leaves_the_buffers_out_and_keeps_the_order():
    held = ParamTable((row("b"), row("buffer", trainable=False), row("a")), "a")
    assert [r.name for r in held.trainable] == ["b", "a"]
    assert len(held) == 3
    assert held.by_name["buffer"].trainable is False


def test_with_depths_changes_nothing_but_the_depths():
    held = table("x.weight", "fc.weight")
    other = held.with_depths({"x.weight": 4, "fc.weight": 9})
    assert [r.depth for r in other] == [4, 9]
    assert other.num_layers == 9
    assert held.num_layers == 1
    assert other.with_depths({"x.weight": 0, "fc.weight": 1}) == held


def test_with_depths_wants_every_name():
    with pytest.raises(KeyError):
        table("x.weight", "fc.weight").with_depths({"x.weight": 0})
