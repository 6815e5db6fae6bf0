"""The report against numbers computed here by another route, on a real sweep and on runs of known answer."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from layerwise_lr.planning.errors import UserError
from layerwise_lr.planning.groups import Group
from layerwise_lr.planning.plan import OptimizerSpec, Plan
from layerwise_lr.planning.schedules import ScheduleSpec
from layerwise_lr.report import advice, factors, report
from layerwise_lr.report import statistics as settled
from layerwise_lr.run import reading
from layerwise_lr.run.schema import EmaSpec

SHORT = ["epochs=4", "eval_every=2", "data.test_size=300"]


def command(*words, cwd, ok=(0,)):
    """layerwise-lr in a process of its own; what it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "80"}
    program = [sys.executable, "-m", "layerwise_lr", *words]
    done = subprocess.run(program, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode in ok, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A real sweep: 2 layer_decay (one is flat) x 2 lr x 2 seeds; no head/backbone."""
    home = tmp_path_factory.mktemp("report")
    command(
        "train",
        "-m",
        *SHORT,
        "grouping.layer_decay=0.6,1.0",
        "optimizer.lr=1e-3,3e-3",
        "seed=0,1",
        "hydra.sweep.dir=sweep",
        cwd=home,
    )
    return home / "sweep"


@pytest.fixture
def folder(swept, tmp_path):
    """A copy that a test may break."""
    return Path(shutil.copytree(swept, tmp_path / "sweep"))


def only(parts):
    """The rows of the one table there is."""
    ((where, rows),) = parts
    assert where == ""
    return [row for _, row in rows]


def by_hand(folder):
    """{(decay, lr): {seed: summary}} straight from the files' text."""
    found = {}
    for path in folder.glob("*/summary.json"):
        text = (path.parent / "config.resolved.yaml").read_text()
        decay = float(re.search(r"^  layer_decay: (.*)$", text, re.M)[1])
        lr = float(re.search(r"^optimizer:\n  name: .*\n  lr: (.*)$", text, re.M)[1])
        summary = json.loads(path.read_text())
        found.setdefault((decay, lr), {})[summary["seed"]] = summary
    return found


def mean_and_half(values):
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return f"{100 * statistics.fmean(values):.1f} ± {100 * (high - low) / 2:.1f}"


def test_every_setting_is_a_row_of_its_own_with_the_right_numbers(folder):
    (study,) = report.Report.read([folder], None).studies
    rows = {(r.setting, r.lr): r for r in only(report.tables(study))}
    hand = by_hand(folder)
    assert len(rows) == len(hand) == 4
    for (decay, lr), runs in hand.items():
        row = rows["flat" if decay == 1 else f"layer_decay {decay:g}", f"{lr:g}"]
        assert row.seeds == "2"
        assert row.val == mean_and_half([s["val"]["accuracy"] for s in runs.values()])
        assert row.test == mean_and_half([s["test"]["accuracy"] for s in runs.values()])


def test_the_page_says_which_steps_are_kept_and_what_the_last_ones_had(folder):
    (study,) = report.Report.read([folder], None).studies
    runs = [summary for runs in by_hand(folder).values() for summary in runs.values()]
    gained = statistics.fmean(s["test"]["accuracy"] - s["last"]["test"]["accuracy"] for s in runs)
    steps = sorted({s["kept"]["step"] for s in runs})
    said = study.kept()
    assert (f"(steps {steps[0]} to {steps[-1]} of " if len(steps) > 1 else f"(step {steps[0]} of ") in said
    assert f"on test it is {100 * gained:+.1f} points of accuracy to the last step's" in said
    assert f"in the mean over {len(runs)} runs" in said


def test_a_run_of_an_older_version_kept_its_last_step_and_gives_way(folder):
    """A sweep of before keep_best, gone on with: its runs have other config hashes, so that their jobs run again."""
    (whole,) = report.Report.read([folder], None).studies
    for path in sorted(folder.glob("*/summary.json"))[:5]:
        twin = shutil.copytree(path.parent, path.parent.with_name(f"z_{path.parent.name}"))
        summary = json.loads(path.read_text())
        del summary["kept"], summary["last"]
        (twin / "summary.json").write_text(
            json.dumps(summary | {"val": {"loss": 0.0, "accuracy": 1.0, "balanced_accuracy": 1.0}})
        )
    (study,) = report.Report.read([folder], None).studies
    assert only(report.tables(study)) == only(report.tables(whole))
    assert "8 finished runs (5 left out: the same setting and seed as another)" in study.facts
    assert study.kept() == whole.kept()
    shutil.rmtree(path.parent)
    (study,) = report.Report.read([folder], None).studies
    assert study.kept().startswith("The numbers of 7 of 8 runs are of the step that was best on validation (")
    assert "), those of the others of the last one; " in study.kept()


def test_changed_pictures_are_told_by_the_option_s_name_and_covered_by_the_interval(folder):
    (plain,) = report.Report.read([folder], None).studies
    assert "random changes" not in plain.covers()
    runs = sorted(path.parent for path in folder.glob("*/summary.json"))
    for run, hflip, crop in ((runs[0], 0.5, "[0.25, 1.0]"), (runs[1], 0.25, "null")):
        config = run / "config.resolved.yaml"
        text = config.read_text().replace("  hflip: 0.0\n", f"  hflip: {hflip}\n", 1)
        config.write_text(text.replace("  crop_scale: null\n", f"  crop_scale: {crop}\n", 1))
    (study,) = report.Report.read([folder], None).studies
    labels = {setting.label.partition(", ")[2] for setting in study.settings}
    assert labels == {"augment none", "augment light", "hflip 0.25, crop scale none"}
    assert "the random changes to the pictures" in study.covers()


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_the_best_is_chosen_on_validation_and_its_difference_is_paired_by_seed(folder, metric):
    (study,) = report.Report.read([folder], metric).studies
    hand = by_hand(folder)

    def chosen(decay):
        own = {lr: runs for (d, lr), runs in hand.items() if d == decay}
        return max(own.items(), key=lambda kv: statistics.fmean(s["val"][metric] for s in kv[1].values()))

    (flat_lr, flat), (decay_lr, decay) = chosen(1.0), chosen(0.6)
    first, second = report.answers(study, study.lead)
    assert (first.lr, second.lr) == (f"{flat_lr:g}", f"{decay_lr:g}")
    assert second.balanced == mean_and_half([s["test"]["balanced_accuracy"] for s in decay.values()])
    differences = [decay[s]["test"][metric] - flat[s]["test"][metric] for s in (0, 1)]
    assert second.difference.lstrip("+") == mean_and_half(differences).lstrip("+")


def test_an_unlucky_order_of_test_pictures_does_not_change_the_choice(folder):
    """Test results took no part in the choice: turn them upside down and the same settings are shown."""
    (study,) = report.Report.read([folder], None).studies
    before = [(a.setting, a.lr) for a in report.answers(study, study.lead)]
    for path in folder.glob("*/summary.json"):
        summary = json.loads(path.read_text())
        summary["test"]["accuracy"] = 1 - summary["test"]["accuracy"]
        path.write_text(json.dumps(summary))
    (study,) = report.Report.read([folder], None).studies
    assert [(a.setting, a.lr) for a in report.answers(study, study.lead)] == before


def test_named_groups_with_other_scales_are_other_settings(folder):
    run = settled.finished([folder])[0][0]

    def with_scale(scale):
        group = f"groups: {{stem: {{match: [conv1], lr_scale: {scale}}}}}"
        text = run.config.to_yaml().replace("groups: {}", group)
        (folder / "other.yaml").write_text(text)
        return run._replace(config=reading.read(folder / "other.yaml"))

    labels = [s.label for s in factors.settings([with_scale(0.1), with_scale(0.3)])]
    assert len(labels) == 2 and "lr scale 0.1" in labels[0] and "lr scale 0.3" in labels[1]


def test_a_setting_s_label_says_whose_decay_and_whose_name(folder):
    first, second, *_ = settled.finished([folder])[0]
    config = replace(first.config, ema=EmaSpec(0.9), optimizer=replace(first.config.optimizer, name="adam"))
    labels = [s.label for s in factors.settings([first, second._replace(config=config)])]
    assert labels == ["layer_decay 0.6, adamw, ema decay none", "layer_decay 0.6, adam, ema decay 0.9"]


def test_partial_sweep_says_what_is_not_there_and_how_to_go_on(folder):
    gone, failed, crashed, missing = sorted(p for p in folder.iterdir() if p.is_dir())[:4]
    (gone / "summary.json").unlink()
    error = {"type": "UserError", "message": "the loss is nan"}
    for path, status in ((failed, {"state": "failed", "error": error}), (crashed, {"state": "running"})):
        (path / "summary.json").unlink()
        old = json.loads((path / "status.json").read_text())
        done = subprocess.Popen([sys.executable, "-c", ""])
        done.wait()
        (path / "status.json").write_text(json.dumps({**old, "pid": done.pid, **status}))
    shutil.rmtree(missing)
    out = command("report", folder.name, cwd=folder.parent)
    assert "1 completed" in out and "1 failed" in out and "1 crashed" in out and "1 missing" in out
    assert f"failed: {folder.name}/{failed.name}/log.txt: the loss is nan" in out
    assert "4 finished runs" in out
    again = out[out.index("The same command runs what is missing:") :].splitlines()[1]
    assert again.split()[-1] == f"hydra.sweep.dir={folder.name}" and "grouping.layer_decay=0.6,1.0" in again
    assert "the loss is nan" in (folder / "report.html").read_text()


def test_the_command_for_a_missing_kind_really_adds_it(folder):
    """head/backbone is missing: run the very command that the report prints, then it is there."""
    out = command("report", folder.name, cwd=folder.parent)
    line = next(line for line in out.splitlines() if "grouping=backbone_head" in line).split()
    assert "optimizer.lr=0.001,0.003" in line and "seed=0,1" in line and set(SHORT) <= set(line)
    command(*line[1:], cwd=folder.parent)
    out = command("report", folder.name, cwd=folder.parent)
    assert "No head/backbone" not in out and "12 finished runs" in out and "against head/backbone 0.1" in out


def test_a_single_run_makes_no_claim(folder):
    run = next(p for p in folder.iterdir() if "layer_decay-0.6" in p.name)
    out = command("report", str(run.relative_to(folder.parent)), cwd=folder.parent)
    assert "no claim" in out and "±" not in out.replace("± is a 95 %", "") and "No flat runs are here" in out


def test_a_folder_without_runs_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        report.Report.read([tmp_path], None)


def test_other_data_is_another_study(folder):
    """Runs on other data are never compared: each study has its own table and verdict."""
    for path in folder.glob("*lr-0.003*"):
        config = path / "config.resolved.yaml"
        config.write_text(config.read_text().replace("test_size: 300", "test_size: 200"))
    found = report.Report.read([folder], None).studies
    assert [len(s.runs) for s in found] == [4, 4]
    assert {s.title for s in found} == {"lenet_digits, data.test_size 300", "lenet_digits, data.test_size 200"}
    assert all(len({x.lr for x in s.settings}) == 1 for s in found)


def test_other_workers_and_memory_are_the_same_setting(folder):
    """They change no bit of a run."""
    for path in folder.glob("*seed-0*"):
        config = path / "config.resolved.yaml"
        text = config.read_text().replace("workers: null", "workers: 3").replace("memory: 2.0", "memory: 0.5")
        assert text != config.read_text()
        config.write_text(text)
    (study,) = report.Report.read([folder], None).studies
    assert {len(setting.runs) for setting in study.settings} == {2} and len(study.settings) == 4


def test_longer_training_is_another_study(folder):
    """200 epochs with layer_decay against 4 flat would be no comparison of learning rates."""
    longer = ["epochs=6", *SHORT[1:], "grouping.layer_decay=0.6", "seed=0,1", "hydra.sweep.dir=sweep"]
    command("train", "-m", *longer, cwd=folder.parent)
    found = {s.title: s for s in report.Report.read([folder], None).studies}
    assert set(found) == {"lenet_digits, epochs 4", "lenet_digits, epochs 6"}
    assert [s.label for s in found["lenet_digits, epochs 6"].settings] == ["layer_decay 0.6"]
    assert "no claim" in found["lenet_digits, epochs 6"].verdicts()[0]


class Page(HTMLParser):
    """Tags and attributes of a page, in order."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_stands_alone_and_can_be_read_without_eyes(folder):
    report.Report.read([folder], None).write(folder / "page.html")
    text = (folder / "page.html").read_text()
    tags = Page(text).tags
    assert "http" not in text and "@import" not in text
    runs = {path.parent.name for path in folder.glob("*/summary.json")}
    for tag, attrs in tags:
        assert tag not in ("link", "iframe") and (tag != "script" or not attrs)
        assert all(attrs[k].startswith(("#", "data:")) for k in ("src", "href") if k in attrs and tag != "a")
        assert tag != "a" or attrs["href"] in runs
    pictures = [a for t, a in tags if t == "svg"]
    assert len(pictures) == 11 and all(len(a["aria-label"]) > 20 and a["role"] == "img" for a in pictures)
    assert all(a.get("scope") in ("col", "row") for t, a in tags if t == "th")
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', text)) <= set(ids)


def test_names_are_escaped(folder):
    for config in folder.glob("*/config.resolved.yaml"):
        config.write_text(config.read_text().replace("name: lenet_digits", "name: '<img src=x>&$a$'", 1))
    report.Report.read([folder], None).write(folder / "page.html")
    text = (folder / "page.html").read_text()
    assert "<img" not in text and "&lt;img src=x&gt;&amp;$a$" in text


def test_nothing_is_claimed_of_runs_that_were_not_measured(folder):
    runs = sorted(path.parent for path in folder.glob("*/summary.json"))
    lines = [json.loads(line) for run in runs for line in (run / "lr_check.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["when"] == "training"]
    evaluations = sum('"val"' in line for run in runs for line in (run / "metrics.jsonl").read_text().splitlines())
    proved = sum(line["max_relative_error"] <= 1e-3 and line["resolution"] <= 0.5 for line in trained)
    assert evaluations == len(trained) > 0

    def told():
        (study,) = report.Report.read([folder], None).studies
        return report._proof(study)

    assert "In 8 of 8 runs" in told() and f"proved at {proved} of {evaluations} evaluations" in told()
    assert f"{max(line['max_relative_error'] for line in lines):.1g} of the lr" in told()
    for count, run in enumerate(runs, 1):
        summary = json.loads((run / "summary.json").read_text())
        summary["proof"] |= {"start": False, "training": 0, "faint": 0}
        (run / "summary.json").write_text(json.dumps(summary))
        assert f"In {8 - count} of 8 runs" in told() if count < 8 else "was not measured" in told()


def test_a_run_proved_at_every_evaluation_says_so(tmp_path):
    command("train", "framework=reference", "steps=12", "eval_every=1", "hydra.run.dir=runs/one", cwd=tmp_path)
    (study,) = report.Report.read([tmp_path / "runs"], None).studies
    assert "In 1 of 1 runs" in report._proof(study) and "proved at 12 of 12 evaluations." in report._proof(study)


def test_edges_of_the_grid_are_told(folder):
    (study,) = report.Report.read([folder], None).studies
    edges = [n for n in advice.notes(study) if n.text.startswith("flat:")]
    best_lr = study.best[settled.FLAT].lr
    assert f"optimizer.lr={'0.0003' if best_lr == 1e-3 else '0.009'}" in edges[0].commands[0].split()


def a_plan(active):
    groups = tuple(Group(f"layer_{i}", (f"p{i}",), 0.5 ** (2 - i), 0.0, active=active[i]) for i in range(3))
    return Plan(groups, 0.1, {"default": ScheduleSpec("constant")}, {"default": OptimizerSpec()}, 40)


def test_heat_map_shows_every_group_and_what_is_frozen(tmp_path):
    always = (0, 2**31)
    report.lr_heatmap(a_plan([always] * 3), tmp_path / "all.png")
    report.lr_heatmap(a_plan([(20, 2**31), always, always]), tmp_path / "late.png")
    late, every = (np.asarray(Image.open(tmp_path / f"{n}.png").convert("RGB")).astype(int) for n in ("late", "all"))
    assert every.shape[1] == 1200 and every.shape[0] >= 300 and every.std() > 10
    grey = (np.abs(late - 0xB9).max(axis=2) < 3).mean()
    assert grey > 0.05 > (np.abs(every - 0xB9).max(axis=2) < 3).mean()
    colours = {tuple(c) for c in every[:, every.shape[1] // 2]} - {(255, 255, 255)}
    assert len(colours) >= 3
