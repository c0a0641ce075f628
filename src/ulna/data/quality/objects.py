"""Label maps that number objects (instances), as microscopy writes them: how they are told from maps of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, generate_binary_structure, label

from ulna.errors import listed

MOST_CLASSES = 32  # more values than these are no classes that nobody named
_IN_ONE_PIECE = 0.95  # share of the objects of a map; a program may have cut a few in two
_FEW = 3  # values that tell nothing
_SMALLEST = 4  # pixels or voxels of an object, in the mean
_LARGEST = 1 << 16
_LARGE = 1 << 24  # pixels or voxels of the box around one object
_MANY = 5  # objects, in the map that has the most
_COUNTS = 3  # different numbers of objects: classes are the same in all cases


def count_objects(array: NDArray[Any], values: Sequence[int]) -> int:
    """How many objects a label map numbers: its values above 0, where nearly every one is one piece; 0 where they are not.

    Args:
        array: (*S), whole numbers from 0 on.
        values: those above 0 that it holds, in ascending order.
    """
    if len(values) < _FEW:
        return len(values)
    if np.count_nonzero(array) < _SMALLEST * len(values):  # grey values
        return 0
    numbers = (
        np.searchsorted(values, array, side="right") if values[-1] > _LARGEST else array
    )  # else a box for every gap
    labels = range(1, len(values) + 1) if values[-1] > _LARGEST else values
    boxes = find_objects(numbers)
    neighbours = generate_binary_structure(array.ndim, array.ndim)
    broken, allowed = 0, int((1 - _IN_ONE_PIECE) * len(values))
    for number in labels:
        part = numbers[boxes[number - 1]]
        if part.size > _LARGE:
            return 0
        broken += int(label(part == number, neighbours)[1]) > 1
        if broken > allowed:
            return 0
    return len(values)


def objects_found(maps: Mapping[str, Sequence[int]], objects: Mapping[str, int]) -> str:
    """What is said where the label maps of a data set number objects; empty where they hold classes.

    More values than classes can have, each of them one piece; or numbers from 1 on without gaps in every case, as many as
    there are objects, and another number of them from case to case.

    Args:
        maps: case -> the values above 0 of its label map.
        objects: case -> what `count_objects` found.

    Example:
        >>> objects_found({"a": [1, 2, 3], "b": [1, 2]}, {"a": 3, "b": 2})
        ''
    """
    filled = {case: values for case, values in maps.items() if values}
    if not filled or any(objects.get(case, 0) != len(values) for case, values in filled.items()):
        return ""
    most = max(filled, key=lambda case: len(filled[case]))
    counts = {len(values) for values in filled.values()}
    many = len({value for values in filled.values() for value in values}) > MOST_CLASSES
    counted = all(max(values) == len(values) for values in filled.values())
    if not many and not (counted and len(counts) >= _COUNTS and max(counts) >= _MANY):
        return ""
    range_of = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
    return f"the label maps number objects: {range_of} values a case, most in {listed([most])}, nearly all in one piece"
