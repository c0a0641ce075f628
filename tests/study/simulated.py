"""Simulated studies of which the truth is known."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

CASES = 34


def error(rate: float, studies: int) -> float:
    """What a rate over that many studies is off by in no more than 1 of 100 simulations, on one side."""
    return 2.33 * math.sqrt(rate * (1 - rate) / studies)


def simulate(seed: int, studies: int, models: int = 4, cases: int = CASES, own: float = 0.02) -> NDArray[np.float64]:
    """(studies, models, cases): no model is better. Skewed, near 0.9, and correlated over models by the cases' difficulty.

    `own` is the scale of what is the model's own: a difference of two has the sd 2 * own.
    """
    rng = np.random.default_rng(seed)
    difficulty = rng.gamma(1.5, 0.04, size=(studies, 1, cases))
    return 1 - difficulty - rng.gamma(2, own, size=(studies, models, cases))
