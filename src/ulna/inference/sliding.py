"""Large images window by window: probabilities of overlapping windows are averaged with Gaussian weights.

Everything before this file is logits; from here on it is probabilities, because those may be averaged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


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


def count_windows(size: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """How many windows cover an image.

    Example:
        >>> count_windows((10, 3), (4, 4), 0.5)
        4
    """
    return math.prod(len(window_starts(n, p, overlap)) for n, p in zip(size, patch, strict=True))


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
    image: Tensor,
    patch: Sequence[int],
    *,
    overlap: float,
    axis: int = 0,
    batch: int = 1,
) -> Iterator[Tensor]:
    """Probabilities of a whole image from those of its windows, slab by slab along one spatial axis.

    A slab is handed out as soon as no further window touches it, so no more than a window's length of the image is held
    for every class, and where a batch has windows of several places along the axis, what these reach.

    Args:
        probabilities: (N, C, *patch) -> (N, K, *patch).
        image: (C, *S).
        patch: size of a window; axes shorter than it are taken whole.
        overlap: share of a window that its neighbour repeats, 0 to below 1.
        axis: the spatial axis to go along.
        batch: windows at once, at most.

    Yields:
        (K, *S) with S[axis] rows of the image, in order and together all of them, float32. A slab is good until the next
        one is asked for.
    """
    size = image.shape[1:]
    patch = [min(p, n) for p, n in zip(patch, size, strict=True)]
    starts = [window_starts(n, p, overlap) for n, p in zip(size, patch, strict=True)]
    if all(len(along) == 1 for along in starts):
        yield probabilities(image[None])[0].float()
        return
    weights = gaussian(patch).to(image.device)
    beside = math.prod(len(along) for a, along in enumerate(starts) if a != axis)  # windows at one place along the axis
    runs = [*portions(starts[axis], max(1, batch // beside))]
    reach = patch[axis] + max(places[-1] - places[0] for places in runs)
    room = (*size[:axis], reach, *size[axis + 1 :])  # what the windows of one run of places can touch
    total: Tensor | None = None
    weight_sum = torch.zeros(room, device=image.device)
    for places, following in itertools.zip_longest(runs, runs[1:]):
        corners = list(itertools.product(*(places if a == axis else along for a, along in enumerate(starts))))
        for group in portions(corners, batch):
            maps = probabilities(torch.stack([image[_window(corner, patch)] for corner in group])).float() * weights
            if total is None:
                total = torch.zeros((maps.shape[1], *room), device=image.device)
            for corner, values in zip(group, maps, strict=True):
                begin = [start - places[0] if a == axis else start for a, start in enumerate(corner)]
                window = _window(begin, patch)
                total[window] += values
                weight_sum[window] += weights
        assert total is not None
        done = size[axis] - places[0] if following is None else following[0] - places[0]
        yield total.narrow(axis + 1, 0, done).div_(weight_sum.narrow(axis, 0, done))
        if following is not None:
            _advance(total, axis + 1, done)
            _advance(weight_sum, axis, done)


def portions(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """As few portions as can be, of one size but for the last: batches of one shape, and none much smaller.

    Example:
        >>> [*portions("abcdefghij", 4)], [*portions("abcdefghi", 4)]
        (['abcd', 'efgh', 'ij'], ['abc', 'def', 'ghi'])
    """
    portion = -(-len(items) // -(-len(items) // most))
    for first in range(0, len(items), portion):
        yield items[first : first + portion]


def _window(corner: Sequence[int], patch: Sequence[int]) -> tuple[Any, ...]:
    return (..., *(slice(start, start + length) for start, length in zip(corner, patch, strict=True)))


def _advance(held: Tensor, axis: int, rows: int) -> None:
    """Drop the first rows along an axis, and make room for as many at its end; in place."""
    length = held.shape[axis]
    for start in range(rows, length, rows):  # in pieces that do not overlap with where they go
        some = min(rows, length - start)
        held.narrow(axis, start - rows, some).copy_(held.narrow(axis, start, some))
    held.narrow(axis, length - rows, rows).zero_()
