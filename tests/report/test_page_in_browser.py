"""The page in a real browser: no error in its console, nothing cut on a phone, tables that sort and filter, dark and light,
and on paper."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from layerwise_lr.report import Report
from tests.finished_runs import trained

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not BROWSER, reason="NOT RUN: the report's page in a browser (apt install chromium)")
ACTS = """<script>
const told = {wide: document.documentElement.scrollWidth, tools: [...document.querySelectorAll(".tools")].every(t => !t.hidden)};
const table = document.querySelector("table.s0"), rows = () => [...table.tBodies[0].rows].filter(r => !r.hidden);
const column = i => rows().map(r => r.cells[i].textContent.trim());
const press = i => table.tHead.rows[0].cells[i].firstElementChild.click();
press(4); told.down = column(4); told.sort = table.tHead.rows[0].cells[4].getAttribute("aria-sort");
press(4); told.up = column(4);
press(0); told.names = column(0);
const input = document.querySelector("input[type=search]");
input.value = "FLAT"; input.dispatchEvent(new Event("input")); told.flat = column(0);
const paper = () => getComputedStyle(document.body).backgroundColor;
told.before = paper(); document.getElementById("theme").click(); told.after = paper();
document.getElementById("theme").click(); told.again = paper();
told.tips = document.querySelectorAll("svg title").length;
told.links = [...table.querySelectorAll("a")].map(a => a.getAttribute("href"));
told.cut = [...document.querySelectorAll("figure svg")].filter(s => {
  const box = s.getBoundingClientRect();
  return box.left < 0 || box.right > document.documentElement.clientWidth || box.width < 100;
}).length;
document.body.dataset.told = JSON.stringify(told);
</script>"""


def browser(*words: str) -> subprocess.CompletedProcess[str]:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    return subprocess.run([str(BROWSER), *options, *words], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A page over six runs: two groupings, three lrs; its folder."""
    made = tmp_path_factory.mktemp("page")
    for decay in (0.5, 1.0):
        for lr in (1e-3, 1e-2, 3e-2):
            grouping = {"strategy": "layer_decay", "layer_decay": decay}
            trained(made / f"run {decay} {lr}", grouping=grouping, optimizer={"lr": lr}, eval_every=2)
    Report.read([made], None).write(made / "page.html")
    (made / "acts.html").write_text((made / "page.html").read_text().replace("</body>", f"{ACTS}</body>"))
    return made


@pytest.mark.parametrize("width", [500, 1280])
def test_sorts_filters_and_turns_dark_without_an_error(home, width):
    ended = browser("--dump-dom", f"--window-size={width},900", (home / "acts.html").as_uri())
    assert "CONSOLE" not in ended.stderr, ended.stderr
    told = json.loads(re.search(r'data-told="([^"]*)"', ended.stdout)[1].replace("&quot;", '"'))
    assert told["tools"] and told["wide"] <= width and told["cut"] == 0
    numbers = [float(text.split()[0]) for text in told["down"]]
    assert len(numbers) == 6 and numbers == sorted(numbers, reverse=True) and told["sort"] == "descending"
    assert [float(text.split()[0]) for text in told["up"]] == sorted(numbers)
    assert told["names"] == sorted(told["names"], reverse=True)
    assert told["flat"] == ["flat"] * 3
    assert told["before"] != told["after"] and told["again"] == told["before"]
    assert told["tips"] >= 6
    assert len(told["links"]) == 6 and all((home / link.replace("%20", " ")).is_dir() for link in told["links"])


def test_on_paper(home):
    """Chromium prints it: some pages, the tables on white."""
    browser(f"--print-to-pdf={home / 'page.pdf'}", (home / "page.html").as_uri())
    held = (home / "page.pdf").read_bytes()
    assert held.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", held)) <= 12
