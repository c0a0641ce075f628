"""How a prediction keeps to a number of bytes: in how many columns an image is answered, and what that costs in windows.

Legend: K maps, S axes of an image as the network sees it. Slabs lie along one axis; a column is a range of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ulna.planning.memory import MemoryEstimate

LIBRARIES = 140 * 10**6  # code, threads and buffers that the first windows load: 60 to 120 MB were seen
WORKING = 160 * 10**6  # slabs on their way: labels, resampling, components, files
PREPARING = 96 * 10**6  # of an image on its way to the network's grid, unless one row takes more
NARROWEST = 8  # voxels across a column
MARGIN = 1.04  # what an allocator cannot fill


class Needs(NamedTuple):
    """What predicting one image takes, whichever way.

    Args:
        program: bytes that the process holds before it.
        window: of one window, with its maps and its probabilities.
        ring: voxels across the column -> bytes of all maps that are held for a slab.
        preparing: to bring the image to the grid.
        finishing: once the mask is there.
        width: voxels of the image along the axis of the columns; 0 where it is answered in one.
        count: the ends of a column -> how many windows touch it; None stands for the whole.
    """

    program: float
    window: float
    ring: Callable[[int], float]
    preparing: float
    finishing: float
    width: int
    count: Callable[[tuple[int, int] | None], int]

    def total(self, across: int) -> float:
        """Bytes at the peak with columns of so many voxels."""
        return MARGIN * (self.program + max(self.window + self.ring(across) + WORKING, self.preparing, self.finishing))

    def estimate(self, across: int) -> MemoryEstimate:
        """The same by what takes it, of the step that takes most."""
        parts = {"program": self.program, "window": self.window, "slab": self.ring(across), "working space": WORKING}
        if self.preparing > sum(parts.values()) - self.program:
            parts = {"program": self.program, "image": self.preparing}
        if self.finishing > sum(parts.values()) - self.program:
            parts = {"program": self.program, "mask": self.finishing}
        return MemoryEstimate({name: MARGIN * size for name, size in parts.items()})


class Columns(NamedTuple):
    """In what an image is answered.

    Args:
        ends: first and end of every column, in voxels of the image.
        cost: how many windows are asked for, over those of the whole.
        peak: bytes.
    """

    ends: tuple[tuple[int, int], ...]
    cost: float
    peak: float


def plan_columns(needs: Needs, limit: float) -> Columns | None:
    """The fewest columns with which a prediction keeps to a limit in bytes; None where none are narrow enough."""
    width = max(needs.width, 1)
    most = max(1, width // NARROWEST) if needs.width else 1
    for count in range(1, most + 1):
        ends = tuple((width * n // count, width * (n + 1) // count) for n in range(count))
        across = max(end - first for first, end in ends)
        if (peak := needs.total(across)) <= limit:
            if count == 1:
                return Columns(ends, 1.0, peak)
            whole = needs.count(None)
            return Columns(ends, sum(map(needs.count, ends)) / max(whole, 1), peak)
    return None


def least(needs: Needs) -> float:
    """The least limit with which a prediction works, in bytes, rounded up to 10 MB."""
    narrow = -(-needs.width // max(1, needs.width // NARROWEST)) if needs.width else 1
    return math.ceil(needs.total(narrow) / 1e7) * 1e7


def ring_bytes(maps: int, members: int, reach: int, across: int, rest: Sequence[int], own_rest: Sequence[int]) -> float:
    """Bytes of the sums of windows in a column, and of what is made of a slab of them.

    Args:
        maps: K.
        members: networks that answer side by side.
        reach: rows that a window touches.
        across: voxels across the column.
        rest: the size of the other axes on the grid of the plan.
        own_rest: the same on the grid of the image.
    """
    held = 4.0 * (maps + 1) * reach * across * math.prod(rest)
    row = 4.0 * maps * across * max(math.prod(rest), math.prod(own_rest))
    mean = (members + 1) * held if members > 1 else 0.0  # slabs side by side, and their mean
    return members * held + mean + 5 * row
