"""What the pixels of a mask file hold: the values of the training labels, so that a mask opens as those do in a viewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ulna.data.quality.scan import CaseStats
from ulna.errors import listed
from ulna.recipe import Labels

LARGEST = (1 << 16) - 1  # that a PNG holds


class MaskValues(NamedTuple):
    """The values in mask files of 2D PNG, TIFF and BMP.

    Args:
        values: of the background and of every class; of 0 and 1 where classes have a map each. None: class indices.
        reason: why; empty where no picture is written.
    """

    values: tuple[int, ...] | None = None
    reason: str = ""


AS_CLASSES = MaskValues()


def choose_mask_values(scans: Sequence[CaseStats], labels: Labels) -> MaskValues:
    """Those that the labels of the training cases hold, where each class has one; else class indices.

    Args:
        scans: of the training cases.
        labels: the classes.
    """
    if not scans or scans[0].spatial_dims != 2 or labels.order is not None:
        return AS_CLASSES
    if labels.instances:
        return MaskValues(reason="0 and 1: the training labels number objects")
    if labels.merges:
        return _of_lists(labels)
    drawn = [one for one in scans if any(one.label_values.get(k) for k in range(1, len(labels.foreground) + 1))]
    stretched = [one for one in drawn if one.two_valued_255]
    indices = tuple(range(2 if labels.stacked else len(labels.foreground) + 1))
    if not stretched:
        return MaskValues(indices, f"{listed(indices)}: those of the training labels")
    if len(stretched) < len(drawn):
        mixed = f"{len(stretched)} of {len(drawn)} training labels hold 0 and 255, the others 0 and 1"
        return MaskValues(reason=f"class indices: {mixed}")
    return MaskValues((0, 255), "0, 255: those of the training labels")


def _of_lists(labels: Labels) -> MaskValues:
    """Of classes that declare their values."""
    if labels.multilabel:
        return MaskValues((0, 1), "0, 1: a map for each of the overlapping classes")
    several = [name for name, values in zip(labels.foreground, labels.stored, strict=True) if len(values) > 1]
    if several:
        return MaskValues(reason=f"class indices: several values of the training labels are {several[0]}")
    background = 0 if 0 in labels.background else labels.background[0]
    values = (background, *(value for (value,) in labels.stored))
    if max(values) > LARGEST:
        return MaskValues(reason=f"class indices: the training labels hold values above {LARGEST}")
    return MaskValues(values, f"{listed(values)}: those of the training labels")
