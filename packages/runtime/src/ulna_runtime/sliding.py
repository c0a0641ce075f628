"""Large images window by window: probabilities of overlapping windows are averaged with Gaussian weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.pipeline import Slices

Maps = NDArray[np.float32]
Ask = Callable[[Maps], Maps]  # (C, *patch) -> probabilities (K, *patch)


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


def gaussian(patch: Sequence[int]) -> Maps:
    """Weights of a window's pixels, (*patch): highest in the middle, sigma an eighth of the side, above 0 everywhere."""
    weights = np.ones((), np.float32)
    for length in patch:
        x = (np.arange(length, dtype=np.float32) - np.float32((length - 1) / 2)) / np.float32(length / 8)
        weights = weights[..., None] * np.exp(np.float32(-0.5) * x * x)
    return np.maximum(weights, np.float32(1e-3) * weights.max())


def by_windows(ask: Ask, image: Maps, patch: Sequence[int], *, overlap: float, axis: int = 0) -> Iterator[Maps]:
    """Probabilities of a whole image from those of its windows, slab by slab along one spatial axis.

    A slab is handed out as soon as no further window touches it, so no more than a window's length of the image is held
    for every class.

    Args:
        ask: (C, *patch) -> (K, *patch).
        image: (C, *S).
        patch: size of a window; axes shorter than it are taken whole.
        overlap: share of a window that its neighbour repeats, 0 to below 1.
        axis: the spatial axis to go along.

    Yields:
        (K, *S) with S[axis] rows of the image, in order and together all of them. A slab is good until the next one.
    """
    size = image.shape[1:]
    patch = [min(p, n) for p, n in zip(patch, size, strict=True)]
    starts = [window_starts(n, p, overlap) for n, p in zip(size, patch, strict=True)]
    if all(len(along) == 1 for along in starts):
        yield ask(image)
        return
    weights = gaussian(patch)
    room = (*size[:axis], patch[axis], *size[axis + 1 :])  # what the windows at one place can touch
    total: Maps | None = None
    weight_sum = np.zeros(room, np.float32)
    for place, following in itertools.zip_longest(starts[axis], starts[axis][1:]):
        for corner in itertools.product(*([place] if a == axis else along for a, along in enumerate(starts))):
            maps = ask(image[_window(corner, patch)]) * weights
            if total is None:
                total = np.zeros((len(maps), *room), np.float32)
            window = _window([0 if a == axis else start for a, start in enumerate(corner)], patch)
            total[window] += maps
            weight_sum[window] += weights
        assert total is not None
        done = (size[axis] if following is None else following) - place
        rows = (..., *(slice(0, done) if a == axis else slice(None) for a in range(len(size))))
        total[rows] /= weight_sum[rows]
        yield total[rows]
        if following is not None:
            _advance(total, axis + 1, done)
            _advance(weight_sum, axis, done)


def by_slices(ask: Ask, image: Maps, slices: Slices, patch: Sequence[int], *, overlap: float) -> Iterator[Maps]:
    """Probabilities of a whole volume from those of its slices, and of these from their windows where they are larger.

    Yields:
        (K, *S) with one row along the axis of the slices, in order.
    """
    stack = np.moveaxis(image, slices.axis + 1, 0)
    for place in range(len(stack)):
        around = np.arange(place - slices.neighbours, place + slices.neighbours + 1).clip(0, len(stack) - 1)
        seen = stack[around].reshape(-1, *stack.shape[2:])
        rows = [slab.copy() for slab in by_windows(ask, seen, patch, overlap=overlap)]
        maps = rows[0] if len(rows) == 1 else np.concatenate(rows, 1)
        yield np.expand_dims(maps, slices.axis + 1)


def _window(corner: Sequence[int], patch: Sequence[int]) -> tuple[Any, ...]:
    return (..., *(slice(start, start + length) for start, length in zip(corner, patch, strict=True)))


def _advance(held: Maps, axis: int, rows: int) -> None:
    """Drop the first rows along an axis of an array, and make room for as many at its end; in place."""
    lines = np.moveaxis(held, axis, 0)
    keep = len(lines) - rows
    for start in range(0, keep, rows):  # in pieces that do not overlap with where they go
        some = min(rows, keep - start)
        lines[start : start + some] = lines[start + rows : start + rows + some]
    lines[max(keep, 0) :] = 0
