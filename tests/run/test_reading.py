import copy
import os
import random
from dataclasses import asdict

import pytest
import yaml
from omegaconf import OmegaConf

from layerwise_lr.planning import UserError
from layerwise_lr.run import reading
from layerwise_lr.run.reading import from_data, from_omegaconf, read


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"sede": 1}, "unknown key sede;.*did you mean 'seed'"),
        ({"model": {"nme": "lenet"}}, r"unknown key model\.nme;.*did you mean 'name'"),
        ({"grouping": {"layer_deacy": 0.5}}, r"unknown key grouping\.layer_deacy;.*'layer_decay'"),
        ({"grouping": {"groups": {"a": {"mtch": ["*"]}}}}, r"unknown key grouping\.groups\.a\.mtch;.*'match'"),
        ({"schedules": {"s": {"gama": 1}}}, r"unknown key schedules\.s\.gama;.*'gamma'"),
        ({"optimizers": {"o": {"lrr": 1}}}, r"unknown key optimizers\.o\.lrr"),
        ({"checkpoint": {"kepe": 1}}, r"unknown key checkpoint\.kepe"),
        ({1: 2}, "unknown key 1"),
        ({"model": 3}, "model.* must be a mapping, it is int"),
        ({"model": None}, "model.* must be a mapping, it is NoneType"),
        ([], "config must be a mapping, it is list"),
        (None, "config must be a mapping"),
        ({"grouping": {"groups": {"a": None}}}, r"grouping\.groups\.a.* must be a mapping"),
        ({"grouping": {"groups": ["conv1.*"]}}, r"grouping\.groups.* must be a mapping"),
        ({"schedules": "cosine"}, r"schedules.* must be a mapping"),
        ({"seed": "x"}, "seed.*'x'"),
        ({"seed": 1.5}, "seed"),
        ({"optimizer": {"lr": "fast"}}, r"optimizer\.lr.*'fast'"),
        ({"optimizer": {"betas": 0.9}}, r"optimizer\.betas"),
        ({"data": {"mean": ["a"]}}, r"data\.mean"),
        ({"verify": "perhaps"}, "verify must be a mapping, it is str"),
    ],
)
def test_unknown_keys_and_wrong_types_at_each_level(data, word):
    with pytest.raises(UserError, match=word):
        from_data(data)


def test_no_named_groups_may_be_written_as_null():
    assert from_data({"grouping": {"groups": {}}}).grouping.groups == {}


# --- nothing in a file is evaluated


@pytest.mark.parametrize(
    "text",
    [
        "name: ${oc.select:seed}",
        'name: "\\x24{seed}"',
        'name: "$\\u007Bseed}"',
        "name: ${seed}",
        'grouping: {groups: {a: {match: ["\\x24{hydra:job.name}"]}}}',
        '"\\x24{oc.env:HOME}": 1',
        'optimizers: {"\\x24{seed}": {}}',
    ],
)
def test_an_interpolation_in_a_run_s_config_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "c.yaml")
    assert os.environ["HOME"] not in str(caught.value).replace(str(tmp_path), "")
    assert "interpolation" in str(caught.value) or "unknown key" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"name: [", "not YAML"),
        (b"!!python/object/apply:os.system ['echo hi']", "not YAML"),
        (b"", "must be a mapping"),
        (b"\xff\xfe\x00bad", "not UTF-8"),
        (b"name: a\x00b", "not YAML"),
        (b"x" * 1_000_001, "larger than"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, content, word):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UserError, match=word):
        read(tmp_path / "c.yaml")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path)


def test_a_composed_config_may_interpolate_and_is_plain_afterwards():
    cfg = OmegaConf.create({"seed": 7, "name": "run-${seed}"})
    assert from_omegaconf(cfg).name == "run-7"
    assert yaml.safe_load(from_omegaconf(cfg).to_yaml())["name"] == "run-7"


def test_a_key_s_old_name_is_told():
    with pytest.raises(UserError, match=r"unknown key grouping\.depth; .*did you mean grouping\.convention\?"):
        from_data({"grouping": {"depth": "mae"}})


STRANGE = (
    None,
    0,
    1,
    1.0,
    True,
    "x",
    "1",
    "1.0",
    "true",
    "???",
    "",
    [],
    [1],
    ["a"],
    {},
    {"a": 1},
    float("nan"),
    -(10**30),
)


def leaves(data, at=()):
    for key, value in data.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from leaves(value, (*at, key))


def rich():
    """A config that has something in every list and mapping."""
    named = {"a": {"name": "linear", "milestones": [3, "50%"]}, "b": {}}
    groups = {"head": {"match": ["fc"], "lr_scale": 2.0, "stop": "2 epochs"}}
    given = {
        "schedules": named,
        "optimizers": {"c": {"name": "sgd"}},
        "grouping": {"groups": groups, "depths": {"fc": 3}},
        "model": {"options": {"deep": {"list": [1, "two", None, {"three": 3.0}]}}},
        "class_weights": [1, 2.5],
        "augment": {"crop_scale": [0.5, 1]},
    }
    return asdict(from_data(given))


def test_what_a_run_writes_is_read_as_omegaconf_reads_it(tmp_path):
    """Without OmegaConf where data is as a run writes it, with it where one value is another: the same either way."""
    rng, seen, kept = random.Random(0), [], rich()
    places = list(leaves(kept))
    for place, strange in [((), None), *((rng.choice(places), rng.choice(STRANGE)) for _ in range(60))]:
        data = copy.deepcopy(kept)
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        if place:
            inner[place[-1]] = strange
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        outcome = []
        for way in (lambda: read(tmp_path / "c.yaml"), lambda given=data: from_data(given)):
            try:
                outcome.append(repr(way()))
            except UserError as error:
                outcome.append(type(error))
        assert outcome[0] == outcome[1], (place, strange)
        seen.append(outcome[0])
    assert seen[0] == repr(from_data(kept)) and UserError in seen and len({*seen} - {UserError}) > 10


def test_a_written_config_needs_no_omegaconf(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text(from_data(rich()).to_yaml())
    expected = read(tmp_path / "c.yaml")
    monkeypatch.setattr(reading, "from_data", None)
    assert read(tmp_path / "c.yaml") == expected
    (tmp_path / "c.yaml").write_text("seed: 3\n")
    with pytest.raises(TypeError):
        read(tmp_path / "c.yaml")
