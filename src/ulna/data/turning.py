"""The orientation tag of TIFF and EXIF: pictures are shown upright, and masks are written as their image is stored.

Cameras and scanners store the rows as the sensor gave them and say in a tag how to turn them. Viewers turn them, so
images are turned here too; a mask goes back into the stored order with the same tag, and lies on its image in viewers
that follow the tag and in those that do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ulna.data.volume import Volume

V = TypeVar("V")

ORIENTATION = 274  # the tag, of TIFF and of EXIF
UPRIGHT = 1
# of each value: whether rows and columns are exchanged, then rows mirrored, then columns mirrored
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(..., H, W) as stored -> as shown; a view.

    Example:
        >>> upright(np.array([[1, 2, 3]]), 6).tolist()
        [[1], [2], [3]]
    """
    exchanged, rows, columns = TURNS[orientation]
    array = np.swapaxes(array, -1, -2) if exchanged else array
    return array[..., :: -1 if rows else 1, :: -1 if columns else 1]


def as_stored(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The way back: (..., H, W) as shown -> as stored; a view."""
    exchanged, rows, columns = TURNS[orientation]
    array = array[..., :: -1 if rows else 1, :: -1 if columns else 1]
    return np.swapaxes(array, -1, -2) if exchanged else array


def exchanged(values: Sequence[V], orientation: int) -> tuple[V, ...]:
    """One value for every axis (sizes, spacings), as stored -> as shown, and back: rows and columns change places.

    Example:
        >>> exchanged((3, 6, 9), 5), exchanged((6, 9), 4)
        ((3, 9, 6), (6, 9))
    """
    *depth, rows, columns = values
    return (*depth, columns, rows) if TURNS[orientation][0] else tuple(values)


def orientation_of(volume: Volume) -> int:
    """The tag that the file of a volume holds; upright where its format has none."""
    return volume.meta.orientation


def checked_orientation(value: Any, notes: list[str]) -> int:
    """A value of the tag that means something, with a note where it turns the picture; else 1."""
    if isinstance(value, int) and value in TURNS:
        if value != UPRIGHT:
            notes.append(f"orientation tag {value} is applied: rows and columns are as viewers show them")
        return value
    if value not in (None, 0):  # 0 stands in many files, for nothing
        notes.append(f"its orientation tag is {value}, which means nothing and is not applied")
    return UPRIGHT
