"""A failed job's folder makes room: gone where only the run wrote into it, put aside where anybody else did."""

import pytest

from layerwise_lr.planning import UserError
from layerwise_lr.run import Config, RunFolder
from layerwise_lr.sweep.planning import Job, to_run


@pytest.mark.parametrize("notes", [False, True])
def test_notes_in_a_failed_job_s_folder_are_kept(tmp_path, notes):
    folder = RunFolder.claim(tmp_path / "job")
    folder.fail("died")
    if notes:
        (folder.path / "notes.md").write_text("mine")
    said: list[str] = []
    job = Job(Config(), (), folder.path)
    assert to_run([job], said.append) == [job]
    assert not folder.path.exists()
    kept = tmp_path / "job.1.kept" / "notes.md"
    assert (kept.read_text() if notes else kept.exists()) == ("mine" if notes else False)
    assert len(said) == notes


def test_a_job_that_is_a_link_out_is_left_alone(tmp_path):
    victim = RunFolder.claim(tmp_path / "victim")
    victim.fail("died")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "job").symlink_to(victim.path)
    with pytest.raises(UserError, match="leads out"):
        to_run([Job(Config(), (), tmp_path / "sweep" / "job")])
    assert (victim.path / "status.json").exists()
