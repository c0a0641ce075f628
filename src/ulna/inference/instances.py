"""From the mask of one structure to its objects: those that touch are divided where they are thin.

A watershed on the distances to the border: every voxel belongs to the peak that it climbs to, from neighbour to neighbour,
and peaks with a shallow saddle between them are one. It needs no other training data than masks, and nothing but numpy and
scipy, whose `watershed_ift` goes by differences between neighbours in place of heights, and does worse (docs/instances.md).

Source of the rule for saddles: persistence-based clustering (chazal2013). Reading: persistence as a share of the lower peak,
so that small and large objects are divided alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter, label

from ulna.recipe import Instances

Heights = NDArray[np.float64]


def number_objects(
    mask: NDArray[Any], settings: Instances, spacing: Sequence[float] | None = None
) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """The objects of a mask, numbered from 1: (*S) of 0 and others -> (*S).

    Objects that do not touch, also not by an edge or a corner, are never one; each of those pieces is looked at by itself.

    Args:
        mask: of one structure.
        settings: of the recipe.
        spacing: distance between neighbours along every axis; None: the same.

    Example:
        >>> number_objects(np.array([[1, 1, 0, 1]]), Instances()).tolist()
        [[1, 1, 0, 2]]
    """
    inside = mask != 0
    pieces = label(inside, np.ones((3,) * mask.ndim, bool))[0]
    steps = np.ones(mask.ndim) if spacing is None else np.asarray(spacing, float) / min(spacing)
    total = 0
    found = np.zeros(mask.shape, np.uint32)
    for number, box in enumerate(find_objects(pieces), start=1):
        # one voxel more, so that there is a border, but not beyond the image: an object that is cut off goes on there
        wide = tuple(slice(max(0, s.start - 1), min(n, s.stop + 1)) for s, n in zip(box, mask.shape, strict=True))
        piece = pieces[wide] == number
        numbers = _divided(piece, steps, settings)
        sizes = np.bincount(numbers[piece])
        kept = sizes >= max(1, settings.smallest)
        kept[0] = False
        names = np.where(kept, total + kept.cumsum(), 0)
        found[wide][piece] = names[numbers[piece]]
        total += int(kept.sum())
    return found.astype(np.uint16) if total < 1 << 16 else found


def _divided(piece: NDArray[np.bool_], steps: NDArray[np.float64], settings: Instances) -> NDArray[np.int64]:
    """One connected piece as its objects, numbered from 1 in the order of their peaks."""
    heights = _heights(piece, steps, settings.smooth)[piece]
    links = Links(piece)
    peaks, of_peak = climbed(heights, links)
    names = merged(heights[peaks], *saddles(heights, links, of_peak), settings.depth)
    found = np.zeros(piece.shape, np.int64)
    found[piece] = names[of_peak] + 1
    return found


def _heights(piece: NDArray[np.bool_], steps: NDArray[np.float64], smooth: float) -> Heights:
    """The distance of every voxel to the border, smoothed."""
    if piece.all():  # nothing but the piece: there is no border to measure from
        return np.ones(piece.shape)
    distances = distance_transform_edt(piece, sampling=steps)
    return np.asarray(gaussian_filter(distances, smooth / steps, mode="nearest") if smooth else distances)


class Links:
    """Which voxels of a mask are neighbours, by an edge or a corner included; they are numbered in the order of memory."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        around = np.pad(mask, 1)
        self._flat = np.flatnonzero(around)
        self._number = np.full(around.size, -1, np.int64)
        self._number[self._flat] = np.arange(self._flat.size)
        strides = [math.prod(around.shape[axis + 1 :]) for axis in range(mask.ndim)]
        steps = itertools.product((-1, 0, 1), repeat=mask.ndim)
        self._steps = [sum(s * stride for s, stride in zip(step, strides, strict=True)) for step in steps if any(step)]

    def __len__(self) -> int:
        return self._flat.size

    def pairs(self, *, once: bool = False) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Voxels and their neighbours, one direction at a time; `once`: each pair from one of its sides alone."""
        for step in self._steps:
            if step > 0 or not once:
                there = self._number[self._flat + step]
                here = np.flatnonzero(there >= 0)
                yield here, there[here]


def climbed(heights: Heights, links: Links) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The peaks, and the number of the peak that every voxel climbs to from one highest neighbour to the next.

    Of equal neighbours the later is the higher one, so that a plateau has few peaks; those are one by any `depth`.
    """
    best, to = heights.copy(), np.arange(len(links))
    for here, there in links.pairs():
        rises = heights[there]
        higher = (rises > best[here]) | ((rises == best[here]) & (there > to[here]))
        best[here[higher]], to[here[higher]] = rises[higher], there[higher]
    while not np.array_equal(further := to[to], to):
        to = further
    peaks, of_peak = np.unique(to, return_inverse=True)
    return peaks, of_peak


def saddles(
    heights: Heights, links: Links, of_peak: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of peaks whose regions touch, (n, 2), and the height of the highest way between them, the highest first."""
    pairs, passes = [np.empty((0, 2), np.int64)], [np.empty(0)]
    for here, there in links.pairs(once=True):
        a, b = of_peak[here], of_peak[there]
        apart = a != b
        pairs.append(np.sort(np.stack([a[apart], b[apart]], axis=1), axis=1))
        passes.append(np.minimum(heights[here[apart]], heights[there[apart]]))
    joined, height = np.concatenate(pairs), np.concatenate(passes)
    order = np.lexsort((joined[:, 1], joined[:, 0], -height))
    joined, height = joined[order], height[order]
    _, first = np.unique(joined, axis=0, return_index=True)  # of each pair the highest
    first.sort()
    return joined[first], height[first]


def merged(
    peaks: NDArray[np.float64], pairs: NDArray[np.int64], passes: NDArray[np.float64], depth: float
) -> NDArray[np.int64]:
    """The object of every peak, from 0: a lower peak joins a higher one over a saddle that is not far below it.

    Args:
        peaks: their heights.
        pairs: of peaks, (n, 2).
        passes: the heights of the saddles between them, falling.
        depth: how far below the lower peak a saddle divides, as a share of its height.
    """
    root = list(range(len(peaks)))

    def top(peak: int) -> int:
        while root[peak] != peak:
            root[peak] = root[root[peak]]
            peak = root[peak]
        return peak

    for (a, b), height in zip(pairs.tolist(), passes.tolist(), strict=True):
        high, low = sorted((top(a), top(b)), key=lambda peak: (-peaks[peak], peak))
        if high != low and peaks[low] - height <= depth * peaks[low]:
            root[low] = high
    return np.unique([top(peak) for peak in range(len(peaks))], return_inverse=True)[1]
