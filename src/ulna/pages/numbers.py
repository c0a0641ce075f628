"""Figures as people read them: numbers with so many decimals, a dash for what is not known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

DASH = "–"


class Cell(NamedTuple):
    """A mean and its interval, as text."""

    mean: str
    interval: str


def mean_cell(value: Mapping[str, Any] | None, digits: int) -> Cell:
    """Of `mean`, `low` and `high`."""
    value = value or {}
    mean, low, high = (number(value.get(key), digits) for key in ("mean", "low", "high"))
    return Cell(mean, "" if DASH in (low, high) else f"{low} {DASH} {high}")


def number(value: Any, digits: int) -> str:
    """Whole numbers as they are, others with so many decimals; a dash for what is no number.

    Example:
        >>> number(3, 2), number(0.5, 3), number(None, 1), number(float("nan"), 1)
        ('3', '0.500', '–', '–')
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def brief(value: Any) -> str:
    """A number without idle zeros.

    Example:
        >>> brief(2.0), brief(1.5), brief(None)
        ('2', '1.5', '–')
    """
    return f"{value:g}" if isinstance(value, int | float) else DASH


def short(count: Any) -> str:
    """A count as people say it.

    Example:
        >>> short(2_261_234), short(12), short(None)
        ('2.26 M', '12', '–')
    """
    if not isinstance(count, int | float):
        return DASH
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)
