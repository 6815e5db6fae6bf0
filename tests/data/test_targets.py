"""Targets give the loss that their definition gives, computed here picture by picture; torch's is compared in
tests/plugins, timm's in tests/zoo."""

import math

import numpy as np
import pytest

from layerwise_lr.data import AugmentSpec, DataSpec, batches
from layerwise_lr.data.targets import check, class_weights, one_hot, targets
from layerwise_lr.planning.errors import UserError

Y = np.array([0, 2, 1, 2, 2])
LOGITS = np.random.default_rng(0).standard_normal((5, 3))


def loss(y):
    """The contract's."""
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    return -(y * log_p).sum(axis=1).mean()


def terms():
    """-log p of each class of each picture."""
    return [[math.log(sum(math.exp(z) for z in row)) - z_c for z_c in row] for row in LOGITS.tolist()]


def test_one_hot_targets_are_the_plain_loss():
    y = targets(one_hot(Y, 3), 0.0, None)
    assert y.dtype == np.float32 and y.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert loss(y) == pytest.approx(sum(row[c] for row, c in zip(terms(), Y, strict=True)) / 5)


def test_smoothing_mixes_the_plain_loss_with_the_mean_over_classes():
    plain = sum(row[c] for row, c in zip(terms(), Y, strict=True)) / 5
    even = sum(sum(row) / 3 for row in terms()) / 5
    assert loss(targets(one_hot(Y, 3), 0.2, None)) == pytest.approx(0.8 * plain + 0.2 * even)
    assert targets(one_hot(Y, 3), 0.2, None).sum(axis=1) == pytest.approx(np.ones(5))


def test_weights_make_a_weighted_mean():
    weights = [0.5, 1.0, 4.0]
    total = sum(weights[c] for c in Y)
    expected = sum(weights[c] * row[c] for row, c in zip(terms(), Y, strict=True)) / total
    assert loss(targets(one_hot(Y, 3), 0.0, np.array(weights))) == pytest.approx(expected)
    assert loss(targets(one_hot(Y, 3), 0.0, np.array(weights) * 7)) == pytest.approx(expected)


def test_equal_weights_are_none():
    assert np.array_equal(targets(one_hot(Y, 3), 0.1, np.full(3, 2.5)), targets(one_hot(Y, 3), 0.1, None))


def test_balanced_weighs_classes_alike():
    weights = class_weights("balanced", np.array([10, 30, 60]))
    assert (weights * [10, 30, 60]).tolist() == pytest.approx([100 / 3] * 3)
    assert class_weights("none", np.ones(2)) is None and class_weights(None, np.ones(2)) is None
    assert class_weights([1, 2.5], np.ones(2)).tolist() == [1, 2.5]


def test_as_many_weights_as_classes():
    with pytest.raises(UserError, match="class_weights has 2 numbers, the data have 3 classes"):
        check([1, 2], 3)
    with pytest.raises(UserError, match="class_weights has 2 numbers, the data have 10 classes"):
        batches.load(DataSpec(), 0, weights=[1, 2])


def test_a_batch_carries_them(tmp_path):
    y = np.array([0] * 30 + [1] * 10 + [2] * 20)
    np.savez(tmp_path / "a.npz", x=np.zeros((60, 8, 8), np.uint8), y=y)
    spec = DataSpec("npz", str(tmp_path / "a.npz"), 8, train_size=36, val_size=12, test_size=12)
    _, hard = batches.load(spec, 0).batch(1, 10, 0)
    x, soft = batches.load(spec, 0, smoothing=0.3, weights="balanced").batch(1, 10, 0)
    weight = {0: 36 / (3 * 18), 1: 36 / (3 * 6), 2: 36 / (3 * 12)}
    mean = sum(weight[c] for c in hard.tolist()) / 10
    for row, label in zip(soft, hard.tolist(), strict=True):
        expected = [weight[c] * (0.7 * (c == label) + 0.1) / mean for c in range(3)]
        assert row.tolist() == pytest.approx(expected)
    assert (x.dtype, soft.dtype) == (np.float32, np.float32)


def test_mixed_pictures_have_mixed_targets_smoothed_and_weighted():
    weights = [1.0] * 9 + [5.0]
    spec = DataSpec(train_size=100, val_size=10, test_size=10)
    plain = batches.load(spec, 0, AugmentSpec(mixup=1.0)).batch(0, 50, 0)
    other = batches.load(spec, 0, AugmentSpec(mixup=1.0), 0.1, weights).batch(0, 50, 0)
    assert np.array_equal(plain[0], other[0])
    assert ((plain[1] > 0).sum(axis=1) <= 2).all() and plain[1].sum(axis=1) == pytest.approx(np.ones(50), abs=1e-6)
    mean = (plain[1] @ weights).mean()
    assert other[1] == pytest.approx((0.9 * plain[1] + 0.01) * weights / mean, abs=1e-6)
