"""docs/ as a site: built without a warning, whole without a network, and true to the code that it describes."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import layerwise_lr
from layerwise_lr import framework
from layerwise_lr.planning.conventions import PUBLISHED
from layerwise_lr.planning.timm_families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
WITH_TOOLS = pytest.mark.skipif(
    not importlib.util.find_spec("mkdocstrings_handlers") or not importlib.util.find_spec("material"),
    reason="NOT RUN: the site of docs/ (mkdocs-material is not installed): make docs",
)
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""What a page fetches, by tag; `a` only points."""


class Page(HTMLParser):
    """Its places, where it points, what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        self.ids |= {value for key in ("id", "name") if (value := held.get(key))}
        if (to := held.get(LOADED.get(tag, ""))) and held.get("rel") not in ("prev", "next", "canonical"):
            self.loads.append(to)
        if tag == "a" and (to := held.get("href")):
            self.links.append(to)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """docs/, built as `make docs` does."""
    to = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", ".ci/mkdocs.yml", "--site-dir", str(to)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return to


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.name: Page(path) for path in site.glob("*.html") if path.name != "404.html"}


@WITH_TOOLS
def test_every_page_of_docs_is_in_the_site(pages: dict[str, Page]) -> None:
    written = {
        f"{path.stem}.html"
        for path in (*(ROOT / "docs").glob("*.md"), *map(Path, ("SECURITY", "CHANGELOG", "RESULTS")))
    }
    assert set(pages) == written
    reached = {to.partition("#")[0] for to in pages["index.html"].links}
    assert set(pages) - {"index.html"} <= reached


@WITH_TOOLS
def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    loads = {to for page in pages.values() for to in page.loads}
    assert loads
    for to in loads:
        assert (site / unquote(to.partition("?")[0])).is_file(), to
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


@WITH_TOOLS
def test_every_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    dead = []
    for name, page in pages.items():
        for to in page.links:
            path, _, anchor = to.partition("#")
            if re.match(r"https?://", to):
                continue
            target = path or name
            lost = anchor and target in pages and unquote(anchor) not in pages[target].ids
            if lost or not (site / target).exists():
                dead.append(f"{name}: {to}")
    assert not dead


@WITH_TOOLS
def test_the_readme_s_links_lead_somewhere(pages: dict[str, Page]) -> None:
    for to in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        path, _, anchor = to.partition("#")
        assert (ROOT / path).is_file(), to
        assert not anchor or anchor in pages[f"{Path(path).stem}.html"].ids, to


@WITH_TOOLS
def test_every_public_name_is_in_the_reference(pages: dict[str, Page]) -> None:
    ids = pages["reference.html"].ids | pages["reference-framework.html"].ids
    there = {name.rpartition(".")[2] for name in ids if name.startswith("layerwise_lr.")}
    assert {*layerwise_lr.__all__, *framework.__all__} - {"__version__"} <= there


@WITH_TOOLS
def test_what_docstrings_name_are_parameters() -> None:
    """ "a, b: said of both" is the house's way, which keeps the site's own check from it."""
    import griffe

    package = griffe.load("layerwise_lr", search_paths=[str(ROOT)])
    seen = 0
    for name in framework.__all__:
        thing = package["framework"][name]
        thing = thing.final_target if thing.is_alias else thing
        known = {p.name for p in thing.parameters} if thing.is_function or thing.is_class else set()
        known |= set(thing.members) if thing.is_class else set()
        for section in thing.docstring.parse("google", warnings=False) if thing.docstring else ():
            if section.kind.value == "parameters":
                told = {one for row in section.value for one in row.name.split(", ")}
                assert told <= {k.lstrip("*") for k in known}, f"{name}: {told - known}"
                seen += 1
    assert seen > 20


def test_python_on_a_page_is_python() -> None:
    """Scripts (their first line is their name) and the library's blocks are run elsewhere; what a plugin imports is here."""
    blocks = [
        b
        for p in (ROOT / "docs").glob("*.md")
        for b in re.findall(r"^```python\n(.*?)^```", p.read_text(), re.S | re.M)
    ]
    for block in blocks:
        compile(block, "docs", "exec")
    imports = [block for block in blocks if "\nfrom layerwise_lr.framework import" in f"\n{block}"]
    for block in imports:
        exec(block, {})
    assert imports


def test_conventions_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "conventions.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", page, flags=re.MULTILINE))
    for name, convention in PUBLISHED.items():
        assert rows[name].replace("`", "") == convention.source
        assert f"| `{name}` | {convention.models} |" in page
    assert f"{len(FAMILIES)} families" in page
    listed = page[page.index("## timm's families") :].replace("\n", " ")
    assert [family for family in FAMILIES if not re.search(rf"(?:[:;] |  ){re.escape(family)}[;.]", listed)] == []
