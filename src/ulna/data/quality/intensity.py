"""The values of an image, measured a slab at a time: mean, spread, extremes, and percentiles of an even sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.slabs import slabs

SAMPLES = 10_000  # values per channel that percentiles are taken from
KEPT = 1_000  # foreground values per channel that are kept, to pool over cases


@dataclass(frozen=True)
class Intensity:
    """The values of one channel; percentiles from at most 10 000 values, evenly spread."""

    mean: float
    std: float
    min: float
    max: float
    p00_5: float
    p50: float
    p99_5: float


class Shape(NamedTuple):
    """The distribution of a channel in three numbers; but for the first they do not depend on its unit.

    Args:
        width: from the 0.5 to the 99.5 percentile, as a logarithm to the base 10.
        low: the 0.5 percentile over the width.
        middle: where the median lies between both, from 0 to 1.
    """

    width: float
    low: float
    middle: float


def shape_of(channel: Intensity) -> Shape | None:
    """The shape of a distribution; None where it has no width.

    Example:
        >>> shape_of(Intensity(mean=0, std=1, min=-1, max=9, p00_5=0, p50=2, p99_5=10))
        Shape(width=1.0, low=0.0, middle=0.2)
    """
    width = channel.p99_5 - channel.p00_5
    if not 0 < width < math.inf:
        return None
    return Shape(math.log10(width), channel.p00_5 / width, (channel.p50 - channel.p00_5) / width)


class Measured(NamedTuple):
    """What one channel holds.

    Args:
        intensity: over the finite values; None where there are none.
        kept: up to 1000 of the finite values, evenly spread.
        bad: how many values are not finite.
    """

    intensity: Intensity | None
    kept: NDArray[Any]
    bad: int


def measure(channel: NDArray[Any], inside: NDArray[Any] | None = None) -> Measured:
    """Measure one channel, (*S), or those of its values where a map (*S) of integers is not 0."""
    count = bad = 0
    total, low, high = 0.0, math.inf, -math.inf
    for values, lost in _finite(channel, inside):
        bad += lost
        if values.size:
            count += values.size
            total += float(values.sum(dtype=np.float64))
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if not count:
        return Measured(None, np.empty(0, channel.dtype), bad)
    mean = total / count
    squares, seen = 0.0, 0
    steps = _step(count, SAMPLES), _step(count, KEPT)
    spread: tuple[list[NDArray[Any]], ...] = ([], [])
    for values, _ in _finite(channel, inside):
        squares += float(np.square(values.astype(np.float64) - mean).sum())
        for step, parts in zip(steps, spread, strict=True):
            parts.append(values[-seen % step :: step].copy())
        seen += values.size
    sample, kept = (np.concatenate(parts) for parts in spread)
    percentiles = _percentiles(sample, (0.5, 50, 99.5))
    return Measured(Intensity(mean, math.sqrt(squares / count), low, high, *percentiles), kept, bad)


class Sampled:
    """The percentiles of `measure` for a channel that comes box by box: the same even sample, if all values are finite.

    Args:
        size: *S.
    """

    def __init__(self, size: Sequence[int]) -> None:
        count = math.prod(size)
        places = np.arange(0, count, _step(count, SAMPLES))
        self._at = np.stack(np.unravel_index(places, tuple(size)))
        self._values: list[NDArray[Any]] = []

    def add(self, box: Sequence[slice], values: NDArray[Any]) -> None:
        """A box of the channel, whose values are (*box); each voxel comes once."""
        ends = [(at >= part.start) & (at < part.stop) for at, part in zip(self._at, box, strict=True)]
        here = self._at[:, np.logical_and.reduce(ends)]
        self._values.append(values[tuple(at - part.start for at, part in zip(here, box, strict=True))])

    def shape(self) -> Shape | None:
        """The shape of the distribution; None where it has no width."""
        low, middle, high = _percentiles(np.concatenate(self._values), (0.5, 50, 99.5))
        return shape_of(Intensity(0.0, 0.0, 0.0, 0.0, low, middle, high))


def _finite(channel: NDArray[Any], inside: NDArray[Any] | None) -> Iterator[tuple[NDArray[Any], int]]:
    """Slabs of finite values, each with the number of those that are not."""
    for parts in slabs(channel) if inside is None else slabs(channel, inside):
        values = parts[0] if inside is None else parts[0][parts[1] != 0]
        if values.dtype.kind != "f":
            yield values, 0
            continue
        finite = np.isfinite(values)
        bad = values.size - int(np.count_nonzero(finite))
        yield (values[finite] if bad else values), bad


def _step(count: int, most: int) -> int:
    """The step that leaves at most `most` values; odd, lest it fall in step with rows of even length."""
    step = -(-count // most)
    return step | 1 if step > 1 else 1


def _percentiles(values: NDArray[Any], levels: tuple[float, ...]) -> list[float]:
    """Linear between neighbours, as numpy's; small integers are sorted by radix, which is several times as fast."""
    ordered = np.sort(values, kind="stable" if values.dtype.itemsize <= 2 else None)
    places = np.asarray(levels) / 100 * (ordered.size - 1)
    below = places.astype(np.int64)
    low = ordered[below].astype(np.float64)
    high = ordered[np.minimum(below + 1, ordered.size - 1)].astype(np.float64)
    return (low + (high - low) * (places - below)).tolist()
