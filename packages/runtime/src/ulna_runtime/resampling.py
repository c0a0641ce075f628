"""Between the grid of an image and that of a plan: exact steps, centres aligned.

Point i of a grid of n' points with a step of r voxels lies at (i - (n' - 1) / 2) r + (n - 1) / 2 of an axis of n voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Maps = NDArray[np.float32]
Places = NDArray[np.float64]

CHUNK = 1 << 22  # values of a slab on its way back
SAME = 1e-3  # a step that is off by less is taken for the voxel itself


def steps(spacing: Sequence[float], wanted: Sequence[float]) -> tuple[float, ...]:
    """The steps of a grid of the `wanted` spacing, in voxels of an image of `spacing`; 1 where they agree.

    Example:
        >>> steps((1.0, 2.0, 1.0), (1.0, 1.0, 1.0005))
        (1.0, 0.5, 1.0)
    """
    ratios = [w / s for s, w in zip(spacing, wanted, strict=True)]
    return tuple(1.0 if abs(ratio - 1) <= SAME else ratio for ratio in ratios)


def points(size: Sequence[int], step: Sequence[float]) -> tuple[int, ...]:
    """*S' of a grid over an image of `size`: one point at least.

    Example:
        >>> points((10, 9, 1), (2.0, 0.5, 8.0))
        (5, 18, 1)
    """
    return tuple(n if r == 1 else max(1, round(n / r)) for n, r in zip(size, step, strict=True))


def resample(maps: Maps, step: Sequence[float]) -> Maps:
    """Onto a grid, linearly; along axes that get coarser by a triangle as wide as the step: (K, *S) -> (K, *S')."""
    size = maps.shape[1:]
    grid = points(size, step)
    for axis in sorted(range(len(size)), key=lambda a: -step[a]):  # what makes the image smaller goes first
        if step[axis] != 1:
            places = places_of(grid[axis], step[axis], size[axis])
            maps = _between(maps, axis + 1, places, max(1.0, step[axis]))
    return maps


def places_of(count: int, step: float, length: int) -> Places:
    """Where `count` points with a step lie on an axis of `length` voxels, centres aligned: (count)."""
    return (np.arange(count, dtype=np.float64) - (count - 1) / 2) * step + (length - 1) / 2


def on_grid(length: int, step: float, count: int) -> Places:
    """Where the voxels of an axis lie on a grid of `count` points with a step: (length), in points."""
    return places_of(length, 1 / step, count)


def restore(
    slabs: Iterable[Maps], grid: tuple[int, ...], size: tuple[int, ...], step: Sequence[float], axis: int
) -> Iterator[Maps]:
    """Back to the grid of the image, linearly, slab by slab.

    Args:
        slabs: (K, *S') with some rows along `axis`, in order and together all of them.
        grid: *S', of all slabs together.
        size: *S of the image.
        step: of the grid, in voxels of the image.
        axis: the spatial axis that the slabs lie along.
    """
    places = [on_grid(n, r, count) for n, r, count in zip(size, step, grid, strict=True)]
    return read_at(slabs, places, grid, step, axis)


def read_at(
    slabs: Iterable[Maps], places: Sequence[Places], grid: tuple[int, ...], step: Sequence[float], axis: int
) -> Iterator[Maps]:
    """Values at ascending places along every axis, linearly, slab by slab; an axis with a step of 1 stays as it is."""
    if all(r == 1 for r in step):
        yield from slabs
        return

    def across(rows: Maps) -> Maps:
        for other, place in enumerate(places):
            if other != axis and step[other] != 1:
                rows = _between(rows, other + 1, place, 1.0)
        return rows

    size = tuple(map(len, places))
    yield from _between_slabs(slabs, places[axis].clip(0, grid[axis] - 1), grid, size, axis, across)


def _between_slabs(
    slabs: Iterable[Maps],
    places: Places,
    grid: tuple[int, ...],
    size: tuple[int, ...],
    axis: int,
    across: Callable[[Maps], Maps],
) -> Iterator[Maps]:
    below = places.astype(np.int64)
    above = np.minimum(below + 1, grid[axis] - 1)
    share = places - below
    done, first, before = 0, 0, None  # rows handed out; the first row of the slab, and the row before it
    for slab in slabs:
        end = first + slab.shape[axis + 1]
        ready = int(np.searchsorted(above, end))
        some = max(1, CHUNK // (slab.shape[0] * math.prod(size) // size[axis]))
        for start in range(done, ready, some):
            chosen = slice(start, min(start + some, ready))
            near, far = (_rows(slab, rows[chosen] - first, before, axis + 1) for rows in (below, above))
            yield across(lerp(near, far, along(share[chosen].astype(np.float32), axis + 1, slab.ndim)))
        done, first = ready, end
        before = np.take(slab, [slab.shape[axis + 1] - 1], axis + 1)


def lerp(near: Maps, far: Maps, share: NDArray[Any]) -> Maps:
    """Linearly between two arrays, from the nearer one: a constant stays exactly one."""
    between = far - near
    return np.where(share < 0.5, near + share * between, far - between * (1 - share))


def along(values: NDArray[Any], axis: int, dims: int) -> NDArray[Any]:
    """Values of one axis in the shape of an array with so many axes."""
    return values.reshape([-1 if a == axis else 1 for a in range(dims)])


def _between(maps: Maps, axis: int, places: Places, reach: float) -> Maps:
    """Values at places along an axis: the mean of the voxels within `reach`, weighted by a triangle; 1 is linear."""
    last = maps.shape[axis] - 1
    first = np.floor(places - reach).astype(np.int64) + 1
    if reach == 1:
        near, far = (np.take(maps, (first + k).clip(0, last), axis) for k in (0, 1))
        return lerp(near, far, along((places - first).astype(np.float32), axis, maps.ndim))
    index = first[:, None] + np.arange(math.ceil(2 * reach))
    weights = (1 - np.abs(index - places[:, None]) / reach).clip(0)
    weights /= weights.sum(1, keepdims=True)
    # a triangle cut at voxels has its centre up to a tenth of a voxel beside its place: tilted, it lies there exactly
    centre = (weights * index).sum(1, keepdims=True)
    spread = (weights * (index - centre) ** 2).sum(1, keepdims=True)
    weights *= 1 + (places[:, None] - centre) / spread * (index - centre)
    total: Maps | None = None
    for column, weight in zip(index.clip(0, last).T, weights.astype(np.float32).T, strict=True):
        part = np.take(maps, column, axis)
        part *= along(weight, axis, maps.ndim)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total


def _rows(slab: Maps, rows: NDArray[np.int64], before: Maps | None, axis: int) -> Maps:
    """Rows of a slab along an axis; row -1 is the one before it."""
    chosen = np.take(slab, rows.clip(0), axis)
    count = int((rows < 0).sum())
    if count and before is not None:
        chosen[(slice(None),) * axis + (slice(0, count),)] = before
    return chosen
