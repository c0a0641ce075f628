"""How far probabilities may be believed: Brier score and expected calibration error (ECE)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.evaluation.metrics import CALIBRATION, Score

BINS = 15


def brier(probabilities: NDArray[Any], true: NDArray[np.bool_]) -> float:
    """The mean squared distance between probabilities and what is true; NaN without any.

    Example:
        >>> brier(np.array([0.5, 1.0]), np.array([True, True]))
        0.125
    """
    return float(np.mean(np.square(probabilities - true, dtype=np.float64))) if probabilities.size else math.nan


def ece(probabilities: NDArray[Any], true: NDArray[np.bool_]) -> float:
    """The mean distance between what is said and how often it is true, over 15 bins of equal width; NaN without any.

    Source: expected calibration error (naeini2015). The lower end of a bin belongs to it.

    Args:
        probabilities: (N,), 0 to 1: of a structure, or how sure an answer is.
        true: (N,), whether the structure is there, or the answer right.

    Example:
        >>> ece(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, True, False]))
        0.0
    """
    if not probabilities.size:
        return math.nan
    bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, probabilities.astype(np.float64) - true, minlength=BINS)
    return float(np.abs(gaps).sum() / probabilities.size)


def calibration_scores(
    probabilities: NDArray[Any], prediction: NDArray[np.bool_], reference: NDArray[np.bool_]
) -> Score:
    """The measures of `CALIBRATION` of one structure; NaN where neither mask holds it.

    Args:
        probabilities: (*S), of the structure; NaN where the class is not known.
        prediction: (*S), the mask that was made of them.
        reference: (*S).
    """
    held = prediction | reference
    if not held.any():
        return dict.fromkeys(CALIBRATION, math.nan)
    known = ~np.isnan(probabilities)
    p, y, near = probabilities[known], reference[known], held[known]
    return dict(zip(CALIBRATION, (brier(p, y), ece(p, y), ece(p[near], y[near])), strict=True))
