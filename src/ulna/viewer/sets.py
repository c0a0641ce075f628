"""Overlapping classes as one map: every value stands for a set of classes that share voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.volume import label_dtype


def joined(maps: NDArray[Any]) -> tuple[NDArray[Any], list[list[int]]]:
    """One map of all maps, and the classes (from 0) that each of its values stands for; 0 is none of them.

    The classes of a value are in the order in which they are drawn: the largest first, so that none hides a smaller one.

    Shape:
        (K, *S) -> (*S), of the smallest unsigned type

    Example:
        >>> index, sets = joined(np.array([[1, 1, 1, 0], [0, 1, 0, 0]]))
        >>> index.tolist(), sets
        ([1, 2, 1, 0], [[], [0], [0, 1]])
    """
    index = np.zeros(maps.shape[1:], np.uint32)
    sets: list[list[int]] = [[]]
    for number, layer in enumerate(maps):
        index = index * np.uint32(2) + (layer != 0)
        there = np.zeros(2 * len(sets), bool)
        there[0] = True
        there[index.ravel()] = True
        found = np.flatnonzero(there)
        table = np.zeros(len(there), np.uint32)
        table[found] = np.arange(len(found), dtype=np.uint32)
        index = table[index]
        sets = [[*sets[value // 2], *([number] if value % 2 else [])] for value in found.tolist()]
    sizes = [int(np.count_nonzero(layer)) for layer in maps]
    sets = [sorted(one, key=lambda number: -sizes[number]) for one in sets]
    return index.astype(label_dtype(len(sets) - 1)), sets
