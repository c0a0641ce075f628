"""Ranks over data sets: against a published example and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ulna.errors import UsageError
from ulna.study.ranking import rank_datasets

# demsar2006, Table 6: AUC of C4.5, with its parameter m, cf, and both, on 14 data sets; 0.9751 is printed as 0.975,
# but ranked before the other 0.975
DEMSAR = [
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970],
]  # fmt: skip


def test_ranks_of_the_published_example() -> None:
    ranking = rank_datasets(DEMSAR)
    assert ranking.mean_ranks == pytest.approx((3.143, 2.000, 2.893, 1.964), abs=5e-4)
    assert ranking.critical == pytest.approx(1.25, abs=5e-3)
    assert (ranking.statistic, ranking.p) == pytest.approx(tuple(stats.friedmanchisquare(*np.transpose(DEMSAR))))
    assert ranking.datasets == 14
    assert ranking.groups == ((3, 1, 2, 0),)


def test_ranks_that_can_be_told_apart() -> None:
    """Always the same order on 12 data sets: the critical difference of 1.35 joins neighbours only."""
    ranking = rank_datasets(np.tile([0.6, 0.9, 0.7, 0.8], (12, 1)))
    assert ranking.mean_ranks == (4, 1, 3, 2)
    # 2.569, Demšar's table 5, times the root of 4 * 5 / (6 * 12)
    assert ranking.critical == pytest.approx(2.569 * math.sqrt(20 / 72), abs=1e-3)
    assert ranking.groups == ((1, 3), (3, 2), (2, 0))
    assert ranking.p < 0.001
    surer = rank_datasets(np.tile([0.6, 0.9, 0.7, 0.8], (40, 1)))
    assert surer.groups == ()


def test_equal_models_share_ranks() -> None:
    ranking = rank_datasets(np.full((5, 3), 0.9))
    assert (ranking.mean_ranks, ranking.statistic, ranking.p) == ((2, 2, 2), 0, 1)
    assert ranking.groups == ((0, 1, 2),)


def test_refused_rankings() -> None:
    for shape in ((1, 4), (5, 2)):
        with pytest.raises(UsageError, match=rf"2 data sets and 3 models, not {shape[0]} and {shape[1]}"):
            rank_datasets(np.ones(shape))
    with pytest.raises(UsageError, match="no table"):
        rank_datasets([0.9, 0.8, 0.7])
    with pytest.raises(UsageError, match="some are missing"):
        rank_datasets([[0.9, 0.8, 0.7], [0.9, math.nan, 0.7]])
    with pytest.raises(UsageError, match="level"):
        rank_datasets(np.ones((3, 3)), level=5)
