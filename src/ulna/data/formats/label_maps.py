"""Raw label maps: which values they hold, and the class indices that these stand for."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.slabs import slabs
from ulna.data.formats.source import (
    data_error,
)
from ulna.data.formats.whole_boxes import Boxed
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


def encode_labels(volume: Volume, labels: Labels, found: Collection[int | float] | None = None) -> NDArray[Any]:
    """Class indices 0..K of a raw label map, by the values that `labels` gives every class; where it gives none, two-valued
    maps in {0, 255} become {0, 1}.

    Where the class is not known (`Labels.ignore`) stands `Labels.ignored`: K + 1, in overlapping maps 2.

    Args:
        volume: the map, or a part of it.
        labels: the classes.
        found: of a part, the values of the whole map, which decide what they mean and of which type the indices are.

    Shape:
        (1, *S) -> (*S), of the smallest unsigned type; multilabel: (K, *S) -> (K, *S) of 0 and 1, and a single map
        of stored values is spread over the channels.

    Raises:
        DataError: naming file and values, if they do not fit the classes.
    """
    array = volume.array
    count = len(labels.foreground)
    if labels.merges:  # then one map is what is expected
        array = without_colour(volume)
    if labels.multilabel and array.shape[0] == count and (count > 1 or not labels.merges):
        return _checked(volume, array, 1, labels.ignore, found)
    array = without_colour(volume)
    if array.shape[0] != 1:
        wanted = f"one map, or {count} maps (one per class)" if labels.multilabel else "one map"
        raise data_error(volume.path, f"holds {array.shape[0]} label maps", f"save {wanted} with values 0..{count}")
    if labels.instances:
        return _objects(volume, array[0], labels)
    if labels.merges:
        return _by_value(volume, array[0], labels, found)
    indices = _checked(volume, array[0], count, labels.ignore, found)
    if not labels.multilabel:
        return indices
    return _spread(indices, [(value,) for value in range(1, count + 1)], (count + 1,) if labels.ignore else ())


def encoding_bytes(volume: Volume, labels: Labels) -> float:
    """What `encode_labels` takes at most beside a raw label map."""
    size, several = volume.array.dtype.itemsize, bool(labels.merges or labels.ignore or labels.instances)
    each = len(labels.foreground) + 3 if labels.multilabel else 3 if several or size > 1 else 0
    return float((each + (size if several else 0)) * math.prod(volume.size))


def _checked(
    volume: Volume, array: NDArray[Any], highest: int, ignore: tuple[int, ...], found: Collection[int | float] | None
) -> NDArray[Any]:
    """Values 0..`highest` as they are, ignored ones as the next."""
    values = sorted(value_counts(array) if found is None else found)
    if highest == 1 and 255 in values and set(values) <= {0, 255} and 255 not in ignore:
        return (array == 255).view(np.uint8)
    bad = [value for value in values if value not in range(highest + 1) and value not in ignore]
    if bad:
        what = f"label values {_shown(bad)} do not fit {highest + 1} classes (0 is background, 1..{highest})"
        merged = "" if highest > 1 else f'; {{"NAME": [{_shown([v for v in values if v])}]}} makes one class of them'
        remedy = f"name the extra ones in classes.json (or as `ignore`{merged}), or remap the file"
        raise data_error(volume.path, what, remedy)
    present = [value for value in ignore if value in values]
    if not present:
        return array.astype(label_dtype(highest), copy=False)
    unknown = _is_in(array, present)
    return np.where(unknown, highest + 1, array).astype(label_dtype(highest + 1))


def _by_value(
    volume: Volume, array: NDArray[Any], labels: Labels, found: Collection[int | float] | None
) -> NDArray[Any]:
    """Stored values as class indices, several to one; overlapping ones as maps."""
    found = sorted(value_counts(array) if found is None else found)
    known = {*labels.background, *labels.ignore, *(value for values in labels.stored for value in values)}
    bad = [value for value in found if value not in known]
    if bad:
        what = f"label values {_shown(bad)} belong to no class ({', '.join(labels.described)})"
        remedy = (
            'add them where the classes are declared (classes.json, or the recipe): to a class, to "background" or to '
        )
        raise data_error(volume.path, what, f'{remedy}"ignore"')
    array = array.astype(label_dtype(int(max(found, default=0))), copy=False)
    if labels.multilabel:
        return _spread(array, labels.stored, labels.ignore)
    codes = dict.fromkeys(labels.ignore, len(labels.stored) + 1)
    codes |= {value: index for index, values in enumerate(labels.stored, start=1) for value in values}
    indices = np.zeros(array.shape, label_dtype(max(codes.values())))
    for value in found:
        if code := codes.get(int(value), 0):
            indices[array == value] = code
    return indices


def _objects(volume: Volume, array: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """One class of all numbered objects."""
    if array.dtype.kind == "f" or (array.dtype.kind == "i" and array.size and int(array.min()) < 0):
        what = "holds values that number no objects: they are fractional or negative"
        raise data_error(volume.path, what, "save the label map with whole numbers, 0 for the background")
    indices = (array != 0).view(np.uint8)
    return np.where(_is_in(array, labels.ignore), 2, indices).astype(np.uint8) if labels.ignore else indices


def _spread(array: NDArray[Any], stored: Sequence[Sequence[int]], ignore: Sequence[int]) -> NDArray[Any]:
    """A single map as one map of 0 and 1 a structure; 2 where the class is not known: (*S) -> (K, *S)."""
    maps = np.empty((len(stored), *array.shape), np.uint8)
    for one, values in zip(maps, stored, strict=True):
        one[:] = _is_in(array, values)
    if ignore:
        unknown = _is_in(array, ignore)
        for one in maps:
            one[unknown] = 2
    return maps


def _is_in(array: NDArray[Any], values: Sequence[int]) -> NDArray[np.bool_]:
    """Where a map has one of some values; slab by slab, as numpy takes 12 bytes a value on the way."""
    found = np.empty(array.shape, np.bool_)
    for part, target in slabs(array, found):
        target[:] = np.isin(part, values)
    return found


def _shown(values: Sequence[int | float]) -> str:
    return listed((f"{value:g}" for value in values), most=8)


def in_file(mask: NDArray[Any], labels: Labels, values: Sequence[int] | None = None) -> NDArray[Any]:
    """A mask as its file holds it: one map of the values of `Labels.order` where it has one, else of `values`.

    Args:
        mask: class indices, or overlapping maps of 0 and 1.
        labels: the classes.
        values: what stands for every class index, or for 0 and 1 (`Plan.mask_values`); None: these themselves.

    Shape:
        (K, *S) -> (*S) with an order; else (*S) or (K, *S), as it is
    """
    if labels.order is None:
        return mask if values is None else np.array(values, label_dtype(max(values)))[mask]
    written = np.zeros(mask.shape[1:], label_dtype(max(labels.order)))
    for value, one in zip(labels.order, mask, strict=True):  # the later over the earlier
        written[one != 0] = value
    return written


def boxes_in_file(maps: Boxed, labels: Labels, values: Sequence[int] | None = None) -> Boxed:
    """`in_file` of a mask that is read in boxes, (1, *S) or (K, *S) of overlapping classes -> the same, or (1, *S)."""
    if labels.order is not None:
        dtype, every = label_dtype(max(labels.order)), range(maps.shape[0])
        return Boxed((1, *maps.shape[1:]), dtype, lambda box, _: in_file(maps.read(box, every), labels)[None])
    if values is None:
        return maps
    known = tuple(values)
    return Boxed(
        maps.shape, label_dtype(max(known)), lambda box, channels: in_file(maps.read(box, channels), labels, known)
    )
