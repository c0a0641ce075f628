"""The slices of volumes: how many hold a structure, and how many hold nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.slabs import SLAB
from ulna.system.mapped import InFile, let_go_of_part


class SliceCount(NamedTuple):
    """The slices of volumes across one axis.

    Args:
        full: they hold a structure.
        empty: they hold none, but more than one value.
        blank: neither: every channel has one value, as outside a brain that was cut out, or no class is known.
    """

    full: int = 0
    empty: int = 0
    blank: int = 0

    @property
    def all(self) -> int:
        """Of whatever kind."""
        return sum(self)


def count_slices(
    image: NDArray[Any], classes: NDArray[Any] | None, known: NDArray[np.bool_] | None = None
) -> tuple[SliceCount, ...]:
    """The slices of one volume across every axis: (C, *S), (*S) or (K, *S) -> one count an axis; none for a 2D image.

    `known` is (*S): where the class is known, if not everywhere.

    Example:
        >>> image, classes = np.zeros((1, 4, 2, 2)), np.zeros((4, 2, 2), np.uint8)
        >>> image[0, 1:, 0], classes[2, 0] = 5, 1
        >>> count_slices(image, classes)[0]
        SliceCount(full=1, empty=2, blank=1)
    """
    if image.ndim != 4:
        return ()
    inside = _of_axes(np.zeros(image.shape[1:], bool) if classes is None else classes, np.any)
    varied = [np.zeros(n, bool) for n in image.shape[1:]]
    for channel in image:
        with np.errstate(invalid="ignore"):  # NaN is told elsewhere
            low, high = _of_axes(channel, np.min), _of_axes(channel, np.max)
        varied = [seen | (a != b) for seen, a, b in zip(varied, low, high, strict=True)]
    if known is not None:
        varied = [seen & some for seen, some in zip(varied, _of_axes(known, np.any), strict=True)]
    return tuple(
        SliceCount(int(full.sum()), int((more & ~full).sum()), int((~more & ~full).sum()))
        for full, more in zip(inside, varied, strict=True)
    )


def added(counts: Sequence[Sequence[SliceCount]]) -> tuple[SliceCount, ...]:
    """The counts of several volumes, axis by axis, as one."""
    return tuple(SliceCount(*map(sum, zip(*of_axis, strict=True))) for of_axis in zip(*counts, strict=True))


def _of_axes(values: NDArray[Any], reduce: Callable[..., Any]) -> list[NDArray[Any]]:
    """(..., *S) -> for each of the last three axes what its slices come to; volumes are gone through twice, not thrice."""
    while values.ndim > 3:  # overlapping classes
        values = reduce(values, axis=0)
    if isinstance(values, InFile):
        rows = max(1, SLAB // max(1, values[0].nbytes))
        parts = [_over_both(values[first : first + rows], reduce) for first in range(0, len(values), rows)]
        over_last = np.concatenate([one for one, _ in parts])
        over_first = reduce(np.stack([one for _, one in parts]), axis=0)
    else:
        over_last, over_first = _over_both(values, reduce)
    return [reduce(over_last, axis=1), reduce(over_last, axis=0), reduce(over_first, axis=0)]


def _over_both(values: NDArray[Any], reduce: Callable[..., Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    made = np.asarray(reduce(values, axis=2)), np.asarray(reduce(values, axis=0))
    let_go_of_part(values)
    return made
