"""What checking takes, in bytes, before it is taken: where `--max-ram` bounds a process, it decides what is checked."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

from ulna.data.formats.label_maps import encoding_bytes
from ulna.data.formats.limits import check_need, keeping_to
from ulna.data.volume import Volume
from ulna.recipe import Labels

LOADED = 40 * 10**6  # code that reading and printing load: 10 to 30 MB were seen
WORKING = 120 * 10**6  # slabs on their way, and the box around one numbered object
KEPT = 40_000  # bytes a case that are kept of it until all are compared
SMALLER = "cut it into smaller images"


def checking_within(max_pixels: int | None, max_ram: float | None) -> AbstractContextManager[None]:
    """Keep this process to so many GB inside; without, an image may unpack to half of what the machine has."""
    if max_ram is not None:
        from ulna.kernels.allocator import give_back_memory  # torch, without which much of this room works

        give_back_memory()
    return keeping_to(max_pixels, max_ram, LOADED + WORKING, SMALLER)


def check_classes(reference: Volume, labels: Labels | None) -> None:
    """Refuse a label map of which the memory does not hold what is made of it: classes, and where they are known.

    Raises:
        TooLargeError: with what it needs at least.
    """
    size, need = reference.array.dtype.itemsize, 2.0 * math.prod(reference.size)
    if labels is None:
        need += 8 * math.prod(reference.size) if size > 2 else 0  # places of numbers that are not small
    else:
        known = 3 * (len(labels.foreground) if labels.multilabel else 1) if labels.ignored is not None else 0
        need += encoding_bytes(reference, labels) + known * math.prod(reference.size)
    check_need(reference.path, reference.array.nbytes + need, "with its classes it")
