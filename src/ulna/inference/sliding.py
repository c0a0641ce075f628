"""Large images window by window: probabilities of overlapping windows are averaged with Gaussian weights.

Everything before this file is logits; from here on it is probabilities, because those may be averaged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ulna.system.mapped import let_go

T = TypeVar("T")


class Grid(Protocol):
    """An image (C, *S) of which boxes are read, wherever it lies."""

    @property
    def shape(self) -> Sequence[int]:
        """(C, *S)."""
        ...

    @property
    def device(self) -> torch.device:
        """Of the boxes."""
        ...

    def box(self, place: Sequence[slice]) -> Tensor:
        """(C, *place)."""
        ...


class InMemory(NamedTuple):
    """One that is held, on its device."""

    image: Tensor

    @property
    def shape(self) -> Sequence[int]:
        """(C, *S)."""
        return self.image.shape

    @property
    def device(self) -> torch.device:
        """Of the image."""
        return self.image.device

    def box(self, place: Sequence[slice]) -> Tensor:
        """A view."""
        return self.image[(slice(None), *place)]


class InAFile(NamedTuple):
    """One that is mapped from a file: of memory it takes what a box does, while that is read."""

    image: Tensor
    device: torch.device

    @property
    def shape(self) -> Sequence[int]:
        """(C, *S)."""
        return self.image.shape

    def box(self, place: Sequence[slice]) -> Tensor:
        """A copy on the device."""
        part = self.image[(slice(None), *place)].clone()
        let_go(self.image)
        return part.to(self.device)


def on_grid(image: Grid | Tensor) -> Grid:
    """An image of which boxes are read."""
    return InMemory(image) if isinstance(image, Tensor) else image


class Column(NamedTuple):
    """The part of an image that is answered: some rows along an axis which is not that of the slabs."""

    axis: int
    first: int
    end: int


class Seen:
    """Which windows were asked for the first time, where columns ask for those at their borders twice."""

    def __init__(self) -> None:
        self._corners: set[tuple[int, ...]] = set()
        self.new: list[bool] = []

    def note(self, corners: Sequence[tuple[int, ...]]) -> None:
        """The windows that are asked for next; `new` says of each whether it is the first time."""
        self.new = [corner not in self._corners for corner in corners]
        self._corners.update(corners)


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First pixels of the windows along one axis: evenly spread, covering all, overlapping by `overlap` or more.

    Example:
        >>> window_starts(10, 4, 0.5), window_starts(3, 4, 0.5)
        ([0, 2, 4, 6], [0])
    """
    if size <= patch:
        return [0]
    step = max(1.0, patch * (1 - overlap))
    count = math.ceil((size - patch) / step) + 1
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


def count_windows(size: Sequence[int], patch: Sequence[int], overlap: float, column: Column | None = None) -> int:
    """How many windows cover an image, or touch a column of it.

    Example:
        >>> count_windows((10, 3), (4, 4), 0.5)
        4
    """
    starts = [window_starts(n, p, overlap) for n, p in zip(size, patch, strict=True)]
    if column is not None:
        starts[column.axis] = touching(starts[column.axis], patch[column.axis], column)
    return math.prod(map(len, starts))


def gaussian(patch: Sequence[int]) -> Tensor:
    """Weights of a window's pixels, (*patch): highest in the middle, sigma an eighth of the side, above 0 everywhere.

    Source: nnU-Net (isensee2021); a window's border sees less of its surroundings, so it counts less.
    """
    weights = torch.ones(())
    for length in patch:
        x = (torch.arange(length) - (length - 1) / 2) / (length / 8)
        weights = weights[..., None] * torch.exp(-0.5 * x**2)
    return weights.clamp_min(1e-3 * weights.max())


