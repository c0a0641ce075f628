"""Connected components of a mask, a slab at a time: the numbers of all voxels together are never held.

`scipy.ndimage.label` numbers a slab; pieces that touch across the boundary of two slabs are joined afterwards. A second walk
over the slabs numbers them alike, so that what is decided of a component can be done to its voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ulna.evaluation.surfaces import bounding_box

SLAB = 1 << 22  # voxels that are numbered at once, in 4 bytes each
Part = Callable[[slice], NDArray[np.bool_]]  # rows along the first axis -> the mask there


class Components(NamedTuple):
    """The components of a mask.

    Args:
        sizes: (n + 1), voxels of every component, from 1; 0 stands for what is none.
        outer: (n + 1), whether it touches a face of the array.
        numbers: (rows, the component of every voxel there), the slabs in their order.
    """

    sizes: NDArray[np.int64]
    outer: NDArray[np.bool_]
    numbers: Callable[[], Iterator[tuple[slice, NDArray[np.int64]]]]


def find_components(part: Part, size: Sequence[int], *, corners: bool = True, slab: int | None = None) -> Components:
    """Find the components of a mask.

    Args:
        part: the mask, some rows at a time.
        size: of the whole array.
        corners: whether voxels that share an edge or a corner are one piece; else they share a face.
        slab: how many voxels are numbered at once; by default SLAB.

    Example:
        >>> mask = np.array([[1, 1, 0, 0, 1]], dtype=bool)
        >>> find_components(lambda rows: mask[rows], mask.shape).sizes.tolist()
        [2, 2, 1]
    """
    dims = len(size)
    structure = generate_binary_structure(dims, dims if corners else 1)
    each = int(np.prod(size[1:], dtype=np.int64)) if dims > 1 else 1
    rows = max(1, (SLAB if slab is None else slab) // max(1, each))
    slabs = [slice(start, min(start + rows, size[0])) for start in range(0, size[0], rows)]

    def numbered() -> Iterator[tuple[slice, NDArray[np.int32], int]]:
        for here in slabs:
            found, count = label(part(here), structure)
            yield here, found, count

    sizes, outer, pairs = [np.zeros(1, np.int64)], [np.zeros(1, bool)], []
    offsets, total = [], 0
    before: NDArray[np.int64] | None = None
    for here, found, count in numbered():
        offsets.append(total)
        counted = np.bincount(found.reshape(-1), minlength=count + 1)
        sizes[0][0] += counted[0]
        sizes.append(counted[1:])
        outer.append(_outer(found, count, first=here.start == 0, last=here.stop == size[0])[1:])
        first, last = (_offset(found[end], total) for end in (0, -1))
        if before is not None:
            pairs.append(_touching(before, first, corners=corners))
        before, total = last, total + count
    joined = _joined(pairs, total)
    whole = np.zeros(int(joined.max(initial=0)) + 1, np.int64)
    np.add.at(whole, joined, np.concatenate(sizes))
    at_a_face = np.zeros(len(whole), bool)
    np.logical_or.at(at_a_face, joined, np.concatenate(outer))

    def numbers() -> Iterator[tuple[slice, NDArray[np.int64]]]:
        for offset, (here, found, count) in zip(offsets, numbered(), strict=True):
            own = np.concatenate([joined[:1], joined[offset + 1 : offset + 1 + count]])
            yield here, own[found]

    return Components(whole, at_a_face, numbers)


def _offset(plane: NDArray[np.int32], offset: int) -> NDArray[np.int64]:
    return np.where(plane > 0, plane.astype(np.int64) + offset, 0)


def _outer(found: NDArray[np.int32], count: int, *, first: bool, last: bool) -> NDArray[np.bool_]:
    """Which of the numbers stand at a face of the whole array."""
    outer = np.zeros(count + 1, bool)
    for axis in range(found.ndim):
        for end, is_face in ((0, axis > 0 or first), (-1, axis > 0 or last)):
            if is_face:
                outer[np.take(found, end, axis=axis)] = True
    outer[0] = False
    return outer


def _touching(above: NDArray[np.int64], below: NDArray[np.int64], *, corners: bool) -> NDArray[np.int64]:
    """(n, 2): the pieces of one plane and of the next that touch."""
    found = []
    reach = (-1, 0, 1) if corners else (0,)
    for shift in itertools.product(reach, repeat=above.ndim):
        here = tuple(slice(max(0, s), n + min(0, s)) for s, n in zip(shift, above.shape, strict=True))
        there = tuple(slice(max(0, -s), n + min(0, -s)) for s, n in zip(shift, above.shape, strict=True))
        a, b = above[here], below[there]
        both = (a > 0) & (b > 0)
        if both.any():
            found.append(np.unique(np.stack([a[both], b[both]], axis=1), axis=0))
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def _joined(pairs: list[NDArray[np.int64]], total: int) -> NDArray[np.int64]:
    """Number of a piece -> that of its component, from 1 in the order of their first pieces; 0 -> 0."""
    if not pairs:
        return np.arange(total + 1)
    touching = np.concatenate(pairs)
    graph = coo_array((np.ones(len(touching), np.int8), (touching[:, 0], touching[:, 1])), (total + 1, total + 1))
    _, groups = connected_components(graph, directed=False)
    _, firsts, own = np.unique(groups, return_index=True, return_inverse=True)
    order = np.empty(len(firsts), np.int64)
    order[np.argsort(firsts)] = np.arange(len(firsts))  # 0 stands alone, and comes first
    result: NDArray[np.int64] = order[own]
    return result


def box_of(mask: NDArray[Any]) -> tuple[slice, ...] | None:
    """The smallest box that holds what is not 0; None where nothing is."""
    box = bounding_box(mask)
    return box if all(part.stop for part in box) else None
