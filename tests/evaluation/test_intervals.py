"""Intervals of means: that they hold the mean as often as they say, and what is said where they do not."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from ulna.errors import UsageError
from ulna.evaluation.intervals import bootstrap_interval, interval_note, mean_interval


def test_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(150):
        low, high = bootstrap_interval(rng.normal(0.8, 0.1, size=25), resamples=300, level=0.9)
        hits += low <= 0.8 <= high
    # binomial sd 0.025 at 0.9; the bootstrap covers 1 or 2 % too little with 25 cases
    assert 0.81 <= hits / 150 <= 0.97


def test_interval_is_near_the_one_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(5, 2, size=200)
    half = 1.96 * values.std(ddof=1) / math.sqrt(200)
    low, high = bootstrap_interval(values)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert np.diff(bootstrap_interval(values, level=0.5)) < 0.5 * (high - low)


def test_interval_depends_on_the_seed_alone():
    values = np.random.default_rng(1).random(30)
    np.random.seed(5)  # the global state must not matter
    first = bootstrap_interval(values)
    np.random.seed(6)
    assert bootstrap_interval(values) == first != bootstrap_interval(values, seed=1)
    assert bootstrap_interval([*values, math.nan]) == first


def dice_like(rng, n):
    """Scores as of a good model: mean 9 / 10.2."""
    return rng.beta(9, 1.2, n)


def with_rare_failures(rng, n):
    """Good scores, and 1 failure in 12."""
    return np.where(rng.random(n) < 1 / 12, rng.beta(1, 6, n), rng.beta(30, 2, n))


KINDS = {"dice": (dice_like, 9 / 10.2), "rare": (with_rare_failures, 11 / 12 * 30 / 32 + 1 / 12 / 7)}


def coverage(kind, n, *, studies, interval=mean_interval):
    """The share of studies of n cases whose interval holds the true mean."""
    draw, mean = KINDS[kind]
    rng = np.random.default_rng(7)
    intervals = (interval(draw(rng, n), resamples=500) for _ in range(studies))
    return np.mean([low <= mean <= high for low, high in intervals])


def test_the_interval_of_the_tables_covers_more_than_the_plain_one_with_few_cases():
    # sd of a rate of 0.92 over 300 studies: 0.016
    assert coverage("dice", 10, studies=300) > coverage("dice", 10, studies=300, interval=bootstrap_interval) + 0.02
    assert 0.89 <= coverage("dice", 10, studies=300) <= 0.97


def test_where_failures_are_rare_few_cases_do_not_know_of_them():
    """Why a note stands beside such intervals: no interval knows what is in none of its cases."""
    assert coverage("rare", 10, studies=200) < 0.75
    assert "not to be trusted" in interval_note(9)
    assert "where failures are not rare" in interval_note(10)
    assert interval_note(30) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "n", "least"),
    [("dice", 5, 0.87), ("dice", 10, 0.90), ("dice", 20, 0.915), ("dice", 34, 0.92), ("dice", 100, 0.93),
     ("rare", 34, 0.87), ("rare", 100, 0.92)],
)  # fmt: skip
def test_the_coverage_that_the_docs_state(kind, n, least):
    # sd of a rate of 0.93 over 1,000 studies: 0.008
    assert least <= coverage(kind, n, studies=1000) <= 0.975


@pytest.mark.parametrize("values", [[], [math.nan], [0.5], [0.5, 0.5], [1, 1, 1], [1, 1, 2], [0.8, 0.9], [1] * 9 + [0]])
def test_interval_of_few_or_equal_values_is_quiet(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = bootstrap_interval(values, resamples=200)
    known = [v for v in values if not math.isnan(v)]
    if len(known) < 2:
        assert math.isnan(low) and math.isnan(high)
    else:
        assert min(known) <= low <= np.mean(known) <= high <= max(known)


def test_mean_interval_is_wider_for_few_units():
    values = np.random.default_rng(0).normal(0.8, 0.1, size=10)
    assert np.ptp(mean_interval(values)) > 1.1 * np.ptp(bootstrap_interval(values))
    many = np.random.default_rng(0).normal(0.8, 0.1, size=1000)
    assert mean_interval(many) == pytest.approx(bootstrap_interval(many), abs=2e-4)
    assert mean_interval([0.7, 0.9]) == pytest.approx((0.7, 0.9))
    assert mean_interval([0.7, math.nan, 0.7]) == (0.7, 0.7)
    assert all(math.isnan(end) for end in mean_interval([0.7]))


def test_a_level_that_is_no_share_is_refused():
    with pytest.raises(UsageError, match="level 95"):
        bootstrap_interval([1, 2, 3], level=95)
