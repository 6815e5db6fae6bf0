"""What a picture is trained towards: a row of K numbers per picture, where a class number alone does not say it.

The loss of a batch is -mean_i sum_c target[i, c] * log_softmax(logits)[i, c] in every framework, so that smoothing,
mixed pictures and class weights are all in the targets. They are computed in float64 and handed over as float32.
"""

from collections.abc import Sequence

import numpy as np

from ..planning import UserError

ClassWeights = str | Sequence[float] | None
"""none (or null), balanced, or a number above 0 for each class."""


def class_weights(asked: ClassWeights, counts: np.ndarray) -> np.ndarray | None:
    """float64 [K]; None: all alike.

    Args:
        asked: balanced: N / (K * pictures of the class), scikit-learn's; else see ClassWeights.
        counts: training pictures of each class.

    Raises:
        UserError: not as many numbers as classes.
    """
    if asked is None or asked == "none":
        return None
    if isinstance(asked, str):
        return np.asarray(counts.sum() / (len(counts) * np.maximum(counts, 1)))
    check(asked, len(counts))
    return np.asarray(asked, np.float64)


def check(asked: ClassWeights, classes: int) -> None:
    """As many weights as classes.

    Raises:
        UserError: there are more, or fewer.
    """
    if asked is not None and not isinstance(asked, str) and len(asked) != classes:
        raise UserError(f"class_weights has {len(asked)} numbers, the data have {classes} classes; give one for each")


def one_hot(y: np.ndarray, classes: int) -> np.ndarray:
    """float64 [B, K] of int64 [B]."""
    return np.asarray(np.eye(classes)[y])


def targets(shares: np.ndarray, smoothing: float, weights: np.ndarray | None) -> np.ndarray:
    """The targets of a batch.

    Args:
        shares: float64 [B, K], of each class in each picture; rows sum to 1.
        smoothing: this much of each row is spread over all classes evenly, as torch and timm do it.
        weights: float64 [K] of the classes. A picture weighs what its classes do by their shares, and the batch's
            weights are divided by their mean: torch's weighted mean, where each picture is of one class.

    Returns:
        float32 [B, K].
    """
    soft = shares * (1 - smoothing) + smoothing / shares.shape[1]
    if weights is not None:
        soft = soft * weights / (shares @ weights).mean()
    return soft.astype(np.float32)
