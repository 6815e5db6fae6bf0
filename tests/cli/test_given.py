"""What the user gave: the keys that a line sets, what a wrong key may have meant, the quoting that works."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from layerwise_lr.cli import hydra_app
from layerwise_lr.run import hints, options


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["seed=1"], ["seed"]),
        (["optimizer=sgd", "optimizer.lr=1"], ["optimizer", "optimizer.lr"]),
        (["scheduler={name: step, gamma: 0.5}"], ["scheduler.name", "scheduler.gamma"]),
        (["+grouping.groups.a={match: [conv1], lr: 1}"], ["grouping.groups.a.match", "grouping.groups.a.lr"]),
        (["++scheduler.gamma=1", "~data.path"], ["scheduler.gamma", "data.path"]),
        (["optimizer.momentum=0.1,0.2"], ["optimizer.momentum"]),
        (["data.path='a b'"], ["data.path"]),
        (["+optimizer@optimizers.slow=sgd"], ["optimizers.slow.name"]),
    ],
)
def test_the_keys_that_words_set(words: list[str], keys: list[str]) -> None:
    assert hydra_app.given(words) == (tuple(words), tuple(keys))


LEAVES = list(options.leaves())


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if "." in leaf])
def test_the_last_name_of_every_key_leads_to_it(leaf: str) -> None:
    word = leaf.rpartition(".")[2]
    if word in LEAVES:  # "name" is a key of its own: nothing is wrong with it
        assert hints.meant(word) == ""
        return
    for typed in (word, f"+{word}", f"trainer.{word}"):
        assert leaf in hints.meant(typed).removeprefix("; did you mean ").removesuffix("?").split(" or "), typed


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_slip_of_the_finger_leads_back(leaf: str) -> None:
    """Two letters swapped in the last word; of five letters or more, so that it stays alike."""
    parent, dot, word = leaf.rpartition(".")
    typed = word[:2] + word[3] + word[2] + word[4:] if len(word) >= 5 else word
    if len(word) >= 5 and typed != word:
        assert leaf in hints.meant(f"{parent}{dot}{typed}").removeprefix("; did you mean ").removesuffix("?").split(
            " or "
        )


@pytest.mark.parametrize(("word", "ours"), hints.SYNONYMS.items())
def test_what_other_programs_call_it_leads_to_a_key(word: str, ours: str) -> None:
    wanted = {leaf for leaf in LEAVES if leaf.rpartition(".")[2] == ours}
    told = hints.meant(word).removeprefix("; did you mean ").removesuffix("?").split(" or ")
    assert wanted and set(told) <= wanted


@pytest.mark.parametrize("word", ["xyzzy", "grouping.head", "verify.tolerance", ""])
def test_no_hint_rather_than_a_wrong_one(word: str) -> None:
    assert hints.meant(word) == ""


NASTY = [
    "my pics (1)",
    "a=b",
    "a,b",
    "a#b",
    "it's",
    'say "hi"',
    "[x]",
    "{x}",
    "ünï",
    "图片",
    "a!b",
    "a;b&c|d",
    "a<b>c",
    "a^b`c",
    "a b\\",
    'a\\"b c',
    "\\(a\\)[",
    " both ends ",
    "a  b, c = (d)",
    "x/y (z)/",
]


@pytest.mark.parametrize("path", NASTY)
def test_the_quoting_that_is_told_gives_the_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suggestion as a shell and then Hydra's own parser read it."""
    monkeypatch.setattr(sys, "argv", ["layerwise-lr", "seed=1", f"data.path={path}"])
    told = hydra_app._quoted(f"data.path={path}")
    assert told.startswith(f"data.path={path}: ")
    (word,) = shlex.split(told.rpartition("quote the value: ")[2])
    override = OverridesParser.create().parse_override(word)
    assert (override.key_or_group, str(override.value())) == ("data.path", path)


@pytest.mark.parametrize("path", ["my pics (1)", "a=b", "a,b", "it's", "{x}", "ünï", "a!b"])
def test_a_path_that_hydra_cannot_read_is_found(path: str, call: Callable) -> None:
    code, _, err = call(shlex.join(["plan", "data=npz", f"data.path={path}"]))
    assert (code, len(err.splitlines())) == (2, 1)
    (word,) = shlex.split(err.rpartition("quote the value: ")[2])
    code, _, err = call(shlex.join(["plan", "data=npz", word]))
    looked = "data=npz looks for an .npz with arrays x and y"
    assert (code, err) == (2, f"layerwise-lr: data.path={path}: no such file or folder; {looked}\n")


def test_a_home_folder_is_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert hydra_app._quoted("data.path=~/a b").endswith("""'data.path="/home/me/a b"'""")


def test_jobs_that_do_the_same_are_one(call: Callable) -> None:
    """Momentum is not sgd's: three jobs, not four."""
    line = "train -m optimizer=sgd,momentum optimizer.momentum=0.5,0.9 steps=1 verify=off hydra.sweep.dir=all"
    code, _, err = call(line)
    assert (code, err) == (0, "")
    jobs = json.loads(Path("all/sweep.json").read_text())["jobs"]
    assert len(jobs) == 3 and all((Path("all") / job / "summary.json").exists() for job in jobs)
    assert sum("optimizer=sgd" in job["overrides"] for job in jobs.values()) == 1
