"""Large arrays a slab at a time, in the file's own type: no second copy of an image is made on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.system.mapped import let_go_of_part

SLAB = 1 << 23  # bytes


def slabs(*arrays: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Parts of arrays of one size, flat, in the order of their axes; views where an array is contiguous.

    Of an array that is mapped from a file, each part is let go of when the next one is asked for.
    """
    flat = [array.reshape(-1) for array in arrays]
    step = SLAB // 8  # values: whatever is made of them, up to float64, is no larger than a slab
    for start in range(0, flat[0].size, step):
        parts = tuple(one[start : start + step] for one in flat)
        yield parts
        for part in parts:
            let_go_of_part(part)


def fill(
    target: NDArray[Any],
    read: Callable[[int], bytes | bytearray],
    dtype: np.dtype[Any],
    convert: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> int:
    """Fill an array with values that come in the order of a file, its first axis the fastest.

    Args:
        target: of the file's shape; its own order in memory may be another.
        read: gives the next bytes; fewer than asked for mean that there are no more.
        dtype: of the values in the file.
        convert: from a slab of these to a slab of the target.

    Returns:
        How many bytes there were; fewer than the array holds where the file is cut short.
    """
    shape = target.shape
    if not target.size:
        return 0
    axis = max(a for a in range(target.ndim) if a == 0 or math.prod(shape[:a]) * dtype.itemsize <= SLAB)
    row = math.prod(shape[:axis]) * dtype.itemsize
    step = max(1, SLAB // row)
    done = 0
    for rest in np.ndindex(*reversed(shape[axis + 1 :])):
        for start in range(0, shape[axis], step):
            count = min(step, shape[axis] - start)
            raw = read(count * row)
            done += len(raw)
            if len(raw) < count * row:
                return done
            block = np.frombuffer(raw, dtype).reshape((*shape[:axis], count), order="F")
            place = (*[slice(None)] * axis, slice(start, start + count), *reversed(rest))
            target[place] = block if convert is None else convert(block)
    return done


class Float32:
    """Real or scaled values as float32; counts those that are too large for it.

    Args:
        slope: what stored values are multiplied by.
        intercept: what is added then.
    """

    def __init__(self, slope: float = 1.0, intercept: float = 0.0) -> None:
        self.slope, self.intercept = slope, intercept
        self.count, self.largest = 0, 0.0

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):
            if (self.slope, self.intercept) != (1.0, 0.0):
                values = values.astype(np.float64) * self.slope + self.intercept
            made = values.astype(np.float32)
            if values.dtype.itemsize > 4:
                lost = values[np.isinf(made) & np.isfinite(values)]
                if lost.size:
                    self.count += lost.size
                    self.largest = max(self.largest, float(np.abs(lost).max()))
        return made

    @property
    def too_large(self) -> tuple[int, float] | None:
        """How many values float32 does not hold, and the largest; None for none."""
        return (self.count, self.largest) if self.count else None


def as_float32(array: NDArray[Any]) -> tuple[NDArray[np.float32], tuple[int, float] | None]:
    """An array as float32, and what was too large for it; the same array where it is float32 already."""
    if array.dtype == np.float32 and array.dtype.isnative:
        return array, None
    convert, made = Float32(), np.empty(array.shape, np.float32)
    for part, target in slabs(array, made):
        target[:] = convert(part)
    return made, convert.too_large


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which values of a file are kept: integers in their own, truth values as 0 and 1, others float32."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    return dtype.newbyteorder("=") if dtype.kind in "iu" else np.dtype(np.float32)
