"""Volumes as slices: each with its neighbours as channels, the outermost repeated beyond the ends.

Legend: D slices, C channels of an image, T slices seen at once, (H, W) the plane of a slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ALIKE = 0.01  # spacings that differ by less count as one


def coarsest_axis(spacing: Sequence[float], *, oriented: bool) -> int:
    """The axis with the largest spacing, which slices lie across: as they were taken.

    Of several, the one nearest to foot to head where the axes are canonical, else the first, by which stacks are stored.

    Example:
        >>> coarsest_axis((1, 5, 1), oriented=True)
        1
        >>> coarsest_axis((1, 1, 1), oriented=True), coarsest_axis((1, 1, 1), oriented=False)
        (2, 0)
    """
    largest = [axis for axis, step in enumerate(spacing) if math.isclose(step, max(spacing), rel_tol=ALIKE)]
    return largest[-1 if oriented else 0]


def neighbourhoods(image: Tensor, axis: int, places: Sequence[int], neighbours: int) -> Tensor:
    """What a 2D network sees of some slices of a volume: (C, *S) -> (len(places), T * C, H, W).

    Channels are those of the first neighbour, then those of the next, in the order of the slices.

    Example:
        >>> volume = torch.arange(3.0).reshape(1, 3, 1, 1)
        >>> neighbourhoods(volume, 0, [0, 2], 1).flatten(1).tolist()
        [[0.0, 0.0, 1.0], [1.0, 2.0, 2.0]]
    """
    around = torch.arange(-neighbours, neighbours + 1)
    rows = (torch.as_tensor(places)[:, None] + around).clamp(0, image.shape[axis + 1] - 1)
    return image.movedim(axis + 1, 0)[rows.to(image.device)].flatten(1, 2)


def stacked(image: Tensor, axis: int, neighbours: int) -> Tensor:
    """A volume slice by slice, so that a neighbourhood is a part of its memory: (C, *S) -> (D + 2n, C, H, W)."""
    slices = image.movedim(axis + 1, 0)
    rows = torch.arange(-neighbours, len(slices) + neighbours).clamp(0, len(slices) - 1)
    return slices[rows.to(image.device)].contiguous()


def seen_in_stack(stack: Tensor, place: int, neighbours: int) -> Tensor:
    """What a 2D network sees of one slice, a view: (D + 2n, C, H, W) -> (T * C, H, W)."""
    return stack[place : place + 2 * neighbours + 1].flatten(0, 1)
