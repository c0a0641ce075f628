"""What stands in a label map: class indices and how often each occurs, or why they are none."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.label_maps import encode_labels, value_counts, without_colour
from ulna.data.formats.palettes import Colour
from ulna.data.formats.slabs import slabs
from ulna.data.quality.objects import count_objects
from ulna.data.volume import Volume
from ulna.errors import DataError, Problem, counted
from ulna.recipe import Labels

MOST_VALUES = 256  # label values that are counted one by one
NEARLY_WHOLE = 0.1  # how far a value may lie from a whole number, to be rounded to it
_SHOWN = 4
_TOO_MANY = (
    f"holds more than {MOST_VALUES} label values",
    'give a label map of classes, not of grey values; numbered objects are one class with "instances": true in classes.json',
)


class LabelValues(NamedTuple):
    """What a label map holds.

    Args:
        counts: class index -> pixels or voxels, where the class is known.
        stretched: it held 0 and 255, read as 0 and 1.
        classes: class indices, 0 where the class is not known; None where the values do not fit.
        stored: the values as stored, where several may be one class.
        objects: how many objects it numbers (`count_objects`), where nothing declares classes.
        known: where the class is known, one map for overlapping classes; None: everywhere.
    """

    counts: dict[int, int]
    stretched: bool = False
    classes: NDArray[Any] | None = None
    stored: tuple[int, ...] = ()
    objects: int = 0
    known: NDArray[np.bool_] | None = None


def label_values(reference: Volume, labels: Labels | None, problems: list[Problem]) -> LabelValues:
    """The class indices of a raw label map and how often each occurs."""
    array, where = reference.array, str(reference.path)
    fault, objects = _value_fault(reference), 0
    if labels is None:
        objects = _objects(reference)
    if fault == _TOO_MANY and (objects or (labels is not None and labels.instances)):
        fault = None
    if labels is None and fault is None:
        array = without_colour(reference)
        fault = _several_maps(reference) if len(array) != 1 else None
    if fault is not None:
        problems.append(Problem(where, *fault))
        return LabelValues({})
    stretched = array.dtype.kind in "iu" and int(array.max()) == 255 and set(value_counts(array)) <= {0, 255}
    if labels is None:
        classes = (array[0] == 255).view(np.uint8) if stretched else array[0]
        return LabelValues(_counts(classes), stretched, classes, objects=objects)
    stretched = stretched and not labels.merges and not labels.instances and 255 not in labels.ignore
    stretched = stretched and (labels.multilabel or len(labels.foreground) == 1)
    try:
        classes = encode_labels(reference, labels)
    except DataError as error:
        problems += error.problems
        return LabelValues({})
    stored = tuple(map(int, value_counts(array))) if labels.merges else ()
    inside = None if labels.ignored is None else classes != labels.ignored
    counts, classes = _known(classes, labels, inside)
    if inside is not None and labels.multilabel:
        inside = inside.any(axis=0)
    return LabelValues(counts, stretched, classes, stored, known=inside)


def _known(
    classes: NDArray[Any], labels: Labels, inside: NDArray[np.bool_] | None
) -> tuple[dict[int, int], NDArray[Any]]:
    """Counts of the classes that are known; at least one of the background, so that a map counts as one that is there."""
    if inside is not None:
        classes = np.where(inside, classes, 0).astype(classes.dtype)
    if not labels.multilabel:
        counts = _counts(classes)
        lost = 0 if inside is None else int(np.count_nonzero(~inside))
        counts[0] = counts.get(0, 0) - lost
    else:
        outside = ~classes.any(axis=0)
        counts = {0: int(np.count_nonzero(outside if inside is None else outside & inside.any(axis=0)))}
        counts |= {k + 1: int(np.count_nonzero(one)) for k, one in enumerate(classes)}
    known = {value: count for value, count in counts.items() if count}
    return known or {0: 0}, classes


def _objects(reference: Volume) -> int:
    array = without_colour(reference)
    if len(array) != 1 or array.dtype.kind not in "iu" or int(array.min(initial=0)) < 0:
        return 0
    return count_objects(array[0], [int(value) for value in value_counts(array[0]) if value])


def _counts(classes: NDArray[Any]) -> dict[int, int]:
    return {int(value): count for value, count in value_counts(classes).items()}


def _several_maps(reference: Volume) -> tuple[str, str]:
    array = reference.array
    if reference.spatial_dims == 2 and len(array) == 3:
        remedy = "save one map of class numbers; check --fix does so where every colour is a class"
        return f"is a colour picture, of {len(colours(array))} colours", remedy
    return f"holds {len(array)} label maps", "save one map, or name the classes in classes.json with mode multilabel"


def colours(array: NDArray[Any]) -> set[Colour]:
    """The colours of a picture, (3, H, W)."""
    codes: set[int] = set()
    for parts in slabs(*array):
        red, green, blue = (part.astype(np.int64) for part in parts)
        codes |= set(np.unique((red << 32) | (green << 16) | blue).tolist())
    return {(code >> 32, code >> 16 & 0xFFFF, code & 0xFFFF) for code in codes}


def farthest_from_whole(array: NDArray[Any]) -> float:
    """How far the values of a map lie from whole numbers at most; infinite where one is not finite."""
    most = 0.0
    for (values,) in slabs(array):
        if not np.isfinite(values).all():
            return np.inf
        most = max(most, float(np.abs(values - np.rint(values)).max(initial=0)))
    return most


def _value_fault(reference: Volume) -> tuple[str, str] | None:
    """What no set of classes can fit: values that are not finite, not whole, or negative; or far too many."""
    array = reference.array
    if array.dtype.kind == "f":
        return _real_fault(reference)
    if array.dtype.kind == "i" and array.size and int(array.min()) < 0:
        return (
            f"holds negative label values, down to {int(array.min())}",
            "remap them; 0 is background, 1..K the classes",
        )
    if len(value_counts(array, most=MOST_VALUES + 1)) > MOST_VALUES:
        return _TOO_MANY
    return None


def _real_fault(reference: Volume) -> tuple[str, str]:
    """Real values that are no whole numbers, or far too large ones."""
    large = reference.meta.too_large
    if large:
        return f"holds label values up to {large[1]:.3g}", "save the label map with whole numbers 0..K"
    bad = broken = 0
    shown: NDArray[Any] = np.empty(0)
    for (values,) in slabs(reference.array):
        bad += values.size - int(np.count_nonzero(np.isfinite(values)))
        fractional = values[values != np.rint(values)]
        broken += fractional.size
        shown = np.unique(np.concatenate([shown, np.unique(fractional)[:_SHOWN]]))[:_SHOWN]
    if bad:
        return f"holds {bad} label values that are not finite", "save the label map with whole numbers"
    if not broken:
        return f"holds more than {MOST_VALUES} label values", "give a label map of classes, not of grey values"
    what = f"holds {counted(broken, 'fractional label value')}, such as {', '.join(f'{value:.4g}' for value in shown)}"
    error = farthest_from_whole(reference.array)
    if error < NEARLY_WHOLE:
        what += f"; all lie within {error:.2g} of whole numbers, as programs write them through a scaled header"
        return what, "round them, check --fix does so"
    return what, "save the label map with whole numbers; resample label maps by nearest neighbour only"
