"""The pip line that is told: for a checkout, for a wheel, for another Python."""

import sys
from pathlib import Path

import pytest

from layerwise_lr.framework import registry
from layerwise_lr.framework.install import advice

ROOT = Path(__file__).resolve().parents[2]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def installed(folder: Path, direct_url: str = "") -> None:
    """layerwise-lr as pip leaves it in a site-packages."""
    info = folder / "layerwise_lr-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: layerwise-lr\nVersion: 9\nProvides-Extra: foo\nRequires-Dist: numpy>=1.23\n"
        'Requires-Dist: foo>=2; python_version < "3.99" and extra == "foo"\nRequires-Dist: bar<3; extra == "foo"\n'
        'Requires-Dist: baz; extra == "other"\n'
    )
    if direct_url:
        (info / "direct_url.json").write_text(direct_url)


def test_a_checkout_is_installed_again_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    installed(tmp_path, f'{{"url": "{checkout.as_uri()}", "dir_info": {{"editable": true}}}}')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert advice("foo").endswith(f"-m pip install -e '{checkout}[foo]'")
    monkeypatch.chdir(checkout)
    assert advice("foo") == f"{sys.executable} -m pip install -e '.[foo]'"


@pytest.mark.parametrize("direct_url", ["", '{"url": "file:///x/layerwise_lr-9.whl", "archive_info": {}}'])
def test_a_wheel_names_what_the_extra_needs(direct_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, direct_url)
    monkeypatch.syspath_prepend(tmp_path)
    assert advice("foo").endswith("-m pip install 'foo>=2' 'bar<3'")


def test_another_python_is_asked_for_where_this_one_has_no_wheels() -> None:
    assert advice("torch", (HERE,)) == advice("torch")
    told = advice("torch", ("3.9",))
    assert told.startswith(f"has no wheels for Python {HERE}; in an environment of python3.9: python -m pip install ")


@pytest.mark.parametrize("name", [name for name in registry.BUILT_INS if name != "reference"])
def test_every_framework_is_an_extra_and_nothing_unpublished_is_named(name: str) -> None:
    assert f"\n{registry.BUILT_INS[name].needs} = [" in (ROOT / "pyproject.toml").read_text()
    assert "layerwise-lr" not in registry.BUILT_INS[name].install.replace(str(ROOT), "")
