"""Runs that the tests of predict, evaluate and export ask: trained in this process, by the reference framework unless
another is named."""

import os
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from PIL import Image

from layerwise_lr.cli import program
from layerwise_lr.run import CONFIG, RunFolder, page, reading, resolve

COLOURS = {"cats": (200, 40, 40), "dogs": (40, 200, 40), "eels": (40, 40, 200)}


def pictures(home: Path, count: int = 20, names=tuple(COLOURS), noise: float = 60) -> Path:
    """A folder per class of noisy colours, 30 x 20 pixels."""
    rng = np.random.default_rng(len(names))
    for name in names:
        (home / name).mkdir(parents=True)
        for index in range(count):
            array = np.clip(COLOURS[name] + rng.normal(0, noise, (20, 30, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(array).save(home / name / f"{index}.png")
    return home


def trained(path: Path, data: Path | None = None, **more) -> Path:
    """A finished run's folder: on `data`, or on the digits."""
    spec = {"name": "digits", "train_size": 50, "val_size": 20, "test_size": 40, "image_size": 8}
    if data is not None:
        spec = {"name": "image_folder", "path": str(data), "image_size": 8, "channels": 3, "train_size": None}
        spec |= {"val_size": 12, "test_size": 15, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    spec |= more.pop("size", {})
    known = {
        "framework": {"name": "reference"},
        "model": {"name": "mlp", "width": 8, "depth": 1},
        "data": spec,
        "grouping": {"strategy": "flat"},
        "batch_size": 8,
        "epochs": 1,
        "optimizer": {"lr": 3e-3},
    }
    config = resolve(reading.from_data({**known, **more}))
    RunFolder.claim(path).write_text(CONFIG, config.to_yaml())
    page.run(path, say=lambda _: None)
    return path


def said(words: Sequence[str], code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of the command line in this process, which must end with `code`."""
    out, err = StringIO(), StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            program.main(list(words))
    except SystemExit as ended:
        assert ended.code == code, out.getvalue() + err.getvalue()
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")  # main has set it
    return out.getvalue(), err.getvalue()
