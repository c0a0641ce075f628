"""One orientation for the network: volumes are turned to the closest canonical axes (RAS), answers are turned back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

V = TypeVar("V")

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
        flips: tuple[Any, ...] = (..., *(slice(None, None, -1 if flip else 1) for flip in self.flipped))
        return turned[flips]

    def order(self, values: Sequence[V]) -> tuple[V, ...]:
        """One value for every stored axis, in the order of the turned axes."""
        return tuple(values[axis] for axis in self.axes) if self.axes else tuple(values)

    def stored(self, values: Sequence[V]) -> tuple[V, ...]:
        """One value for every turned axis, in the order of the stored axes."""
        return tuple(values[self.axes.index(axis)] for axis in range(len(values))) if self.axes else tuple(values)


AS_STORED = Turn()


def to_canonical(affine: NDArray[np.float64], dims: int) -> Turn:
    """The turn to the closest canonical axes, whose directions agree best; equal ones are the same in the world.

    Args:
        affine: (4, 4), voxel index -> RAS mm; a 2D image uses its first two axes.
        dims: 2 or 3.

    Example:
        >>> to_canonical(np.diag([-1.0, -1.0, 4.0, 1.0]), 3)
        Turn(axes=(0, 1, 2), flipped=(True, True, False))
    """
    steps = affine[:3, :dims] / np.linalg.norm(affine[:3, :dims], axis=0)
    found: list[tuple[tuple[float, ...], Turn]] = []
    for worlds in itertools.combinations(range(3), dims):
        for axes in itertools.permutations(range(dims)):
            along = [float(steps[world, axis]) for world, axis in zip(worlds, axes, strict=True)]
            flipped = tuple(step < 0 for step in along)
            where = np.round([-steps[:, a] if f else steps[:, a] for a, f in zip(axes, flipped, strict=True)], _DIGITS)
            agreement = (round(sum(map(abs, along)), _DIGITS), *(where + 0.0).ravel().tolist())
            found.append((agreement, Turn(axes, flipped)))
    _, turn = max(found, key=lambda one: one[0])
    return AS_STORED if turn == Turn(tuple(range(dims)), (False,) * dims) else turn
