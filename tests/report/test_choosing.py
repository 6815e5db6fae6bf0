"""Which run of a sweep is asked: against the choice made here from the files' text."""

import json
import re
import shutil
import statistics

import pytest
from finished_runs import trained

from layerwise_lr.planning import UserError
from layerwise_lr.report import choose


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two decays, two lrs, two seeds; on the digits."""
    home = tmp_path_factory.mktemp("choosing") / "sweep"
    for decay in (0.5, 1.0):
        for lr in (1e-3, 1e-2):
            for seed in (0, 1):
                grouping = {"strategy": "layer_decay", "layer_decay": decay}
                trained(home / f"{decay}_{lr}_{seed}", grouping=grouping, optimizer={"lr": lr}, seed=seed, epochs=3)
    return home


def test_the_best_setting_and_its_best_seed(swept):
    found = {}
    for path in swept.glob("*/summary.json"):
        decay, lr, seed = path.parent.name.split("_")
        found.setdefault((decay, lr), {})[int(seed)] = json.loads(path.read_text())["val"]["accuracy"]
    setting = max(found, key=lambda key: statistics.fmean(found[key].values()))
    values = found[setting]
    chosen = choose(swept)
    assert chosen.path.parent == swept
    assert statistics.fmean(found[tuple(chosen.path.name.split("_")[:2])].values()) == statistics.fmean(values.values())
    own = found[tuple(chosen.path.name.split("_")[:2])]
    assert own[int(chosen.path.name.split("_")[2])] == max(own.values())
    assert re.search(r"best on validation is .*, lr .* \(.* % accuracy, 2 seeds\), and of its seeds \d", chosen.why)
    assert len(chosen.why.splitlines()) == 1


def test_one_seed_is_luck(swept, tmp_path):
    home = shutil.copytree(swept, tmp_path / "sweep")
    lucky = trained(home / "lucky", grouping={"strategy": "flat"}, optimizer={"lr": 5e-3}, epochs=3)
    summary = json.loads((lucky / "summary.json").read_text())
    summary["val"]["accuracy"] = 1.0
    (lucky / "summary.json").write_text(json.dumps(summary))
    assert choose(home).path != lucky


def test_unfinished_jobs_are_counted(swept, tmp_path):
    home = shutil.copytree(swept, tmp_path / "sweep")
    next(home.glob("*/summary.json")).unlink()
    assert "; not finished: 1 completed" in choose(home).why


def test_runs_that_cannot_be_compared_are_refused(swept, tmp_path):
    home = shutil.copytree(swept, tmp_path / "sweep")
    trained(home / "other", model={"name": "mlp", "width": 9, "depth": 1})
    with pytest.raises(UserError, match=r"2 studies that cannot be compared .*name a run, such as"):
        choose(home)


def test_nothing_finished_is_told(tmp_path):
    with pytest.raises(UserError, match="no finished run in or below it"):
        choose(tmp_path)
