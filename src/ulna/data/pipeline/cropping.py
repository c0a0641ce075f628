"""The middle of an image: what a plan keeps of its grid, or pads it to, and the way of an answer back into the whole image.

Along an axis of n points of which c are kept, the first one is (n - c) // 2. Where an image is shorter, its outermost voxels
are repeated, half of what is missing on each side, the larger half behind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ulna.data.pipeline.resampling import on_grid, points, read_at

Sides = tuple[tuple[int, int], ...]  # how much before and behind, along every axis


class Crop(NamedTuple):
    """What is kept of an image, along every axis from a first one to before an end.

    Args:
        points: of the grid that covers the whole image.
        voxels: of the image which these points stand for: those nearer to one of them than to any other point.
        margins: what is repeated before and behind the points, where they are fewer than wanted.
    """

    points: Sides
    voxels: Sides
    margins: Sides

    @property
    def size(self) -> tuple[int, ...]:
        """Points with the margins."""
        ranges = zip(self.points, self.margins, strict=True)
        return tuple(before + end - first + behind for (first, end), (before, behind) in ranges)


def margins(size: Sequence[int], wanted: Sequence[int]) -> Sides:
    """What an image lacks of a size, before and behind it along every axis: half each, the larger half behind.

    Example:
        >>> margins((35, 56, 60), (40, 56, 40))
        ((2, 3), (0, 0), (0, 0))
    """
    missing = [max(w - n, 0) for n, w in zip(size, wanted, strict=True)]
    return tuple((m // 2, m - m // 2) for m in missing)


def extend(maps: Tensor, sides: Sequence[tuple[int, int]]) -> Tensor:
    """Repeat the outermost voxels: (K, *S) -> (K, *S with its margins)."""
    if not any(itertools.chain(*sides)):
        return maps
    return F.pad(maps[None], [*itertools.chain(*reversed(sides))], mode="replicate")[0]


def crop_of(size: Sequence[int], step: Sequence[float], wanted: Sequence[int | None] | None) -> Crop | None:
    """What is kept of an image; None for all of it, without margins.

    Args:
        size: *S of the image.
        step: of the grid, in voxels.
        wanted: how many points; None along an axis for all.

    Example:
        >>> crop_of((240, 120), (1.0, 1.0), (144, 144))
        Crop(points=((48, 192), (0, 120)), voxels=((48, 192), (0, 120)), margins=((0, 0), (12, 12)))
    """
    grid = points(size, step)
    counts = tuple(n if w is None else w for n, w in zip(grid, wanted or grid, strict=True))
    if counts == grid:
        return None
    kept: list[tuple[int, int]] = []
    for n, count in zip(grid, counts, strict=True):
        first = max(n - count, 0) // 2
        kept.append((first, first + min(n, count)))
    voxels = [_voxels(*one) for one in zip(size, step, grid, kept, strict=True)]
    return Crop(tuple(kept), tuple(voxels), margins(grid, counts))


def _voxels(length: int, step: float, count: int, kept: tuple[int, int]) -> tuple[int, int]:
    """The voxels of an axis that some points of its grid stand for: all at an end of the grid, and one at least."""
    first, end = kept
    at = on_grid(length, step, count)
    begin = int(torch.searchsorted(at, first - 0.5)) if first else 0
    behind = int(torch.searchsorted(at, end - 0.5)) if end < count else length
    begin = min(begin, length - 1)
    return begin, max(behind, begin + 1)


def cut(maps: Tensor, crop: Crop | None, *, padded: bool = True) -> Tensor:
    """What is kept of maps on the grid of the whole image, with the margins where `padded`: (K, *S') -> (K, *crop)."""
    if crop is None:
        return maps
    inner = maps[_index(crop.points)].clone()  # a view would hold the whole image
    if not padded:
        return inner
    whole = inner if inner.is_floating_point() or not any(map(any, crop.margins)) else inner.float()
    return extend(whole, crop.margins).to(maps.dtype)


def inside(crop: Crop | None) -> tuple[Any, ...]:
    """The index of the voxels that are kept, in an array whose last axes are those of the image."""
    return (...,) if crop is None else _index(crop.voxels)


def without_margins(slabs: Iterable[Tensor], sides: Sides, axis: int) -> Iterator[Tensor]:
    """Slabs along an axis without what lies before and behind the image along every axis; `sides` empty for nothing.

    Shape:
        (K, *S' with margins), some rows each -> (K, *S'), some rows each
    """
    if not any(itertools.chain(*sides)):
        yield from slabs
        return
    before, behind = sides[axis]
    held: Tensor | None = None  # rows which may be the last ones, that go
    for slab in slabs:
        skipped = min(before, slab.shape[axis + 1])
        before -= skipped
        rows = slab.narrow(axis + 1, skipped, slab.shape[axis + 1] - skipped)
        for other, (first, last) in enumerate(sides):
            if other != axis:
                rows = rows.narrow(other + 1, first, rows.shape[other + 1] - first - last)
        rows = rows if held is None else torch.cat([held, rows], dim=axis + 1)
        ready = max(rows.shape[axis + 1] - behind, 0)
        if ready:
            yield rows.narrow(axis + 1, 0, ready)
        held = rows.narrow(axis + 1, ready, rows.shape[axis + 1] - ready).clone() if behind else None


def put_back(
    slabs: Iterable[Tensor], crop: Crop, size: tuple[int, ...], step: Sequence[float], axis: int, outside: Tensor | None
) -> Iterator[Tensor]:
    """From what is kept of the grid to the whole image, slab by slab.

    Args:
        slabs: (K, *kept points) without margins, some rows along `axis` each, in order; each is used before the next.
        crop: what is kept.
        size: *S of the image.
        step: of the grid, in voxels of the image.
        axis: that the slabs lie along.
        outside: (K), the value of every map beyond what is kept; None for 0.

    Yields:
        (K, *S) with some rows along `axis`, in order and together all of them; good until the next one is asked for.
    """
    grid = tuple(end - first for first, end in crop.points)
    places = [
        on_grid(n, r, count)[begin:end] - first
        for n, r, count, (begin, end), (first, _) in zip(
            size, step, points(size, step), crop.voxels, crop.points, strict=True
        )
    ]
    begin, end = crop.voxels[axis]
    across = _index([(0, size[axis]) if a == axis else ends for a, ends in enumerate(crop.voxels)])
    empty: Tensor | None = None
    for rows in read_at(slabs, places, grid, step, axis):
        if empty is None:
            values = rows.new_zeros(len(rows)) if outside is None else outside.to(rows)
            empty = values.reshape(-1, *[1] * len(size)).expand(-1, *size)  # one value a map, however large
            if begin:
                yield empty.narrow(axis + 1, 0, begin)
        whole = empty.narrow(axis + 1, 0, rows.shape[axis + 1]).clone(memory_format=torch.contiguous_format)
        whole[across] = rows
        yield whole
    if empty is not None and end < size[axis]:
        yield empty.narrow(axis + 1, end, size[axis] - end)


def _index(ranges: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
    return (..., *(slice(first, end) for first, end in ranges))
