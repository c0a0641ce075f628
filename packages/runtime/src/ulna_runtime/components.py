"""Connected components of a mask, a slab at a time: no more than a slab of them is held voxel by voxel.

A slab is read as runs, stretches of voxels along the last axis. Runs of neighbouring lines that touch are one piece, and
pieces that touch across the boundary of two slabs are one component. Components are numbered in the order of their first
voxels, as scipy numbers them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SLAB = 1 << 21  # voxels that are numbered at once
Part = Callable[[slice], NDArray[np.bool_]]  # rows along the first axis -> the mask there
Ints = NDArray[np.int64]


class Components(NamedTuple):
    """The components of a mask.

    Args:
        sizes: (n + 1), voxels of every component, from 1; 0 stands for what is none.
        outer: (n + 1), whether it touches a face of the array.
        numbers: (rows, the component of every voxel there), the slabs in their order.
    """

    sizes: Ints
    outer: NDArray[np.bool_]
    numbers: Callable[[], Iterator[tuple[slice, Ints]]]


def find_components(part: Part, size: Sequence[int], *, corners: bool = True, slab: int | None = None) -> Components:
    """Find the components of a mask.

    Args:
        part: the mask, some rows at a time.
        size: of the whole array, of two axes or more.
        corners: whether voxels that share an edge or a corner are one piece; else they share a face.
        slab: how many voxels are numbered at once; by default SLAB.

    Example:
        >>> mask = np.array([[1, 1, 0, 0, 1]], dtype=bool)
        >>> find_components(lambda rows: mask[rows], mask.shape).sizes.tolist()
        [2, 2, 1]
    """
    rows = max(1, (SLAB if slab is None else slab) // max(1, int(np.prod(size[1:], dtype=np.int64))))
    slabs = [slice(start, min(start + rows, size[0])) for start in range(0, size[0], rows)]
    sizes, faces, pairs, offsets = [np.zeros(1, np.int64)], [np.zeros(1, bool)], [], []
    total = 0
    before: Ints | None = None
    for here in slabs:
        numbers, count = label(part(here), corners=corners)
        offsets.append(total)
        counted = np.bincount(numbers.reshape(-1), minlength=count + 1)
        sizes[0] += counted[0]
        sizes.append(counted[1:])
        faces.append(_at_faces(numbers, count, first=here.start == 0, last=here.stop == size[0]))
        first, last = (np.where(plane > 0, plane + total, 0) for plane in (numbers[0], numbers[-1]))
        if before is not None:
            pairs.append(_touching(before, first, corners=corners))
        before, total = last, total + count
    own = numbered(np.concatenate(pairs), total + 1) if pairs else np.arange(total + 1)  # 0 touches none, and stays 0
    whole = np.zeros(int(own.max(initial=0)) + 1, np.int64)
    np.add.at(whole, own, np.concatenate(sizes))
    outer = np.zeros(len(whole), bool)
    outer[own[np.concatenate(faces)]] = True

    def again() -> Iterator[tuple[slice, Ints]]:
        for offset, here in zip(offsets, slabs, strict=True):
            numbers, count = label(part(here), corners=corners)
            yield here, np.concatenate([own[:1], own[offset + 1 : offset + 1 + count]])[numbers]

    return Components(whole, outer, again)


def label(mask: NDArray[np.bool_], *, corners: bool) -> tuple[Ints, int]:
    """The component of every voxel, 0 outside; and how many there are.

    Example:
        >>> label(np.array([[1, 0, 1], [0, 1, 0]], dtype=bool), corners=True)[0].tolist()
        [[1, 0, 1], [0, 1, 0]]
    """
    steps = np.diff(mask.reshape(-1, mask.shape[-1]).astype(np.int8), axis=1, prepend=0, append=0)
    lines, starts = np.nonzero(steps > 0)
    stops = np.nonzero(steps < 0)[1]
    own = numbered(_runs_that_touch(mask.shape, lines, starts, stops, corners=corners), len(lines)) + 1
    numbers = np.zeros(mask.shape, np.int64)
    numbers[mask] = np.repeat(own, stops - starts)  # voxels of a mask come line by line, as runs do
    return numbers, int(own.max(initial=0))


def _runs_that_touch(shape: tuple[int, ...], lines: Ints, starts: Ints, stops: Ints, *, corners: bool) -> Ints:
    """(n, 2): the runs that touch, each pair once.

    Args:
        shape: of the mask.
        lines: of every run, the number of its line; runs lie in their order, and those of a line too.
        starts, stops: its first voxel along the line, and the one behind its last.
    """
    reach = int(corners)  # at a corner, a run touches one that begins where it ends
    width = shape[-1] + 2 * reach + 1  # from line to line: further than any run reaches
    begin, end = lines * width + starts, lines * width + stops
    places = np.stack(np.unravel_index(lines, shape[:-1])) if len(lines) else np.zeros((len(shape) - 1, 0), np.int64)
    found = [np.empty((0, 2), np.int64)]
    for shift in itertools.product((-1, 0, 1) if corners else (0, 1), repeat=len(shape) - 1):
        if shift <= (0,) * len(shift) or (not corners and sum(shift) > 1):
            continue  # a line itself, those before it, and for faces what lies across an edge
        moved = places + np.array(shift)[:, None]
        inside = np.flatnonzero(((moved >= 0) & (moved < np.array(shape[:-1])[:, None])).all(axis=0))
        to = np.ravel_multi_index(tuple(moved[:, inside]), shape[:-1]) * width
        low = np.searchsorted(end, to + starts[inside] - reach, side="right")
        high = np.searchsorted(begin, to + stops[inside] + reach, side="left")
        count = np.maximum(high - low, 0)
        each = np.repeat(low - np.cumsum(count) + count, count) + np.arange(count.sum())
        found.append(np.stack([np.repeat(inside, count), each], axis=1))
    return np.concatenate(found)


def numbered(pairs: Ints, count: int) -> Ints:
    """The group of each of `count` things, from 0 in the order of their first members; `pairs` (n, 2) are in one group.

    Example:
        >>> numbered(np.array([[3, 1], [4, 3]]), 5).tolist()
        [0, 1, 2, 1, 1]
    """
    lowest = np.arange(count)
    while len(pairs):
        pairs = lowest[pairs]
        pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
        np.minimum.at(lowest, pairs[:, 1], pairs[:, 0])
        while not np.array_equal(following := lowest[lowest], lowest):
            lowest = following
    return np.unique(lowest, return_inverse=True)[1].reshape(-1)


def _at_faces(numbers: Ints, count: int, *, first: bool, last: bool) -> NDArray[np.bool_]:
    """Which of the components of a slab stand at a face of the whole array."""
    found = np.zeros(count + 1, bool)
    for axis in range(numbers.ndim):
        for end, is_face in ((0, axis > 0 or first), (-1, axis > 0 or last)):
            if is_face:
                found[np.take(numbers, end, axis=axis)] = True
    return found[1:]


def _touching(above: Ints, below: Ints, *, corners: bool) -> Ints:
    """(n, 2): the pieces of one plane and of the next that touch."""
    found = [np.empty((0, 2), np.int64)]
    for shift in itertools.product((-1, 0, 1) if corners else (0,), repeat=above.ndim):
        here: Any = tuple(slice(max(0, s), n + min(0, s)) for s, n in zip(shift, above.shape, strict=True))
        there: Any = tuple(slice(max(0, -s), n + min(0, -s)) for s, n in zip(shift, above.shape, strict=True))
        both = np.stack([above[here].reshape(-1), below[there].reshape(-1)], axis=1)
        found.append(np.unique(both[(both > 0).all(axis=1)], axis=0))
    return np.concatenate(found)


def box_of(mask: NDArray[Any]) -> tuple[slice, ...] | None:
    """The smallest box that holds what is not 0; None where nothing is."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not hit.size:
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)
