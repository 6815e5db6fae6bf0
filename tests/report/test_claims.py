"""What a report claims: like is compared with like, and how sure one may be is computed here by SciPy's own tests."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from layerwise_lr.report import advice, claims, study
from layerwise_lr.report.factors import GROUPING, facets, settings
from layerwise_lr.report.statistics import Run, best
from layerwise_lr.run import Config

FLAT = [0.80, 0.81, 0.79, 0.82]
SECTIONS = {"scheduler": "name", "optimizer": "name", "freeze": "strategy", "framework": "name"}


def runs(tests, val=0.5, decay=1.0, lr=1e-3, **sections):
    """A run for each seed; sections: scheduler="cosine" or scheduler={...}."""
    config = Config()
    config = replace(config, grouping=replace(config.grouping, strategy="layer_decay", layer_decay=decay))
    config = replace(config, optimizer=replace(config.optimizer, lr=lr))
    for name, value in sections.items():
        value = value if isinstance(value, dict) else {SECTIONS[name]: value}
        config = replace(config, **{name: replace(getattr(config, name), **value)})
    return [
        Run(
            Path(f"{decay}_{lr}_{sections}_{seed}".replace("/", "")),
            replace(config, seed=seed),
            {"val": {"accuracy": val}, "test": {"accuracy": test}, "seconds": 1.0, "notes": []},
        )
        for seed, test in enumerate(tests)
    ]


def judged(*made):
    """The one study of these runs."""
    (found,) = study.studies(list(itertools.chain(*made)), "accuracy")
    return found


def better(by):
    """FLAT and so much more, with a little noise."""
    noise = np.random.default_rng(int(1000 + 1000 * by)).normal(0, 0.002, len(FLAT))
    return [float(v + by + e) for v, e in zip(FLAT, noise - noise.mean(), strict=True)]


@pytest.mark.parametrize(
    ("tests", "word"),
    [
        ([0.92, 0.93, 0.91, 0.925], "is better than"),
        ([0.70, 0.72, 0.69, 0.71], "is worse than"),
        ([0.80, 0.83, 0.78, 0.81], "no difference"),
        ([0.9], "no claim"),
        ([0.85, 0.86, 0.84, 0.87], "no claim"),
    ],
)
def test_verdict_where_the_answer_is_known(tests, word):
    (sentence,) = judged(runs(FLAT), runs(tests, decay=0.7)).verdicts()
    others = {"is better than", "is worse than", "no difference", "no claim"} - {word}
    assert word in sentence and not any(other in sentence for other in others)
    assert "layer_decay 0.7" in sentence and "flat" in sentence


def test_one_lucky_seed_is_not_the_best():
    lucky, sound = settings(runs([0.9], val=0.99, decay=0.5) + runs([0.8, 0.8], val=0.7, decay=0.6))
    assert best([lucky, sound], "accuracy") is sound
    assert best([lucky], "accuracy") is lucky


def test_like_is_compared_with_like():
    """Under cosine the decay loses, under constant it wins; the best of all decays against the best of all flats would
    have set one schedule against the other."""
    found = judged(
        runs(FLAT, val=0.90, scheduler="cosine"),
        runs(better(-0.05), val=0.60, decay=0.7, scheduler="cosine"),
        runs(better(-0.2), val=0.50, scheduler="constant"),
        runs(better(-0.1), val=0.95, decay=0.7, scheduler="constant"),
    )
    assert [facet.where for facet in found.facets] == ["constant", "cosine"]  # the best on validation first
    for claim in found.claims:
        assert claim.one.levels == claim.other.levels and claim.one.kind != claim.other.kind
    first, second = found.verdicts()
    assert first.startswith("With constant: layer_decay 0.7 is better than flat at its own best lr")
    assert second.startswith("With cosine: layer_decay 0.7 is worse than flat at its own best lr")


def test_each_side_has_its_own_best_lr():
    found = judged(
        runs(FLAT, val=0.7, lr=1e-3),
        runs([0.99] * 4, val=0.6, lr=1e-2),
        runs(better(0.1), val=0.5, lr=1e-3, decay=0.7),
        runs(better(0.02), val=0.8, lr=1e-2, decay=0.7),
    )
    (claim,) = found.claims
    assert (claim.other.lr, claim.one.lr) == (1e-3, 1e-2)
    assert claim.difference.mean == pytest.approx(0.02)


def test_labels_are_words():
    found = judged(
        runs(FLAT, scheduler="cosine", optimizer={"name": "adamw", "weight_decay": 0.05}),
        runs(FLAT, decay=0.7, scheduler="cosine", optimizer={"name": "adamw", "weight_decay": 0.05}),
        runs(FLAT, scheduler="constant", optimizer={"name": "sgd", "weight_decay": 0.0, "momentum": 0.5}),
    )
    assert {facet.where for facet in found.facets} == {
        "cosine, adamw, weight decay 0.05",
        "constant, sgd, weight decay 0",
    }
    assert found.verdicts()[-1] == (
        "With constant, sgd, weight decay 0: only flat runs, nothing to compare them with: nobody can tell."
    )


@pytest.mark.parametrize(
    ("factor", "levels"),
    [
        ("scheduler", ("cosine", "constant")),
        ("optimizer", ("adamw", "lion")),
        ("freeze", ("none", "progressive")),
        ("framework", ("torch", "oneflow")),
    ],
)
def test_other_sweeps_get_a_verdict_too(factor, levels):
    found = judged(
        *(runs(t, val, **{factor: name}) for t, val, name in zip((FLAT, better(-0.1)), (0.9, 0.5), levels, strict=True))
    )
    shown = [f"freeze {name}" if factor == "freeze" else name for name in levels]
    (sentence,) = found.verdicts()
    assert sentence.startswith(f"{shown[0]} is better than {shown[1]} at its own best lr in accuracy (+10.0 points")
    assert found.lead.factor == factor and list(found.best) == shown


def test_two_other_factors_are_judged_one_at_a_time():
    found = judged(
        *(
            runs(
                better(0.1 * (s == "cosine") - 0.1 * (o == "lion")),
                0.9 - 0.1 * (s != "cosine"),
                scheduler=s,
                optimizer=o,
            )
            for s in ("cosine", "constant")
            for o in ("adamw", "lion")
        )
    )
    for claim in found.claims:
        a, b = claim.one.levels, claim.other.levels
        assert sum(a[name] != b[name] for name in a) == 1
    assert len(found.claims) == 4 and {c.facet.factor for c in found.claims} == {"scheduler", "optimizer"}


def test_a_sweep_of_layer_decay_stays_one_of_the_grouping():
    found = judged(runs(FLAT), runs(better(0.1), decay=0.7), runs(better(0.2), decay=0.5, val=0.6))
    assert found.lead.factor == GROUPING and found.lead.where == ""
    assert len(found.claims) == 1


def test_p_and_its_correction():
    rng = np.random.default_rng(0)
    tests = {decay: rng.normal(0.8 + 0.01 * i, 0.02, 6) for i, decay in enumerate((1.0, 0.9))}
    split = rng.normal(0.79, 0.02, 6)
    made = judged(
        *(runs(t, decay=d, scheduler=s) for d, t in tests.items() for s in ("cosine",)),
        runs(split, decay=1.0, scheduler="constant"),
        runs(tests[1.0], decay=0.9, scheduler="constant"),
    )
    by_hand = sorted(
        stats.ttest_rel(one, other).pvalue for one, other in ((tests[0.9], tests[1.0]), (tests[1.0], split))
    )
    expected = sorted([min(1, 2 * by_hand[0]), max(min(1, 2 * by_hand[0]), by_hand[1])])
    assert sorted(claim.p for claim in made.claims) == pytest.approx(expected)
    assert all(claim.of == 2 for claim in made.claims)


def test_one_of_many_is_likely_by_chance():
    """20 facets without an effect, one of them with an interval that leaves zero out: no claim, and the reason."""
    lucky = [0.81, 0.825, 0.80, 0.8215]
    assert 0.05 / 20 < stats.ttest_rel(lucky, FLAT).pvalue < 0.05
    none = [0.80, 0.83, 0.78, 0.81]
    made = []
    for i in range(20):
        weight = {"weight_decay": 0.01 * i}
        made += [runs(FLAT, optimizer=weight), runs(lucky if i == 3 else none, decay=0.7, optimizer=weight)]
    found = judged(*made)
    assert {claim.answer for claim in found.claims} == {claims.SAME}
    (sentence,) = [s for s in found.verdicts() if s.startswith("With weight decay 0.03: ")]
    assert "Of 20 claims one such interval is likely by chance" in sentence


@pytest.mark.parametrize(("spread", "n"), [(0.01, 5), (0.02, 12), (0.05, 40), (0.005, 3)])
def test_power_is_that_of_the_noncentral_t(spread, n):
    limit, shift = stats.t.ppf(0.975, n - 1), 0.01 / spread * np.sqrt(n)
    expected = stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift)
    assert claims.power(0.01, spread, n) == pytest.approx(expected, abs=1e-6)


def test_so_many_seeds_show_a_point():
    """The number found is the first that reaches 80 %, and a simulation agrees."""
    tests = [0.80, 0.83, 0.78, 0.81]
    (claim,) = judged(runs(FLAT), runs(tests, decay=0.7)).claims
    n, spread = claim.seeds_for_a_point, np.std(np.subtract(tests, FLAT), ddof=1)
    assert claims.power(0.01, spread, n) >= 0.8 > claims.power(0.01, spread, n - 1)
    drawn = np.random.default_rng(0).normal(0.01, spread, (4000, n))
    seen = np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)
    assert seen == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("tests", "said"), [(FLAT, False), ([0.80, 0.83, 0.78, 0.81], True)])
def test_seeds_are_asked_for_where_their_spread_is_known(tests, said):
    """Both sides equal with every seed: their spread of zero foretells nothing."""
    found = judged(runs(FLAT), runs(tests, decay=0.7))
    assert any("to see 1 point" in note.text for note in advice.notes(found)) == said


def test_facets_are_of_all_settings():
    found = settings(runs(FLAT) + runs(FLAT, decay=0.7) + runs(FLAT, scheduler="step"))
    assert sorted(s.label for facet in facets(found, "accuracy") for s in facet.settings) == sorted(
        s.label for s in found
    )


@pytest.mark.parametrize(("extra", "code"), [(0.1, 0), (0.0, 3), (-0.1, 5)])
def test_decide(tmp_path, extra, code):
    """The exit code, on real runs whose test accuracy is written over."""
    words = ["train", "-m", "framework=reference", "epochs=1", "grouping.layer_decay=0.7,1", "hydra.sweep.dir=s"]
    program = [sys.executable, "-m", "layerwise_lr"]
    subprocess.run([*program, *words, "seed=0,1,2"], cwd=tmp_path, check=True, capture_output=True)
    for path in tmp_path.glob("s/*/summary.json"):
        seed = int(path.parent.name.partition("seed-")[2][0])
        own = 0.5 + seed * 0.01 + ("decay-0.7" in path.parent.name) * (extra + 0.005 * (-1) ** seed)
        text = path.read_text()
        head, _, tail = text.partition('"test"')
        start = tail.index('"accuracy": ') + len('"accuracy": ')
        end = start + min(tail[start:].find(c) for c in ",}" if tail[start:].find(c) >= 0)
        path.write_text(f'{head}"test"{tail[:start]}{own}{tail[end:]}')
    ask = [*program, "report", "s", "--decide"]
    assert subprocess.run(ask, cwd=tmp_path, capture_output=True).returncode == code
    one = next(path.parent for path in tmp_path.glob("s/*/summary.json"))
    assert subprocess.run([*ask[:-2], str(one), "--decide"], cwd=tmp_path, capture_output=True).returncode == 4
