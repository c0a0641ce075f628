"""What scoring takes, in bytes, before it is taken: where `--max-ram` bounds all of a process, it decides what is scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager

from ulna.data.formats.label_maps import encoding_bytes
from ulna.data.formats.limits import check_need, keeping_to
from ulna.data.volume import Volume, label_dtype
from ulna.evaluation.boxes import Located
from ulna.evaluation.choice import Choice
from ulna.evaluation.surfaces import Mask, count_surface
from ulna.recipe import Labels

LOADED = 60 * 10**6  # code that reading, scoring and drawing load: 20 to 50 MB were seen
WORKING = 120 * 10**6  # slabs on their way, pictures of a page
LESIONS = 10  # bytes a voxel of the box: numbers of objects
CENTRELINE = 4  # bytes a voxel of the box: skeletons
BOUNDARY = 18  # bytes a voxel of the box: places of the contour
MASKS = 2  # bytes a voxel of the box: both masks
THINNED = 90  # bytes a voxel of a mask whose centreline is looked for
SURFACE = 150  # bytes a voxel of either surface: where it lies, the tree of the other, both distances
CALIBRATED = 60  # bytes a voxel of the image beside the probabilities
UNCHOSEN = "raise it, or name the measures, which are then the same for any limit (--metrics surface)"
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
    each = 1
    if labels.ignored is not None:  # where the class is known, and both maps again
        each = maps * (1 + 2 * label_dtype(1 if labels.multilabel else len(labels.foreground) + 1).itemsize)
    if numbers:
        each += 2 * volume.array.dtype.itemsize + 12
    if choice.has("calibration"):
        each += 13 * (len(labels.foreground) + 1)  # stored, checked, cut to 0 and 1
    return float(each * voxels)


def check_structures(
    where: object,
    found: Mapping[str, Located],
    masks: Callable[[Located], Collection[Mask]],
    families: Mapping[str, Collection[str]],
    *,
    surface: bool,
    voxels: int,
) -> None:
    """Refuse a case whose structures take more than the memory holds, one after the other: by the one that takes most.

    Args:
        where: the case.
        found: the name of every structure, and where it lies.
        masks: of prediction and reference, in its box.
        families: that are measured, of every structure.
        surface: whether distances are.
        voxels: of the image.

    Raises:
        TooLargeError: with what that one needs, so that none of the others needs more.
    """
    most, name = 0.0, ""
    for one_name, one in found.items():
        need = _structure_bytes(one, masks(one), families[one_name], surface=surface)
        if "calibration" in families[one_name]:
            need = max(need, CALIBRATED * voxels)
        if need >= most:
            most, name = need, one_name
    check_need(where, most, f"scoring {name}", f"raise it, or {SMALLER}")


def _structure_bytes(one: Located, masks: Collection[Mask], families: Collection[str], *, surface: bool) -> float:
    box = math.prod(part.stop - part.start for part in one.box)
    tp, fp, fn = one.counts
    each = {
        "surface": SURFACE * sum(map(count_surface, masks)) if surface else 0,
        "lesions": LESIONS * box,
        "cldice": CENTRELINE * box + THINNED * max(tp + fp, tp + fn),
        "boundary": BOUNDARY * box,
    }
    return float(max(need for family, need in each.items() if family in families or family == "surface") + MASKS * box)
