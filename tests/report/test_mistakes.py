"""What a run answered to its test pictures: as `evaluate` counts it, as the page shows it, and as anybody may have left it."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from finished_runs import pictures, said, trained
from PIL import Image

from layerwise_lr.data import read_strip, strip
from layerwise_lr.planning import UserError
from layerwise_lr.report import Report
from layerwise_lr.run import answered, looked_through, page

SIDE = answered.SIDE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("run")
    return trained(home / "run", pictures(home / "pictures", noise=255), epochs=1, optimizer={"lr": 1e-4})


@pytest.mark.parametrize("changes", [{}, {"ema": {"decay": 0.5}, "eval_every": 1}, {"checkpoint": {"keep_best": 0}}])
def test_the_table_is_what_evaluate_counts(tmp_path: Path, changes: dict) -> None:
    path = trained(tmp_path / "run", pictures(tmp_path / "pictures", noise=200), epochs=3, **changes)
    told = json.loads(said(["evaluate", str(path), "--json"])[0])["parts"]["test"]
    with (path / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    counted = Counter((int(row["class"]), int(row["answer"])) for row in rows)
    assert [[counted[i, j] for j in range(3)] for i in range(3)] == told["confusion"]
    assert [int(row["picture"]) for row in rows] == list(range(told["pictures"]))
    assert np.mean([row["class"] == row["answer"] for row in rows]) == pytest.approx(told["accuracy"])
    assert all(1 / 3 - 1e-6 < float(row["probability"]) <= 1 for row in rows)


def test_the_pictures_are_those_of_the_surest_mistakes(run: Path) -> None:
    with (run / "test.csv").open(newline="") as file:
        wrong = [row for row in csv.DictReader(file) if row["class"] != row["answer"]]
    wrong.sort(key=lambda row: (-float(row["probability"]), int(row["picture"])))
    assert len(wrong) > 1
    dataset = page.load(looked_through(run)[0], page.seed_streams(0))
    shown = np.asarray(Image.open(run / "wrong.png"))
    for index, row in enumerate(wrong[: answered.SHOWN]):
        tile = shown[:, index * SIDE : (index + 1) * SIDE]
        small = dataset.test.x[int(row["picture"])].transpose(1, 2, 0)
        np.testing.assert_array_equal(tile, small.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1))


def test_the_page_shows_both(run: Path, tmp_path: Path) -> None:
    Report.read([run], None).write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "What was taken for what" in text and "Wrong, and sure of it" in text
    table = answered.read(run, 3)
    assert table is not None
    for true, one in enumerate(("cats", "dogs", "eels")):
        count, of = int(((table.true == true) & (table.given == true)).sum()), int((table.true == true).sum())
        assert f"<title>{one} taken for {one}: {count} of {of}, {count / of:.1%}</title>" in text
    assert text.count("data:image/png") == len(table.mistakes()) + 2  # the plan and its bar of colours


def test_of_many_classes_those_with_the_most_mistakes_are_shown() -> None:
    from layerwise_lr.report.mistakes import Confusion

    counts = np.diag(np.full(30, 9))
    counts[3, 29], counts[17, 4] = 5, 2
    shown = Confusion(tuple(map(str, range(30))), counts, 1).worst()
    assert {3, 29, 17, 4} <= set(shown) and len(shown) == 12 and list(shown) == sorted(shown)


@pytest.mark.parametrize("channels, size", [(1, 8), (3, 8), (3, 96)])
def test_a_strip_is_read_back(channels: int, size: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, channels, size, size)).astype(np.uint8)
    made = strip(x, 32)
    back = read_strip(made, 5, 32)
    assert back is not None and back.shape == (5, 32, 32, 3)
    if size == 8:
        grown = np.broadcast_to(x, (5, 3, 8, 8)).repeat(4, 2).repeat(4, 3).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(back, grown)
    assert read_strip(made, 4, 32) is None and read_strip(made[:100], 5, 32) is None and read_strip(b"", 5, 32) is None


def test_a_picture_that_says_it_is_huge_is_not_decoded() -> None:
    held = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(held, "PNG")
    assert read_strip(held.getvalue(), 1, 64) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "picture,class,answer\n0,0,0\n",
        "picture,class,answer,probability\n0,0,10,0.5\n",
        "picture,class,answer,probability\n0,-1,0,0.5\n",
        "picture,class,answer,probability\n0,0.5,0,0.5\n",
        "picture,class,answer,probability\n0,0,1,nan\n",
        "picture,class,answer,probability\n0,0,1e300,0.5\n",
        "picture,class,answer,probability\n0,0,<script>,0.5\n",
        "picture,class,answer,probability\n0,0\n0,0,0,0\n",
    ],
)
def test_another_table_leaves_its_run_out(run: Path, tmp_path: Path, text: str) -> None:
    other = trained(tmp_path / "other")
    (other / "test.csv").write_text(text)
    with pytest.raises(UserError, match=r"test.csv: not a run's table of answers .*restore it as the run left it"):
        looked_through(other)
    made = Report.read([run, other], None)
    assert [job.path for job in made.unfinished] == [other] and len(made.studies) == 1


def test_an_older_run_has_neither_and_its_page_is_made(tmp_path: Path) -> None:
    path = trained(tmp_path / "run")
    for name in ("test.csv", "wrong.png"):
        (path / name).unlink(missing_ok=True)
    Report.read([path], None).write(tmp_path / "page.html")
    assert "What was taken for what" not in (tmp_path / "page.html").read_text()
    (path / "wrong.png").write_text("no picture")
    Report.read([path], None).write(tmp_path / "page.html")
