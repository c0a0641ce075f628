"""Between the grid of an image and that of a plan: exact steps, centres aligned.

Point i of a grid of n' points with a step of r voxels lies at (i - (n' - 1) / 2) r + (n - 1) / 2 of an axis of n voxels.
The step is the wanted one to the last digit; what is covered differs from the image by less than a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Values of a slab on its way back: a few MB, whatever the number of classes; on a GPU more, for a portion is some launches
_CHUNK, _CHUNK_ON_GPU = 1 << 22, 1 << 24
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


def resample(maps: Tensor, step: Sequence[float]) -> Tensor:
    """Onto a grid, linearly; along axes that get coarser by a triangle as wide as the step, lest fine structure alias.

    The outermost voxels are repeated beyond the image.

    Shape:
        (K, *S) -> (K, *S'), float32
    """
    size = maps.shape[1:]
    grid = points(size, step)
    for axis in sorted(range(len(size)), key=lambda a: -step[a]):  # what makes the image smaller goes first
        if step[axis] != 1:
            maps = _between(maps, axis + 1, _places(grid[axis], step[axis], size[axis]), max(1.0, step[axis]))
    return maps


class Rows(NamedTuple):
    """Points of a grid along one axis, and the voxels that they are made of.

    Args:
        axis: of *S.
        points: first and end.
        voxels: first and end.
    """

    axis: int
    points: tuple[int, int]
    voxels: tuple[int, int]


def rows_for(points: tuple[int, int], axis: int, length: int, step: float, count: int) -> Rows:
    """What `resample` reads of an axis of `length` voxels for some of its `count` points.

    Example:
        >>> rows_for((2, 4), 0, length=10, step=2.0, count=5)
        Rows(axis=0, points=(2, 4), voxels=(3, 9))
    """
    if step == 1:
        return Rows(axis, points, points)
    places, reach = _places(count, step, length)[points[0] : points[1]], max(1.0, step)
    first = int((places[0] - reach).floor()) + 1
    last = int((places[-1] - reach).floor()) + 1 + (1 if reach == 1 else math.ceil(2 * reach) - 1)
    begin = min(max(first, 0), length - 1)
    return Rows(axis, points, (begin, max(min(last, length - 1), begin) + 1))


def resample_rows(maps: Tensor, step: Sequence[float], size: Sequence[int], rows: Rows) -> Tensor:
    """What `resample` gives at some points along one axis, to the bit.

    Args:
        maps: (K, *S), of `rows.axis` the voxels that `rows` names.
        step: of the grid, in voxels.
        size: *S of the whole image.
        rows: from `rows_for`.
    """
    grid = points(size, step)
    for axis in sorted(range(len(size)), key=lambda a: -step[a]):
        if step[axis] != 1:
            places, begin = _places(grid[axis], step[axis], size[axis]), 0
            if axis == rows.axis:
                places, begin = places[slice(*rows.points)], rows.voxels[0]
            maps = _between(maps, axis + 1, places, max(1.0, step[axis]), begin, size[axis])
    return maps


def nearest(maps: Tensor, step: Sequence[float]) -> Tensor:
    """The values of the voxels nearest to the points of a grid: (K, *S) -> (K, *S'), of the same type.

    For label maps: a thin structure keeps its share of the points, where an average over classes would lose it.
    """
    size = maps.shape[1:]
    for axis, (length, count) in enumerate(zip(size, points(size, step), strict=True)):
        if step[axis] != 1:
            at = _nearest_along(count, step[axis], length)
            maps = maps.index_select(axis + 1, at.to(maps.device))
    return maps


def nearest_voxels(size: Sequence[int], step: Sequence[float]) -> list[NDArray[np.int64]]:
    """Which voxels `nearest` takes along every axis, ascending."""
    counts = points(size, step)
    return [
        np.arange(n) if r == 1 else _nearest_along(count, r, n).numpy()
        for n, r, count in zip(size, step, counts, strict=True)
    ]


def _nearest_along(count: int, step: float, length: int) -> Tensor:
    return (_places(count, step, length) + 0.5).floor().long().clamp(0, length - 1)


def restore(
    slabs: Iterable[Tensor], grid: tuple[int, ...], size: tuple[int, ...], step: Sequence[float], axis: int = 0
) -> Iterator[Tensor]:
    """Back to the grid of the image, linearly, slab by slab: the way back from `resample` for maps such as probabilities.

    Args:
        slabs: (K, *S') with some rows along `axis`, in order and together all of them; each is used before the next.
        grid: *S', of all slabs together.
        size: *S of the image.
        step: of the grid, in voxels of the image.
        axis: the spatial axis that the slabs lie along.

    Yields:
        (K, *S) with some rows along `axis`, in order and together all of them; good until the next one is asked for.
    """
    places = [on_grid(n, r, count) for n, r, count in zip(size, step, grid, strict=True)]
    return read_at(slabs, places, grid, step, axis)


def on_grid(length: int, step: float, count: int) -> Tensor:
    """Where the voxels of an axis lie on a grid of `count` points with a step: (length), float64, in points."""
    return _places(length, 1 / step, count)


def read_at(
    slabs: Iterable[Tensor],
    places: Sequence[Tensor],
    grid: tuple[int, ...],
    step: Sequence[float],
    axis: int,
    begin: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Values at places along every axis, linearly, slab by slab; an axis with a step of 1 stays as it is.

    Args:
        slabs: as for `restore`.
        places: ascending along every axis, in points of the grid; the outermost points count beyond it.
        grid: *S', of all slabs together.
        step: of the grid.
        axis: that the slabs lie along.
        begin: the point of the grid at which the slabs begin, along every axis but `axis`; they hold all that is needed.
    """
    if all(r == 1 for r in step):
        yield from slabs
        return

    def across(rows: Tensor) -> Tensor:
        for other, place in enumerate(places):
            if other != axis and step[other] != 1:
                first = 0 if begin is None else begin[other]
                rows = _between(rows, other + 1, place, 1.0, first, grid[other])
        return rows

    size = tuple(map(len, places))
    yield from between_slabs(slabs, places[axis].clamp(0, grid[axis] - 1), grid, size, axis, across)


def between_slabs(
    slabs: Iterable[Tensor],
    places: Tensor,
    grid: tuple[int, ...],
    size: tuple[int, ...],
    axis: int,
    across: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    """Rows at ascending `places` along the axis of the slabs, linearly between two rows; `across` sees to the other axes."""
    below = places.long()
    above = (below + 1).clamp_max(grid[axis] - 1)
    share = places - below
    done, first, before = 0, 0, None  # rows handed out; the first row of the slab, and the row before it
    for slab in slabs:
        end = first + slab.shape[axis + 1]
        ready = int(torch.searchsorted(above, end))
        chunk = _CHUNK if slab.device.type == "cpu" else _CHUNK_ON_GPU
        some = max(1, chunk // (slab.shape[0] * math.prod(size) // size[axis]))
        for start in range(done, ready, some):
            chosen = slice(start, min(start + some, ready))
            near, far = (_rows(slab, rows[chosen] - first, before, axis + 1) for rows in (below, above))
            weight = share[chosen].reshape([-1 if a == axis + 1 else 1 for a in range(slab.ndim)])
            yield across(torch.lerp(near, far, weight.to(slab)))
        done, first, before = ready, end, slab.narrow(axis + 1, slab.shape[axis + 1] - 1, 1).clone()


def _places(count: int, step: float, length: int) -> Tensor:
    """Where `count` points with a step lie on an axis of `length` voxels, centres aligned: (count), float64."""
    return (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * step + (length - 1) / 2


def _between(
    maps: Tensor, axis: int, places: Tensor, reach: float, begin: int = 0, length: int | None = None
) -> Tensor:
    """Values at places along an axis: the mean of the voxels within `reach`, weighted by a triangle; 1 is linear.

    Args:
        maps: all voxels along the axis, or with `length`, of them all, those from `begin` on that are needed.
    """
    last = (maps.shape[axis] if length is None else length) - 1
    first = (places - reach).floor().long() + 1
    shape = [-1 if a == axis else 1 for a in range(maps.ndim)]
    if reach == 1:
        near, far = (maps.index_select(axis, (first + k).clamp(0, last).sub(begin).to(maps.device)) for k in (0, 1))
        share = (places - first).float().reshape(shape).to(maps.device)
        return torch.lerp(near, far, share)  # a constant stays exactly one
    index = first[:, None] + torch.arange(math.ceil(2 * reach))
    weights = (1 - (index - places[:, None]).abs() / reach).clamp_min(0)
    weights /= weights.sum(1, keepdim=True)
    # a triangle cut at voxels has its centre up to a tenth of a voxel beside its place: tilted, it lies there exactly
    centre = (weights * index).sum(1, keepdim=True)
    spread = (weights * (index - centre) ** 2).sum(1, keepdim=True)
    weights *= 1 + (places[:, None] - centre) / spread * (index - centre)
    weights, index = weights.float().to(maps.device), index.clamp(0, last).sub(begin).to(maps.device)
    total: Tensor | None = None
    for column, weight in zip(index.T, weights.T, strict=True):
        part = maps.index_select(axis, column).mul_(weight.reshape(shape))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _rows(slab: Tensor, rows: Tensor, before: Tensor | None, axis: int) -> Tensor:
    """Rows of a slab along an axis; row -1 is the one before it."""
    chosen = slab.index_select(axis, rows.clamp_min(0).to(slab.device))
    count = int((rows < 0).sum())
    if count and before is not None:
        chosen.narrow(axis, 0, count).copy_(before)
    return chosen
