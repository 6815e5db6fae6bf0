"""A run of one framework (--framework NAME, default torch) is asked there and in NumPy: the same answers, the run's own
numbers; under plans and modes that evaluation does not need."""

import json

import numpy as np
import pytest
from finished_runs import pictures, said, trained

from layerwise_lr.framework import registry
from layerwise_lr.run import asking, open_run

VIT = {"name": "vit_tiny", "depth": 1, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "layer_scale": 0.1}
MODELS = {"resnet18": {"name": "resnet18", "width": 8}, "mobilenet_v2": {"name": "mobilenet_v2"}, "vit": VIT}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("asked")
    pictures(home / "pictures")
    return home


@pytest.mark.parametrize("name", MODELS)
def test_the_same_answers_as_in_numpy(home, pytestconfig, name):
    framework = pytestconfig.getoption("--framework")
    modes = registry.load(framework).modes
    more = {"grouping": {"strategy": "layer_decay", "layer_decay": 0.5}, "model": MODELS[name], "epochs": 2}
    mode = modes[-1] if framework != "torch" else modes[0]  # torch.compile takes a minute
    path = trained(
        home / name, home / "pictures", size={"image_size": 32}, framework={"name": framework, "mode": mode}, **more
    )
    run = open_run(path)
    x = np.random.default_rng(0).integers(0, 256, (67, 3, 32, 32), np.uint8)
    own, reference = (asking.Model(run, chosen).logits(x) for chosen in (None, "reference"))
    assert np.allclose(own, reference, rtol=1e-3, atol=1e-4 * np.abs(reference).max())
    assert np.ptp(own, axis=0).max() > 1e-3, "else any answer would do"
    told = json.loads(said(["evaluate", str(path), "--json"])[0])["parts"]
    for part in ("val", "test"):
        for metric, value in run.summary[part].items():
            assert told[part][metric] == pytest.approx(value, rel=1e-3, abs=1e-6)
