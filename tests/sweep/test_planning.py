"""A sweep's plan on disk: names, folders, and what is still to run."""

import json
from dataclasses import replace

import pytest

from layerwise_lr.run import Config, RunFolder
from layerwise_lr.sweep.planning import claim, elsewhere, job_name, plan_jobs, to_run, write_sweep


def seeds(*numbers):
    return [(replace(Config(), seed=n), (f"seed={n}", "epochs=1")) for n in numbers]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["optimizer.lr=0.001", "seed=0"], "lr-0.001_seed-0_abcdef"),
        (["+grouping.groups.a={match: [fc]}"], "a--match-fc-_abcdef"),
        (["data=../secret"], "data-..-secret_abcdef"),
        ([], "abcdef"),
    ],
)
def test_a_job_is_named_after_what_was_varied(overrides, name):
    assert job_name(overrides, "abcdef0123") == name


def test_a_long_name_is_cut_but_keeps_its_hash():
    name = job_name([f"key{i}={'x' * 30}" for i in range(9)], "abcdef0123")
    assert len(name) == 107 and name.endswith("_abcdef")


def test_what_all_jobs_share_is_in_no_name(tmp_path):
    jobs = plan_jobs(tmp_path, seeds(0, 1))
    assert [job.path.name.rpartition("_")[0] for job in jobs] == ["seed-0", "seed-1"]
    assert [job.path.name.rpartition("_")[2] for job in jobs] == [job.config.sha256()[:6] for job in jobs]


def test_equal_configs_are_one_job_and_keep_the_folder_they_had(tmp_path):
    first = plan_jobs(tmp_path, seeds(0, 1))
    write_sweep(tmp_path, first)
    again = [(config, (*overrides, "verify=on")) for config, overrides in seeds(1, 1, 2)]
    second = plan_jobs(tmp_path, again)
    assert [job.config.seed for job in second] == [1, 2]
    assert second[0].path == first[1].path
    write_sweep(tmp_path, second)
    held = json.loads((tmp_path / "sweep.json").read_text())["jobs"]
    assert set(held) == {job.path.name for job in (*first, *second)} and len(held) == 3


def test_what_failed_is_run_again_in_its_folder_and_what_ended_or_runs_is_left(tmp_path):
    jobs = plan_jobs(tmp_path, seeds(0, 1, 2, 3))
    completed, failed, running, missing = jobs
    with RunFolder.claim(completed.path).running():
        RunFolder(completed.path).write_json("summary.json", {})
    RunFolder.claim(failed.path).fail("it died")
    with RunFolder.claim(running.path).running():
        assert to_run(jobs) == [failed, missing]
    (failed.path / "notes.md").write_text("mine")
    assert claim(failed) and not claim(failed) and not claim(completed)
    assert claim(missing) and RunFolder(missing.path).state() == "claimed"
    assert elsewhere(jobs) == [failed, missing]
    assert (failed.path / "notes.md").read_text() == "mine"
    assert to_run([running]) == [] and RunFolder(running.path).state() == "completed"
    RunFolder(failed.path).fail("again")
    assert to_run(jobs) == [failed] and to_run(jobs, again=False) == []
