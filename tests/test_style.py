"""ruff and mypy are part of the tests; so is what pytest asks of the names of their files."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "words",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy", "layerwise_lr"],
        pytest.param(["mypy", "plugins"], marks=pytest.mark.torch),  # it reads torch's types
    ],
    ids=" ".join,
)
def test_clean(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_two_files_of_tests_have_one_name() -> None:
    """Folders of tests are no packages: two modules of one name can't be collected together."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []
