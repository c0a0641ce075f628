"""Signed ranks, Holm, effect size, intervals and the cases needed: against scipy and by hand."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ulna.errors import UsageError
from ulna.study import significance
from ulna.study.significance import (
    effect_interval,
    equivalence,
    fewest_units,
    holm,
    needed_units,
    power,
    rank_biserial,
    signed_rank,
)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("units", [1, 6, 34, 100])
def test_exact_signed_ranks_are_scipys(units: int, alternative: Any) -> None:
    d = np.random.default_rng(units).normal(0.3, 1, size=units)
    expected = stats.wilcoxon(d, alternative=alternative, method="exact").pvalue
    assert signed_rank(d, alternative) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_many_signed_ranks_are_scipys_approximation_with_ties_and_zeros(alternative: Any) -> None:
    d = np.random.default_rng(0).integers(-4, 6, size=250).astype(float)
    assert (d == 0).any()
    expected = stats.wilcoxon(d, alternative=alternative, method="approx", zero_method="pratt").pvalue
    assert signed_rank(d, alternative) == pytest.approx(expected, rel=1e-9)


def test_the_approximation_takes_over_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    d = np.random.default_rng(3).normal(0.2, 1, size=significance.EXACT_UP_TO)
    exact = signed_rank(d)
    monkeypatch.setattr(significance, "EXACT_UP_TO", 0)
    assert exact != signed_rank(d) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("d", [[1, 1, 2, -2, 3, 3, 0, 4], [0, 0, 0, 1, 1, -1, 2, 5, 5], [0.1 + 0.2 - 0.3, 1, 2, 3]])
def test_ties_and_zeros_count_over_all_signs(d: list[float]) -> None:
    """Every assignment of signs, written out; the last has a zero that floats make 5.6e-17."""
    values = np.round(d, 12)
    ranks = stats.rankdata(np.abs(values))[values != 0]
    observed = stats.rankdata(np.abs(values))[values > 0].sum()
    sums = np.array([np.dot(ranks, signs) for signs in product([0, 1], repeat=len(ranks))])
    above, below = np.mean(sums >= observed), np.mean(sums <= observed)
    assert signed_rank(d, "greater") == pytest.approx(above)
    assert signed_rank(d, "less") == pytest.approx(below)
    assert signed_rank(d) == pytest.approx(min(1, 2 * min(above, below)))


def test_signed_ranks_of_nothing() -> None:
    assert signed_rank([0.0, 0.0, 0.0]) == 1
    for bad in ([], [0.1, math.nan], [math.inf]):
        with pytest.raises(UsageError, match="not finite"):
            signed_rank(bad)


def test_equivalence_is_the_larger_of_two_one_sided_tests() -> None:
    d = np.random.default_rng(5).normal(0.004, 0.01, size=20)
    sides = [stats.wilcoxon(d + 0.01, alternative="greater"), stats.wilcoxon(d - 0.01, alternative="less")]
    assert equivalence(d, 0.01) == pytest.approx(max(side.pvalue for side in sides))
    for margin in (0, -0.01, math.nan, math.inf):
        with pytest.raises(UsageError, match="margin"):
            equivalence(d, margin)


def test_holm_by_hand() -> None:
    # smallest first: 0.01 * 4, 0.02 * 3, then 0.021 * 2 is less than that before it, 0.9 * 1
    assert holm([0.02, 0.9, 0.01, 0.021]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([0.6, 0.7]).tolist() == [1, 1]
    assert holm([]).size == 0


def test_effect_size_by_hand() -> None:
    # ranks 1 to 4: won 4 + 3 + 1, lost 2 of 10
    assert rank_biserial([0.1, -0.2, 0.3, 0.4]) == pytest.approx(0.6)
    assert rank_biserial([[1, 2], [-1, -2], [0, 0]]).tolist() == [1, -1, 0]
    # a zero has the least rank, won by nobody: (2 + 3) of 6
    assert rank_biserial([0, 1, 2]) == pytest.approx(5 / 6)


def test_effect_interval() -> None:
    d = np.random.default_rng(0).normal(0.5, 1, size=30)
    low, high = effect_interval(d)
    assert -1 < low < rank_biserial(d) < high < 1
    assert effect_interval(d) == (low, high) != effect_interval(d, seed=1)
    assert effect_interval(-d) == pytest.approx((-high, -low), abs=0.03)
    assert effect_interval(np.tile(d, 40), resamples=200)[0] == pytest.approx(rank_biserial(d), abs=0.1)
    assert all(math.isnan(end) for end in effect_interval([1.0]))
    assert effect_interval(np.zeros(8)) == (0, 0)


def test_effect_interval_of_one_sided_wins_admits_losses() -> None:
    """10 wins of 10 happen in 2.5 % of samples where 69 % of the units are won."""
    share = 0.025**0.1
    assert effect_interval(np.arange(1, 11)) == pytest.approx((2 * share**2 - 1, 1))
    assert effect_interval(-np.arange(1, 11)) == pytest.approx((-1, 1 - 2 * share**2))


# --- how many cases


def test_needed_units_by_hand() -> None:
    # ((1.95996 + 0.84162) * 3)^2 = 70.64, + 1.95996^2 / 2 = 72.56, * pi / 3 = 75.98
    assert needed_units(0.03, 0.01) == 76
    assert needed_units(0.03, 0.01, tests=6) > needed_units(0.03, 0.01, tests=2) > 76
    assert needed_units(0.03, 0.01, power=0.9) > 76
    assert needed_units(0.0, 0.01) == needed_units(1e-9, 0.01) == 6
    assert needed_units(0.0, 0.01, tests=6) == fewest_units(tests=6) == 8


@pytest.mark.parametrize("tests", [1, 6])
@pytest.mark.parametrize("sd", [0.005, 0.03, 0.2])
def test_power_is_the_inverse(sd: float, tests: int) -> None:
    units = needed_units(sd, 0.01, tests=tests)
    assert power(units, sd, 0.01, tests=tests) >= 0.8
    assert units == fewest_units(tests=tests) or power(units - 1, sd, 0.01, tests=tests) < 0.8


def test_power_at_the_ends() -> None:
    assert power(5, 0.001, 0.5) == 0  # the test cannot reach the level
    assert power(6, 0.0, 0.01) == 1
    for call in (
        lambda: power(20, 0.03, 0),
        lambda: needed_units(0.03, -0.01),
        lambda: needed_units(0.03, 0.01, power=1),
        lambda: needed_units(0.03, 0.01, level=0),
        lambda: fewest_units(tests=0),
    ):
        with pytest.raises(UsageError):
            call()
