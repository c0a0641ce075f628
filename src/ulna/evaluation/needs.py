"""What scoring takes, in bytes, before it is taken: where `--max-ram` bounds all of a process, it decides what is scored."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import AbstractContextManager

from ulna.data.formats.label_maps import encoding_bytes
from ulna.data.formats.limits import check_need, keeping_to
from ulna.data.volume import Volume
from ulna.evaluation.boxes import Located
from ulna.evaluation.choice import Choice
from ulna.evaluation.surfaces import Mask, count_surface
from ulna.recipe import Labels

LOADED = 60 * 10**6  # code that reading, scoring and drawing load: 20 to 50 MB were seen
WORKING = 120 * 10**6  # slabs on their way, pictures of a page
LESIONS, CENTRELINE, BOUNDARY = (
    10,
    4,
    18,
)  # bytes a voxel of the box: numbers of objects; skeletons; places of the contour
MASKS = 2  # bytes a voxel of the box: both masks
THINNED = 90  # bytes a voxel of a mask whose centreline is looked for
SURFACE = 150  # bytes a voxel of either surface: where it lies, the tree of the other, both distances
CALIBRATED = 60  # bytes a voxel of the image beside the probabilities
SMALLER = "score smaller images, or on a machine with more memory"


def scoring_within(max_ram: float | None) -> AbstractContextManager[None]:
    """Keep this process to so many GB inside: what would take more is a `TooLargeError` beforehand."""
    if max_ram is not None:
        from ulna.kernels.allocator import give_back_memory  # torch, without which much of this room works

        give_back_memory()
    return keeping_to(None, max_ram, LOADED + WORKING, SMALLER)


def check_encoding(volume: Volume, labels: Labels) -> None:
    """Refuse a label map of whose class indices, made beside it, the memory does not hold what they take."""
    check_need(volume.path, volume.array.nbytes + encoding_bytes(volume, labels), "with its classes it")


def known_bytes(volume: Volume, labels: Labels, choice: Choice, *, numbers: bool) -> float:
    """What a case takes for a while beside its two maps: where the class is known, numbers of objects, probabilities; a slice
    to draw is looked for in any case."""
    voxels, maps = math.prod(volume.size), len(labels.foreground) if labels.multilabel else 1
    each = max(3 * maps if labels.ignored is not None else 0, 1)
    if numbers:
        each += 2 * volume.array.dtype.itemsize + 12
    if choice.has("calibration"):
        each += 13 * (len(labels.foreground) + 1)  # stored, checked, cut to 0 and 1
    return float(each * voxels)


def check_structure(
    where: object, name: str, one: Located, masks: Collection[Mask], families: Collection[str], *, surface: bool
) -> None:
    """Refuse a structure of which the memory does not hold what measuring it takes.

    Args:
        where: the case.
        name: of the structure.
        one: where it lies.
        masks: of prediction and reference, in its box.
        families: that are measured.
        surface: whether distances are.
    """
    box = math.prod(part.stop - part.start for part in one.box)
    tp, fp, fn = one.counts
    each = {
        "surface": SURFACE * sum(map(count_surface, masks)) if surface else 0,
        "lesions": LESIONS * box,
        "cldice": CENTRELINE * box + THINNED * max(tp + fp, tp + fn),
        "boundary": BOUNDARY * box,
    }
    most = max(need for family, need in each.items() if family in families or family == "surface")
    check_need(where, most + MASKS * box, f"scoring {name}", f"raise it, or {SMALLER}")
