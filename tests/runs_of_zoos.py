"""Short runs of models that are not declared, from the command line: what the tests of each framework's zoos share."""

import csv
import os
import subprocess
import sys

from safetensors.numpy import load_file

SHORT = ("steps=4", "eval_every=2", "batch_size=8", "data.train_size=64", "data.val_size=16", "data.test_size=16")


def call(cwd, *words, **more):
    """`layerwise-lr words` in `cwd`, under `more` in the environment."""
    command = [sys.executable, "-m", "layerwise_lr", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **more})


def trained(cwd, *words, **more):
    """The run folder of a `train` that must end well, and what it said."""
    folder = cwd / f"run{len(list(cwd.glob('run*')))}"
    done = call(cwd, "train", *SHORT, f"hydra.run.dir={folder.name}", *words, **more)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder, done.stdout


def told(cwd, *words, **more):
    """The one line of a `train` that must be refused before its folder is claimed."""
    done = failed(cwd, *words, **more)
    assert not (cwd / "refused").exists()
    return done


def failed(cwd, *words, **more):
    """The last line of a `train` that must end as a user's mistake, before or after it began."""
    done = call(cwd, "train", *SHORT, "hydra.run.dir=refused", *words, **more)
    assert done.returncode == 2, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def kept(folder):
    """The weights of a run's checkpoint."""
    return load_file(next(folder.glob("checkpoints/*/model.safetensors")))


def scales(folder):
    """lr_scale of every parameter that trains."""
    with (folder / "params.csv").open() as rows:
        return {row["name"]: float(row["lr_scale"]) for row in csv.DictReader(rows) if row["lr_scale"]}


def package(tmp_path, code, **models):
    """An installed package `mine` with this code, which offers `models`: entry point -> function. PYTHONPATH for it."""
    site = tmp_path / "site"
    (site / "mine-1.dist-info").mkdir(parents=True)
    (site / "mine.py").write_text(code)
    (site / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    entries = "".join(f"{name} = mine:{function}\n" for name, function in models.items())
    (site / "mine-1.dist-info" / "entry_points.txt").write_text(f"[layerwise_lr.models]\n{entries}")
    return os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
