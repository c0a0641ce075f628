"""The tests and intervals behind a study's verdicts, and how many cases a test needs.

Tests take paired differences (*, units): one figure for each patient or case, already averaged over seeds. A difference
is first rounded to 12 decimals, or the noise of the subtraction would break ties and turn zeros into wins.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ulna.errors import UsageError

Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "greater", "less"]

EXACT_UP_TO = 100  # units; the normal approximation is right to the third decimal from far fewer on
EFFICIENCY = 3 / math.pi  # of the signed-rank test against the t test, for normal differences
BATCH = 2_000_000  # numbers resampled at once


def signed_rank(differences: ArrayLike, alternative: Alternative = "two-sided") -> float:
    """The p value of Wilcoxon's signed-rank test that paired differences lie symmetrically around 0.

    Ties share their mean rank. Zeros keep their ranks but count for neither side (Pratt): dropped before ranking, as the
    original does, more zeros could make a difference look surer. With up to 100 units the p value is exact, counted over
    all 2^n signs of the ranks at hand, so ties and zeros need no correction; beyond, normal with the variance of the
    ranks at hand (which holds the correction for ties), without continuity correction. All zeros give 1.

    Args:
        differences: (units,), one model minus the other.
        alternative: "greater" asks whether the differences lie above 0.

    Raises:
        UsageError: if there is no unit, or a difference is not finite.

    Source: signed-rank test (wilcoxon1945), zeros as in pratt1959.

    Example:
        >>> signed_rank([1, 2, 3, 4, 5])
        0.0625
    """
    d = _rounded(differences)
    ranks = _ranks(d)
    won = float(ranks[d > 0].sum())
    counted = ranks[d != 0]
    if not counted.size:
        return 1.0
    if d.size <= EXACT_UP_TO:
        above, below = _exact_tails(counted, won)
    else:
        from scipy.stats import norm

        z = (won - counted.sum() / 2) / math.sqrt((counted**2).sum() / 4)
        above, below = float(norm.sf(z)), float(norm.cdf(z))
    tails = {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}
    return tails[alternative]


def equivalence(differences: ArrayLike, margin: float) -> float:
    """The p value that paired differences lie within ±margin: the larger of two one-sided signed-rank tests.

    Args:
        differences: (units,).
        margin: in the unit of the scores.

    Raises:
        UsageError: if the margin is not positive; else as in `signed_rank`.

    Source: two one-sided tests (schuirmann1987); wellek2010, 5.
    """
    _check_positive("margin", margin)
    d = _rounded(differences)
    return max(signed_rank(d + margin, "greater"), signed_rank(d - margin, "less"))


def holm(p: ArrayLike) -> Floats:
    """p values (tests,) adjusted so that all tests together err with at most the level of each, in the order given.

    Source: holm1979.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1)))
    return adjusted


def rank_biserial(differences: ArrayLike) -> Any:
    """The matched-pairs rank-biserial correlation: ranks won minus ranks lost, as a share of all ranks.

    From -1 (lost on every unit) to 1 (won on every unit); zeros are won by neither and draw it towards 0.

    Args:
        differences: (*, units).

    Returns:
        (*)

    Source: simple difference formula (kerby2014); zeros as in king2011.

    Example:
        >>> float(rank_biserial([3, 1, -2]))
        0.3333333333333333
    """
    d = _rounded(differences)
    ranks = _ranks(d)
    return (np.sign(d) * ranks).sum(axis=-1) / ranks.sum(axis=-1)


