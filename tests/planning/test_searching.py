"""A regex cannot hang, and what looks like a secret is masked."""

import signal
import threading
import time

import pytest

from layerwise_lr.models import make_tree, param_table
from layerwise_lr.planning import GroupingSpec, GroupSpec, UserError, is_secret, masked, masked_text, printable
from layerwise_lr.planning.assigning import group_table

TABLE = param_table(make_tree("resnet18", num_classes=10, in_channels=3, image_size=32))
SLOW = r"^(\w|\w\w|[.\w]+)+!$"


@pytest.mark.parametrize(
    "spec",
    [GroupingSpec(depths={SLOW: 0, ".*": 1}), GroupingSpec(groups={"a": GroupSpec(match=[f"re:{SLOW}"])})],
    ids=["depths", "groups"],
)
def test_a_regex_that_would_hang_is_one_line(spec):
    began, before = time.monotonic(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(UserError, match="a repeat in a repeat"):
        group_table(TABLE, spec, 0.1, 0.0)
    assert time.monotonic() - began < 9
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_regex_has_a_length():
    for spec in (
        GroupingSpec(depths={"a" * 1001: 0}),
        GroupingSpec(groups={"a": GroupSpec(match=["re:" + "a" * 1001])}),
    ):
        with pytest.raises(UserError, match="at most 1,000"):
            group_table(TABLE, spec, 0.1, 0.0)


def test_other_threads_search_as_well():
    found = []
    spec = GroupingSpec(depths={"conv1": 0, ".*": 1})
    thread = threading.Thread(target=lambda: found.append(group_table(TABLE, spec, 0.1, 0.0)))
    thread.start()
    thread.join()
    assert {row.depth for row in found[0][0]} == {0, 1}


@pytest.mark.parametrize(
    "key", ["token", "hf_token", "model.options.api_key", "PASSWORD", "my-secret", "a.apikey", "auth"]
)
def test_keys_of_secrets(key):
    assert is_secret(key)
    assert masked(f"+{key}=abc") == f"+{key}=***"


@pytest.mark.parametrize(
    "key", ["cls_token", "num_tokens", "keep", "key", "weights.key", "author", "token_mixer", "pool"]
)
def test_keys_that_are_none(key):
    assert not is_secret(key)
    assert masked(f"{key}=avg") == f"{key}=avg"


def test_addresses_and_lines_are_masked():
    assert masked("data.path=https://me:abc@host/x") == "data.path=https://***@host/x"
    assert masked("+model.options={hf_token: abc}") == "+model.options={hf_token: ***"
    diff = '+api_key = "abc"\n-lr = 0.1\n+  "password": "abc",\n+url=ftp://a:abc@h/\n'
    assert "abc" not in masked_text(diff)
    assert "-lr = 0.1\n" in masked_text(diff)


def test_a_terminal_gets_no_control():
    assert printable("a\x1b[31m\nb\u202e") == "a\\x1b[31m\nb\\u202e"
    assert printable("± é") == "± é"