def by_windows(
    probabilities: Callable[[Tensor], Tensor],
    image: Grid | Tensor,
    patch: Sequence[int],
    *,
    overlap: float,
    axis: int = 0,
    batch: int = 1,
    column: Column | None = None,
    seen: Seen | None = None,
) -> Iterator[Tensor]:
    """Probabilities of a whole image from those of its windows, slab by slab along one spatial axis.

    A slab is handed out as soon as no further window touches it, so no more than a window's length of the image is held
    for every class, and where a batch has windows of several places along the axis, what these reach. With a column, no more
    than what lies in it, from all windows that touch it.

    Args:
        probabilities: (N, C, *patch) -> (N, K, *patch); what it gives is used up.
        image: (C, *S).
        patch: size of a window; axes shorter than it are taken whole.
        overlap: share of a window that its neighbour repeats, 0 to below 1.
        axis: the spatial axis to go along.
        batch: windows at once, at most.
        column: what of the image is wanted; None for all of it.
        seen: is told of the windows before they are asked for.

    Yields:
        (K, *S) with S[axis] rows of the image, in order and together all of them, float32. A slab is good until the next
        one is asked for.
    """
    image = on_grid(image)
    size = tuple(image.shape[1:])
    patch = [min(p, n) for p, n in zip(patch, size, strict=True)]
    starts = [window_starts(n, p, overlap) for n, p in zip(size, patch, strict=True)]
    single = all(len(along) == 1 for along in starts)
    across, origin = size, [0] * len(size)
    if column is not None:
        starts[column.axis] = touching(starts[column.axis], patch[column.axis], column)
        across = tuple(column.end - column.first if a == column.axis else n for a, n in enumerate(size))
        origin[column.axis] = column.first
    if single:
        if seen is not None:
            seen.note([(0,) * len(size)])
        maps = probabilities(image.box([slice(0, n) for n in size])[None])[0].float()
        yield maps if column is None else maps.narrow(column.axis + 1, column.first, across[column.axis])
        return
    weights = gaussian(patch).to(image.device)
    beside = math.prod(len(along) for a, along in enumerate(starts) if a != axis)  # windows at one place along the axis
    runs = [*portions(starts[axis], max(1, batch // beside))]
    reach = patch[axis] + max(places[-1] - places[0] for places in runs)
    room = (*across[:axis], reach, *across[axis + 1 :])  # what the windows of one run of places can touch
    total: Tensor | None = None
    weight_sum = torch.zeros(room, device=image.device)
    for places, following in itertools.zip_longest(runs, runs[1:]):
        corners = list(itertools.product(*(places if a == axis else along for a, along in enumerate(starts))))
        origin[axis] = places[0]
        for group in portions(corners, batch):
            if seen is not None:
                seen.note(group)
            maps = probabilities(torch.stack([image.box(_box(corner, patch)) for corner in group])).float()
            if total is None:
                total = torch.zeros((maps.shape[1], *room), device=image.device)
            with torch.inference_mode():  # where they may be changed in place
                for corner, values in zip(group, maps, strict=True):
                    inner, there = _overlap(corner, patch, origin, room)
                    total[there] += values[inner].mul_(weights[inner])
                    weight_sum[there] += weights[inner]
            del maps, values  # lest those of two groups be held
        assert total is not None
        done = size[axis] - places[0] if following is None else following[0] - places[0]
        yield total.narrow(axis + 1, 0, done).div_(weight_sum.narrow(axis, 0, done))
        if following is not None:
            _advance(total, axis + 1, done)
            _advance(weight_sum, axis, done)


def touching(starts: Sequence[int], patch: int, column: Column) -> list[int]:
    """The windows along the axis of a column that touch it.

    Example:
        >>> touching([0, 2, 4, 6], 4, Column(0, 6, 8))
        [4, 6]
    """
    return [start for start in starts if start < column.end and start + patch > column.first]


def portions(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """As few portions as can be, of one size but for the last: batches of one shape, and none much smaller.

    Example:
        >>> [*portions("abcdefghij", 4)], [*portions("abcdefghi", 4)]
        (['abcd', 'efgh', 'ij'], ['abc', 'def', 'ghi'])
    """
    portion = -(-len(items) // -(-len(items) // most))
    for first in range(0, len(items), portion):
        yield items[first : first + portion]


def _box(corner: Sequence[int], patch: Sequence[int]) -> list[slice]:
    return [slice(start, start + length) for start, length in zip(corner, patch, strict=True)]


def _overlap(
    corner: Sequence[int], patch: Sequence[int], origin: Sequence[int], room: Sequence[int]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The index of what lies in a room that begins at an origin: in a window, and in the room; of the last axes."""
    inner: list[Any] = [...]
    there: list[Any] = [...]
    for start, length, begin, extent in zip(corner, patch, origin, room, strict=True):
        first, end = max(start, begin), min(start + length, begin + extent)
        inner.append(slice(first - start, end - start))
        there.append(slice(first - begin, end - begin))
    return tuple(inner), tuple(there)


def _advance(held: Tensor, axis: int, rows: int) -> None:
    """Drop the first rows along an axis, and make room for as many at its end; in place."""
    length = held.shape[axis]
    for start in range(rows, length, rows):  # in pieces that do not overlap with where they go
        some = min(rows, length - start)
        held.narrow(axis, start - rows, some).copy_(held.narrow(axis, start, some))
    held.narrow(axis, length - rows, rows).zero_()
