"""One orientation for the network: volumes are turned to the closest canonical axes (RAS), answers are turned back.

A turn is made of transpositions and flips alone, so it loses nothing and its way back is exact. What an oblique image is
rotated beyond that stays as it is. Canonical axes run from left to right, from back to front and from foot to head; the two
axes of a 2D image are those of these three that it spans, in that order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ulna.data.turning import TURNS, UPRIGHT, orientation_of
from ulna.data.volume import Volume
from ulna.recipe import Plan

V = TypeVar("V")

DIRECTIONS = ("left to right", "back to front", "foot to head")  # of the world axes
ENDS = (("L", "R"), ("P", "A"), ("I", "S"))  # where each world axis begins and ends
# By the world axes that a slice spans
PLANES: dict[tuple[int, ...], str] = {(0, 1): "axial", (0, 2): "coronal", (1, 2): "sagittal"}
_DIGITS = 6  # what is equal to so many digits is a tie; files hold seven


class Turn(NamedTuple):
    """How a stored image is turned: axis i of the turned one is axis `axes[i]` of the stored one.

    Args:
        axes: empty for an image that stays as it is stored.
        flipped: whether axis i of the turned image runs against that of the stored one.
    """

    axes: tuple[int, ...] = ()
    flipped: tuple[bool, ...] = ()

    def forward(self, array: NDArray[Any]) -> NDArray[Any]:
        """The turned array, a view: (..., *S) -> (..., *S turned)."""
        lead = array.ndim - len(self.axes)
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return turned[self._flips()]

    def back(self, array: NDArray[Any]) -> NDArray[Any]:
        """The way back from `forward`, a view: (..., *S turned) -> (..., *S)."""
        lead = array.ndim - len(self.axes)
        straight = array[self._flips()]
        return straight.transpose(*range(lead), *(lead + self.axes.index(axis) for axis in range(len(self.axes))))

    def _flips(self) -> tuple[Any, ...]:
        return (..., *(slice(None, None, -1 if flip else 1) for flip in self.flipped))

    def order(self, values: Sequence[V]) -> tuple[V, ...]:
        """One value for every stored axis (sizes, spacings), in the order of the turned axes."""
        return tuple(values[axis] for axis in self.axes) if self.axes else tuple(values)

    def stored(self, values: Sequence[V]) -> tuple[V, ...]:
        """One value for every turned axis, in the order of the stored axes."""
        return tuple(values[self.axes.index(axis)] for axis in range(len(values))) if self.axes else tuple(values)

    def affine(self, affine: NDArray[np.float64], size: Sequence[int]) -> NDArray[np.float64]:
        """The affine of the turned image, whose stored size is `size`: (4, 4) -> (4, 4)."""
        turned = affine.copy()
        for new, (old, flip) in enumerate(zip(self.axes, self.flipped, strict=True)):
            turned[:, new] = -affine[:, old] if flip else affine[:, old]
            if flip:
                turned[:, 3] += affine[:, old] * (size[old] - 1)
        return turned


AS_STORED = Turn()


def turned(volume: Volume, turn: Turn) -> Volume:
    """The volume along the turned axes; its array is a view. It is for the network: files are written as they were stored."""
    if not turn.axes:
        return volume
    affine = None if volume.affine is None else turn.affine(volume.affine, volume.size)
    meta = replace(volume.meta, orientation=UPRIGHT)  # else its tag would turn it once more
    return Volume(turn.forward(volume.array), turn.order(volume.spacing), volume.unit, affine, volume.path, meta)


def turn_of(volume: Volume, plan: Plan) -> Turn:
    """How a volume is turned for the network of a plan; not at all where the plan or the file has no orientation.

    Plans of format 1 saw pictures as they are stored, whatever their orientation tag said.
    """
    if plan.format == 1:
        return _as_stored(orientation_of(volume), volume.spatial_dims)
    if plan.orientation is None or volume.affine is None:
        return AS_STORED
    return to_canonical(volume.affine, volume.spatial_dims)


def _as_stored(orientation: int, dims: int) -> Turn:
    """From a picture as viewers show it to the order of its file."""
    if orientation == UPRIGHT:
        return AS_STORED
    exchanged, rows, columns = TURNS[orientation]
    depth = dims - 2
    axes, flips = ((depth + 1, depth), (columns, rows)) if exchanged else ((depth, depth + 1), (rows, columns))
    return Turn((*range(depth), *axes), (*(False,) * depth, *flips))


def to_canonical(affine: NDArray[np.float64], dims: int) -> Turn:
    """The turn to the closest canonical axes.

    Of all ways to name the axes the one is taken whose directions agree best, and of equal ones (an image at 45 degrees) the
    same in the world however the image is stored; nibabel's `io_orientation` goes axis by axis, and there the answer depends
    on their order.

    Args:
        affine: (4, 4), voxel index -> RAS mm; a 2D image uses its first two axes.
        dims: 2 or 3.

    Example:
        >>> to_canonical(np.diag([-1.0, -1.0, 4.0, 1.0]), 3)  # LPS
        Turn(axes=(0, 1, 2), flipped=(True, True, False))
    """
    return _closest(affine, dims)[0]


def world_of(affine: NDArray[np.float64], dims: int) -> tuple[int, ...]:
    """The world axis (0: left to right, 1: back to front, 2: foot to head) that every canonical axis goes along."""
    return _closest(affine, dims)[1]


def tilt_of(affine: NDArray[np.float64], dims: int) -> float:
    """The largest angle, in degrees, between an axis of an image and the canonical one that it is taken for.

    Example:
        >>> tilt_of(np.diag([-1.0, -1.0, 4.0, 1.0]), 3)
        0.0
    """
    turn, worlds = _closest(affine, dims)
    steps = affine[:3, :dims] / np.linalg.norm(affine[:3, :dims], axis=0)
    along = [abs(float(steps[world, axis])) for world, axis in zip(worlds, turn.axes or range(dims), strict=True)]
    return float(np.degrees(np.arccos(np.clip(min(along), 0.0, 1.0))))


def _closest(affine: NDArray[np.float64], dims: int) -> tuple[Turn, tuple[int, ...]]:
    """The turn, and the world axes that the turned axes go along."""
    steps = affine[:3, :dims] / np.linalg.norm(affine[:3, :dims], axis=0)
    found: list[tuple[tuple[float, ...], Turn, tuple[int, ...]]] = []
    for worlds in itertools.combinations(range(3), dims):
        for axes in itertools.permutations(range(dims)):
            along = [float(steps[world, axis]) for world, axis in zip(worlds, axes, strict=True)]
            flipped = tuple(step < 0 for step in along)
            where = np.round([-steps[:, a] if f else steps[:, a] for a, f in zip(axes, flipped, strict=True)], _DIGITS)
            agreement = (round(sum(map(abs, along)), _DIGITS), *(where + 0.0).ravel().tolist())
            found.append((agreement, Turn(axes, flipped), worlds))
    _, turn, worlds = max(found, key=lambda one: one[0])
    return (AS_STORED if turn == Turn(tuple(range(dims)), (False,) * dims) else turn), worlds


def codes(affine: NDArray[np.float64], dims: int) -> str:
    """Where each stored axis points to, such as RAS or LPS.

    Example:
        >>> codes(np.diag([-1.0, 1.0, 4.0, 1.0]), 3)
        'LAS'
    """
    turn, worlds = _closest(affine, dims)
    flipped = turn.stored(turn.flipped or (False,) * dims)
    return "".join(ENDS[world][0 if flip else 1] for world, flip in zip(turn.stored(worlds), flipped, strict=True))
