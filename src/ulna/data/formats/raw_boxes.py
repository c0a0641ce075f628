"""Boxes of values that lie in a file one after the other, unpacked: no more is held than a box and a few MB."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.offsets import read_at
from ulna.data.formats.slabs import native

_PIECE = 1 << 22  # bytes that are read at once
_RUN = 1 << 16  # bytes in one run that are worth a call


class Boxes(Protocol):
    """What gives the values of an image box by box."""

    def read(self, box: Sequence[slice]) -> NDArray[Any]:
        """(C, *box), as the whole reader gives them; every slice has a start and a stop, and no step."""
        ...

    def close(self) -> None:
        """Close the file, or give back what lies on the disk."""
        ...


class RawFile:
    """An array in a file.

    Args:
        file: open for reading; closed with this.
        offset: of its first value.
        dtype: of the values in the file.
        shape: the fastest axis first.
        convert: from values of the file to those that are given; None for those of `native`.
    """

    def __init__(
        self,
        file: IO[bytes],
        offset: int,
        dtype: np.dtype[Any],
        shape: Sequence[int],
        convert: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    ) -> None:
        self._file, self._offset, self._stored, self.shape = file, offset, dtype, tuple(shape)
        self._convert = convert
        self.dtype = native(dtype) if convert is None else np.dtype(np.float32)

    def read(self, box: Sequence[slice]) -> NDArray[Any]:
        """The values of a box, its axes in the order of `shape`."""
        made = np.empty([part.stop - part.start for part in box], self.dtype, order="F")
        if not made.size:
            return made
        axis = self._axis(box)
        row = math.prod(self.shape[:axis])
        steps = [math.prod(self.shape[:a]) for a in range(len(self.shape))]
        count = max(1, _PIECE // (row * self._stored.itemsize))
        for rest in np.ndindex(*(part.stop - part.start for part in box[axis + 1 :])):
            far = sum((box[axis + 1 + a].start + at) * steps[axis + 1 + a] for a, at in enumerate(rest))
            for start in range(box[axis].start, box[axis].stop, count):
                rows = min(count, box[axis].stop - start)
                values = self._values(far + start * row, rows * row).reshape((*self.shape[:axis], rows), order="F")
                values = values[tuple(box[:axis])]
                here = slice(start - box[axis].start, start - box[axis].start + rows)
                made[(*[slice(None)] * axis, here, *rest)] = values if self._convert is None else self._convert(values)
        return made

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _axis(self, box: Sequence[slice]) -> int:
        """The axis below which all is read: as high as a piece allows, and no higher than runs of some length are."""
        size = self._stored.itemsize
        highest = max(a for a in range(len(self.shape)) if a == 0 or math.prod(self.shape[:a]) * size <= _PIECE)
        for axis in range(highest):
            cut = box[axis].stop - box[axis].start
            if cut < self.shape[axis] and math.prod(self.shape[:axis]) * cut * size >= _RUN:
                return axis
        return highest

    def _values(self, first: int, count: int) -> NDArray[Any]:
        size = self._stored.itemsize
        data, at = bytearray(count * size), 0
        while at < len(data):
            found = read_at(self._file.fileno(), len(data) - at, self._offset + first * size + at)
            if not found:
                raise OSError("the file was cut while it was read")
            data[at : at + len(found)] = found
            at += len(found)
        return np.frombuffer(data, self._stored)


class Reordered:
    """The boxes of an array whose axes stand in another order in the file.

    Args:
        file: the array.
        order: for every axis of (C, *S), its axis in the file; None where the file has no such axis.
    """

    def __init__(self, file: RawFile, order: Sequence[int | None]) -> None:
        self._file, self._order = file, tuple(order)

    def read(self, box: Sequence[slice]) -> NDArray[Any]:
        """(C, *box)."""
        channels = self._order[0]
        wanted: list[slice] = [slice(0, n) for n in self._file.shape]
        for axis, part in zip(self._order[1:], box, strict=True):
            if axis is not None:
                wanted[axis] = part
        values = self._file.read(wanted)
        count = 1 if channels is None else self._file.shape[channels]
        kept = [axis for axis in self._order if axis is not None]
        values = values.transpose(*kept, *(a for a in range(values.ndim) if a not in kept))
        return values.reshape((count, *(part.stop - part.start for part in box)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
