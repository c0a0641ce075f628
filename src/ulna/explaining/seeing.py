"""What of an image a network sees at once, and where that lies: a window, or the slice of a volume with its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ulna.data.pipeline.slices import neighbourhoods
from ulna.recipe import Slices


class Piece(NamedTuple):
    """A box of the grid of the plan.

    Args:
        corner: its first voxel.
        size: its sides, in voxels; 1 across the slices that a 2D network sees of a volume.
    """

    corner: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def window(self) -> tuple[Any, ...]:
        """The index of the box in an array whose last axes are the spatial ones."""
        return (..., *(slice(start, start + side) for start, side in zip(self.corner, self.size, strict=True)))


def seen(image: Tensor, piece: Piece, slices: Slices | None) -> Tensor:
    """What the network is given of a piece: (C, *S') -> (C, *s), or (T * C, h, w) of a slice with its neighbours."""
    if slices is None:
        return image[piece.window]
    return neighbourhoods(image, slices.axis, [piece.corner[slices.axis]], slices.neighbours)[0][_plane(piece, slices)]


def add_seen(total: Tensor, piece: Piece, slices: Slices | None, values: Tensor) -> None:
    """Add what `seen` has a value for where that comes from: a slice that was seen several times gets all of them."""
    if slices is None:
        total[piece.window] += values
        return
    by_slice = total.movedim(slices.axis + 1, 0)
    first = piece.corner[slices.axis] - slices.neighbours
    for place, part in enumerate(torch.split(values, len(total)), start=first):
        by_slice[min(max(place, 0), len(by_slice) - 1)][_plane(piece, slices)] += part


def flat(values: Tensor, slices: Slices | None) -> Tensor:
    """A map of a piece as the network has it: (..., *s), of a slice without the axis across it."""
    return values if slices is None else values.squeeze(slices.axis - 3)


def lifted(values: Tensor, slices: Slices | None) -> Tensor:
    """The way back from `flat`."""
    return values if slices is None else values.unsqueeze(slices.axis - 3)


def most_seen(region: Tensor, inside: Tensor, slices: Slices | None) -> Tensor:
    """Of a region, what lies in the slice that pictures show: the one in which it is largest on the grid of the image.

    Args:
        region: (*S'), bool, on the grid of the plan.
        inside: (*S), bool, the same on that of the image, turned.
        slices: None: all of the region.
    """
    if slices is None or region.shape[slices.axis] != inside.shape[slices.axis]:
        return region
    place = int(inside.movedim(slices.axis, 0).flatten(1).sum(1).argmax())
    one = torch.zeros_like(region)
    one.select(slices.axis, place).copy_(region.select(slices.axis, place))
    return one if one.any() else region


def whole(sides: Sequence[int], slices: Slices | None) -> tuple[int, ...]:
    """The sides of what a network sees as those of a piece."""
    return tuple(sides) if slices is None else (*sides[: slices.axis], 1, *sides[slices.axis :])


def _plane(piece: Piece, slices: Slices) -> tuple[Any, ...]:
    return (..., *(piece.window[1 + axis] for axis in slices.plane))
