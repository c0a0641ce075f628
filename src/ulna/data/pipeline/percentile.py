"""An exact percentile of more values than fit into memory, as float32: two readings, each counting 16 bits of every value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = 16  # counted in one reading
BINS = 1 << BITS
AT_ONCE = 1 << 20  # values that are counted at once
SIGN = np.uint32(1 << 31)


def percentiles(images: Callable[[], Iterable[NDArray[Any]]], level: float) -> tuple[float, ...]:
    """The smallest value of every channel that `level` % of all its values do not exceed.

    Args:
        images: gives the images, (C, *S) of any sizes, finite; it is called twice.
        level: above 0, up to 100.

    Example:
        >>> percentiles(lambda: [np.arange(10.0).reshape(1, 10), np.arange(10.0, 20.0).reshape(1, 10)], 95)
        (18.0,)
    """
    high = _counts(images, None)
    found = [_bin_at(counts, math.ceil(round(level / 100 * counts.sum(), 6))) for counts in high]
    low = _counts(images, [upper for upper, _ in found])
    return tuple(_value(upper, _bin_at(counts, rank)[0]) for (upper, rank), counts in zip(found, low, strict=True))


def _counts(images: Callable[[], Iterable[NDArray[Any]]], upper: list[int] | None) -> list[NDArray[np.int64]]:
    """How often every pattern of the upper 16 bits occurs in a channel or, under the given ones, of the lower 16 bits."""
    counts: list[NDArray[np.int64]] = []
    for image in images():
        counts = counts or [np.zeros(BINS, np.int64) for _ in image]
        for number, channel in enumerate(image):
            flat = channel.reshape(-1)
            for start in range(0, flat.size, AT_ONCE):
                keys = _keys(flat[start : start + AT_ONCE])
                bins = keys >> BITS if upper is None else keys[keys >> BITS == upper[number]] & (BINS - 1)
                counts[number] += np.bincount(bins, minlength=BINS)
    return counts


def _keys(values: NDArray[Any]) -> NDArray[np.uint32]:
    """Whole numbers in the order of the values: the bits of a float, which are ordered among numbers of one sign."""
    floats = np.ascontiguousarray(values, dtype=np.float32) + np.float32(0)  # -0 becomes 0
    bits = floats.view(np.uint32)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _value(upper: int, lower: int) -> float:
    key = np.uint32(upper << BITS | lower)
    bits = key ^ SIGN if key & SIGN else ~key
    return float(np.asarray(bits, np.uint32).view(np.float32))


def _bin_at(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The bin that the value of a rank (from 1) lies in, and its rank among those in that bin."""
    sums = counts.cumsum()
    number = int(np.searchsorted(sums, rank))
    return number, rank - int(sums[number] - counts[number])
