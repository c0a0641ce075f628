"""Volumes as slices: what a plan says of them."""

from __future__ import annotations

from pydantic import Field

from ulna.recipe.bounds import MOST_NEIGHBOURS, Axis
from ulna.recipe.model import Frozen


class Slices(Frozen):
    """The slices of volumes that a 2D network reads: each by itself, or with those beside it as further channels."""

    axis: Axis  # of a volume, as the network sees it, that they lie across
    neighbours: int = Field(
        default=0, ge=0, le=MOST_NEIGHBOURS
    )  # on each side; beyond the ends the outermost are repeated
    empty: float = Field(default=1.0, ge=0, le=1)  # share of the slices without a structure that an epoch draws
    # of the training cases: slices that hold a structure, and those that hold none, but more than one value
    full_count: int = Field(ge=0)
    empty_count: int = Field(ge=0)

    @property
    def plane(self) -> tuple[int, ...]:
        """The axes that a slice spans."""
        return tuple(axis for axis in range(3) if axis != self.axis)

    @property
    def thickness(self) -> int:
        """Slices that the network sees at once."""
        return 2 * self.neighbours + 1

    @property
    def per_epoch(self) -> int:
        """Slices that one pass over the training cases draws."""
        return count_drawn(self.full_count, self.empty_count, self.empty)


def count_drawn(full: int, empty: int, share: float) -> int:
    """How many slices one pass draws: all that hold a structure, a share of the others, and at least one.

    Example:
        >>> count_drawn(10, 5, 0.5), count_drawn(0, 5, 0.0)
        (12, 5)
    """
    drawn = full + round(share * empty)
    return drawn or max(1, empty)
