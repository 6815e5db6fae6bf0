import dataclasses
from dataclasses import replace

import pytest

from layerwise_lr.run import Config, resolve
from layerwise_lr.run.reading import read


def test_yaml_round_trip(rich, tmp_path):
    final = resolve(rich)
    (tmp_path / "config.resolved.yaml").write_text(final.to_yaml())
    again = read(tmp_path / "config.resolved.yaml")
    assert again == final
    assert again.to_yaml() == final.to_yaml()
    assert again.sha256() == final.sha256()


def test_odd_strings_survive_the_yaml(tmp_path):
    for name in ("no", "1e3", "a: b", "- x", "é ☃", "'\"", "1_000", "0x1f", "null", ""):
        (tmp_path / "c.yaml").write_text(replace(Config(), name=name).to_yaml())
        assert read(tmp_path / "c.yaml").name == name


def other_value(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if value is None:
        return 3
    if isinstance(value, list):
        return [*value, 1]
    if dataclasses.is_dataclass(value):
        first = dataclasses.fields(value)[0].name
        return replace(value, **{first: other_value(getattr(value, first))})
    return {**value, "extra": None} if isinstance(value, dict) else value


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Config)])
def test_the_hash_follows_every_key(field):
    config = Config()
    other = replace(config, **{field: other_value(getattr(config, field))})
    assert (other.sha256() != config.sha256()) == (field != "logger"), "a logger changes no result"
    assert Config().sha256() == config.sha256()
