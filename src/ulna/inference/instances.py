"""From the mask of one structure to its objects: those that touch are divided where they are thin.

A watershed on the distances to the border: every voxel belongs to the peak that it climbs to, from neighbour to neighbour,
and peaks with a shallow saddle between them are one. It needs no other training data than masks, and nothing but numpy and
scipy, whose `watershed_ift` goes by differences between neighbours in place of heights, and does worse (docs/instances.md).

Source of the rule for saddles: persistence-based clustering (chazal2013). Reading: persistence as a share of the lower peak,
so that small and large objects are divided alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter, label

from ulna.recipe import Instances

Distances = NDArray[np.float64]


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
    heights = _heights(piece, steps, settings.smooth)
    peaks, of_peak = climbed(heights, piece)
    names = merged(heights.reshape(-1)[peaks], *saddles(heights, piece, of_peak), settings.depth)
    found = np.zeros(piece.shape, np.int64)
    found[piece] = names[of_peak[piece]] + 1
    return found


def _heights(piece: NDArray[np.bool_], steps: NDArray[np.float64], smooth: float) -> Distances:
    """The distance of every voxel to the border, smoothed."""
    if piece.all():  # nothing but the piece: there is no border to measure from
        return np.ones(piece.shape)
    distances = distance_transform_edt(piece, sampling=steps)
    return np.asarray(gaussian_filter(distances, smooth / steps, mode="nearest") if smooth else distances)


def climbed(heights: Distances, piece: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The peaks of a piece, and to which of them every voxel climbs from one highest neighbour to the next.

    Of equal neighbours the later is the higher one, so that a plateau has one peak.

    Returns:
        The places of the peaks in the order of memory, and the number of its peak for every voxel of the piece (else -1).
    """
    flat = np.flatnonzero(piece)
    number = np.full(piece.shape, -1, np.int64)
    number[piece] = np.arange(flat.size)
    best, to = heights[piece].copy(), np.arange(flat.size)
    for _, here, there in _neighbours(piece):
        a, b = number[here], number[there]
        both = (a >= 0) & (b >= 0)
        a, b = a[both], b[both]
        rises = heights[there][both]
        higher = (rises > best[a]) | ((rises == best[a]) & (b > to[a]))
        best[a[higher]], to[a[higher]] = rises[higher], b[higher]
    while not np.array_equal(further := to[to], to):
        to = further
    peaks, which = np.unique(to, return_inverse=True)
    of_peak = np.full(piece.shape, -1, np.int64)
    of_peak[piece] = which
    return flat[peaks], of_peak


def saddles(
    heights: Distances, piece: NDArray[np.bool_], of_peak: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of peaks whose regions touch, (n, 2), and the height of the highest way between them, the highest first."""
    pairs, passes = [np.empty((0, 2), np.int64)], [np.empty(0)]
    for step, here, there in _neighbours(piece):
        if step < (0,) * piece.ndim:  # each pair of voxels once
            continue
        a, b = of_peak[here], of_peak[there]
        apart = (a >= 0) & (b >= 0) & (a != b)
        pairs.append(np.sort(np.stack([a[apart], b[apart]], axis=1), axis=1))
        passes.append(np.minimum(heights[here][apart], heights[there][apart]))
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


def _neighbours(piece: NDArray[np.bool_]) -> list[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """Every step to a neighbour, by a corner included: (step, from where, to where)."""
    found = []
    for step in itertools.product((-1, 0, 1), repeat=piece.ndim):
        if any(step):
            here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, piece.shape, strict=True))
            there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, piece.shape, strict=True))
            found.append((step, here, there))
    return found
