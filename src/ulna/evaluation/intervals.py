"""Confidence intervals of means over cases, and when they are not to be trusted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from ulna.errors import UsageError

FEW_CASES = 10  # fewer leave an interval of a mean too narrow, however it is made
SOME_CASES = 30  # fewer may hold none of the rare failures


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The confidence interval of the mean over cases, from resampled cases; NaN are left out.

    Bias-corrected and accelerated (BCa), which follows the skew of scores near 1; percentiles where BCa is undefined
    (two cases, or all resampled means on one side). Equal values give (mean, mean); fewer than two give (NaN, NaN),
    since one case says nothing about the spread.

    Source: bias-corrected and accelerated bootstrap (efron1987); `scipy.stats.bootstrap`.

    Raises:
        UsageError: if the level does not lie between 0 and 1.
    """
    from scipy.stats import bootstrap  # here: it doubles the time this room takes to import

    if not 0 < level < 1:
        raise UsageError(f"level {level} is not between 0 and 1; give 0.95 for 95 %")
    cases = np.asarray(values, dtype=np.float64).ravel()
    cases = cases[~np.isnan(cases)]
    if cases.size < 2:
        return math.nan, math.nan
    if np.ptp(cases) == 0:
        return float(cases[0]), float(cases[0])
    for method in ("BCa", "percentile") if cases.size > 2 else ("percentile",):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an undefined BCa warns; its NaN is what decides below
            interval = bootstrap(
                (cases,),
                np.mean,
                n_resamples=resamples,
                batch=max(1, 10_000_000 // cases.size),  # or the jackknife of BCa takes cases^2 numbers at once
                confidence_level=level,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(interval).all():
            break
    return float(interval.low), float(interval.high)


def mean_interval(values: ArrayLike, *, level: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """`bootstrap_interval` of the mean, widened for few units: the interval that every table shows.

    A bootstrap takes the spread of the units at hand for that of all, which is too small by (n - 1) / n in variance and
    itself a guess: of 95 % intervals of 10 skewed scores 89 % hold the mean, of 34 scores 92 %. The level is raised by as
    much as a t interval is wider than a normal one with that spread: 93 % and 94 %. With 100 units hardly anything changes.

    Args:
        values: (units,); NaN are left out.
        level: share of such intervals that hold the mean.
        resamples: of the bootstrap.

    Source: expanded percentile interval (hesterberg2015), 4.3.
    """
    n = int(np.count_nonzero(~np.isnan(np.asarray(values, dtype=np.float64))))
    return bootstrap_interval(values, level=_widened(level, n), resamples=resamples)


def difference_interval(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The interval of the mean of `a` less that of `b`, of other units: percentiles of both resampled.

    Widened as `mean_interval` is, by the smaller number of units; two or more of each.
    """
    rng = np.random.default_rng(seed)
    groups = [np.asarray(one, dtype=np.float64) for one in (a, b)]
    means = [one[rng.integers(one.size, size=(resamples, one.size))].mean(axis=1) for one in groups]
    level = _widened(level, min(one.size for one in groups))
    low, high = np.quantile(means[0] - means[1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _widened(level: float, n: int) -> float:
    """The level of a bootstrap of n units that makes up for their spread; see `mean_interval`."""
    from scipy.stats import norm, t

    if n < 2:
        return level
    wide = 2 * norm.cdf(t.ppf((1 + level) / 2, n - 1) * math.sqrt(n / (n - 1))) - 1
    return min(float(wide), 1 - 1e-9)  # of two or three units it is 1 in floats


def told_mean(measure: Mapping[str, float | None]) -> str:
    """A mean with its interval, in a line; a dash where it is not defined.

    Example:
        >>> told_mean({"mean": 0.9123, "low": 0.88, "high": 0.93}), told_mean({"mean": None, "low": None, "high": None})
        ('0.912 [0.880, 0.930]', '-')
    """
    mean, low, high = measure["mean"], measure["low"], measure["high"]
    if mean is None or not math.isfinite(mean):
        return "-"
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"{mean:.3f}" + (f" [{low:.3f}, {high:.3f}]" if known else "")


def interval_note(n: int) -> str:
    """What must stand beside intervals of so few cases; nothing where there are enough. Measured: docs/comparing.md."""
    if n < FEW_CASES:
        return f"intervals of fewer than {FEW_CASES} cases are not to be trusted: too narrow, and without the rare failures"
    if n < SOME_CASES:
        return (
            f"intervals of fewer than {SOME_CASES} cases hold only where failures are not rare: the cases may show none"
        )
    return ""