def effect_interval(
    differences: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The bootstrap interval of `rank_biserial` over resampled units; (NaN, NaN) for fewer than two.

    Bias-corrected and accelerated, since an effect near its end of 1 is skewed; percentiles where that is undefined and
    for more than 1,000 units, where both agree. If one model wins on every unit, so it does in every resample; the far
    end is then 2s^2 - 1 with s, the smallest share of wins of which such a sample is not too rare: s^units = (1 - level) / 2.

    Source: efron1987; `scipy.stats.bootstrap`; clopper1934.
    """
    from scipy.stats import bootstrap

    d = _rounded(differences)
    if d.size < 2:
        return math.nan, math.nan
    if abs(np.sign(d).sum()) == d.size:
        # the effect is that of P(d1 + d2 > 0), and two wins have a positive sum
        far, won = 2 * ((1 - level) / 2) ** (2 / d.size) - 1, d[0] > 0
        return (far, 1.0) if won else (-1.0, -far)

    def interval(method: str) -> tuple[float, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an undefined BCa warns; its NaN is what decides below
            found = bootstrap(
                (d,),
                lambda sample, axis: rank_biserial(sample),  # always the last axis
                n_resamples=resamples,
                batch=max(1, BATCH // d.size),
                confidence_level=level,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        return float(found.low), float(found.high)

    low, high = interval("BCa") if d.size <= 1000 else (math.nan, math.nan)
    return interval("percentile") if math.isnan(low + high) else (low, high)


def power(units: int, sd: float, difference: float, *, level: float = 0.05, tests: int = 1) -> float:
    """The probability that the two-sided signed-rank test sees a shift, for normal paired differences.

    That of the t test with 3/π as many units, from Guenther's approximation. Where large differences are more frequent
    than in a normal distribution, as with Dice, the signed-rank test does better than that at the same sd.

    Args:
        units: patients or cases.
        sd: of the paired differences, in the unit of the scores.
        difference: the true shift.
        level: of all tests together.
        tests: how many share the level; Holm's smallest p has to pass level / tests.

    Raises:
        UsageError: if a number is out of its range.

    Source: guenther1981; hodges1956.
    """
    _check_positive("difference", difference)
    if units < fewest_units(level=level, tests=tests):
        return 0.0
    if not sd > 0:
        return 1.0
    from scipy.stats import norm

    z = norm.isf(level / tests / 2)
    return float(norm.cdf(math.sqrt(max(0.0, units * EFFICIENCY - z * z / 2)) * difference / sd - z))


def needed_units(sd: float, difference: float, *, power: float = 0.8, level: float = 0.05, tests: int = 1) -> int:
    """The units with which the two-sided signed-rank test sees a shift with the given power; the inverse of `power`.

    Args:
        sd: of the paired differences, in the unit of the scores.
        difference: the shift to see.
        power: the share of studies that see it.
        level: of all tests together.
        tests: how many share the level.

    Raises:
        UsageError: if a number is out of its range.

    Example:
        >>> needed_units(0.03, 0.01)
        76
    """
    from scipy.stats import norm

    _check_positive("difference", difference)
    if not 0 < power < 1:
        raise UsageError(f"power {power} is not between 0 and 1; give 0.8 for 80 %")
    least = fewest_units(level=level, tests=tests)
    if not sd > 0:
        return least
    z = norm.isf(level / tests / 2)
    return max(least, math.ceil((((z + norm.ppf(power)) * sd / difference) ** 2 + z * z / 2) / EFFICIENCY))


def fewest_units(*, level: float = 0.05, tests: int = 1) -> int:
    """The fewest units with which the test can reach the level at all: it cannot give less than p = 2 / 2^units.

    Example:
        >>> fewest_units(), fewest_units(tests=6)
        (6, 8)
    """
    if not 0 < level < 1 or tests < 1:
        raise UsageError(f"level {level} for {tests} tests: give a level between 0 and 1, and one test or more")
    return math.ceil(1 + math.log2(tests / level))


def _ranks(d: Floats) -> Floats:
    from scipy.stats import rankdata

    return np.asarray(rankdata(np.abs(d), axis=-1), dtype=np.float64)


def _exact_tails(ranks: Floats, won: float) -> tuple[float, float]:
    """P(sum >= won) and P(sum <= won) of the ranks won, if every rank is won or lost by the toss of a coin."""
    doubled = np.rint(2 * ranks).astype(int)  # mean ranks are multiples of one half
    share = np.zeros(doubled.sum() + 1)
    share[0] = 1
    for rank in doubled:
        share[rank:] = (share[rank:] + share[:-rank]) / 2
        share[:rank] /= 2
    at = round(2 * won)
    return float(share[at:].sum()), float(share[: at + 1].sum())


def _rounded(differences: ArrayLike) -> Floats:
    d = np.asarray(differences, dtype=np.float64).round(12)
    if not d.size or not np.isfinite(d).all():
        raise UsageError("paired differences are missing or not finite; compare a measure that every case defines")
    return d


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{name} {value} is not a difference of scores; give a positive one, such as 0.01")
