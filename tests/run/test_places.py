"""Places that fail, under every command: a share of tests/places.py here, all of it by hand."""

import hashlib

import pytest
from places import NOT_RUN, Home, apart, cases, prepared

SHARE = 24
TELLING = {
    "filling|size|4",
    "filling|size|18",
    "filling|nr_inodes|0",
    "filling|nr_inodes|44",
    "filling, a sweep|nr_inodes|18",
    "at rest|full|sweep",
    "at rest|read-only|resume",
    "at rest|not to be read|sweep, on",
    "during|removed|train",
    "during|removed|sweep",
    "during|a folder instead|train",
    "during|metrics.jsonl removed|train",
    "during|checkpoints removed|train",
    "during|config.resolved.yaml removed|train",
    "during|full|sweep",
    "foreign|conventions.csv alone|plan",
    "foreign|all of them|train",
    "foreign|a part|train",
    "over|the page",
    "over|an export",
    "over|a run's",
    "over|a new beginning",
    "named|\\udcff|report",
    "output|full|train",
    "output|none at all|train",
}
"""What went wrong once, or stands for its kind."""
ALL = cases()
CHOSEN = [name for name in ALL if name in TELLING or int(hashlib.sha256(name.encode()).hexdigest(), 16) % SHARE == 0]


def test_what_went_wrong_once_is_still_tried() -> None:
    assert ALL.keys() >= TELLING
    assert len(ALL) > 440


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    try:
        apart(lambda: None)
    except PermissionError as error:
        pytest.skip(f"{NOT_RUN} ({error})")
    return prepared(tmp_path_factory.mktemp("places"))


@pytest.mark.torch
@pytest.mark.parametrize("name", CHOSEN)
def test_a_place_that_fails_is_told_in_a_line_and_nothing_is_lost(name: str, home: Home) -> None:
    assert apart(lambda: ALL[name](home)) == []
