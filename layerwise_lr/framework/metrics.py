"""Cross-entropy and accuracy from logits, in float64, the same for every framework."""

import numpy as np


def cross_entropy(logits: np.ndarray, y: np.ndarray) -> float:
    """Mean cross-entropy in nats. logits [N, classes], y int64 [N]."""
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]))


def accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    """Share of right answers, 0 to 1."""
    return float(np.mean(logits.argmax(axis=1) == y))


def balanced_accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    """Mean over the classes present in `y` of the share of right answers: 1 / classes for a constant answer."""
    right = logits.argmax(axis=1) == y
    return float(np.mean([right[y == c].mean() for c in np.unique(y)]))


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 probabilities; each row sums to 1."""
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def confusion(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """int64 [classes, classes]: how many of the row's class were taken for the column's."""
    count = logits.shape[1]
    return np.bincount(y * count + logits.argmax(axis=1), minlength=count * count).reshape(count, count)


METRICS = {"loss": cross_entropy, "accuracy": accuracy, "balanced_accuracy": balanced_accuracy}


def measure(logits: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Every metric by name."""
    return {name: metric(logits, y) for name, metric in METRICS.items()}
