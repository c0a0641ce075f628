"""Raw label maps: which values they hold, and the class indices that these stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.slabs import slabs
from ulna.data.formats.source import (
    data_error,
)
from ulna.data.volume import Volume, label_dtype
from ulna.errors import listed
from ulna.recipe import Labels


def without_colour(volume: Volume) -> NDArray[Any]:
    """The stored maps, one where a picture (PNG, BMP, RGB TIFF) stores grey as colour; equal maps elsewhere are classes."""
    array = volume.array
    if array.shape[0] != 3 or not (volume.meta.format == "raster" or volume.meta.colour):
        return array
    grey = all(np.array_equal(red, green) and np.array_equal(red, blue) for red, green, blue in slabs(*array))
    return array[:1] if grey else array


def value_counts(array: NDArray[Any], most: int | None = None) -> dict[int | float, int]:
    """Every value with its number of occurrences, in ascending order.

    Args:
        most: stop after a part of the array in which more values than these were found.

    Example:
        >>> value_counts(np.array([0, 2, 2], dtype=np.uint8))
        {0: 1, 2: 2}
    """
    if array.dtype.kind in "iu" and array.size and int(array.min()) >= 0 and int(array.max()) < 1 << 16:
        counts = np.zeros(int(array.max()) + 1, dtype=np.int64)  # twenty times faster than sorting
        for (part,) in slabs(array):  # bincount makes 8 bytes of every value
            counts += np.bincount(part, minlength=counts.size)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, numbers = np.empty(0, array.dtype), np.empty(0, np.int64)
    for (part,) in slabs(array):
        found, times = np.unique(part, return_counts=True)
        joined = np.concatenate([values, found])
        values, places = np.unique(joined, return_inverse=True)
        numbers = np.bincount(places, np.concatenate([numbers, times]), values.size).astype(np.int64)
        if most is not None and values.size > most:
            break
    return {value.item(): int(number) for value, number in zip(values, numbers, strict=True)}


def encode_labels(volume: Volume, labels: Labels) -> NDArray[Any]:
    """Class indices 0..K of a raw label map; two-valued maps in {0, 255} become {0, 1}.

    Shape:
        (1, *S) -> (*S), of the smallest unsigned type; multilabel: (K, *S) -> (K, *S) of 0 and 1, and a single map
        of exclusive values 1..K is spread over the channels.

    Raises:
        DataError: naming file and values, if they do not fit the classes.
    """
    array = volume.array
    count = len(labels.foreground)
    if labels.multilabel and array.shape[0] == count:
        return _checked(volume, array, 1)
    array = without_colour(volume)
    if array.shape[0] != 1:
        wanted = f"one map, or {count} maps (one per class)" if labels.multilabel else "one map"
        raise data_error(volume.path, f"holds {array.shape[0]} label maps", f"save {wanted} with values 0..{count}")
    indices = _checked(volume, array[0], count)
    if not labels.multilabel:
        return indices
    return np.stack([indices == value for value in range(1, count + 1)]).astype(np.uint8)


def _checked(volume: Volume, array: NDArray[Any], highest: int) -> NDArray[Any]:
    values = value_counts(array)
    if highest == 1 and 255 in values and set(values) <= {0, 255}:
        return (array == 255).view(np.uint8)
    bad = [value for value in values if value not in range(highest + 1)]
    if bad:
        shown = listed((f"{value:g}" for value in bad), most=8)
        what = f"label values {shown} do not fit {highest + 1} classes (0 is background, 1..{highest})"
        raise data_error(volume.path, what, "name the extra ones in classes.json or remap the file")
    return array.astype(label_dtype(highest), copy=False)
