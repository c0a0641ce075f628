"""A 2D network on the slices of a volume: probabilities of the volume, some slices at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ulna.blocks import nd
from ulna.data.pipeline.slices import neighbourhoods
from ulna.inference.sliding import Grid, gaussian, on_grid, portions, window_starts
from ulna.recipe import Slices


def by_slices(
    probabilities: Callable[[Tensor], Tensor],
    image: Grid | Tensor,
    slices: Slices,
    patch: Sequence[int],
    *,
    overlap: float,
    batch: int = 1,
) -> Iterator[Tensor]:
    """Probabilities of a whole volume from those of its slices, and of these from their windows where they are larger.

    As many slices go together as fill a batch with their windows.

    Args:
        probabilities: (N, T * C, *patch) -> (N, K, *patch).
        image: (C, *S).
        slices: which, and with how many neighbours.
        patch: size of a window of a slice; axes shorter than it are taken whole.
        overlap: share of a window that its neighbour repeats, 0 to below 1.
        batch: windows at once, at most.

    Yields:
        (K, *S) with some rows along the axis of the slices, in order and together all of them, float32; good until the next
        one is asked for.
    """
    image = on_grid(image)
    size = [image.shape[axis + 1] for axis in slices.plane]
    patch = [min(p, n) for p, n in zip(patch, size, strict=True)]
    starts = [window_starts(n, p, overlap) for n, p in zip(size, patch, strict=True)]
    corners = list(itertools.product(*starts))
    places = range(image.shape[slices.axis + 1])
    for some in portions(places, max(1, batch // len(corners))):
        first = max(0, some[0] - slices.neighbours)
        end = min(len(places), some[-1] + slices.neighbours + 1)
        rows = image.box(
            [slice(first, end) if a == slices.axis else slice(0, n) for a, n in enumerate(image.shape[1:])]
        )
        seen = neighbourhoods(rows, slices.axis, [place - first for place in some], slices.neighbours)
        maps = probabilities(seen) if len(corners) == 1 else _of_windows(probabilities, seen, patch, corners, batch)
        yield maps.float().movedim(0, slices.axis + 1)


def smoothed_in_plane(slabs: Iterable[Tensor], slices: Slices) -> Iterator[Tensor]:
    """The mean over the 3 x 3 pixels around every pixel of its slice: as `sparse.smoothed` does it for a 2D image."""
    pool = nd.average_pool(2)
    for slab in slabs:
        yield pool(slab.movedim(slices.axis + 1, 0)).movedim(0, slices.axis + 1)


def _of_windows(
    probabilities: Callable[[Tensor], Tensor],
    seen: Tensor,
    patch: Sequence[int],
    corners: Sequence[tuple[int, ...]],
    batch: int,
) -> Tensor:
    """(N, T * C, H, W) -> (N, K, H, W), float32: the mean of overlapping windows with Gaussian weights."""
    weights = gaussian(patch).to(seen.device)
    weight_sum = torch.zeros(seen.shape[2:], device=seen.device)
    total: Tensor | None = None
    for group in portions(corners, max(1, batch // len(seen))):
        windows = [_window(corner, patch) for corner in group]
        maps = probabilities(torch.cat([seen[window] for window in windows])).float() * weights
        if total is None:
            total = torch.zeros((len(seen), maps.shape[1], *seen.shape[2:]), device=seen.device)
        for window, values in zip(windows, torch.split(maps, len(seen)), strict=True):
            total[window] += values
            weight_sum[window] += weights
    assert total is not None
    return total.div_(weight_sum)


def _window(corner: Sequence[int], patch: Sequence[int]) -> tuple[Any, ...]:
    return (..., *(slice(start, start + length) for start, length in zip(corner, patch, strict=True)))
