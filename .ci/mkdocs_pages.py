"""Pages of the site that lie beside docs/, where people look for them."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
BESIDE = {"SECURITY.md": "SECURITY.md", "CHANGELOG.md": "CHANGELOG.md", "tests/benchmarks/RESULTS.md": "RESULTS.md"}
"""Where, and what they are called on the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """They become pages; their links into docs/ are those of pages in it."""
    for place, name in BESIDE.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_within(text, "").replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links out of docs/ to them stay in the site."""
    return _within(markdown, "../")


def _within(text: str, above: str) -> str:
    places = "|".join(map(re.escape, BESIDE))
    return re.sub(rf"\]\({re.escape(above)}({places})", lambda found: f"]({BESIDE[found[1]]}", text)
