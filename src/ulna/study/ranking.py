"""Models ranked over several data sets, and which ranks can be told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ulna.errors import UsageError


@dataclass(frozen=True)
class Ranking:
    """Ranks over data sets.

    Args:
        datasets: how many.
        mean_ranks: of every model, in the order given; 1 is best.
        statistic: Friedman's chi square.
        p: that all models rank alike (chi square with models - 1 degrees of freedom).
        critical: the difference of mean ranks from which on two models differ (Nemenyi).
        groups: numbers of models, best first, that cannot be told apart: the bars of the drawing. Groups may overlap;
            a model that differs from all others is in none.
    """

    datasets: int
    mean_ranks: tuple[float, ...]
    statistic: float
    p: float
    critical: float
    groups: tuple[tuple[int, ...], ...]


def rank_datasets(scores: ArrayLike, *, level: float = 0.05) -> Ranking:
    """Mean ranks over data sets, Friedman's test and Nemenyi's critical difference.

    With few data sets hardly anything can be told apart: 4 models on 5 data sets must differ by 2.1 mean ranks.

    Args:
        scores: (datasets, models), each model's mean on each data set; higher is better.
        level: of all pairs together.

    Raises:
        UsageError: for fewer than 2 data sets or 3 models, or scores that are not finite.

    Source: demsar2006; friedman1937.
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2:
        raise UsageError(f"scores of shape {table.shape} are no table; give (datasets, models)")
    datasets, models = table.shape
    if datasets < 2 or models < 3:
        raise UsageError(
            f"a ranking needs at least 2 data sets and 3 models, not {datasets} and {models}; "
            "compare two models, or on one data set, case by case"
        )
    if not np.isfinite(table).all():
        raise UsageError("a ranking needs the score of every model on every data set; some are missing")
    if not 0 < level < 1:
        raise UsageError(f"level {level} is not between 0 and 1; give 0.05 for 5 %")
    table = table.round(12)  # as in the signed-rank test: rounding noise must not break ties
    ranks = rankdata(-table, axis=1).mean(axis=0)
    if (np.ptp(table, axis=1) == 0).all():
        statistic, p = 0.0, 1.0  # 0/0 in the test
    else:
        statistic, p = (float(value) for value in friedmanchisquare(*table.T))
    # Demšar's q is that of the studentized range over the root of 2
    q = studentized_range.ppf(1 - level, models, np.inf) / math.sqrt(2)
    critical = float(q * math.sqrt(models * (models + 1) / (6 * datasets)))
    return Ranking(datasets, tuple(map(float, ranks)), statistic, p, critical, _groups(ranks, critical))


def _groups(ranks: np.ndarray, critical: float) -> tuple[tuple[int, ...], ...]:
    """The longest runs of models, ordered by mean rank, with less than the critical difference between their ends."""
    order = [int(model) for model in np.argsort(ranks, kind="stable")]
    groups: list[tuple[int, ...]] = []
    reached = 0
    for start, model in enumerate(order):
        end = start + sum(ranks[other] - ranks[model] < critical for other in order[start:])
        if end > reached and end - start > 1:  # else a part of the run before, or alone
            groups.append(tuple(order[start:end]))
        reached = max(reached, end)
    return tuple(groups)
