"""One pass over metrics.jsonl, against json and NumPy over all of its lines."""

import json
import random

import numpy as np
import pytest

from layerwise_lr.planning import UserError
from layerwise_lr.run import read_metrics
from layerwise_lr.run.measured import MOST_EVALUATIONS, measured

HEAD = {"metrics_version": 1}


def evaluation(step, loss):
    moved = {"gradient_norm": loss / 2, "update_ratio": loss / 3, "distance": loss / 4}
    return {"step": step, "val": {"loss": loss, "accuracy": 0.5}, "best": True, "groups": {"a": moved, "b": moved}}


def lines_of(steps, eval_every, lrs_every=1):
    """Of a run, with losses of every size."""
    rng, made = random.Random(steps), [HEAD]
    for step in range(steps):
        record = {"step": step, "loss": rng.choice([1, -1]) * rng.random() * 10.0 ** rng.randint(-9, 9)}
        if step % lrs_every == 0:
            record["lrs"] = [rng.random() * 1e-5, 0.0, 1.0]
        made.append(record)
        if (step + 1) % eval_every == 0:
            made.append(evaluation(step + 1, rng.random() * 1e-3))
    return made


def write(path, records):
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(("steps", "eval_every", "lrs_every"), [(1, 1, 1), (7, 3, 1), (300, 7, 10), (500, 501, 500)])
def test_all_of_it_is_there(tmp_path, steps, eval_every, lrs_every):
    records = lines_of(steps, eval_every, lrs_every)
    write(tmp_path, records)
    found = measured(tmp_path, lrs_every=1)
    assert list(zip(found.steps, found.losses, strict=True)) == [(r["step"], r["loss"]) for r in records if "loss" in r]
    evaluations = [record for record in records if "val" in record]
    assert found.evaluations == evaluations
    assert list(found.val_losses) == [record["val"]["loss"] for record in evaluations]
    assert list(found.val_steps) == [record["step"] for record in evaluations]
    assert found.lrs.tolist() == [record["lrs"] for record in records if "lrs" in record]
    assert measured(tmp_path, lrs_every=3).lrs.tolist() == [
        r["lrs"] for r in records if "lrs" in r and r["step"] % 3 == 0
    ]
    assert not measured(tmp_path).lrs.size


@pytest.mark.parametrize("count", [999, 1000, 1001, 1002, 2001, 2002, 5432])
def test_of_many_evaluations_a_thousand_at_most_are_held_and_the_last(tmp_path, count):
    records = [HEAD, *(evaluation(step, 1.0 / step) for step in range(1, count + 1))]
    write(tmp_path, records)
    found = measured(tmp_path)
    stride = next(2**n for n in range(20) if len(range(0, count, 2**n)) <= MOST_EVALUATIONS)
    held = [*range(1, count + 1, stride), *([count] if (count - 1) % stride else [])]
    assert [record["step"] for record in found.evaluations] == held
    assert found.val_losses.tolist() == [1.0 / step for step in range(1, count + 1)]


BAD = {
    "torn": '{"step": 3, "loss": 1.5, "lrs": [0.1, 0.',
    "no number": '{"step": 3, "loss": NaN}\n',
    "no such number": '{"step": 3, "loss": 01.5}\n',
    "beyond all bounds": '{"step": 3, "loss": 1e300}\n',
    "infinite": '{"step": 3, "loss": 1e999}\n',
    "a step that no run has": '{"step": 1000001, "loss": 1.5}\n',
    "a step that no array holds": '{"step": 99999999999999999999, "loss": 1.5}\n',
    "not JSON": "hello\n",
    "a list": "[1, 2]\n",
    "deep": "[" * 100_000 + "\n",
    "nothing": "\n",
    "an evaluation of a word": '{"step": 3, "val": {"loss": "low"}}\n',
    "an evaluation without bounds": '{"step": 3, "val": {"loss": 1e300}}\n',
    "groups of a number": '{"step": 3, "val": {"loss": 1.5}, "groups": 3}\n',
    "not UTF-8": b'{"step": 3, "loss": 1.5, "\xff": 1}\n',
}


@pytest.mark.parametrize("bad", BAD)
def test_what_follows_a_line_that_no_run_writes_does_not_count(tmp_path, bad):
    records = lines_of(3, 3)
    write(tmp_path, records)
    whole = measured(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        line = BAD[bad]
        file.write(line if isinstance(line, bytes) else line.encode())
    for behind in (b"", b'{"step": 4, "loss": 2.5}\n'):
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(behind)
        assert all(np.array_equal(*parts) for parts in zip(measured(tmp_path), whole, strict=True))


def test_lines_in_another_order_or_spelling_are_read_as_the_data_they_are(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"metrics_version":1}\n{"loss":2,"step":0}\n{"step":1,"loss":1.5}\n{"other": 1, "step": 2}\n'
        '{"val":{"accuracy":0.5},"step":2}\n{"val":{"loss":3e-1,"accuracy":0.5},"step":4}\n'
    )
    found = measured(tmp_path)
    assert (found.steps.tolist(), found.losses.tolist()) == ([0, 1], [2.0, 1.5])
    assert (found.val_steps.tolist(), found.val_losses.tolist()) == ([4], [0.3])
    assert [record["step"] for record in found.evaluations] == [2, 4]


def test_another_program_s_file_is_refused_and_none_is_none(tmp_path):
    assert not len(measured(tmp_path).steps)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.5}\n')
    with pytest.raises(UserError, match="its first line is none that a run writes"):
        measured(tmp_path)


def test_a_log_that_is_being_written_is_read_to_its_last_whole_line(tmp_path):
    write(tmp_path, lines_of(20, 5))
    text = (tmp_path / "metrics.jsonl").read_bytes()
    for cut in range(len(text) - 900, len(text)):
        (tmp_path / "metrics.jsonl").write_bytes(text[:cut])
        whole, found = read_metrics(tmp_path / "metrics.jsonl"), measured(tmp_path)
        assert found.losses.tolist() == [record["loss"] for record in whole if "loss" in record]
        assert found.evaluations == [record for record in whole if "val" in record]
