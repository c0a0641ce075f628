"""Dice without a reference: how much several answers of one network agree tells how well they do.

For every class the agreement is 2 |A and B| / (|A| + |B|) of its voxels, summed over all pairs of answers that were compared.
On the validation cases of a training a straight line from agreement to Dice is fitted, and the distances from it, each of a
case that the line was fitted without, give the interval. A line that is no better than the mean Dice is not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ulna.recipe import Frozen

LEAST_CASES = 5  # below that nothing is estimated
SHARE = 0.9  # of cases that an interval is to hold
Origin = Literal["heads", "mirrored", "copies", "folds"]  # mirrored: averaged; copies: beside an answer that stays
MEAN = ""  # stands for the mean over the classes


class Line(Frozen):
    """Agreement -> Dice of one class, or of the mean over classes.

    The slope is 0, and every case is told the mean of the validation cases, where a line is no better on cases held back.
    """

    intercept: float
    slope: float
    within: float = Field(ge=0)  # half of the interval
    error: float = Field(ge=0)  # mean absolute, of cases held back from the fit
    error_of_mean: float = Field(ge=0)  # of the mean Dice of the other cases in its place
    cases: int = Field(ge=LEAST_CASES)


class Estimate(NamedTuple):
    """A Dice and the interval in which that of 9 in 10 cases lies; without an interval where none is known."""

    dice: float
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: None if value is None else round(value, 4) for name, value in self._asdict().items()}


class Lines(Frozen):
    """What was fitted for one kind of answers; `mean` is over the classes of a case."""

    mean: Line | None = None
    classes: dict[str, Line] = Field(default_factory=dict)

    def estimate(self, agreement: Mapping[str, float]) -> dict[str, Estimate]:
        """Class -> its Dice, and that of the mean under `MEAN`; what cannot be told is left out.

        Args:
            agreement: class -> agreement; NaN where no answer holds the class.
        """
        found = {
            name: _at(line, agreement[name])
            for name, line in self.classes.items()
            if not math.isnan(agreement.get(name, math.nan))
        }
        mean = mean_of(agreement)
        if self.mean is not None and not math.isnan(mean):
            found[MEAN] = _at(self.mean, mean)
        return found


def mean_of(values: Mapping[str, float]) -> float:
    """The mean of those that are known; NaN without any."""
    known = [value for value in values.values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def fit_lines(agreements: Sequence[Mapping[str, float]], dice: Sequence[Mapping[str, float]]) -> Lines:
    """Lines from agreement to Dice, of every class and of the mean, where enough cases tell both.

    Args:
        agreements: of every case, class -> agreement.
        dice: of the same cases, class -> Dice.
    """
    names = list(agreements[0]) if agreements else []
    classes = {}
    for name in names:
        line = _fitted([(a[name], d[name]) for a, d in zip(agreements, dice, strict=True)])
        if line is not None:
            classes[name] = line
    means = [(mean_of(a), mean_of(d)) for a, d in zip(agreements, dice, strict=True)]
    return Lines(mean=_fitted(means), classes=classes)


def uncalibrated(agreement: Mapping[str, float]) -> dict[str, Estimate]:
    """The agreement itself as an estimate, of several networks: no case was held back from all of them to fit a line."""
    known = {name: Estimate(value) for name, value in agreement.items() if not math.isnan(value)}
    mean = mean_of(agreement)
    return known if math.isnan(mean) else {**known, MEAN: Estimate(mean)}


def _fitted(pairs: Sequence[tuple[float, float]]) -> Line | None:
    known = np.array([pair for pair in pairs if not any(map(math.isnan, pair))], dtype=np.float64).reshape(-1, 2)
    if len(known) < LEAST_CASES:
        return None
    x, y = known.T
    apart, apart_of_mean = _held_back(x, y), _held_back(np.zeros_like(x), y)
    told = float(np.mean(apart)) < float(np.mean(apart_of_mean))  # else the agreement says nothing of a single case
    intercept, slope = _line(x if told else np.zeros_like(x), y)
    # the smallest distance that so many of the cases, and one more, lie within; the largest of few
    rank = min(len(x), math.ceil(SHARE * (len(x) + 1))) - 1
    return Line(
        intercept=intercept,
        slope=slope,
        within=float(np.sort(apart if told else apart_of_mean)[rank]),
        error=float(np.mean(apart if told else apart_of_mean)),
        error_of_mean=float(np.mean(apart_of_mean)),
        cases=len(x),
    )


def _held_back(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[float]:
    """How far the Dice of each case lies from the line of all others."""
    apart = []
    for left_out in range(len(x)):
        others = np.arange(len(x)) != left_out
        a, b = _line(x[others], y[others])
        apart.append(abs(float(np.clip(a + b * x[left_out], 0, 1)) - float(y[left_out])))
    return apart


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Least squares; never falling: less agreement does not mean a better answer."""
    spread = x - x.mean()
    square = float(spread @ spread)
    slope = max(0.0, float(spread @ y) / square) if square > 1e-12 else 0.0
    return float(y.mean() - slope * x.mean()), slope


def _at(line: Line, agreement: float) -> Estimate:
    dice = float(np.clip(line.intercept + line.slope * agreement, 0, 1))
    return Estimate(dice, max(0.0, dice - line.within), min(1.0, dice + line.within))
