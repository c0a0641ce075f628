"""The middle of an image: what a plan keeps of its grid, or pads it to, and the way of an answer back into the whole image.

Along an axis of n points of which c are kept, the first one is (n - c) // 2. Where an image is shorter, its outermost voxels
are repeated, half of what is missing on each side, the larger half behind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.resampling import Maps, on_grid, points, read_at

Sides = tuple[tuple[int, int], ...]  # how much before and behind, along every axis


class Crop(NamedTuple):
    """What is kept of an image, along every axis from a first one to before an end.

    Args:
        points: of the grid that covers the whole image.
        voxels: of the image which these points stand for.
        margins: what is repeated before and behind the points, where they are fewer than wanted.
    """

    points: Sides
    voxels: Sides
    margins: Sides


def margins(size: Sequence[int], wanted: Sequence[int]) -> Sides:
    """What an image lacks of a size, before and behind it along every axis: half each, the larger half behind.

    Example:
        >>> margins((35, 56, 60), (40, 56, 40))
        ((2, 3), (0, 0), (0, 0))
    """
    missing = [max(w - n, 0) for n, w in zip(size, wanted, strict=True)]
    return tuple((m // 2, m - m // 2) for m in missing)


def extend(maps: Maps, sides: Sequence[tuple[int, int]]) -> Maps:
    """Repeat the outermost voxels: (K, *S) -> (K, *S with its margins)."""
    return np.pad(maps, [(0, 0), *sides], mode="edge") if any(itertools.chain(*sides)) else maps


def crop_of(size: Sequence[int], step: Sequence[float], wanted: Sequence[int | None] | None) -> Crop | None:
    """What is kept of an image; None for all of it, without margins.

    Args:
        size: *S of the image.
        step: of the grid, in voxels.
        wanted: how many points; None along an axis for all.
    """
    grid = points(size, step)
    counts = tuple(n if w is None else w for n, w in zip(grid, wanted or grid, strict=True))
    if counts == grid:
        return None
    kept = [(max(n - c, 0) // 2, max(n - c, 0) // 2 + min(n, c)) for n, c in zip(grid, counts, strict=True)]
    voxels = [_voxels(*one) for one in zip(size, step, grid, kept, strict=True)]
    return Crop(tuple(kept), tuple(voxels), margins(grid, counts))


def _voxels(length: int, step: float, count: int, kept: tuple[int, int]) -> tuple[int, int]:
    first, end = kept
    at = on_grid(length, step, count)
    begin = int(np.searchsorted(at, first - 0.5)) if first else 0
    behind = int(np.searchsorted(at, end - 0.5)) if end < count else length
    begin = min(begin, length - 1)
    return begin, max(behind, begin + 1)


def cut(maps: Maps, crop: Crop | None) -> Maps:
    """What is kept of maps on the grid of the whole image, with the margins: (K, *S') -> (K, *crop)."""
    return maps if crop is None else extend(np.ascontiguousarray(maps[_index(crop.points)]), crop.margins)


def inside(crop: Crop | None) -> tuple[Any, ...]:
    """The index of the voxels that are kept, in an array whose last axes are those of the image."""
    return (...,) if crop is None else _index(crop.voxels)


def without_margins(slabs: Iterable[Maps], sides: Sides, axis: int) -> Iterator[Maps]:
    """Slabs along an axis without what lies before and behind the image along every axis; `sides` empty for nothing."""
    if not any(itertools.chain(*sides)):
        yield from slabs
        return
    before, behind = sides[axis]
    held: Maps | None = None  # rows which may be the last ones, that go
    for slab in slabs:
        skipped = min(before, slab.shape[axis + 1])
        before -= skipped
        ends = [(first, slab.shape[other + 1] - last) for other, (first, last) in enumerate(sides)]
        ends[axis] = (skipped, slab.shape[axis + 1])
        rows = slab[_index(ends)]
        rows = rows if held is None else np.concatenate([held, rows], axis + 1)
        ready = max(rows.shape[axis + 1] - behind, 0)
        if ready:
            yield rows[_at(axis, rows.ndim, 0, ready)]
        held = rows[_at(axis, rows.ndim, ready, None)].copy() if behind else None


def put_back(
    slabs: Iterable[Maps],
    crop: Crop,
    size: tuple[int, ...],
    step: Sequence[float],
    axis: int,
    outside: NDArray[np.float32],
) -> Iterator[Maps]:
    """From what is kept of the grid to the whole image, slab by slab; `outside` (K) is what stands beyond it."""
    grid = tuple(end - first for first, end in crop.points)
    places = [
        on_grid(n, r, count)[begin:end] - first
        for n, r, count, (begin, end), (first, _) in zip(
            size, step, points(size, step), crop.voxels, crop.points, strict=True
        )
    ]
    begin, end = crop.voxels[axis]
    across = _index([(0, size[axis]) if a == axis else ends for a, ends in enumerate(crop.voxels)])
    empty = np.broadcast_to(outside.reshape(-1, *[1] * len(size)), (len(outside), *size))
    if begin:
        yield empty[_at(axis, empty.ndim, 0, begin)]
    for rows in read_at(slabs, places, grid, step, axis):
        whole = empty[_at(axis, empty.ndim, 0, rows.shape[axis + 1])].copy()
        whole[across] = rows
        yield whole
    if end < size[axis]:
        yield empty[_at(axis, empty.ndim, end, None)]


def _at(axis: int, dims: int, first: int, end: int | None) -> tuple[Any, ...]:
    """The index of some rows along a spatial axis of maps."""
    return tuple(slice(first, end) if a == axis + 1 else slice(None) for a in range(dims))


def _index(ranges: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
    return (..., *(slice(first, end) for first, end in ranges))
