import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from layerwise_lr.cli import hydra_app, program
from layerwise_lr.data.pictures import _read


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable]:
    """program.main in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    before = dict(os.environ)
    _read.cache_clear()

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            program.main(shlex.split(line))
        os.environ.pop("HYDRA_FULL_ERROR")  # main has set it
        return ended.value.code, *capfd.readouterr()

    yield run
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    hydra_app.sweep_folder = hydra_app.made_folder = None
    hydra_app.new_places.clear()
    os.environ.clear()
    os.environ.update(before)
