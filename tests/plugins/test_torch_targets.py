"""Targets born in NumPy give torch's own cross entropy with label_smoothing and weight, to float32's rounding."""

import numpy as np
import pytest
import torch

from layerwise_lr.data.targets import one_hot, targets

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(smoothing, weighted):
    logits = torch.from_numpy(RNG.standard_normal((64, 7)) * 3)
    y = RNG.integers(0, 7, 64)
    weights = RNG.uniform(0.2, 5, 7) if weighted else None
    theirs = torch.nn.functional.cross_entropy(
        logits,
        torch.from_numpy(y),
        weight=None if weights is None else torch.from_numpy(weights),
        label_smoothing=smoothing,
    )
    ours = -(torch.from_numpy(targets(one_hot(y, 7), smoothing, weights)) * logits.log_softmax(1)).sum(1).mean()
    assert float(ours) == pytest.approx(float(theirs), rel=3e-7)


def test_shares_are_torch_s_class_probabilities():
    logits = torch.from_numpy(RNG.standard_normal((64, 7)))
    shares = RNG.dirichlet(np.ones(7), 64)
    theirs = torch.nn.functional.cross_entropy(logits, torch.from_numpy(shares), label_smoothing=0.1)
    ours = -(torch.from_numpy(targets(shares, 0.1, None)) * logits.log_softmax(1)).sum(1).mean()
    assert float(ours) == pytest.approx(float(theirs), rel=3e-7)
