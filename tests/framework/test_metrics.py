import math
from collections import defaultdict

import numpy as np
import pytest

from layerwise_lr.framework import metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (40, 5)).astype(np.float32)
Y = RNG.integers(0, 5, 40)


def by_hand(logits, y):
    """Plain Python, one picture at a time."""
    loss, right, by_class = 0.0, 0, defaultdict(list)
    for z, label in zip(logits.tolist(), y.tolist(), strict=True):
        loss += math.log(math.fsum(math.exp(v) for v in z)) - z[label]
        hit = max(range(len(z)), key=lambda i: z[i]) == label
        right += hit
        by_class[label].append(hit)
    shares = [sum(hits) / len(hits) for hits in by_class.values()]
    return loss / len(y), right / len(y), sum(shares) / len(shares)


def test_all_three_against_plain_python():
    loss, accuracy, balanced = by_hand(LOGITS, Y)
    found = metrics.measure(LOGITS, Y)
    assert found["loss"] == pytest.approx(loss, rel=1e-12)
    assert found["accuracy"] == accuracy
    assert found["balanced_accuracy"] == pytest.approx(balanced, rel=1e-12)


def test_equal_logits_cost_log_classes():
    assert metrics.cross_entropy(np.zeros((3, 10), np.float32), np.array([0, 5, 9])) == pytest.approx(math.log(10))


def test_huge_logits_neither_overflow_nor_vanish():
    logits = np.array([[3e38, 0.0], [-3e38, 0.0], [1e4, -1e4]], np.float32)
    assert metrics.cross_entropy(logits[:1], np.array([0])) == 0.0
    assert metrics.cross_entropy(logits[2:], np.array([1])) == pytest.approx(2e4)
    assert np.isfinite(metrics.cross_entropy(logits, np.array([0, 1, 0])))


def test_cross_entropy_ignores_a_shift_of_all_logits():
    assert metrics.cross_entropy(LOGITS + np.float32(64), Y) == pytest.approx(
        metrics.cross_entropy(LOGITS, Y), rel=1e-5
    )


def test_nan_logits_are_not_hidden():
    logits = LOGITS.copy()
    logits[3, 2] = np.nan
    assert math.isnan(metrics.cross_entropy(logits, Y))


def test_a_constant_answer_is_worth_one_over_classes_however_unbalanced():
    y = np.array([0] * 90 + [1] * 9 + [2])
    logits = np.tile(np.array([1.0, 0.0, 0.0], np.float32), (100, 1))
    assert metrics.accuracy(logits, y) == 0.9
    assert metrics.balanced_accuracy(logits, y) == pytest.approx(1 / 3)


def test_a_class_without_pictures_does_not_count():
    y = np.array([0, 0, 2, 2])
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]]
    assert metrics.balanced_accuracy(logits, y) == pytest.approx((0.5 + 1.0) / 2)


def test_softmax_is_exact_in_float64():
    logits = np.array([[0, math.log(3)], [1e4, -1e4], [700, 700]], np.float32)
    found = metrics.softmax(logits)
    assert found.dtype == np.float64
    assert found[0] == pytest.approx([0.25, 0.75], rel=1e-6)
    assert found[1].tolist() == [1.0, 0.0]
    assert found[2].tolist() == [0.5, 0.5]


def test_confusion_counts_every_pair():
    logits, y = np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 2, 2]], np.array([0, 0, 1, 0, 2, 2])
    wanted = [
        [sum((a, b) == (r, c) for a, b in zip(y, logits.argmax(1), strict=True)) for c in range(3)] for r in range(3)
    ]
    assert metrics.confusion(logits, y).tolist() == wanted
