"""Prediction in three stages for heads that read points: a coarse mesh, the cells on a boundary, the voxels of those.

Source: Implicit U-Net (marimont2022), Sec. 2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.labels import probabilities
from ulna_runtime.pipeline import Settings

Maps = NDArray[np.float32]
Points = NDArray[np.int64]  # (P, D), whole voxel indices
Read = Callable[[Points], Maps]  # (P, D) -> logits (K, P)

CHUNK = 16384  # points decoded at once


def encode(points: Points, size: Sequence[int], frequencies: int) -> Maps:
    """Where points lie in their patch, as sines and cosines of growing frequency: (P, D) -> (P, 2 L D)."""
    scales = np.float32(math.pi) * np.float32(2.0) ** np.arange(frequencies, dtype=np.float32)
    places = []
    for axis, length in enumerate(size):
        q = 2 * np.arange(length, dtype=np.float32) / np.float32(max(length - 1, 1)) - 1
        angles = q[:, None] * scales
        places.append(np.stack([np.sin(angles), np.cos(angles)], -1)[points[:, axis]])  # (P, L, 2)
    return np.stack(places, -1).reshape(len(points), -1)


def vectors(fmap: Maps, points: Points, size: Sequence[int], gather: str) -> Maps:
    """The vectors of a map at points of the image: (C, *M), (P, D) -> (P, C)."""
    shape = fmap.shape[1:]
    strides = [-(-n // m) for n, m in zip(size, shape, strict=True)]
    if gather == "nearest":
        index = [(points[:, a] // s).clip(0, m - 1) for a, (s, m) in enumerate(zip(strides, shape, strict=True))]
        return fmap[(slice(None), *index)].T
    at = [
        ((points[:, a].astype(np.float32) + np.float32(0.5)) / np.float32(s) - np.float32(0.5)).clip(0, m - 1)
        for a, (s, m) in enumerate(zip(strides, shape, strict=True))
    ]
    low = [np.floor(p).astype(np.int64) for p in at]
    share = [p - below for p, below in zip(at, map(np.float32, low), strict=True)]
    total = np.zeros((len(points), len(fmap)), np.float32)
    for corner in itertools.product((0, 1), repeat=len(size)):
        index = [np.minimum(i + c, m - 1) for i, c, m in zip(low, corner, shape, strict=True)]
        weight = np.stack([s if c else 1 - s for s, c in zip(share, corner, strict=True)]).prod(0)
        total += fmap[(slice(None), *index)].T * weight[:, None]
    return total


def by_stages(read: Read, size: Sequence[int], settings: Settings, multilabel: bool) -> Maps:
    """Logits of one window, (K, *S): few points are asked where no boundary is near."""
    step = settings.mesh_step
    mesh = np.stack(np.meshgrid(*(np.arange(0, n, step) for n in size), indexing="ij"), -1).reshape(-1, len(size))
    logits = _in_chunks(read, mesh)
    logits = logits.reshape(len(logits), *(-(-n // step) for n in size))
    while step > 1:
        finer = step // 2 if settings.refine == "halving" and step % 2 == 0 else 1
        grid, times = [-(-n // finer) for n in size], step // finer
        cells = on_boundary(_labels(logits, settings.threshold, multilabel))
        logits = _spread(logits, times, grid)
        asked = _spread(cells[None], times, grid)[0]
        some = np.argwhere(asked) * finer
        if len(some):
            logits[:, asked] = _in_chunks(read, some)
        step = finer
    return logits


def on_boundary(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Cells among whose 3 x 3 (x 3) neighbours, themselves included, there is more than one label in any map.

    Shape:
        (K, *S), whole numbers -> (*S), bool
    """
    high, low = labels, labels
    for axis in range(1, labels.ndim):
        high, low = _over_neighbours(high, axis, np.maximum), _over_neighbours(low, axis, np.minimum)
    return (high != low).any(axis=0)


def smoothed(slabs: Iterable[Maps], axis: int) -> Iterator[Maps]:
    """The mean over the 3 x 3 (x 3) voxels around every voxel, inside the image, of probabilities that come in slabs.

    Args:
        slabs: (K, *S) with some rows along `axis`, in order.
        axis: the spatial axis along which they follow each other.
    """
    held: Maps | None = None  # the last row, which waits for the next one, behind the row before it
    waiting = 0  # where in `held` it stands
    for slab in slabs:
        rows = slab if held is None else np.concatenate([held, slab], axis + 1)
        count = rows.shape[axis + 1]
        if count - 1 > waiting:
            yield np.take(mean_of_neighbours(rows), range(waiting, count - 1), axis + 1)
        waiting = min(count, 2) - 1
        held = np.take(rows, range(count - 1 - waiting, count), axis + 1)
    if held is not None:
        yield np.take(mean_of_neighbours(held), [waiting], axis + 1)


def mean_of_neighbours(maps: Maps, axes: Sequence[int] | None = None) -> Maps:
    """The mean over three places along every spatial axis, or those of `axes`, at a border over those inside."""
    total, count = maps, np.ones(maps.shape[1:], np.float32)
    for axis in axes if axes is not None else range(maps.ndim - 1):
        total, count = _over_neighbours(total, axis + 1, np.add), _over_neighbours(count, axis, np.add)
    return total / count


def _over_neighbours(values: NDArray[Any], axis: int, join: Any) -> NDArray[Any]:
    """Each value joined with the one before and the one behind it along an axis."""
    result = np.moveaxis(values.copy(), axis, 0)
    lines = np.moveaxis(values, axis, 0)
    result[1:] = join(result[1:], lines[:-1])
    result[:-1] = join(result[:-1], lines[1:])
    return np.moveaxis(result, 0, axis)


def _in_chunks(read: Read, points: Points) -> Maps:
    return np.concatenate([read(points[start : start + CHUNK]) for start in range(0, len(points), CHUNK)], 1)


def _labels(logits: Maps, threshold: float, multilabel: bool) -> NDArray[Any]:
    if multilabel or len(logits) == 1:
        return (probabilities(logits, multilabel) > threshold).astype(np.int64)
    return logits.argmax(0)[None]


def _spread(cells: NDArray[Any], times: int, size: Sequence[int]) -> NDArray[Any]:
    """Every point of a finer grid gets the value of its cell: (K, *ceil(S / times)) -> (K, *S)."""
    for axis, length in enumerate(size, start=1):
        cells = np.take(cells, np.arange(length) // times, axis)
    return cells
