"""Maps that are held elsewhere and read in boxes, gone through slab by slab."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Boxed(NamedTuple):
    """Maps that are read in boxes.

    Args:
        shape: (K, *S).
        dtype: of the values.
        read: box, channels -> (channels, *box).
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[Sequence[slice], Sequence[int]], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return math.prod(self.shape) * self.dtype.itemsize

    def whole(self) -> NDArray[Any]:
        """All of them in memory."""
        return self.read([slice(0, n) for n in self.shape[1:]], range(self.shape[0]))

    def of_type(self, dtype: np.dtype[Any]) -> Boxed:
        """The same values in another type."""
        return Boxed(self.shape, dtype, lambda box, channels: self.read(box, channels).astype(dtype, copy=False))


def slabs_along(
    maps: Boxed, axis: int, most: int, channels: Sequence[int] | None = None
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Rows along a spatial axis, and where they lie: all, in order, of at most so many bytes each, and a row at least."""
    channels = range(maps.shape[0]) if channels is None else channels
    size = maps.shape[1:]
    each = len(channels) * maps.dtype.itemsize * math.prod(size) // max(1, size[axis])
    rows = max(1, most // max(1, each))
    for start in range(0, size[axis], rows):
        here = slice(start, min(start + rows, size[axis]))
        box = [here if a == axis else slice(0, n) for a, n in enumerate(size)]
        yield here, maps.read(box, channels)


def boxed(array: NDArray[Any]) -> Boxed:
    """Those of an array in memory, (K, *S)."""

    def read(box: Sequence[slice], channels: Sequence[int]) -> NDArray[Any]:
        place: tuple[Any, ...] = (list(channels), *box)
        return array[place]

    return Boxed(array.shape, array.dtype, read)
