"""What scoring takes, in bytes, before it is taken: where `--max-ram` bounds all of a process, it decides what is scored."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from ulna.data.formats.limits import allowing, check_need
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.evaluation.boxes import Located
from ulna.evaluation.choice import Choice
from ulna.evaluation.surfaces import Mask, count_surface
from ulna.recipe import Labels
from ulna.system.held import give_back, held_bytes

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


@contextmanager
def scoring_within(max_ram: float | None) -> Iterator[None]:
    """Keep this process to so many GB inside: what would take more is a `TooLargeError` beforehand.

    Raises:
        UsageError: if the process takes them without any image.
    """
    if max_ram is None:
        yield
        return
    if not 0 < max_ram < math.inf:
        raise UsageError(f"--max-ram {max_ram:g}: must be above 0")
    give_back()
    taken = (held_bytes() + LOADED + WORKING) / 1e9
    if taken >= max_ram:
        raise UsageError(f"without any image it takes {taken:.2f} GB, more than --max-ram {max_ram:g} allows; raise it")
    with allowing(None, max_ram, taken, SMALLER):
        yield


def check_encoding(volume: Volume, labels: Labels) -> None:
    """Refuse a label map of whose class indices, made beside it, the memory does not hold what they take."""
    voxels, maps = math.prod(volume.size), len(labels.foreground) if labels.multilabel else 1
    each = 2 * maps + (2 if labels.merges or labels.ignore or labels.instances else 0)
    if volume.array.dtype.itemsize > 1:
        each += 2
    check_need(volume.path, volume.array.nbytes + each * voxels, "with its classes it")


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
